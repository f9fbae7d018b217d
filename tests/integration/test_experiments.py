"""`dvc exp run` as docs/experiments.md tells it: the list of ablations, and one changed setting."""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from mrse.jsonfile import read_json
from tests.integration.test_ablation import write_workspace

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., str]:
    """What a command says, in a committed workspace: a pipeline of `train` alone, whose inputs are there."""
    write_workspace(tmp_path)
    train = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]["train"]
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"train": train}}), encoding="utf-8")
    for name in ("mrse", "components", "experiments"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in (".dvcignore", ".gitignore"):
        shutil.copy(ROOT / name, tmp_path)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MRSE_", "MLFLOW_"))}
    environment |= {"PATH": f"{Path(sys.executable).parent}:{environment['PATH']}", "DVC_NO_ANALYTICS": "1"}

    def command(*words: str) -> str:
        done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    command("git", "init", "--quiet")
    command("dvc", "init", "--quiet")
    commit(command)
    return command


def commit(run: Callable[..., str]) -> None:
    run("git", "add", "--all")
    run("git", "-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "--quiet", "--message", "all")


@pytest.mark.slow
def test_dvc_runs_the_ablations_and_single_settings(run: Callable[..., str], tmp_path: Path) -> None:
    without = ("-S", "~ablate.variants.loss", "-S", "~ablate.variants.data")
    run("dvc", "exp", "run", *without, "experiments/dvc.yaml:ablate")
    with (tmp_path / "reports/ablation/ablation.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["variant"] for row in rows] == ["full", "no_user_history", "history_2"]
    assert all(row["seeds"] == "3" and row["recall_at_10.lower"] for row in rows)
    assert (tmp_path / "reports/ablation/ablation.svg").is_file()
    commit(run)
    run("dvc", "exp", "run", "--name", "alone", "-S", "train.model.user_history=false", "train")
    assert read_json(tmp_path / "models/challenger/config.json")["model"]["user_history"] is False
    assert "alone" in run("dvc", "exp", "list")
