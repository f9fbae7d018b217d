import os
import time

import torch

from mrse.training import checkpoint
from mrse.training.checkpoint import Checkpoint


def test_a_checkpoint_comes_back(tmp_path):
    tensors = {"a": torch.randn(3, 4).T, "b": torch.tensor(7)}
    checkpoint.save(tmp_path / "run", Checkpoint(12, tensors, {"valid": [[10, {"recall": 0.5}]]}))
    found = checkpoint.load(tmp_path / "run")
    assert found.step == 12 and found.notes == {"valid": [[10, {"recall": 0.5}]]}
    assert torch.equal(found.tensors["a"], tensors["a"]) and int(found.tensors["b"]) == 7
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["checkpoint.safetensors"]


def test_none_or_a_broken_one_is_none(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("MRSE_QUIET", raising=False)
    assert checkpoint.load(tmp_path) is None
    checkpoint.save(tmp_path, Checkpoint(1, {"a": torch.zeros(9)}, {}))
    file = tmp_path / "checkpoint.safetensors"
    file.write_bytes(file.read_bytes()[:40])
    assert checkpoint.load(tmp_path) is None
    assert "starting anew" in capsys.readouterr().err


def test_the_key_is_of_settings_and_contents(tmp_path):
    file = tmp_path / "x.parquet"
    file.write_bytes(b"1")
    first = checkpoint.run_key("{}", [file])
    assert checkpoint.run_key("{}", [file]) == first
    assert checkpoint.run_key('{"seed": 1}', [file]) != first
    file.write_bytes(b"2")
    assert checkpoint.run_key("{}", [file]) != first


def test_abandoned_runs_are_cleared_and_those_beside_stay(tmp_path):
    for name, days in (("own", 30), ("beside", 6.9), ("abandoned", 7.1)):
        checkpoint.save(tmp_path / name, Checkpoint(1, {"x": torch.zeros(1)}, {}))
        written = time.time() - days * 24 * 3600
        os.utime(tmp_path / name, (written, written))
    checkpoint.clear_abandoned(tmp_path, but="own")
    assert {p.name for p in tmp_path.iterdir()} == {"own", "beside"}
    checkpoint.clear(tmp_path / "own")
    assert [p.name for p in tmp_path.iterdir()] == ["beside"]
    checkpoint.clear(tmp_path / "own")
    checkpoint.clear_abandoned(tmp_path / "nowhere", but="own")
