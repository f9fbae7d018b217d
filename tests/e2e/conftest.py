"""A workspace of its own for each end-to-end test: the pipeline's files and a tiny shop's parameters."""

from __future__ import annotations

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

from tests.e2e.airflow import Airflow, missing, wait

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


@pytest.fixture(scope="session")
def airflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Airflow]:
    """Airflow after the day `first`, whose training was killed once."""
    if missing():
        pytest.skip(f"not installed: {missing()}")
    started = Airflow(tmp_path_factory.mktemp("airflow"), TINY)
    try:
        started.trigger("first", {"end": "2026-03-15"})
        wait(lambda: "Running stage 'train'" in started.logs("first", "train"))
        os.kill(started.process("train"), signal.SIGKILL)
        started.finished("first")
        yield started
    finally:
        started.stop()
