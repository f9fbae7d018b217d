"""`dvc repro` as a person uses it: to the end, again, after an edit, after a kill, and on the next day."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from tests.e2e.conftest import ROOT, Workspace

STAGES = list(yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"])


def ran(output: str) -> list[str]:
    return [stage for stage in STAGES if f"Running stage '{stage}'" in output]


def read(workspace: Workspace, name: str) -> Any:
    return json.loads((workspace.folder / name).read_text(encoding="utf-8"))


def test_raw_logs_become_a_live_index(finished: Workspace) -> None:
    decision = read(finished, "reports/decision.json")
    live = read(finished, "reports/live.json")
    assert decision["outcome"] in {"PROMOTE", "HOLD", "REJECT"}
    assert decision["champion"] is None
    assert live["status"] == ("swapped" if decision["outcome"] == "PROMOTE" else "unchanged")
    for report in ("reports/validation/index.html", "reports/gate/index.html"):
        assert (finished.folder / report).stat().st_size > 1000


def test_nothing_runs_twice(finished: Workspace) -> None:
    assert ran(finished.run("dvc", "repro").stdout) == []


def test_search_and_status_answer(finished: Workspace) -> None:
    live = read(finished, "reports/live.json")
    assert live["status"] == "swapped"
    assert live["collection"] in finished.run("mrse", "status").stdout
    out = finished.run("mrse", "search", "red shirt", "--top", "5").stdout
    assert len([line for line in out.splitlines() if line.strip()]) >= 5
    queries = finished.folder / "queries.tsv"
    queries.write_text("q1\tred shirt\nq2\tblue watch\n", encoding="utf-8")
    finished.run("mrse", "search", "--queries", "queries.tsv", "--top", "10", "--run", "out.run")
    rows = [line.split() for line in (finished.folder / "out.run").read_text(encoding="utf-8").splitlines()]
    assert [row[0] for row in rows] == ["q1"] * 10 + ["q2"] * 10
    assert all(len(row) == 6 and row[1] == "Q0" for row in rows)
    scores = [float(row[4]) for row in rows[:10]]
    assert scores == sorted(scores, reverse=True)


def test_a_lost_milvus_is_built_anew(finished: Workspace) -> None:
    before = read(finished, "reports/live.json")
    shutil.rmtree(finished.folder / ".mrse" / "milvus.db")
    finished.run("dvc", "repro", "--force", "--single-item", "build_index")
    finished.run("dvc", "repro", "--single-item", "swap_index")
    live = read(finished, "reports/live.json")
    assert (live["status"], live["version"], live["rows"]) == ("swapped", before["version"], before["rows"])
    assert live["collection"] in finished.run("mrse", "status").stdout
    assert ran(finished.run("dvc", "repro").stdout) == []


def test_an_edit_re_runs_only_what_it_touches(finished: Workspace) -> None:
    finished.configure({"gate": {"seed": 1}})
    again = ran(finished.run("dvc", "repro").stdout)
    assert again[0] == "gate"
    finished.configure({"gate": {"seed": 0}})
    finished.run("dvc", "repro")


def test_the_pictures_of_the_pipeline(finished: Workspace) -> None:
    dag = finished.run("dvc", "dag").stdout
    assert all(stage in dag for stage in STAGES)
    metrics = finished.run("dvc", "metrics", "show", "--json").stdout
    assert "reports/gate.json" in metrics
    finished.run("dvc", "plots", "show")
    page = (finished.folder / "dvc_plots" / "index.html").read_text(encoding="utf-8")
    assert "Training loss by step" in page


def test_the_next_day_meets_the_champion(finished: Workspace) -> None:
    before = read(finished, "reports/live.json")
    finished.configure({"snapshot": {"end": "2026-03-16"}})
    finished.run("dvc", "repro")
    decision = read(finished, "reports/decision.json")
    live = read(finished, "reports/live.json")
    assert decision["champion"]["version"] == before["version"]
    if decision["outcome"] == "PROMOTE":
        assert live["previous"] == before["collection"]
    else:
        assert live["status"] == "unchanged"
        assert live["collection"] == before["collection"]


def test_a_killed_run_goes_on_where_it_stopped(new_workspace: Callable[[], Workspace]) -> None:
    workspace = new_workspace()
    run = workspace.start("dvc", "repro")
    wait_for(workspace.folder / "data" / "features" / "features.json")
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    # DVC leaves the lock file of a killed process behind; it names the dead process and is taken over or removed.
    again = workspace.run("dvc", "repro").stdout
    assert "snapshot" not in ran(again)
    assert read(workspace, "reports/live.json")["status"] in {"swapped", "unchanged"}


def wait_for(path: Path, seconds: float = 300.0) -> None:
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.2)
