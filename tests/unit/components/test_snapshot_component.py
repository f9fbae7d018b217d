"""`python -m components.snapshot`: files in, files out, one clear sentence."""

import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from components.snapshot.__main__ import body
from mrse import config
from mrse.data.contract import read_meta

ROOT = Path(__file__).parents[3]
SHARED = Path(os.environ.get("MRSE_SHARED_DATA", ROOT.parent / "shared" / "data"))


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    params = {"snapshot": {"source": "files", "end": "2026-03-15", "files": {"items": "items.parquet"}}}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    pq.write_table(pa.table({"item_id": ["1"], "title": ["red shirt"]}), tmp_path / "items.parquet")
    return tmp_path


def run(workspace: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "components.snapshot", "--workspace", str(workspace)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_it_writes_the_snapshot_and_says_what_it_holds(workspace: Path) -> None:
    done = run(workspace)
    assert done.returncode == 0
    assert "1 items, 0 events, 0 judgments from files, 2026-03-01 to 2026-03-15" in done.stderr
    assert read_meta(workspace / "data/snapshot").rows == {"items": 1, "events": 0, "judgments": 0}


def test_bad_input_is_one_line_without_a_traceback(workspace: Path) -> None:
    (workspace / "items.parquet").write_bytes(b"item_id,title")
    done = run(workspace)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("snapshot: ")
    assert "items.parquet: not a readable Parquet file" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (workspace / "data/snapshot").exists()


@pytest.mark.parametrize(
    ("shop", "rows"),
    [
        ("fashion", {"items": 44_072, "events": 0, "judgments": 29_737}),
        ("homedepot", {"items": 54_667, "events": 0, "judgments": 51_876}),
    ],
)
def test_real_catalogues_fit_the_contract(shop: str, rows: dict[str, int], tmp_path: Path) -> None:
    folder = SHARED / shop
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set MRSE_SHARED_DATA")
    pictures = folder / "images.zip"
    files = {
        "items": str(folder / "items.parquet"),
        "judgments": str(folder / "judgments.parquet"),
        "image_root": str(pictures) if pictures.exists() else None,
    }
    params = config.parse({"snapshot": {"source": "files", "end": "2026-03-15", "files": files}})
    assert body(params, tmp_path).startswith(f"{rows['items']:,} items, 0 events")
    meta = read_meta(tmp_path / "data/snapshot")
    assert meta.rows == rows
    assert meta.image_root == (f"zip://::{pictures}" if pictures.exists() else None)
