"""MLflow: runs, model versions and the alias `champion`.

One experiment and one registered model, both called `mrse`. A model version is the package folder of the challenger
(safetensors and JSON, nothing pickled) among the artifacts of its training run, tagged with where it came from and,
once live, with its collection. What is live is decided by Milvus (`mrse.index.swap`); the alias here follows. More
experiments keep what the gate decided and its golden requests (`mrse.evaluation.history` and `.golden`), the reports of
ablations, and those of stages that failed.

Cost: importing MLflow takes about 2 s, making a new SQLite store about 2 s, every call after that milliseconds. Reading
from a store that does not exist yet makes nothing and answers "nothing".
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from mrse.config import ServicesConfig
from mrse.errors import ServiceError

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

EXPERIMENT = "mrse"
DECISIONS = "mrse-decisions"  # experiment: one run per decision of the gate
GOLDEN = "mrse-golden"  # experiment: the run that holds the golden requests
ABLATIONS = "mrse-ablations"  # experiment: one run per report of ablations
FAILURES = "mrse-failures"  # experiment: one run per failed stage that has a report
MODEL = "mrse"
CHAMPION = "champion"
PACKAGE = "package"  # artifact folder of the model package
FINGERPRINT = "fingerprint"  # tag: sha256 of the package

_CONNECT_SECONDS = 5.0
_MOST_RECORDS = 5000
_MAX_PARAM = 6000  # MLflow's own limit on the text of one parameter
_ABSENT = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")  # the second is what it says of an unknown alias


@dataclass(frozen=True)
class ModelVersion:
    """One version of the registered model."""

    name: str
    version: int
    run_id: str
    fingerprint: str
    created: datetime
    tags: dict[str, str] = field(default_factory=dict)
    champion: bool = False


@dataclass(frozen=True)
class TrainingRun:
    """One training run; `version` is None where the run ended before it registered a model."""

    run_id: str
    status: str
    started: datetime
    params: dict[str, str]
    metrics: dict[str, float]
    tags: dict[str, str]
    version: ModelVersion | None


@dataclass(frozen=True)
class Record:
    """One run of the experiment `DECISIONS` or `GOLDEN`."""

    run_id: str
    made: datetime
    tags: dict[str, str]
    metrics: dict[str, float]


def log_training_run(
    services: ServicesConfig,
    *,
    params: Mapping[str, Any],
    metrics: Mapping[str, float],
    curves: Mapping[str, Sequence[tuple[int, float]]],
    package: Path,
    artifacts: Sequence[Path] = (),
    tags: Mapping[str, str] | None = None,
    fingerprint: str,
    name: str | None = None,
    started: datetime | None = None,
) -> dict[str, Any]:
    """Log one finished training run and register its package as a new model version.

    Args:
        params: settings, nested mappings allowed (`{"loss": {"alpha": 1.0}}` becomes `loss.alpha`).
        metrics: final values.
        curves: metric name to `(step, value)` points.
        package: the model folder, logged as it is.
        artifacts: files or folders to keep with the run (reports, curves).
        tags: written on the run and on the version: git commit, data hashes, window.
        fingerprint: sha256 of the package, `Retriever.fingerprint`.
        name: what people see of the run in lists; None: a name of MLflow's making.
        started: when training began; None: now.

    Returns:
        `{"run_id", "model_name", "version", "fingerprint"}`, the content of `models/challenger.json`.

    Raises:
        ServiceError: MLflow cannot be reached or refuses.
    """
    labels = {**{k: str(v) for k, v in (tags or {}).items()}, FINGERPRINT: fingerprint}
    with _service(services) as client:
        assert client is not None
        began = None if started is None else int(started.timestamp() * 1000)
        run = client.create_run(_experiment(client, services), start_time=began, tags=labels, run_name=name)
        run_id = run.info.run_id
        try:
            _log_values(client, run_id, params, metrics, curves)
            client.log_artifacts(run_id, str(package), PACKAGE)
            for path in artifacts:
                _log_path(client, run_id, path)
            version = _register(client, run_id, f"{run.info.artifact_uri}/{PACKAGE}", labels)
        except BaseException:
            client.set_terminated(run_id, "FAILED")
            raise
        client.set_terminated(run_id, "FINISHED")
    return {"run_id": run_id, "model_name": MODEL, "version": version, FINGERPRINT: fingerprint}


def champion(services: ServicesConfig) -> ModelVersion | None:
    """The version that the alias `champion` names, or None."""
    with _service(services, create=False) as client:
        if client is None:
            return None
        found = _or_none(client.get_model_version_by_alias, MODEL, CHAMPION)
        return None if found is None else _version(found, champion=True)


def get_version(services: ServicesConfig, version: int | str) -> ModelVersion | None:
    """The given version, or None when MLflow does not know it."""
    with _service(services, create=False) as client:
        found = None if client is None else _or_none(client.get_model_version, MODEL, str(version))
        return None if found is None else _version(found, champion=CHAMPION in (found.aliases or ()))


def set_champion(services: ServicesConfig, version: int | str) -> None:
    """Move the alias `champion` to the given version."""
    with _service(services) as client:
        assert client is not None
        client.set_registered_model_alias(MODEL, CHAMPION, str(version))


def tag_version(services: ServicesConfig, version: int | str, tags: Mapping[str, str]) -> None:
    """Write tags on a version, over older ones of the same name."""
    with _service(services) as client:
        assert client is not None
        for key, value in tags.items():
            client.set_model_version_tag(MODEL, str(version), key, str(value))


def download_package(services: ServicesConfig, version: int | str | ModelVersion, to: Path) -> Path:
    """Fetch the model package of a version into the folder `to`, replacing it, and return it."""
    known = version if isinstance(version, ModelVersion) else get_version(services, version)
    if known is None:
        raise ServiceError(f"MLflow at {_shown(services)} has no version {version} of model '{MODEL}'")
    return download_artifacts(services, known.run_id, PACKAGE, to)


def log_artifacts(services: ServicesConfig, run_id: str, folder: Path, name: str) -> None:
    """Add a folder to a run's artifacts under `name`; files of the same name are replaced."""
    with _service(services) as client:
        assert client is not None
        client.log_artifacts(run_id, str(folder), name)


def download_artifacts(services: ServicesConfig, run_id: str, name: str, to: Path) -> Path:
    """Fetch an artifact folder of a run into `to`, replacing it whole, so that `to` is never half there.

    Where another process puts the same folder there meanwhile, that one stays.
    """
    replaces = to.exists()
    to.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=to.parent, prefix=f".{to.name}.") as scratch:
        with _service(services, create=False) as client:
            if client is None:
                raise ServiceError(f"MLflow at {_shown(services)} holds nothing yet: no run {run_id}")
            if not _exists(client, run_id, name):
                raise ServiceError(f"MLflow at {_shown(services)}: run {run_id} has no artifact folder '{name}'")
            fetched = Path(client.download_artifacts(run_id, name, scratch))
        if replaces:
            with suppress(FileNotFoundError):  # another process is replacing it too
                to.rename(Path(scratch) / "old")
        _place(fetched, to)
    return to


def list_runs(services: ServicesConfig, limit: int = 50) -> list[TrainingRun]:
    """Training runs, newest first, each with the version that it registered."""
    with _service(services, create=False) as client:
        experiment = None if client is None else client.get_experiment_by_name(EXPERIMENT)
        if client is None or experiment is None:
            return []
        live = _or_none(client.get_model_version_by_alias, MODEL, CHAMPION)
        versions = {
            v.run_id: _version(v, champion=live is not None and int(live.version) == int(v.version))
            for v in client.search_model_versions(f"name='{MODEL}'", max_results=1000)
        }
        runs = client.search_runs(
            [experiment.experiment_id], order_by=["attributes.start_time DESC"], max_results=limit
        )
        return [
            TrainingRun(
                run_id=run.info.run_id,
                status=str(run.info.status),
                started=_time(run.info.start_time),
                params=dict(run.data.params),
                metrics=dict(run.data.metrics),
                tags={k: v for k, v in run.data.tags.items() if not k.startswith("mlflow.")},
                version=versions.get(run.info.run_id),
            )
            for run in runs
        ]


def log_record(
    services: ServicesConfig,
    experiment: str,
    *,
    name: str,
    tags: Mapping[str, Any],
    metrics: Mapping[str, float],
    artifacts: Sequence[Path] = (),
) -> str:
    """Log one finished run that is no training, and return its id.

    Args:
        experiment: `DECISIONS`, `GOLDEN`, `ABLATIONS` or `FAILURES`.
        name: what people see of the run in lists.
        tags, metrics: what `list_records` gives back.
        artifacts: files or folders to keep with it.
    """
    with _service(services) as client:
        assert client is not None
        run_id = str(
            client.create_run(_experiment(client, services, experiment), run_name=name).info.run_id
        )  # running until all is logged
        _log_values(client, run_id, {}, metrics, {})
        for path in artifacts:
            _log_path(client, run_id, path)
        for key, value in tags.items():
            client.set_tag(run_id, key, str(value))
        client.set_terminated(run_id, "FINISHED")
    return run_id


def list_records(services: ServicesConfig, experiment: str) -> list[Record]:
    """The finished runs of `DECISIONS` or `GOLDEN`, oldest first."""
    with _service(services, create=False) as client:
        found = None if client is None else client.get_experiment_by_name(experiment)
        if client is None or found is None:
            return []
        order = ["attributes.start_time DESC"]
        runs = client.search_runs(
            [found.experiment_id], "attributes.status = 'FINISHED'", order_by=order, max_results=_MOST_RECORDS
        )
        return [
            Record(
                run_id=run.info.run_id,
                made=_time(run.info.start_time),
                tags={k: v for k, v in run.data.tags.items() if not k.startswith("mlflow.")},
                metrics=dict(run.data.metrics),
            )
            for run in reversed(runs)
        ]


def tag_record(services: ServicesConfig, run_id: str, tags: Mapping[str, str]) -> None:
    """Write tags on a run of `DECISIONS`."""
    with _service(services) as client:
        assert client is not None
        for key, value in tags.items():
            client.set_tag(run_id, key, value)


def connect(services: ServicesConfig) -> MlflowClient:
    """A client of the tracking store and registry, with both made ready; prefer the functions above.

    Raises:
        ServiceError: the server does not answer within seconds.
    """
    _reach(services.mlflow_uri)
    with _translated(services):
        return _client(services.mlflow_uri)


@contextmanager
def _service(services: ServicesConfig, create: bool = True) -> Iterator[MlflowClient | None]:
    """A client with MLflow's errors translated; None where nothing was stored yet and `create` is off."""
    database = _sqlite_file(services.mlflow_uri)
    if not create and database is not None and not database.exists():
        yield None
        return
    client = connect(services)
    with _translated(services):
        yield client


@contextmanager
def _translated(services: ServicesConfig) -> Iterator[None]:
    from mlflow.exceptions import MlflowException
    from requests.exceptions import RequestException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, RequestException, SQLAlchemyError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ServiceError(f"MLflow at {_shown(services)}: {reason}") from error


@lru_cache(maxsize=8)
def _client(uri: str) -> MlflowClient:
    # A server that is down must be an error within seconds; MLflow's defaults try for minutes.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    database = _sqlite_file(uri)
    if database is not None:
        database.parent.mkdir(parents=True, exist_ok=True)
        # SQLAlchemy resolves a relative file when it connects, not here: a later chdir would lose it.
        uri = f"sqlite:///{database.resolve()}"
    from mlflow.tracking import MlflowClient

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def _experiment(client: MlflowClient, services: ServicesConfig, name: str = EXPERIMENT) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    try:
        return str(client.create_experiment(name, artifact_location=_artifact_location(services)))
    except MlflowException as error:
        found = client.get_experiment_by_name(name)  # another run made it first
        if found is None:
            raise error
        return str(found.experiment_id)


def _artifact_location(services: ServicesConfig) -> str | None:
    """Where artifacts go. A server decides for itself; for a bare database MLflow's default is the current folder."""
    if urlsplit(services.mlflow_uri).scheme in ("http", "https"):
        return None
    database = _sqlite_file(services.mlflow_uri)
    folder = (database.parent if database is not None else Path(services.state_dir).parent) / "mlartifacts"
    return folder.resolve().as_uri()


def _register(client: MlflowClient, run_id: str, source: str, tags: dict[str, str]) -> int:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(MODEL)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    return int(client.create_model_version(MODEL, source=source, run_id=run_id, tags=tags).version)


def _log_values(
    client: MlflowClient,
    run_id: str,
    params: Mapping[str, Any],
    metrics: Mapping[str, float],
    curves: Mapping[str, Sequence[tuple[int, float]]],
) -> None:
    from mlflow.entities import Metric, Param

    now = int(datetime.now(UTC).timestamp() * 1000)
    settings = [Param(key, str(value)[:_MAX_PARAM]) for key, value in _flat(params)]
    points = [Metric(key, float(value), now, step) for key, curve in curves.items() for step, value in curve]
    last = max((step for curve in curves.values() for step, _ in curve), default=0)
    points += [Metric(key, float(value), now, last) for key, value in metrics.items()]
    for start in range(0, len(settings), 100):  # the limits of one call: 100 parameters, 1000 metrics
        client.log_batch(run_id, params=settings[start : start + 100])
    for start in range(0, len(points), 1000):
        client.log_batch(run_id, metrics=points[start : start + 1000])


def _log_path(client: MlflowClient, run_id: str, path: Path) -> None:
    if path.is_dir():
        client.log_artifacts(run_id, str(path), path.name)
    else:
        client.log_artifact(run_id, str(path))


def _flat(params: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in params.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _place(folder: Path, to: Path) -> None:
    """Rename a folder, unless `to` is filled by now."""
    try:
        folder.rename(to)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise


def _exists(client: MlflowClient, run_id: str, name: str) -> bool:
    if _or_none(client.get_run, run_id) is None:
        return False
    return bool(client.list_artifacts(run_id, name))


def _or_none(call: Any, *arguments: str) -> Any:
    from mlflow.exceptions import MlflowException

    try:
        return call(*arguments)
    except MlflowException as error:
        if error.error_code in _ABSENT:
            return None
        raise


def _version(found: Any, champion: bool) -> ModelVersion:
    tags = dict(found.tags)
    return ModelVersion(
        name=found.name,
        version=int(found.version),
        run_id=found.run_id,
        fingerprint=tags.get(FINGERPRINT, ""),
        created=_time(found.creation_timestamp),
        tags=tags,
        champion=champion,
    )


def _time(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000, UTC)


def _sqlite_file(uri: str) -> Path | None:
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None


def _shown(services: ServicesConfig) -> str:
    """The address without a password."""
    parts = urlsplit(services.mlflow_uri)
    if parts.password is None:
        return services.mlflow_uri
    return parts._replace(netloc=f"{parts.username}:***@{parts.hostname}:{parts.port}").geturl()


def _reach(uri: str) -> None:
    """Fail at once where nothing listens, rather than after MLflow's retries."""
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https"):
        return
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((parts.hostname or "", port), timeout=_CONNECT_SECONDS).close()
    except OSError as error:
        raise ServiceError(
            f"MLflow at {parts.scheme}://{parts.hostname}:{port} does not answer ({error}); "
            "is the server up, and is services.mlflow_uri (MLFLOW_TRACKING_URI) right?"
        ) from None
