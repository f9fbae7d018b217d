"""A stage anywhere: in a process or in a pod, in a workspace of its own, its files exchanged through DVC.

`python -m components.exchange run STAGE` makes a workspace from the pipeline at its commit, takes `dvc.lock` from the
tasks before (merged where branches meet), runs `dvc repro --single-item --pull STAGE`, pushes what came out, and hands
on a `Result` with the new `dvc.lock`. Two tasks never share a workspace; what they share is the DVC
remote. A stage that has finished before, in this run or another, is found in DVC's run cache and not run again; `gate`,
`build_index` and `swap_index` always run, since they depend on what is live (`persist` in `dvc.yaml`).

A stage ends with its exchange, however that ends. Told to stop by SIGTERM, the exchange removes its workspace; what one
that was killed has left, the next one removes.

What the tasks before handed on stands in the environment, which a pod takes as easily as a process:

| variable | what |
|---|---|
| `MRSE_HANDED` | JSON list: a `Plan`, then the `Result` of each task before (null where it was skipped) |
| `MRSE_PIPELINE` | folder that holds the pipeline, a git checkout or an image's copy; default: this file's |
| `MRSE_COMMIT` | the commit of a pipeline that is no git checkout |
| `MRSE_DVC_REMOTE` | URL or folder of the DVC remote; default: `.mrse/dvc-remote` of the pipeline's folder |
| `MRSE_RESULT` | file that receives the `Result`; where it names none the `Result` is printed |

`day` does without a scheduler what Airflow does: every stage one after another, each as `run` does it, then `keep`.
`component NAME …` runs a component that is no stage over what stages made. `keep` files the final `dvc.lock`, the
parameters, the costs and the reports with the run's MLflow run, and `checkout RUN [FOLDER]` (`mrse checkout`) restores
data and model from there. The report of a stage that failed is filed with MLflow, and the reason says where.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

import yaml

import mrse
from components import leash, spec
from mrse import config, tracking
from mrse.errors import ConfigError, DataError, MrseError
from mrse.jsonfile import read_json, write_json, write_text
from mrse.layout import GATE_REPORT, VALIDATION_DOCS

ARTIFACT = "pipeline"  # artifact folder of an MLflow run
REPORTS = (GATE_REPORT.parent, VALIDATION_DOCS)

_PIPELINE = ("dvc.yaml", ".dvcignore", "mrse", "components")
_DVC_CONFIG = """[core]
    no_scm = true
    analytics = false
    check_update = false
    remote = exchange
['remote "exchange"']
    url = {url}
"""


_RAISED = "Traceback (most recent call last):"
# How DVC tells the exit code of a stage; a shell adds 128 to a signal.
_STAGE_ENDED, _SHELL_SIGNAL = re.compile(r"failed to run: .*, exited with (-?\d+)$"), 128
_DVC_COMMANDS = """
import json, sys
from dvc.cli import main
sys.exit(next(filter(None, map(main, json.loads(sys.argv[1]))), 0))
"""


class ExchangeFailed(MrseError):
    """A stage, or the exchange around it, failed; the message is the reason in one line."""


@dataclass(frozen=True)
class Plan:
    """What a run of the pipeline is about; the same for all of its tasks.

    Attributes:
        commit: of the pipeline.
        params: the text of `params.yaml`.
        force: why stages run though they have finished before; empty: they do not.
    """

    commit: str
    params: str
    force: str = ""


@dataclass(frozen=True)
class Result:
    """What a stage hands on.

    Attributes:
        stage: its name in `dvc.yaml`.
        lock: the text of `dvc.lock`, of all stages so far.
        ran: False where the outputs came from the cache.
        start_seconds: wall time of the start of the stage's Python, its imports above all, 0 where it did not run.
        seconds: wall time of the stage's own work, 0 where it did not run.
        exchange_seconds: wall time of everything around these two.
        peak_mib: the stage's peak memory, 0 where it did not run.
        outcome: what the stage decided, where its component decides, else None.
        mlflow_run: id of the MLflow run that the stage made, where it makes one, else None.
    """

    stage: str
    lock: str
    ran: bool
    start_seconds: float
    seconds: float
    exchange_seconds: float
    peak_mib: float
    outcome: str | None
    mlflow_run: str | None


def plan(
    pipeline: Path, end: str, days: int | None = None, overrides: Mapping[str, Any] | None = None, force: str = ""
) -> Plan:
    """Settle what a run works on: the commit, and the parameters with the window and any overrides in them.

    Args:
        pipeline: folder that holds the pipeline.
        end: the window's end, `YYYY-MM-DD`.
        days: the window's length; None: as `params.yaml` says.
        overrides: dotted keys of `params.yaml`, such as `{"train.seed": 3}`.
        force: why every stage is to run anew; empty: finished ones are not run.

    Raises:
        ConfigError: a wrong key or value; the message names every one.
        DataError: `pipeline` holds no pipeline.
    """
    commit = _commit(pipeline)
    with tempfile.TemporaryDirectory() as scratch:
        _materialise(pipeline, commit, Path(scratch), ("params.yaml",))
        raw = config.read(Path(scratch) / "params.yaml")
    window: dict[str, Any] = {"snapshot.end": end} | ({} if days is None else {"snapshot.days": days})
    for dotted, value in (window | dict(overrides or {})).items():
        _set(raw, dotted, value)
    config.parse(raw, "the run's parameters")
    return Plan(commit, yaml.safe_dump(raw, sort_keys=False), force.strip())


def merged(locks: Sequence[str]) -> str:
    """One `dvc.lock` of several, each with the stages of its own branch; empty where there are none.

    Raises:
        DataError: they tell different things of the same stage.
    """
    stages: dict[str, Any] = {}
    for lock in locks:
        for name, entry in yaml.safe_load(lock)["stages"].items():
            if stages.setdefault(name, entry) != entry:
                raise DataError(f"the tasks before hand on different files of stage {name}: they are of different runs")
    return yaml.safe_dump({"schema": "2.0", "stages": stages}, sort_keys=False) if stages else ""


def current(results: Sequence[Result]) -> list[Result]:
    """The results that follow from those before them, which come first.

    A task that is skipped when its day is run again still has what it handed on the first time.
    """
    kept: list[Result] = []
    stages: dict[str, Any] = {}
    for result in results:
        entries = yaml.safe_load(result.lock)["stages"]
        if all(entries.get(name, entry) == entry for name, entry in stages.items()):
            kept.append(result)
            stages |= entries
    return kept


def run_stage(
    stage: str, pipeline: Path, ordered: Plan, locks: Sequence[str], remote: str, began: float | None = None
) -> Result:
    """Run one stage in a workspace of its own, or bring its outputs from the cache.

    Args:
        stage: its name in `dvc.yaml`.
        pipeline: folder that holds the pipeline; local services named in `params.yaml` lie under it.
        ordered: the run that the stage belongs to.
        locks: texts of `dvc.lock` from the stages before.
        remote: URL or folder of the DVC remote.
        began: since when, by `time.perf_counter`, the exchange's time counts; None: now.

    Raises:
        ExchangeFailed: the stage failed (the message names its report, where it wrote one), or its inputs cannot be
            had, or the remote cannot be reached.
        DataError: the pipeline at `ordered.commit` is not here, or `locks` do not agree.
    """
    began = began or time.perf_counter()
    with _workspace(pipeline, ordered, merged(locks), remote) as folder:
        cost = folder / ".dvc" / "cost.json"
        environment = _environment(folder, pipeline, ordered) | {"MRSE_COST": str(cost)}
        component = spec.component(folder, stage)
        try:
            _dvc(stage, folder, environment, *_repro(stage, folder, ordered), ["push", "--run-cache", stage])
        except ExchangeFailed as error:
            report = "" if cost.exists() else _report(folder, component, pipeline, ordered, str(error))
            raise ExchangeFailed(f"{error}{report}") from None
        ran = cost.exists()
        told = read_json(cost) if ran else {"start_seconds": 0.0, "seconds": 0.0, "peak_mib": 0.0}
        around = time.perf_counter() - began - told["start_seconds"] - told["seconds"]
        return Result(
            stage=stage,
            lock=(folder / "dvc.lock").read_text(encoding="utf-8"),
            ran=ran,
            start_seconds=round(told["start_seconds"], 2),
            seconds=round(told["seconds"], 2),
            exchange_seconds=round(around, 2),
            peak_mib=round(told["peak_mib"], 1),
            outcome=_told(folder, component.decides),
            mlflow_run=_told(folder, component.makes_run),
        )


def run_day(pipeline: Path, ordered: Plan, remote: str) -> list[Result]:
    """Run every stage, one after another; after a decision not to go on, those that wait for it are left out.

    Args:
        pipeline, ordered, remote: as of `run_stage`.

    Raises:
        ExchangeFailed: a stage failed, and with it the day; run again, it finds the stages before finished.
        DataError: the pipeline at `ordered.commit` is not here.
    """
    results: dict[str, Result] = {}
    held: set[str] = set()
    for name, stage in spec.stages(pipeline).items():
        if held.intersection(stage.reads) or not results.keys() >= set(stage.after):
            print(f"{name}: left out, by a decision not to go on", file=sys.stderr)
            continue
        results[name] = run_stage(name, pipeline, ordered, [results[before].lock for before in stage.after], remote)
        decides = spec.component(pipeline, name).decides
        if decides is not None and results[name].outcome not in decides.goes_on:
            held.add(decides.file)
    return list(results.values())


def run_component(
    name: str, arguments: Sequence[str], pipeline: Path, ordered: Plan, locks: Sequence[str], remote: str
) -> dict[str, str]:
    """Run a component that is no stage, in a workspace of its own that holds what its `reads` names.

    Args:
        name: of the component.
        arguments: added to its command.
        pipeline, ordered, locks, remote: as of `run_stage`.

    Returns:
        `{"mlflow_run", "page"}` as `keep` does; both empty where it made no MLflow run.

    Raises:
        ExchangeFailed: it failed, or what it reads cannot be had.
        DataError: the pipeline at `ordered.commit` is not here, or `locks` do not agree.
    """
    with _workspace(pipeline, ordered, merged(locks), remote) as folder:
        environment = _environment(folder, pipeline, ordered)
        component = spec.component(folder, name)
        _dvc(name, folder, environment, ["pull", *component.reads])
        _call(name, name, folder, environment, [*component.command, *arguments])
        made = component.makes_run
        run = "" if made is None or not (folder / made.file).is_file() else str(_told(folder, made))
    return {"mlflow_run": run, "page": _page(_services(pipeline, ordered.params), run) if run else ""}


def keep(pipeline: Path, ordered: Plan, results: Sequence[Result], remote: str) -> dict[str, str]:
    """File what a run was with its MLflow run; `results` are in the order of the stages.

    Written as artifact folder `pipeline`: `dvc.lock`, `params.yaml`, `run.json` (commit, remote, and each stage's
    costs and decision) and the reports.

    Returns:
        `{"mlflow_run", "page"}`: the run's id, and its page where MLflow has a server, else "".

    Raises:
        DataError: no stage of the run made an MLflow run.
        ExchangeFailed: the reports cannot be had from the remote.
        ServiceError: MLflow cannot be reached.
    """
    results = current(results)
    run = next((result.mlflow_run for result in results if result.mlflow_run), None)
    if run is None:
        raise DataError("no stage of this run made an MLflow run, so there is nothing to file it with")
    with _workspace(pipeline, ordered, merged([result.lock for result in results]), remote) as folder:
        environment = _environment(folder, pipeline, ordered)
        _dvc("keep", folder, environment, ["pull", *(str(path) for path in REPORTS)])
        costs = [{key: value for key, value in asdict(result).items() if key != "lock"} for result in results]
        with tempfile.TemporaryDirectory() as scratch:
            kept = Path(scratch)
            write_json(kept / "run.json", {"commit": ordered.commit, "remote": remote, "stages": costs})
            for name in ("dvc.lock", "params.yaml"):
                shutil.copy(folder / name, kept / name)
            for path in REPORTS:
                shutil.copytree(folder / path, kept / path)
            services = _services(pipeline, ordered.params)
            tracking.log_artifacts(services, run, kept, ARTIFACT)
    return {"mlflow_run": run, "page": _page(services, run)}


def checkout(run: str, pipeline: Path, into: Path | None = None) -> Path:
    """Restore a run into a new folder: pipeline at its commit, `params.yaml`, `dvc.lock`, data, model and reports.

    Args:
        run: id, or the beginning of the id, of an MLflow run that `keep` filed.
        pipeline: folder that holds the pipeline; MLflow is the one that its `params.yaml` or the environment names.
        into: the folder to make, whole or not at all; None: `.mrse/checkout/<run>` of the pipeline's folder.

    Returns:
        The folder.

    Raises:
        DataError: `into` is not empty, no run or several begin so, nothing is filed with it, or its commit is not here.
        ServiceError: MLflow cannot be reached.
        ExchangeFailed: the remote that the run was filed with, or `MRSE_DVC_REMOTE`, has not all of its files.
    """
    into = into or pipeline / ".mrse" / "checkout" / run
    if into.exists() and (not into.is_dir() or any(into.iterdir())):
        raise DataError(f"{into} is not empty")
    into.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{into.name}.", dir=into.parent) as scratch:
        folder = Path(scratch) / "folder"
        _restore(run, pipeline, folder)
        folder.rename(into)
    return into


def _restore(run: str, pipeline: Path, folder: Path) -> None:
    services = config.load(pipeline / "params.yaml").services.under(pipeline)
    found = [known.run_id for known in tracking.list_runs(services, limit=1000) if known.run_id.startswith(run)]
    if len(found) != 1:
        raise DataError(f"{len(found)} MLflow runs begin with {run!r}; `mrse runs` lists them")
    if not tracking.connect(services).list_artifacts(found[0], ARTIFACT):
        raise DataError(f"no dvc.lock is filed with run {found[0]}: the task file_run of mrse_daily files it")
    kept = tracking.download_artifacts(services, found[0], ARTIFACT, folder.with_name(ARTIFACT))
    was = read_json(kept / "run.json")
    ordered = Plan(was["commit"], (kept / "params.yaml").read_text(encoding="utf-8"))
    remote = os.environ.get("MRSE_DVC_REMOTE") or was["remote"]
    folder.mkdir()
    _furnish(folder, pipeline, ordered, (kept / "dvc.lock").read_text(encoding="utf-8"), remote)
    # What is live, and what lies in Milvus, is no file to restore; a stage that did not run has none either.
    stages = yaml.safe_load((folder / "dvc.lock").read_text(encoding="utf-8"))["stages"]
    cached = [
        out["path"] for entry in stages.values() for out in entry.get("outs", []) if _is_cached(folder, out["path"])
    ]
    try:
        _dvc("checkout", folder, _environment(folder, pipeline, ordered), ["pull", *cached])
    except ExchangeFailed as error:
        raise ExchangeFailed(f"{remote} has not all files of run {found[0]}: {error}") from None


def hand_on(told: Any) -> None:
    """Write what a task hands on, as JSON, to the file that `MRSE_RESULT` names; print it where it names none."""
    if os.environ.get("MRSE_RESULT"):
        write_json(Path(os.environ["MRSE_RESULT"]), told)
    else:
        print(json.dumps(told))


def pipeline_folder() -> Path:
    """The folder that holds the pipeline: `MRSE_PIPELINE`, else the one that this file lies in."""
    return Path(os.environ.get("MRSE_PIPELINE") or Path(__file__).parents[1])


def _page(services: config.ServicesConfig, run: str) -> str:
    if not services.mlflow_uri.startswith("http"):
        return ""
    experiment = tracking.connect(services).get_run(run).info.experiment_id
    return f"{services.mlflow_uri.rstrip('/')}/#/experiments/{experiment}/runs/{run}"


def _is_cached(folder: Path, path: str) -> bool:
    entries = yaml.safe_load((folder / "dvc.yaml").read_text(encoding="utf-8"))["stages"].values()
    outs = [out for entry in entries for out in [*entry.get("outs", []), *entry.get("metrics", [])]]
    return not any(isinstance(out, dict) and out.get(path, {}).get("cache") is False for out in outs)


@contextmanager
def _workspace(pipeline: Path, ordered: Plan, lock: str, remote: str) -> Iterator[Path]:
    _sweep()
    # What a stage told to stop still writes must not turn the reason into another one; the next sweep takes the rest.
    with tempfile.TemporaryDirectory(prefix=f"mrse.{os.getpid()}.", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        _furnish(folder, pipeline, ordered, lock, remote)
        yield folder


def _sweep() -> None:
    """Remove the workspaces whose process is dead: it was killed before it could."""
    for left in Path(tempfile.gettempdir()).glob("mrse.*.*"):
        owner = left.name.split(".")[1]
        if owner.isdigit() and not _alive(int(owner)):
            shutil.rmtree(left, ignore_errors=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _furnish(folder: Path, pipeline: Path, ordered: Plan, lock: str, remote: str) -> None:
    _materialise(pipeline, ordered.commit, folder, _PIPELINE)
    write_text(folder / "params.yaml", ordered.params)
    write_text(folder / ".dvc" / "config", _DVC_CONFIG.format(url=remote))
    if lock:
        write_text(folder / "dvc.lock", lock)


def _materialise(pipeline: Path, commit: str, folder: Path, names: Sequence[str]) -> None:
    """Put files of the pipeline, as they were at a commit, into a folder."""
    if (pipeline / ".git").exists():
        archive = _git(pipeline, "archive", commit, *names)
        subprocess.run(["tar", "-x", "-C", str(folder)], input=archive, check=True)
        return
    if commit != _commit(pipeline):
        raise DataError(f"{pipeline} holds commit {_commit(pipeline)}, and the run is of {commit}: use its image")
    for name in names:
        if (pipeline / name).is_dir():
            shutil.copytree(pipeline / name, folder / name)
        else:
            shutil.copy(pipeline / name, folder / name)


def _git(pipeline: Path, *arguments: str) -> bytes:
    try:
        done = subprocess.run(["git", "-C", str(pipeline), *arguments], capture_output=True, check=False)
    except FileNotFoundError:
        raise DataError(f"{pipeline} is a git checkout, and git is not installed") from None
    if done.returncode:
        said = (done.stderr.decode().strip() or f"git ended with {done.returncode}").splitlines()
        raise DataError(f"{pipeline}: {next((line for line in said if line.startswith('fatal: ')), said[-1])}")
    return done.stdout


def _commit(pipeline: Path) -> str:
    if not (pipeline / "dvc.yaml").is_file():
        raise DataError(f"{pipeline} holds no pipeline: there is no dvc.yaml")
    if (pipeline / ".git").exists():
        return _git(pipeline, "rev-parse", "HEAD").decode().strip()
    commit = os.environ.get("MRSE_COMMIT")
    if not commit:
        raise DataError(f"{pipeline} is no git checkout, and MRSE_COMMIT does not say of which commit it is")
    return commit


def _set(raw: dict[str, Any], dotted: str, value: Any) -> None:
    *path, key = dotted.split(".")
    target: Any = raw
    for part in path:
        target = target.setdefault(part, {}) if isinstance(target, dict) else None
    if not isinstance(target, dict):
        raise ConfigError(f"the run's parameters: {dotted}: no such key")
    target[key] = value


def _services(pipeline: Path, params: str) -> config.ServicesConfig:
    return config.parse(yaml.safe_load(params), "the run's parameters").services.under(pipeline)


def _environment(folder: Path, pipeline: Path, ordered: Plan) -> dict[str, str]:
    """What a stage finds in its environment: its own code, and services that outlive the workspace."""
    services = _services(pipeline, ordered.params)
    return os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(folder),
        "MRSE_COMMIT": ordered.commit,
        "MRSE_MILVUS_URI": services.milvus_uri,
        "MLFLOW_TRACKING_URI": services.mlflow_uri,
        "MRSE_STATE_DIR": services.state_dir,
        "MRSE_CACHE_DIR": services.cache_dir,
    }


def _repro(stage: str, folder: Path, ordered: Plan) -> list[list[str]]:
    """The commands of DVC that run a stage, or bring its outputs from the cache."""
    # `repro --pull` would pull its inputs one after another, and read the whole pipeline anew for each.
    inputs = [path for path in spec.stages(folder)[stage].reads if not (folder / path).exists()]
    pull = [["pull", *inputs]] if inputs else []
    if not ordered.force:
        return [*pull, ["repro", "--single-item", "--pull", stage]]
    print(f"{stage}: run anew, because {ordered.force}", file=sys.stderr)
    return [*pull, ["repro", "--single-item", "--force", stage]]


def _dvc(task: str, folder: Path, environment: Mapping[str, str], *commands: Sequence[str]) -> None:
    """Run commands of DVC, until one fails, in one process: its start takes longer than what it is to do."""
    what = f"dvc {', '.join(command[0] for command in commands)}"
    _call(task, what, folder, environment, [sys.executable, "-c", _DVC_COMMANDS, json.dumps(commands)])


def _call(task: str, what: str, folder: Path, environment: Mapping[str, str], command: Sequence[str]) -> None:
    """Run a command and pass its output on.

    Raises:
        ExchangeFailed: it failed; the message is the reason.
    """
    tail: deque[str] = deque(maxlen=50)
    with subprocess.Popen(
        [sys.executable, leash.__file__, *command],
        cwd=folder,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", file=sys.stderr, flush=True)
            tail.append(line.strip())
    if process.returncode:
        raise ExchangeFailed(_reason(task, what, process.returncode, list(tail), folder))


def _reason(task: str, what: str, code: int, tail: Sequence[str], folder: Path) -> str:
    """Why a command failed: what a stage said, raised or was killed by, or DVC's first error, which is the cause and
    seldom names the remote. What a stage said before DVC failed is its result and no reason.
    """
    errors = [line.removeprefix("ERROR: ") for line in tail if line.startswith("ERROR: ")]
    of_stage = [int(found[1]) for error in errors if (found := _STAGE_ENDED.search(error))]
    if errors and not of_stage:
        return f"{errors[0]}{_listed(tail, errors[0])} (DVC remote: {_remote(folder)})"
    ended = [*of_stage, code][0]
    by_signal = -ended if ended < 0 else ended - _SHELL_SIGNAL
    if 0 < by_signal <= signal.SIGRTMAX:
        return f"{task}: killed by signal {by_signal}"
    said = list(itertools.takewhile(lambda line: not line.startswith("ERROR: "), filter(None, tail)))
    if _RAISED in said:
        return f"{task}: {said[-1]}"
    return [f"{task}: {what} ended with {code}", *(line for line in said if line.startswith(f"{task}: "))][-1]


def _listed(tail: Sequence[str], error: str) -> str:
    """What DVC lists, one a line, below an error that ends in a colon."""
    below = tail[tail.index(f"ERROR: {error}") + 1 :] if error.endswith(":") else ()
    names = list(itertools.takewhile(lambda line: line and not line.startswith(("Is your cache", "ERROR: ")), below))
    return f" {', '.join(names)}" if names else ""


def _remote(folder: Path) -> str:
    """The DVC remote of a workspace, without a password."""
    url = (folder / ".dvc" / "config").read_text(encoding="utf-8").partition("url = ")[2].strip()
    return re.sub("//[^/@]*@", "//", url)


def _report(folder: Path, component: spec.Component, pipeline: Path, ordered: Plan, reason: str) -> str:
    """File what a failed stage reports; the end of the line that says why it failed."""
    if component.report is None or not (folder / component.report).is_file():
        return ""
    services, report = _services(pipeline, ordered.params), folder / component.report
    tags = {"stage": component.name, "reason": reason, "commit": ordered.commit}
    try:
        run = tracking.log_record(
            services, tracking.FAILURES, name=component.name, tags=tags, metrics={}, artifacts=[report.parent]
        )
        place = _page(services, run) or tracking.connect(services).get_run(run).info.artifact_uri
    except MrseError as error:
        return f" Its report could not be filed: {error}"
    artifacts = "/artifacts" if place.startswith("http") else ""
    return f" Report: {place}{artifacts}/{report.parent.name}/{report.name}"


def _told(folder: Path, told: spec.Told | None) -> str | None:
    return None if told is None else str(read_json(folder / told.file)[told.key])


def _stop(signum: int, _: FrameType | None) -> None:
    signal.signal(signum, signal.SIG_IGN)  # what it unwinds is not to be broken off
    raise SystemExit(128 + signum)


def _main(arguments: argparse.Namespace) -> None:
    pipeline = pipeline_folder()
    if arguments.do == "checkout":
        print(checkout(arguments.run, pipeline, arguments.folder))
        return
    remote = os.environ.get("MRSE_DVC_REMOTE") or str((pipeline / ".mrse" / "dvc-remote").resolve())
    if arguments.do == "day":
        ordered = plan(pipeline, arguments.end)
        hand_on(keep(pipeline, ordered, run_day(pipeline, ordered, remote), remote))
        return
    first, *handed = json.loads(os.environ["MRSE_HANDED"])
    ordered, results = Plan(**first), [Result(**result) for result in handed if result is not None]
    locks = [result.lock for result in results]
    if arguments.do == "keep":
        hand_on(keep(pipeline, ordered, results, remote))
    elif arguments.do == "component":
        hand_on(run_component(arguments.name, arguments.arguments, pipeline, ordered, locks, remote))
    else:
        hand_on(asdict(run_stage(arguments.stage, pipeline, ordered, locks, remote, mrse.BEGAN)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m components.exchange", description="See the module's docstring.")
    does = parser.add_subparsers(dest="do", required=True)
    does.add_parser("run", help="run one stage").add_argument("stage")
    beside = does.add_parser("component", help="run a component that is no stage")
    beside.add_argument("name")
    beside.add_argument("arguments", nargs=argparse.REMAINDER, help="of the component's command")
    today = datetime.now(UTC).date().isoformat()
    day = does.add_parser("day", help="run every stage, one after another, and file the run")
    day.add_argument("--end", default=today, help="the first day that is not in the window; default: today, in UTC")
    day.set_defaults(name="day")
    does.add_parser("keep", help="file the run with its MLflow run").set_defaults(name="file_run")
    restore = does.add_parser("checkout", help="restore a run's data and model")
    restore.set_defaults(name="checkout")
    restore.add_argument("run", help="id of the MLflow run, or its beginning")
    restore.add_argument(
        "folder", type=Path, nargs="?", help="where to, a new or empty folder; default: .mrse/checkout/RUN"
    )
    return parser


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _stop)
    asked = _parser().parse_args()
    try:
        _main(asked)
    except MrseError as error:
        # Of all that a pod has logged, the last line that begins with the name is taken for the reason.
        name = asked.stage if asked.do == "run" else asked.name
        print(f"{name}: {str(error).removeprefix(f'{name}: ')}", file=sys.stderr)
        raise SystemExit(1) from None
