"""`python -m components.build_profiles` in a workspace of its own."""

import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import yaml

from mrse.data import contract

ROOT = Path(__file__).parents[3]
START = datetime(2026, 3, 1, tzinfo=UTC)


def write_workspace(folder: Path, day: float) -> None:
    end = START + timedelta(days=5)
    params = {
        "snapshot": {"end": end.date().isoformat(), "days": 5},
        "build_profiles": {"warmup_days": 1, "valid_days": 1, "test_days": 1, "threads": 1},
    }
    (folder / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    clean = folder / "data/clean"
    items = [{"item_id": "a", "title": "boots"}]
    contract.write_parquet(pa.Table.from_pylist(items, contract.ITEMS), clean / "items.parquet")
    contract.write_parquet(contract.JUDGMENTS.empty_table(), clean / "judgments.parquet")
    click = {"event_time": START + timedelta(days=day), "session_id": "s", "query": "boots", "item_id": "a"}
    table = pa.Table.from_pylist([{**click, "action": "click"}], contract.EVENTS)
    contract.write_parquet(table, clean / f"events/dt={click['event_time']:%Y-%m-%d}/part-0.parquet")
    meta = {"source": "files", "simulated": True, "note": "", "rows": {}, "fingerprint": ""}
    contract.write_meta(clean, contract.SnapshotMeta(start=START, end=end, **meta))


def run_component(workspace: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "components.build_profiles", "--workspace", str(workspace)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)


def test_files_in_files_out_and_one_line(tmp_path: Path) -> None:
    write_workspace(tmp_path, day=1.5)
    done = run_component(tmp_path)
    assert done.returncode == 0, done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("build_profiles: 1 training and 0 validation examples")
    written = sorted(path.name for path in (tmp_path / "data/profiles").iterdir())
    tables = ["examples.parquet", "items.parquet", "profiles.json", "queries.parquet", "requests.parquet"]
    assert written == [*tables, "users.parquet"]
    report = json.loads((tmp_path / "data/profiles/profiles.json").read_text(encoding="utf-8"))
    assert report["examples"] == {"train": 1, "valid": 0}


def test_nothing_to_train_on_is_one_message(tmp_path: Path) -> None:
    write_workspace(tmp_path, day=0.5)
    done = run_component(tmp_path)
    assert done.returncode == 1
    assert "no usable training example" in done.stderr and "Traceback" not in done.stderr


def test_missing_input_is_one_message(tmp_path: Path) -> None:
    write_workspace(tmp_path, day=1.5)
    (tmp_path / "data/clean/snapshot.json").unlink()
    done = run_component(tmp_path)
    assert done.returncode == 1 and "snapshot.json: no such file" in done.stderr


def test_component_yaml_matches_the_stage() -> None:
    described = yaml.safe_load((ROOT / "components/build_profiles/component.yaml").read_text(encoding="utf-8"))
    assert described["name"] == "build_profiles" and described["extras"] == ["profiles"]
    assert described["command"] == ["python", "-m", "components.build_profiles"]
