"""What a killed run left in the cache goes a day later, and nothing else does."""

from __future__ import annotations

import os
import time
from pathlib import Path

from mrse.scratch import scratch


def test_what_nobody_touched_for_a_day_is_removed(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    for name in ("gate.killed", "gate.running", "trial.killed"):
        (cache / name).mkdir(parents=True)
        (cache / name / "file").write_text("x")
    (cache / "gate.note").write_text("no folder")
    yesterday = time.time() - 25 * 3600
    for name in ("gate.killed", "trial.killed", "gate.note"):
        os.utime(cache / name, (yesterday, yesterday))
    with scratch(cache, "gate") as folder:
        assert Path(folder).parent == cache
        assert {path.name for path in cache.iterdir()} == {
            "gate.running",
            "trial.killed",
            "gate.note",
            Path(folder).name,
        }
    assert not Path(folder).exists()
