from __future__ import annotations

import runpy
import sys
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pytest
import yaml

from mrse.data.contract import ITEMS, SnapshotMeta, write_meta, write_parquet


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    day = datetime(2026, 3, 1, tzinfo=UTC)
    params = {"snapshot": {"end": "2026-03-15"}, "build_features": {"vocab_size": 300}}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    rows = [{"item_id": "a", "title": "Red shirt"}, {"item_id": "b", "title": "Blue shirt"}]
    write_parquet(pa.Table.from_pylist(rows, schema=ITEMS), tmp_path / "data/clean/items.parquet")
    meta = SnapshotMeta(
        source="files", start=day, end=day, simulated=False, note="", rows={}, fingerprint="", image_root=None
    )
    write_meta(tmp_path / "data/clean", meta)
    queries = pa.table({"query": pa.array([], pa.string()), "requests": pa.array([], pa.int64())})
    write_parquet(queries, tmp_path / "data/profiles/queries.parquet")
    return tmp_path


def test_a_shop_without_pictures_runs_and_says_so(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["build_features", "--workspace", str(workspace)])
    monkeypatch.delenv("MRSE_QUIET", raising=False)
    runpy.run_module("components.build_features", run_name="__main__")
    assert "no pictures, so no image encoder" in capsys.readouterr().err
    assert (workspace / "data/features/tokenizer.json").is_file()


def test_a_missing_input_is_one_message_and_a_failure(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (workspace / "data/clean/items.parquet").unlink()
    monkeypatch.setattr(sys, "argv", ["build_features", "--workspace", str(workspace)])
    with pytest.raises(SystemExit) as stop:
        runpy.run_module("components.build_features", run_name="__main__")
    assert stop.value.code == 1
    assert capsys.readouterr().err.startswith("build_features: ")
    assert not (workspace / "data/features").exists()
