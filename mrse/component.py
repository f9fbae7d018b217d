"""What every `components/<stage>/__main__.py` shares: one optional argument, one clear error, peak memory and time.

Where the environment names a file in `MRSE_COST`, time and memory are also written there: `{"start_seconds", "seconds",
"peak_mib"}`. The start is that of the stage's Python, its imports above all. The peak is that of the largest process:
the stage, or one that it started.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import mrse
from mrse import config
from mrse.errors import MrseError
from mrse.jsonfile import write_json
from mrse.progress import say

# Read when torch is imported, so it must stand before. Its threads spin while they wait for each other; where another
# process wants the same cores (a busy node, a CPU limit) that makes a training step ten times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def run(stage: str, body: Callable[[config.Params, Path], str]) -> None:
    """Run one stage and exit: 0 when it is done, 1 with a one-message reason when it is not.

    Args:
        stage: the stage's name in `dvc.yaml`.
        body: takes the parameters and the workspace folder, reads and writes files under it as `dvc.yaml` declares, and
            returns one sentence on what it did.
    """
    parser = argparse.ArgumentParser(prog=f"python -m components.{stage}")
    parser.add_argument("--workspace", type=Path, default=Path("."), help="folder that holds params.yaml and data/")
    workspace: Path = parser.parse_args().workspace
    measure(stage, lambda: body(config.load(workspace / "params.yaml"), workspace))


def measure(name: str, work: Callable[[], str]) -> None:
    """Do a component's work as `run` does: cost told, an error one message and exit code 1.

    Args:
        name: of the component.
        work: returns one sentence on what it did.
    """
    cost = os.environ.pop("MRSE_COST", "")  # of this process: those that it starts write none
    started = time.perf_counter()
    try:
        summary = work()
    except MrseError as error:
        print(f"{name}: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    both = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    peak_mib = max(resource.getrusage(who).ru_maxrss for who in both) / 1024
    seconds = time.perf_counter() - started
    if cost:
        write_json(Path(cost), {"start_seconds": started - mrse.BEGAN, "seconds": seconds, "peak_mib": peak_mib})
    say(f"{name}: {summary} ({seconds:.1f} s, peak {peak_mib:.0f} MiB)")
