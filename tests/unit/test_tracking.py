"""MLflow on a real SQLite store of its own: versions, the alias, artifacts, and what happens when nothing is there."""

import socket
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from mlflow import MlflowClient

from mrse import tracking
from mrse.config import ServicesConfig
from mrse.errors import ServiceError


@pytest.fixture(scope="module")
def services(tmp_path_factory):
    root = tmp_path_factory.mktemp("tracking")
    return ServicesConfig(mlflow_uri=f"sqlite:///{root}/deep/mlflow.db", state_dir=str(root / "state"))


@pytest.fixture
def package(tmp_path):
    folder = tmp_path / "challenger"
    (folder / "image_encoder").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "image_encoder" / "model.safetensors").write_bytes(b"\x00\x01")
    return folder


def log(services, package, **changes):
    given = {
        "params": {"seed": 0, "loss": {"alpha": 1.0}},
        "metrics": {"recall": 0.5},
        "curves": {"loss": [(0, 2.0), (10, 1.0)]},
        "package": package,
        "tags": {"git_commit": "abc"},
        "fingerprint": "f00d",
    }
    return tracking.log_training_run(services, **{**given, **changes})


def test_the_page_shows_runs_by_name_with_the_time_that_training_took(tmp_path, package):
    services = ServicesConfig(mlflow_uri=f"sqlite:///{tmp_path}/mlflow.db", state_dir=str(tmp_path / "state"))
    started = datetime(2026, 3, 15, 1, 0, tzinfo=UTC)
    log(services, package, name="files to 2026-03-15", started=started)
    client = MlflowClient(services.mlflow_uri)
    experiment = client.get_experiment_by_name("mrse")
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.start_time) == ("files to 2026-03-15", int(started.timestamp() * 1000))
    assert tracking.list_runs(services)[0].started == started


def test_a_run_becomes_a_version_that_can_be_fetched_and_made_champion(services, package, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    report = tmp_path / "report.html"
    report.write_text("<p>")
    first = log(services, package, artifacts=[report])
    second = log(services, package, fingerprint="beef")
    assert (first["model_name"], first["fingerprint"]) == ("mrse", "f00d")
    assert second["version"] == first["version"] + 1
    assert tracking.champion(services) is None

    tracking.set_champion(services, first["version"])
    tracking.tag_version(services, first["version"], {"collection": "mrse_v1"})
    live = tracking.champion(services)
    assert (live.version, live.run_id, live.fingerprint) == (first["version"], first["run_id"], "f00d")
    assert live.tags["collection"] == "mrse_v1" and live.tags["git_commit"] == "abc"

    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "stale").write_text("an older download")
    copy = tracking.download_package(services, live.version, tmp_path / "copy")
    assert sorted(p.relative_to(copy).as_posix() for p in copy.rglob("*") if p.is_file()) == [
        "config.json",
        "image_encoder/model.safetensors",
    ]

    newest, oldest = tracking.list_runs(services)
    assert (newest.version.version, newest.version.champion) == (second["version"], False)
    assert (oldest.version.champion, oldest.status) == (True, "FINISHED")
    assert oldest.params == {"seed": "0", "loss.alpha": "1.0"}
    assert oldest.metrics == {"recall": 0.5, "loss": 1.0}

    assert not (tmp_path / "mlruns").exists(), "MLflow must keep nothing in the current folder"
    stored = Path(services.mlflow_uri.removeprefix("sqlite:///")).parent / "mlartifacts"
    assert len(list(stored.rglob("report.html"))) == 1


def test_the_alias_moves(services, package):
    version = log(services, package)["version"]
    tracking.set_champion(services, version)
    assert tracking.champion(services).version == version
    tracking.set_champion(services, version - 1)
    assert tracking.champion(services).version == version - 1


def test_a_run_that_fails_while_logging_is_marked_failed(services, package, monkeypatch):
    def full(*_):
        raise OSError("disk full")

    monkeypatch.setattr(tracking, "_register", full)
    with pytest.raises(OSError, match="disk full"):
        log(services, package, fingerprint="dead")
    newest = tracking.list_runs(services, limit=1)[0]
    assert (newest.status, newest.version) == ("FAILED", None)


def test_many_parameters_and_points_pass_the_limits_of_one_call(services, package):
    log(
        services,
        package,
        params={f"p{i}": i for i in range(150)},
        metrics={},
        curves={"loss": [(i, float(i)) for i in range(1500)]},
    )
    run = tracking.list_runs(services, limit=1)[0]
    assert len(run.params) == 150
    assert run.metrics["loss"] == 1499.0


def test_reading_makes_nothing(tmp_path):
    empty = ServicesConfig(mlflow_uri=f"sqlite:///{tmp_path}/none/mlflow.db")
    assert tracking.champion(empty) is None
    assert tracking.list_runs(empty) == []
    assert tracking.get_version(empty, 1) is None
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ServiceError, match="no version 7"):
        tracking.download_package(empty, 7, tmp_path / "to")


def test_unknown_versions_and_artifacts_are_named(services, package, tmp_path):
    run_id = log(services, package)["run_id"]
    assert tracking.get_version(services, 4711) is None
    with pytest.raises(ServiceError, match="4711"):
        tracking.download_package(services, 4711, tmp_path / "to")
    with pytest.raises(ServiceError, match="no artifact folder 'serving/x'"):
        tracking.download_artifacts(services, run_id, "serving/x", tmp_path / "to")
    with pytest.raises(ServiceError, match="4711"):
        tracking.set_champion(services, 4711)


def test_two_that_fetch_the_same_folder_at_once_end_with_one(services, package, tmp_path, monkeypatch):
    run_id, to = log(services, package)["run_id"], tmp_path / "cache" / "entry"
    exists = tracking._exists

    def overtaken(*arguments):
        monkeypatch.setattr(tracking, "_exists", exists)
        tracking.download_artifacts(services, run_id, "package", to)
        (to / "theirs").touch()
        return exists(*arguments)

    monkeypatch.setattr(tracking, "_exists", overtaken)
    assert tracking.download_artifacts(services, run_id, "package", to) == to
    assert {path.name for path in to.iterdir()} == {"theirs", "config.json", "image_encoder"}
    assert list(to.parent.iterdir()) == [to]


def test_a_folder_that_cannot_be_put_in_place_is_no_silence(services, package, tmp_path):
    run_id = log(services, package)["run_id"]
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    with pytest.raises(NotADirectoryError):
        tracking.download_artifacts(services, run_id, "package", tmp_path / "dangling")


def test_a_server_that_is_down_is_an_error_within_seconds():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = time.perf_counter()
    with pytest.raises(ServiceError, match=f"127.0.0.1:{port} does not answer"):
        tracking.champion(ServicesConfig(mlflow_uri=f"http://user:secret@127.0.0.1:{port}"))
    assert time.perf_counter() - started < 10


def test_a_database_that_is_none_is_one_error(tmp_path):
    (tmp_path / "mlflow.db").write_bytes(b"not a database, but long enough to look at" * 50)
    with pytest.raises(ServiceError, match="MLflow at sqlite"):
        tracking.champion(ServicesConfig(mlflow_uri=f"sqlite:///{tmp_path}/mlflow.db"))
