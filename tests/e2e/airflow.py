"""`make airflow` in a checkout of its own: what a person does there by the command line and the UI does by the API."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import quote
from urllib.request import Request, urlopen

import yaml

ROOT = Path(__file__).parents[2]
FILES = ("mrse", "components", "dags", "k8s", "dvc.yaml", ".dvcignore", "Makefile", "pyproject.toml", "constraints.txt")
MINUTES = 20.0
ENDED = {"success", "failed"}


class Server:
    """A server on this machine, which a test may stop and start again.

    Args:
        log: of its output.
        port: on which it listens once it has started.
        command: what starts it.
        settings: of `Popen`.
    """

    def __init__(self, log: Path, port: int, command: Sequence[str | Path], **settings: Any) -> None:
        self._log, self._port, self._command, self._settings = log, port, command, settings
        self.process = self._begin()

    def start(self) -> None:
        """Start it again, and wait until it listens."""
        self.process = self._begin()
        wait(lambda: _listens(self._port))

    def stop(self) -> None:
        """End it, and all that it started, as Ctrl-C does."""
        for sign in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError, subprocess.TimeoutExpired):
                os.killpg(self.process.pid, sign)
                self.process.wait(30)

    def _begin(self) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as out:
            return subprocess.Popen(self._command, stdout=out, stderr=out, start_new_session=True, **self._settings)


class Airflow:
    """A shop, committed, with an MLflow server and `make airflow` beside it.

    Args:
        folder: empty; all of it lies there.
        params: of the shop.
        environment: of the daemons, beside what it takes to run.
    """

    def __init__(self, folder: Path, params: dict[str, Any], **environment: str) -> None:
        self.shop = folder / "shop"
        self.home = self.shop / ".mrse" / "airflow"
        self.log = folder / "airflow.log"
        self.check_out(params)
        self._lend_environment()
        port, pages = free_port(), free_port()
        self.address = f"http://127.0.0.1:{port}"
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("MRSE_", "MLFLOW_", "COV_"))}
        settings = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(self.shop),
            "OMP_NUM_THREADS": "1",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{pages}",
            "AIRFLOW__API__PORT": str(port),
            "AIRFLOW__SCHEDULER__USE_JOB_SCHEDULE": "False",  # only the runs that the test asks for
            # Two cores are busy when all of it starts.
            "AIRFLOW__WORKERS__EXECUTION_API_TIMEOUT": "60",
            "AIRFLOW__CORE__DAGBAG_IMPORT_TIMEOUT": "120",
            "AIRFLOW__DAG_PROCESSOR__DAG_FILE_PROCESSOR_TIMEOUT": "150",
        }
        self.env = kept | settings | environment
        # The command line finds there what the Makefile tells the daemons.
        self._told = self.env | {
            "AIRFLOW_HOME": str(self.home),
            "AIRFLOW__CORE__DAGS_FOLDER": str(self.shop / "dags"),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        }
        server = ["mlflow", "server", "--host", "127.0.0.1", "--port", str(pages), "--workers", "1"]
        store = [
            "--backend-store-uri",
            f"sqlite:///{folder}/mlflow.db",
            "--artifacts-destination",
            str(folder / "kept"),
        ]
        where = {"env": self.env, "cwd": self.shop}
        self.mlflow = Server(folder / "mlflow.log", pages, [*server, *store], **where)
        self._make = Server(self.log, port, ["make", "airflow"], **where)
        try:
            self._token = self._log_in()
            for dag in ("mrse_daily", "mrse_rollback", "mrse_experiments"):
                self.unpause(dag)
        except BaseException:
            self.stop()
            raise

    def command(self, *arguments: str) -> str:
        """Run `airflow …`."""
        done = subprocess.run(
            ["airflow", *arguments], env=self._told, cwd=self.shop, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{arguments}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def api(self, method: str, path: str, body: Any = None) -> Any:
        """One call of Airflow's API, as the UI makes it."""
        headers = {"Authorization": f"Bearer {self._token}", "Content-Type": "application/json"}
        data = None if body is None else json.dumps(body).encode()
        with urlopen(Request(f"{self.address}/api/v2/{path}", data, headers, method=method), timeout=60) as answer:
            return json.loads(answer.read() or b"null")

    def unpause(self, dag: str) -> None:
        """Wait until a DAG is loaded, and let it run."""
        wait(lambda: self._unpaused(dag))

    def trigger(self, run: str, conf: dict[str, Any], dag: str = "mrse_daily", **more: str) -> None:
        """What the button of the UI's form does: a run without a logical date."""
        self.api("POST", f"dags/{dag}/dagRuns", {"dag_run_id": run, "logical_date": None, "conf": conf, **more})

    def day(self, run: str, **conf: Any) -> dict[str, str]:
        """Trigger `mrse_daily` and wait for its end; the states of its tasks."""
        self.trigger(run, conf)
        return self.finished(run)

    def again(self, run: str) -> dict[str, str]:
        """Clear a day, all of it, and wait for its end."""
        self.api("POST", f"{_path(run)}/clear", {"dry_run": False, "only_failed": False})
        return self.finished(run)

    def finished(self, run: str, dag: str = "mrse_daily") -> dict[str, str]:
        """The states of a run's tasks, when it has ended."""
        self.until(run, lambda: self.ended(run, dag), dag)
        return self.states(run, dag)

    def ended(self, run: str, dag: str = "mrse_daily") -> bool:
        return self.api("GET", _path(run, dag))["state"] in ENDED

    def until(self, run: str, done: Callable[[], bool], dag: str = "mrse_daily") -> None:
        """Wait until something holds while a run goes on; where the run ends first, tell how."""
        reached = False

        def over() -> bool:
            nonlocal reached
            reached = done()
            return reached or self.ended(run, dag)

        wait(over, lambda: self.told(run, dag))
        # What held a moment ago may be past; what did not may have come with the run's end.
        assert reached or done(), f"{run} ended first\n{self.told(run, dag)}"

    def told(self, run: str, dag: str = "mrse_daily") -> str:
        """A line for each task of a run: its state, and why its tries failed."""
        states = self.states(run, dag)
        return "\n".join(f"{task}: {state} {self.reasons(run, task, dag)}" for task, state in states.items())

    def runs(self, dag: str = "mrse_daily") -> list[str]:
        return [run["dag_run_id"] for run in self.api("GET", f"dags/{dag}/dagRuns?limit=100")["dag_runs"]]

    def conf(self, run: str, dag: str = "mrse_daily") -> Any:
        """With which parameters a run was triggered."""
        return self.api("GET", _path(run, dag))["conf"]

    def states(self, run: str, dag: str = "mrse_daily") -> dict[str, str]:
        found = self.api("GET", f"{_path(run, dag)}/taskInstances")
        return {task["task_id"]: task["state"] for task in found["task_instances"]}

    def seconds(self, run: str, task: str, dag: str = "mrse_daily") -> float:
        """How long a task's first try ran, its worker's start included."""
        return float(self.api("GET", f"{_path(run, dag)}/taskInstances/{task}/tries/1")["duration"])

    def updates(self, dag: str) -> list[str]:
        """The runs of a DAG that updated the asset `mrse/live-index`, in order."""
        found = self.api("GET", f"assets/events?name_pattern=mrse/live-index&source_dag_id={dag}&order_by=timestamp")
        return [event["source_run_id"] for event in found["asset_events"]]

    def result(self, run: str, task: str, dag: str = "mrse_daily") -> Any:
        """What a task handed on."""
        return self.api("GET", f"{_path(run, dag)}/taskInstances/{task}/xcomEntries/return_value")["value"]

    def logs(self, run: str, task: str, dag: str = "mrse_daily") -> str:
        folder = self.home / "logs" / f"dag_id={dag}" / f"run_id={run}" / f"task_id={task}"
        return "".join(path.read_text() for path in sorted(folder.glob("*.log")))

    def reasons(self, run: str, task: str, dag: str = "mrse_daily") -> list[str]:
        """Why a task failed, try by try: what `say_why` wrote into its log."""
        told = self.logs(run, task, dag).splitlines()
        lines = [json.loads(line) for line in told if line[:1] == "{" and line[-1:] == "}"]  # not one half written
        return [
            line["event"] for line in lines if "mrse_pipeline" in line.get("logger", "") and line["level"] == "error"
        ]

    def live(self) -> str:
        """What `mrse status` says: the live collection and MLflow's champion."""
        return self.mrse("status")

    def mrse(self, *arguments: str) -> str:
        """Run `mrse …` in the shop."""
        done = subprocess.run(
            ["mrse", *arguments], cwd=self.shop, env=self.env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def process(self, stage: str) -> int:
        """The process that runs a stage here."""
        ours = f"MRSE_PIPELINE={self.shop}".encode()
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # it has ended, or is another user's
                command = (folder / "cmdline").read_bytes().split(b"\0")
                told = (folder / "environ").read_bytes().split(b"\0")
                if command[-3:-1] == [b"run", stage.encode()] and ours in told:
                    return int(folder.name)
        raise AssertionError(f"no process runs {stage}")

    def stop(self) -> None:
        """End Airflow and the MLflow server."""
        for server in (self._make, self.mlflow):
            server.stop()

    def check_out(self, params: dict[str, Any]) -> None:
        """Make the shop's repository."""
        self.shop.mkdir()
        for name in FILES:
            subprocess.run(["cp", "-r", str(ROOT / name), str(self.shop)], check=True)
        (self.shop / ".gitignore").write_text("__pycache__\n.mrse\n.venv\n")
        (self.shop / "params.yaml").write_text(yaml.safe_dump(params))
        for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "shop"]):
            identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
            subprocess.run(["git", *identity, *command], cwd=self.shop, check=True)

    def _lend_environment(self) -> None:
        """The environment that runs the tests, as one in which `make` has nothing to install."""
        (self.shop / ".venv").mkdir()
        for path in Path(sys.prefix).iterdir():
            if not path.name.startswith("."):
                (self.shop / ".venv" / path.name).symlink_to(path)
        for stamp in (".pipeline", ".airflow"):
            (self.shop / ".venv" / stamp).touch()

    def _log_in(self) -> str:
        wait(lambda: "user and password" in self.log.read_text(errors="replace"))
        (self.user, self.password), *_ = json.loads(
            (self.home / "simple_auth_manager_passwords.json.generated").read_text()
        ).items()
        data = json.dumps({"username": self.user, "password": self.password}).encode()
        request = Request(f"{self.address}/auth/token", data, {"Content-Type": "application/json"})
        with urlopen(request, timeout=60) as answer:
            return str(json.load(answer)["access_token"])

    def _unpaused(self, dag: str) -> bool:
        assert self._make.process.poll() is None, self.log.read_text(errors="replace")[-3000:]
        with suppress(HTTPError, URLError):  # not loaded yet
            return self.api("PATCH", f"dags/{dag}", {"is_paused": False})["is_paused"] is False
        return False


def missing() -> str:
    """What `make airflow` needs and this machine lacks; empty where it has all."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return ", ".join(name for name in ("make", "git", "airflow") if shutil.which(name, path=path) is None)


def wait(done: Callable[[], bool], tell: Callable[[], str] = lambda: "") -> None:
    deadline = time.monotonic() + MINUTES * 60
    while not done():
        assert time.monotonic() < deadline, f"it did not get there\n{tell()}"
        time.sleep(1)


def _path(run: str, dag: str = "mrse_daily") -> str:
    return f"dags/{dag}/dagRuns/{quote(run)}"


def _listens(port: int) -> bool:
    with socket.socket() as there:
        return there.connect_ex(("127.0.0.1", port)) == 0


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
