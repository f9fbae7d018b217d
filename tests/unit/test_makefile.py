"""The commands of the Makefile that could mislead: images of what is not committed, an Airflow that is half there."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Stands in for Airflow: the daemon that a test names ends at once, or when the login has been told; others go on.
AIRFLOW = """#!/bin/sh
[ "$1" = "$ENDS" ] && exit 3
case $1 in
    db | pools) ;;
    api-server) echo '{"admin": "x"}' > "$AIRFLOW_HOME/simple_auth_manager_passwords.json.generated"
        sleep 1; exec PYTHON -c "$LISTEN" ;;
    *) exec sleep 60 ;;
esac
"""
LISTEN = """
import os, socket, time
server = socket.create_server(("127.0.0.1", int(os.environ["AIRFLOW__API__PORT"])))
server.accept()  # make airflow has come, and tells the login; then this daemon ends
time.sleep(1)
"""

# What `make test` tells its own makes would be told by those of the tests.
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    shutil.copy(ROOT / "Makefile", tmp_path)
    return tmp_path


def git(folder: Path, *arguments: str) -> None:
    subprocess.run(["git", "-c", "user.name=t", "-c", "user.email=t@example.org", *arguments], cwd=folder, check=True)


def images(folder: Path) -> subprocess.CompletedProcess[str]:
    command = ["make", "images", "BUILD_IMAGE=echo built"]
    return subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, check=False)


def test_images_are_of_what_is_committed(checkout: Path) -> None:
    git(checkout, "init", "--quiet")
    git(checkout, "add", "--all")
    git(checkout, "commit", "--quiet", "--message", "all")
    assert images(checkout).returncode == 0
    (checkout / "new.py").write_text("")
    refused = images(checkout)
    assert refused.returncode != 0
    assert "commit first" in refused.stderr.splitlines()[0]
    assert "built" not in refused.stdout


@pytest.fixture
def airflow(checkout: Path) -> Path:
    """A checkout with all that `make airflow` would install, and a stand-in for Airflow."""
    programs = checkout / ".venv" / "bin"
    programs.mkdir(parents=True)
    (programs / "python").symlink_to(sys.executable)
    (programs / "airflow").write_text(AIRFLOW.replace("PYTHON", sys.executable))
    (programs / "airflow").chmod(0o755)
    (checkout / ".mrse" / "airflow").mkdir(parents=True)
    for name in ("pyproject.toml", "constraints.txt", ".venv/.pipeline", ".venv/.airflow"):
        (checkout / name).write_text("")
    return checkout


@pytest.mark.parametrize(
    ("ends", "named"), [("api-server", "api-server"), ("scheduler", "scheduler"), ("", "api-server")]
)
def test_airflow_ends_when_one_of_its_daemons_does(airflow: Path, ends: str, named: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    settings = ENVIRONMENT | {"ENDS": ends, "LISTEN": LISTEN, "AIRFLOW__API__PORT": port}
    # A session of its own: make airflow ends all that is in its group. Its pipes close when the last daemon is gone.
    done = subprocess.run(
        ["make", "airflow"],
        cwd=airflow,
        env=settings,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        start_new_session=True,
    )
    assert done.returncode != 0
    assert f"make airflow: {named} has ended" in done.stderr
    assert (airflow / ".mrse" / "airflow" / f"{named}.log").exists()
    assert (f"http://127.0.0.1:{port}  user and password:" in done.stdout) == (ends == "")
