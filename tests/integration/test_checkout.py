"""A run comes back by the `dvc.lock` filed with it, whole or not at all; so is a failed stage's report filed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml

from components.exchange import ExchangeFailed, Plan, checkout, keep, plan, run_component, run_stage
from mrse import config, tracking
from mrse.errors import DataError

ROOT = Path(__file__).parents[2]
STAGE = """
import json, pathlib, sys
import yaml
seed = yaml.safe_load(open("params.yaml"))["train"]["seed"]
for name in ("reports/gate", "reports/validation", "data"):
    pathlib.Path(name).mkdir(parents=True, exist_ok=True)
    pathlib.Path(name, "index.html").write_text(f"{name} of {seed}")
pathlib.Path("made.json").write_text(json.dumps({"run_id": "none"}))
if seed == 13:
    sys.exit("work: thirteen is an unlucky seed")
"""
BESIDE = "import pathlib, sys; print(pathlib.Path('data/index.html').read_text(), *sys.argv[1:])"
COMPONENT = {
    "image": "mrse-x",
    "extras": [],
    "resources": {"cpu": "1", "memory": "1Gi"},
    "retries": 1,
    "timeout_minutes": 5,
    "pool": "default_pool",
}


def git(folder: Path, *arguments: str) -> None:
    subprocess.run(["git", "-c", "user.name=t", "-c", "user.email=t@example.org", *arguments], cwd=folder, check=True)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("shop") / "pipeline"
    entry = {
        "cmd": "python components/work/work.py",
        "deps": ["components/work"],
        "params": ["train.seed"],
        "outs": ["data", "reports/gate", "reports/validation"],
        "metrics": [{"made.json": {"cache": False}}],
    }
    components = {
        "work": COMPONENT | {"command": ["python"], "report": "reports/validation/index.html"},
        "beside": COMPONENT | {"command": ["python", "components/beside/work.py"], "reads": ["data"]},
    }
    for (name, component), code in zip(components.items(), (STAGE, BESIDE), strict=True):
        (folder / "components" / name).mkdir(parents=True)
        (folder / "components" / name / "work.py").write_text(code)
        (folder / "components" / name / "component.yaml").write_text(yaml.safe_dump(component | {"name": name}))
    (folder / "mrse").mkdir()
    (folder / "mrse" / "nothing.txt").write_text("")
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"work": entry}}))
    (folder / ".dvcignore").write_text("")
    (folder / "params.yaml").write_text(yaml.safe_dump({"snapshot": {"end": "2026-03-15"}, "train": {"seed": 1}}))
    for command in (["init", "--quiet"], ["add", "--all"], ["commit", "--quiet", "--message", "pipeline"]):
        git(folder, *command)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("MRSE_DVC_REMOTE", "MRSE_STATE_DIR", "MRSE_CACHE_DIR", "MLFLOW_TRACKING_URI", "MRSE_MILVUS_URI"):
            patch.delenv(name, raising=False)
        yield folder


def services(pipeline: Path) -> config.ServicesConfig:
    return config.load(pipeline / "params.yaml").services.under(pipeline)


def ordered(pipeline: Path, seed: int) -> Plan:
    return plan(pipeline, "2026-03-15", overrides={"train.seed": seed})


def training_run(pipeline: Path) -> str:
    client = tracking.connect(services(pipeline))
    found = client.get_experiment_by_name(tracking.EXPERIMENT)
    place = (pipeline / ".mrse" / "mlartifacts").as_uri()
    experiment = found.experiment_id if found else client.create_experiment(tracking.EXPERIMENT, place)
    return str(client.create_run(experiment).info.run_id)


@pytest.fixture(scope="module")
def filed(pipeline: Path) -> list[str]:
    """Two runs, the second on top of the first."""
    runs = []
    for seed in (1, 2):
        run, remote = training_run(pipeline), str(pipeline.parent / "remote")
        result = run_stage("work", pipeline, ordered(pipeline, seed), [], remote)
        told = keep(pipeline, ordered(pipeline, seed), [type(result)(**{**vars(result), "mlflow_run": run})], remote)
        assert told["mlflow_run"] == run
        runs.append(run)
    return runs


def test_each_run_comes_back_as_it_was(pipeline: Path, filed: list[str], tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    code = "from mrse.cli import main; main()"
    command = [sys.executable, "-c", code, "--params", str(pipeline / "params.yaml"), "checkout", filed[0][:12]]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    first = pipeline / ".mrse" / "checkout" / filed[0][:12]
    assert done.stdout.splitlines()[-1] == str(first)
    second = checkout(filed[1], pipeline, tmp_path / "second")
    for folder, seed in ((first, 1), (second, 2)):
        for name in ("data", "reports/gate", "reports/validation"):
            assert (folder / name / "index.html").read_text() == f"{name} of {seed}"
        assert yaml.safe_load((folder / "params.yaml").read_text())["train"]["seed"] == seed
        assert list(yaml.safe_load((folder / "dvc.lock").read_text())["stages"]) == ["work"]
    again = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (again.returncode, again.stderr) == (1, f"checkout: {first} is not empty\n")


def test_a_run_that_cannot_come_back_is_one_message_and_leaves_nothing(
    pipeline: Path, filed: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    into = tmp_path / "into"
    with pytest.raises(DataError, match="0 MLflow runs begin with 'nosuch'"):
        checkout("nosuch", pipeline, into)
    with pytest.raises(DataError, match=r"no dvc\.lock is filed with run"):
        checkout(training_run(pipeline), pipeline, into)
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(pipeline.parent / "remote", elsewhere)
    shutil.rmtree(elsewhere / "files")
    monkeypatch.setenv("MRSE_DVC_REMOTE", str(elsewhere))
    with pytest.raises(ExchangeFailed, match=f"^{elsewhere} has not all files of run {filed[0]}: ") as failed:
        checkout(filed[0], pipeline, into)
    assert len(str(failed.value).splitlines()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere"]


def test_a_folder_with_something_in_it_is_left_alone(pipeline: Path, filed: list[str], tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    for taken in (tmp_path, tmp_path / "mine"):
        with pytest.raises(DataError, match="is not empty"):
            checkout(filed[0], pipeline, taken)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_failed_stage_names_the_report_that_it_wrote(pipeline: Path) -> None:
    with pytest.raises(ExchangeFailed) as failed:
        run_stage("work", pipeline, ordered(pipeline, 13), [], str(pipeline.parent / "remote"))
    reason, _, place = str(failed.value).partition(" Report: ")
    assert reason == "work: thirteen is an unlucky seed"
    assert Path(urlsplit(place).path).read_text() == "reports/validation of 13"
    assert tracking.list_records(services(pipeline), tracking.FAILURES)[-1].tags["reason"] == reason


def test_where_mlflow_does_not_answer_the_reason_stays_the_stage_s(
    pipeline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(ExchangeFailed) as failed:
        run_stage("work", pipeline, ordered(pipeline, 13), [], str(pipeline.parent / "remote"))
    message = str(failed.value)
    assert message.startswith("work: thirteen is an unlucky seed Its report could not be filed: MLflow at http://127")
    assert len(message.splitlines()) == 1


def test_a_component_that_is_no_stage_finds_what_it_reads(
    pipeline: Path, filed: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    remote = str(pipeline.parent / "remote")
    lock = run_stage("work", pipeline, ordered(pipeline, 1), [], remote).lock
    told = run_component("beside", ["--seeds", "3"], pipeline, ordered(pipeline, 1), [lock], remote)
    assert told == {"mlflow_run": "", "page": ""}
    assert "data of 1 --seeds 3" in capfd.readouterr().err
    with pytest.raises(ExchangeFailed, match="failed to pull data"):
        run_component("beside", [], pipeline, ordered(pipeline, 1), [], remote)
