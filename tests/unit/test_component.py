"""What a stage costs is written once, by the stage itself, and counts the processes that it starts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import yaml

# The stage starts itself once more, as a training on many processes does, and the second one takes the memory.
STAGE = """
import os, subprocess, sys
from mrse import component

def body(params, workspace):
    if "SECOND" in os.environ:
        return f"{len(b'x' * (300 << 20))} bytes"
    assert "MRSE_COST" not in os.environ
    subprocess.run([sys.executable, *sys.orig_argv[1:]], env=os.environ | {"SECOND": "1"}, check=True)
    return "done"

component.run("stage", body)
"""


def test_the_cost_of_a_stage_counts_what_it_starts(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({"snapshot": {"end": "2026-03-15"}}))
    cost = tmp_path / "cost.json"
    settings = os.environ | {"MRSE_COST": str(cost)}
    done = subprocess.run(
        [sys.executable, "-c", STAGE], cwd=tmp_path, env=settings, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(cost.read_text())
    assert set(told) == {"start_seconds", "seconds", "peak_mib"}
    assert 0 < told["start_seconds"] < 60
    assert told["peak_mib"] > 300
