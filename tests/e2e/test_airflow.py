"""The DAG under Airflow's real scheduler, on a tiny shop: days in a row, a killed task, a cleared day."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.e2e.conftest import ROOT, TINY

pytest.importorskip("airflow", reason="Airflow is not installed: pip install -c constraints.txt -e '.[airflow]'")
pytestmark = pytest.mark.slow

FILES = ("mrse", "components", "dags", "dvc.yaml", ".dvcignore")
DAEMONS = (["api-server"], ["dag-processor"], ["triggerer", "--skip-serve-logs"], ["scheduler", "--skip-serve-logs"])
MINUTES = 20.0


class Airflow:
    """Airflow on a checkout of its own, with the commands a person would type."""

    def __init__(self, folder: Path, **settings: str) -> None:
        self.shop = folder / "shop"
        self.home = folder / "airflow"
        self.check_out()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("MRSE_", "MLFLOW_", "COV_"))}
        self.env = kept | {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(self.shop),
            "AIRFLOW_HOME": str(self.home),
            "AIRFLOW__CORE__DAGS_FOLDER": str(self.shop / "dags"),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"http://127.0.0.1:{port}/execution/",
            "AIRFLOW__API__HOST": "127.0.0.1",
            "AIRFLOW__API__PORT": port,
            "AIRFLOW__SCHEDULER__USE_JOB_SCHEDULE": "False",  # only the runs that the test asks for
            **settings,
        }
        self.run("db", "migrate")
        self.run("pools", "import", str(self.shop / "dags" / "pools.json"))
        self.daemons = [self._start(arguments) for arguments in DAEMONS]

    def check_out(self) -> None:
        """Make the checkout that the DAGs run."""
        self.shop.mkdir()
        for name in FILES:
            subprocess.run(["cp", "-r", str(ROOT / name), str(self.shop)], check=True)
        (self.shop / ".gitignore").write_text("__pycache__\n.mrse\n")
        (self.shop / "params.yaml").write_text(yaml.safe_dump(TINY))
        for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "shop"]):
            identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
            subprocess.run(["git", *identity, *command], cwd=self.shop, check=True)

    def run(self, *arguments: str) -> str:
        done = subprocess.run(
            ["airflow", *arguments], env=self.env, cwd=self.shop, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{arguments}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def states(self, run: str) -> dict[str, str]:
        out = self.run("tasks", "states-for-dag-run", "mrse_daily", run, "-o", "json")
        return {row["task_id"]: row["state"] for row in json.loads(out[out.index("[{") :])}

    def day(self, run: str, **conf: Any) -> dict[str, str]:
        self.run("dags", "trigger", "mrse_daily", "--run-id", run, "--conf", json.dumps(conf))
        return self.finished(run)

    def finished(self, run: str) -> dict[str, str]:
        wait(lambda: self.states(run).get("file_run") in {"success", "failed", "upstream_failed"})
        return self.states(run)

    def live(self) -> str:
        command = ["mrse", "status"]
        return subprocess.run(command, cwd=self.shop, env=self.env, capture_output=True, text=True, check=True).stdout

    def logs(self, run: str, task: str) -> str:
        folder = self.home / "logs" / "dag_id=mrse_daily" / f"run_id={run}" / f"task_id={task}"
        return "".join(path.read_text() for path in sorted(folder.glob("*.log")))

    def process(self, stage: str) -> int:
        """The process that runs a stage here."""
        ours = f"MRSE_PIPELINE={self.shop}".encode()
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # it has ended, or is another user's
                command = (folder / "cmdline").read_bytes().split(b"\0")
                if command[-3:-1] == [b"run", stage.encode()] and ours in (folder / "environ").read_bytes().split(
                    b"\0"
                ):
                    return int(folder.name)
        raise AssertionError(f"no process runs {stage}")

    def stop(self) -> None:
        for daemon in self.daemons:
            os.killpg(daemon.pid, signal.SIGTERM)
        for daemon in self.daemons:
            daemon.wait(30)

    def _start(self, arguments: list[str]) -> subprocess.Popen[bytes]:
        with (self.home / f"{arguments[0]}.log").open("wb") as log:
            return subprocess.Popen(
                ["airflow", *arguments], env=self.env, cwd=self.shop, stdout=log, stderr=log, start_new_session=True
            )


@pytest.fixture(scope="module")
def airflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Airflow]:
    started = Airflow(tmp_path_factory.mktemp("airflow"))
    try:
        wait(lambda: "mrse_daily" in started.run("dags", "list", "-o", "plain"))
        started.run("dags", "unpause", "mrse_daily", "-y")
        yield started
    finally:
        started.stop()


def wait(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + MINUTES * 60
    while not done():
        assert time.monotonic() < deadline, "Airflow did not get there"
        time.sleep(3)


def test_a_day_goes_live_and_cleared_it_changes_nothing(airflow: Airflow) -> None:
    first = airflow.day("first", end="2026-03-15")
    assert set(first.values()) == {"success"}
    live = airflow.live()
    assert "mrse_v1_" in live

    # Cleared and run again: what has finished is found, the challenger is the champion, and nothing moves.
    airflow.run("tasks", "clear", "mrse_daily", "-y")
    again = airflow.finished("first")
    assert (again["build_index"], again["swap_index"]) == ("skipped", "skipped")
    assert airflow.logs("first", "train").count("Running stage 'train'") == 1
    assert airflow.live() == live


def test_a_killed_task_is_retried(airflow: Airflow) -> None:
    airflow.run("dags", "trigger", "mrse_daily", "--run-id", "killed", "--conf", '{"end": "2026-03-16"}')
    wait(lambda: "Running stage 'train'" in airflow.logs("killed", "train"))
    os.kill(airflow.process("train"), signal.SIGKILL)
    states = airflow.finished("killed")
    assert states["train"] == states["file_run"] == "success"
    assert "train: killed by signal 9" in airflow.logs("killed", "train")


def test_a_bad_parameter_is_one_message_and_nothing_else_runs(airflow: Airflow) -> None:
    states = airflow.day("bad", overrides={"train.sed": 3})
    assert states["plan"] == "failed"
    assert states["snapshot"] == "upstream_failed"
    assert "train.sed" in airflow.logs("bad", "plan")
