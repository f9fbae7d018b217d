import csv
import subprocess

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from components.train import __main__ as stage
from components.train.__main__ import body
from mrse import config, tracking
from mrse.errors import TrainingFailed
from mrse.jsonfile import read_json
from mrse.model.retriever import package_fingerprint
from mrse.training.lineage import lineage
from tests import tiny_shop


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("workspace")
    tiny_shop.write_shop(folder / "data")
    lock = {"stages": {"v": {"outs": [{"path": "data/clean", "md5": "abc.dir"}, {"path": "data/other", "md5": "x"}]}}}
    (folder / "dvc.lock").write_text(yaml.safe_dump(lock))
    return folder


@pytest.fixture(scope="module")
def done(workspace):
    quick = {"align_steps": 4, "fuse_steps": 6, "eval_every": 3, "checkpoint_every": 3, "min_rank": 1.0}
    train = tiny_shop.config(**quick).model_dump(mode="json")
    params = config.parse({"snapshot": {"end": "2026-03-15"}, "train": train})
    return params.services.under(workspace), body(params, workspace)


@pytest.mark.parametrize(
    ("category", "user_history", "told"),
    [(None, True, True), ("Shoes", True, True), (None, False, False), ("as it is", True, False)],
)
def test_taste_that_stays_silent_is_told(tmp_path, monkeypatch, capsys, category, user_history, told):
    tiny_shop.write_shop(tmp_path / "data")
    if category != "as it is":
        path = tmp_path / "data/clean/items.parquet"
        items = pq.read_table(path)
        place = items.schema.get_field_index("category")
        column = pa.array([category] * len(items), items.schema.field(place).type)
        pq.write_table(items.set_column(place, items.schema.field(place), column), path)

    def stopped(*_, **__):
        raise TrainingFailed("not in this test")

    monkeypatch.setattr(stage, "train", stopped)
    monkeypatch.delenv("MRSE_QUIET", raising=False)
    train = tiny_shop.config(model={"user_history": user_history}).model_dump(mode="json")
    with pytest.raises(TrainingFailed):
        body(config.parse({"snapshot": {"end": "2026-03-15"}, "train": train}), tmp_path)
    assert ("taste stays silent" in capsys.readouterr().err) == told


def test_everything_that_dvc_declares_is_written(workspace, done):
    metrics = read_json(workspace / "reports/train.json")
    assert 0 <= metrics["recall"] <= 1 and metrics["steps"] == 10
    assert all(isinstance(value, float) for value in metrics.values())
    for name, first, steps in (("loss", "loss", ["4", "10"]), ("valid", "recall", ["4", "7", "10"])):
        with (workspace / f"reports/train/{name}.csv").open() as stream:
            rows = list(csv.DictReader(stream))
        assert [row["step"] for row in rows] == steps
        assert all(float(row[first]) >= 0 for row in rows)


def test_the_model_version_is_registered_with_its_origin(workspace, done):
    services, sentence = done
    version = read_json(workspace / "models/challenger.json")
    assert version["fingerprint"] == package_fingerprint(workspace / "models/challenger")
    assert f"model version {version['version']}" in sentence and "recall@8" in sentence
    known = tracking.get_version(services, version["version"])
    assert known.fingerprint == version["fingerprint"]
    assert known.tags["dvc.data/clean"] == "abc.dir" and known.tags["simulated"] == "false"
    assert known.tags["data_fingerprint"] == "0" * 64


def test_no_checkpoint_is_left_once_the_version_is_registered(workspace, done):
    services, _ = done
    assert list((workspace / ".mrse/cache/train").iterdir()) == []
    assert services.cache_dir == str((workspace / ".mrse/cache").resolve())


def test_the_stage_trains_on_the_device_that_it_picks(workspace, monkeypatch):
    picked = []
    monkeypatch.setattr(stage, "pick", lambda wanted: picked.append(wanted) or torch.device("meta"))
    monkeypatch.setattr(stage, "train", lambda *_, device, **__: (_ for _ in ()).throw(KeyError(device)))
    params = config.parse({"snapshot": {"end": "2026-03-15"}, "train": {"device": "cuda"}})
    with pytest.raises(KeyError, match="meta"):
        body(params, workspace)
    assert picked == ["cuda"]


def test_the_commit_is_told_where_there_is_one(workspace):
    assert "git_commit" not in lineage(workspace)
    git = ["git", "-C", str(workspace), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    for command in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "first"]):
        subprocess.run([*git, *command], check=True)
    assert len(lineage(workspace)["git_commit"]) == 40
