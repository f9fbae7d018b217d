"""A workspace of its own for each end-to-end test: the pipeline's files and a tiny shop's parameters."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.e2e.airflow import Airflow, Server, free_port, missing

ROOT = Path(__file__).parents[2]

# A shop small enough for seconds per stage; the structure is the default one.
TINY: dict[str, Any] = {
    "snapshot": {"source": "marketplace", "end": "2026-03-15", "days": 8},
    "marketplace": {"items": 300, "shoppers": 120, "events_per_day": 2500, "image_size": 32},
    "validate_logs": {},
    "build_profiles": {"warmup_days": 2, "test_days": 2},
    "build_features": {
        "vocab_size": 800,
        "subword_buckets": 4000,
        "image_encoder": {"image_size": 32, "dim": 32, "depth": 1, "heads": 2, "pretrain_steps": 20},
    },
    "train": {
        "align_steps": 120,
        "fuse_steps": 80,
        "batch_size": 64,
        "learning_rate": 0.002,
        "bank_refresh_steps": 40,
        "eval_every": 40,
        "checkpoint_every": 20,
        "model": {"dim": 64, "hidden": 48, "heads": 2},
        "loss": {"catalogue_negatives": 32},
    },
    "gate": {"k": 10, "resamples": 500, "min_requests": 20, "guardrails": {}},
    "build_index": {},
    "swap_index": {},
    "services": {"milvus_uri": ".mrse/milvus.db", "mlflow_uri": "sqlite:///.mrse/mlflow.db"},
}


def merged(base: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    out = dict(base)
    for key, value in change.items():
        out[key] = merged(out[key], value) if isinstance(value, dict) and isinstance(out.get(key), dict) else value
    return out


class Workspace:
    """A folder with the pipeline in it, and the commands a person would type there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.params = TINY
        self.env = {k: v for k, v in os.environ.items() if not k.startswith(("MRSE_", "MLFLOW_", "COV_"))}
        self.env |= {"PATH": f"{Path(sys.executable).parent}:{self.env['PATH']}", "DVC_NO_ANALYTICS": "1"}
        for name in ("mrse", "components"):
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("dvc.yaml", ".dvcignore"):
            shutil.copy(ROOT / name, folder / name)
        self.configure({})
        self.run("dvc", "init", "--no-scm", "--quiet")

    def configure(self, change: dict[str, Any]) -> None:
        """Change `params.yaml`."""
        self.params = merged(self.params, change)
        (self.folder / "params.yaml").write_text(yaml.safe_dump(self.params), encoding="utf-8")

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command in the workspace; its output is in the assertion when it fails."""
        done = subprocess.run(command, cwd=self.folder, env=self.env, capture_output=True, text=True, check=False)
        if check:
            assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
        return done

    def start(self, *command: str) -> subprocess.Popen[bytes]:
        """Start a command in a process group of its own, so that all of it can be killed."""
        return subprocess.Popen(
            command,
            cwd=self.folder,
            env=self.env,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )


@pytest.fixture(scope="session")
def new_workspace(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Workspace]:
    return lambda: Workspace(tmp_path_factory.mktemp("workspace"))


@pytest.fixture(scope="session")
def finished(new_workspace: Callable[[], Workspace]) -> Workspace:
    """A workspace in which `dvc repro` ran once to the end. Tests must leave it finished."""
    workspace = new_workspace()
    workspace.run("dvc", "repro")
    return workspace


# Enough shoppers and requests for the gate to tell a model that was trained too little from one that was not.
BUSY = {"marketplace": {"shoppers": 400, "events_per_day": 8000}}
TOO_LITTLE = {"train.align_steps": 40, "train.fuse_steps": 40}
THIRD_DAY = "backfill__2026-03-17T02:00:00+00:00"
# The daily run in pods, of which no image was named.
IN_PODS = """
import os
os.environ["MRSE_RUNNER"] = "kubernetes"
from airflow.sdk import DAG
from mrse_pipeline import RUN_PARAMS, plan_task, stage_tasks
with DAG("in_pods", schedule=None, params=RUN_PARAMS):
    stage_tasks(plan_task())
"""


class Shop(Airflow):
    """Airflow on a busy tiny shop, with a Milvus server and one more DAG."""

    def __init__(self, folder: Path) -> None:
        port = free_port()
        program = [Path(sys.executable).with_name("milvus-lite"), "server", "--data-dir", folder / "milvus.db"]
        self.milvus = Server(
            folder / "milvus.log", port, [*program, "--host", "127.0.0.1", "--port", str(port)], cwd=folder
        )
        super().__init__(folder, merged(TINY, BUSY), MRSE_MILVUS_URI=f"http://127.0.0.1:{port}")

    def check_out(self, params: dict[str, Any]) -> None:
        super().check_out(params)
        (self.shop / "dags" / "in_pods.py").write_text(IN_PODS)

    def stop(self) -> None:
        super().stop()
        self.milvus.stop()


@pytest.fixture(scope="package")
def airflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    if missing():
        pytest.skip(f"not installed: {missing()}")
    started = Shop(tmp_path_factory.mktemp("airflow"))
    try:
        yield started
    finally:
        started.stop()


@pytest.fixture(scope="package")
def days(airflow: Shop) -> dict[str, str]:
    """Three days in a row: what `mrse status` said after each. Each met a fault that was mended while it ran."""
    told = {}
    conf = json.dumps({"end": "2026-03-15", "overrides": TOO_LITTLE})
    airflow.command("dags", "trigger", "mrse_daily", "--run-id", "first", "--conf", conf)
    airflow.until("first", lambda: "Running stage 'train'" in airflow.logs("first", "train"))
    os.kill(airflow.process("train"), signal.SIGKILL)
    airflow.finished("first")
    told["first"] = airflow.live()

    airflow.milvus.stop()
    airflow.trigger("second", {}, run_after="2026-03-16T02:00:00Z")
    airflow.until("second", lambda: bool(airflow.reasons("second", "build_index")))
    airflow.milvus.start()
    airflow.finished("second")
    told["second"] = airflow.live()

    remote = airflow.shop / ".mrse" / "dvc-remote"
    remote.rename(remote.with_name("away"))
    remote.write_text("no folder")
    airflow.mlflow.stop()
    airflow.command(
        "backfill", "create", "--dag-id", "mrse_daily", "--from-date", "2026-03-17", "--to-date", "2026-03-18"
    )
    airflow.until(THIRD_DAY, lambda: bool(airflow.reasons(THIRD_DAY, "snapshot")))
    remote.unlink()
    remote.with_name("away").rename(remote)
    airflow.until(THIRD_DAY, lambda: bool(airflow.reasons(THIRD_DAY, "train")))
    airflow.mlflow.start()
    airflow.finished(THIRD_DAY)
    told[THIRD_DAY] = airflow.live()
    return told
