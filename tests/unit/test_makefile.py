"""The commands of the Makefile that could mislead: images of what is not committed, an Airflow that is half there."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    shutil.copy(ROOT / "Makefile", tmp_path)
    return tmp_path


def git(folder: Path, *arguments: str) -> None:
    subprocess.run(["git", "-c", "user.name=t", "-c", "user.email=t@example.org", *arguments], cwd=folder, check=True)


def images(folder: Path) -> subprocess.CompletedProcess[str]:
    command = ["make", "images", "BUILD_IMAGE=echo built"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


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
