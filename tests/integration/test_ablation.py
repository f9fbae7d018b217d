"""`mrse ablate` over a tiny shop with real trainings: scored like the gate, resumable, failures are rows."""

import csv
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from mrse import cli
from mrse.config import load
from mrse.errors import TrainingFailed
from mrse.evaluation import ablation as ablation_module
from mrse.evaluation.ablation import Runner, run_ablation
from mrse.evaluation.ablation_report import write_ablation
from mrse.evaluation.inputs import read_inputs
from mrse.evaluation.scoring import Embedded
from mrse.evaluation.variants import full_model, make_variant
from mrse.model.retriever import Retriever
from mrse.profiles import tables
from mrse.training import checkpoint
from mrse.training.train import train
from tests import tiny_shop

QUICK = {"align_steps": 4, "fuse_steps": 6, "eval_every": 3, "bank_refresh_steps": 3, "checkpoint_every": 2}
QUICK |= {"batch_size": 32, "min_rank": 1.0}
VARIANTS = {
    "inputs": {"no_user_history": {"model.user_history": False}, "history_2": {"model.history_length": 2}},
    "loss": {"mnsce_only": {"loss.beta": 0.0}, "collapsed": {"min_rank": 1000.0}},
    "data": {"examples_25": {"data.examples_share": 0.25}},
}
NAMES = ["full", "no_user_history", "history_2", "mnsce_only", "collapsed", "examples_25"]


def write_workspace(folder):
    """The tiny shop with its validation requests asked again as test requests."""
    tiny_shop.write_shop(folder / "data", pictures=False)
    profiles = folder / "data/profiles"
    requests = pq.read_table(profiles / "requests.parquet")
    again = requests.set_column(0, "split", pa.array(["test"] * len(requests)))
    pq.write_table(pa.concat_tables([requests, again]), profiles / "requests.parquet")
    items = pq.read_table(profiles / "items.parquet")
    place, clicks = items.schema.get_field_index("clicks"), pa.array([3] * len(items), pa.int64())
    pq.write_table(items.set_column(place, "clicks", clicks), profiles / "items.parquet")
    asked = {"query": sorted(set(requests.column("query").to_pylist()))}
    asked["requests"] = list(range(1, len(asked["query"]) + 1))
    pq.write_table(pa.Table.from_pydict(asked, tables.QUERIES), profiles / "queries.parquet")
    sections = {
        "snapshot": {"end": "2026-03-15"},
        "train": tiny_shop.config(**QUICK).model_dump(mode="json"),
        "gate": {"k": 10, "resamples": 500},
        "ablate": {"variants": VARIANTS},
    }
    (folder / "params.yaml").write_text(yaml.safe_dump(sections, sort_keys=False))
    return folder


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        for name in ("MRSE_CACHE_DIR", "MRSE_STATE_DIR", "MLFLOW_TRACKING_URI", "MRSE_MILVUS_URI"):
            patch.delenv(name, raising=False)
        patch.setenv("MRSE_QUIET", "1")
        yield write_workspace(tmp_path_factory.mktemp("workspace"))


@pytest.fixture(scope="module")
def params(workspace):
    return load(workspace / "params.yaml")


@pytest.fixture(scope="module")
def finished(workspace, params):
    """All variants, two seeds."""
    out = workspace / "reports/ablation"
    ablation = run_ablation(params, workspace, out, seeds=2)
    write_ablation(ablation, out)
    return ablation


def rows_of(workspace):
    with (workspace / "reports/ablation/ablation.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def counted(monkeypatch):
    """Count trainings."""
    calls = []

    def counting(config, **arguments):
        calls.append(config)
        return train(config, **arguments)

    monkeypatch.setattr(ablation_module, "train", counting)
    return calls


def test_the_table_has_a_row_per_variant(workspace, finished):
    rows = rows_of(workspace)
    assert [row["variant"] for row in rows] == NAMES
    for row in rows:
        if row["variant"] == "collapsed":
            assert "the item vectors collapsed" in row["failed"] and row["recall_at_10"] == ""
            continue
        assert float(row["recall_at_10.lower"]) <= float(row["recall_at_10.lift"]) <= float(row["recall_at_10.upper"])
        assert float(row["slice.known_shopper.requests"]) > 50
    lifts = {row["variant"]: float(row["recall_at_10.lift"]) for row in rows if not row["failed"]}
    assert lifts["full"] == 0.0
    assert lifts["no_user_history"] != 0.0 != lifts["history_2"]
    assert len({row["parameters"] for row in rows}) == 2, "only without histories are there fewer parameters"


def test_a_run_is_what_train_and_gate_would_have_made(workspace, params, finished, tmp_path):
    """The second seed of a variant, trained and scored by hand."""
    config = params.train.model_copy(
        update={"seed": 1, "model": params.train.model.model_copy(update={"user_history": False})}
    )
    folders = {name: workspace / "data" / name for name in ("features", "clean", "profiles")}
    train(config, **folders, workspace=workspace, out=tmp_path / "package")
    inputs = read_inputs(params.gate, workspace)
    model = Embedded("x", Retriever.load(tmp_path / "package"), workspace, tmp_path, inputs.window.asof)
    wanted = model.score(inputs.asked, 10).scored
    runner = Runner(params, workspace, workspace / "reports/ablation", inputs)
    full = full_model(params, folders["features"])
    run = runner.run(make_variant(params, "inputs", "no_user_history", full, folders["features"]), 1)
    found = run.values("events")
    assert found.keys() == wanted.values.keys()
    for name, values in found.items():
        np.testing.assert_array_equal(values, wanted.values[name])
    kept = pq.read_table(run.folder / "events.parquet").column("request_id").to_pylist()
    assert kept == list(wanted.request_ids)


def test_nothing_is_trained_twice(workspace, params, finished, monkeypatch):
    calls = counted(monkeypatch)
    out = workspace / "reports/ablation"
    before = {path.name: path.read_bytes() for path in out.glob("ablation.*")}
    write_ablation(run_ablation(params, workspace, out, seeds=2), out)
    assert calls == []
    assert {path.name: path.read_bytes() for path in out.glob("ablation.*")} == before
    assert not list(out.glob("runs/*/scratch*")) and len(list(out.glob("runs/*"))) == 2 * len(NAMES)


def test_what_a_result_rests_on_is_part_of_its_name(workspace, params, tmp_path):
    inputs = read_inputs(params.gate, workspace)
    features = workspace / "data/features"
    full = full_model(params, features)

    def folder(changed=params, of=full, seed=0):
        return Runner(changed, workspace, tmp_path, inputs).run(of, seed).folder

    names = [folder(), folder(seed=1), folder(of=make_variant(params, "inputs", "history_2", full, features))]
    names += [folder(params.model_copy(update={"gate": params.gate.model_copy(update={"k": 11})}))]
    names += [folder(of=full_model(params, features, 0.5))]
    assert len(set(names)) == len(names)
    resampled = params.model_copy(update={"gate": params.gate.model_copy(update={"resamples": 100})})
    assert folder(resampled) == folder(), "intervals are made anew from kept results"
    computed = {"processes": 2, "process_timeout_seconds": 5.0, "device": "cuda", "compile": True}
    elsewhere = params.model_copy(update={"train": params.train.model_copy(update=computed)})
    assert folder(of=full_model(elsewhere, features)) == folder(), "a result holds wherever it was computed"


def test_a_killed_ablation_goes_on_where_it_stopped(tmp_path, params, monkeypatch):
    workspace = write_workspace(tmp_path)
    saved = []

    def killed(folder, state):
        checkpoint_save(folder, state)
        saved.append(state.step)
        if len(saved) == 7:  # in the middle of the second training
            raise KeyboardInterrupt

    checkpoint_save = checkpoint.save
    monkeypatch.setattr(checkpoint, "save", killed)
    out = workspace / "reports/ablation"
    with pytest.raises(KeyboardInterrupt):
        run_ablation(params, workspace, out, ["no_user_history"], seeds=1)
    assert saved == [2, 4, 6, 8, 10, 2, 4]
    monkeypatch.setattr(checkpoint, "save", checkpoint_save)
    calls, resumed = counted(monkeypatch), []
    original = ablation_module.train
    monkeypatch.setattr(
        ablation_module, "train", lambda *a, **k: (report := original(*a, **k), resumed.append(report.resumed_from))[0]
    )
    ablation = run_ablation(params, workspace, out, ["no_user_history"], seeds=1)
    assert [config.model.user_history for config in calls] == [False], "the full model was finished"
    assert resumed == [4]
    assert [row.variant.name for row in ablation.rows] == ["no_user_history"]
    assert not list((workspace / ".mrse/cache/train").iterdir()), "checkpoints of finished runs are gone"


def test_a_full_model_that_cannot_be_trained_is_an_error(tmp_path, workspace, params):
    broken = params.model_copy(update={"train": params.train.model_copy(update={"min_rank": 1000.0})})
    with pytest.raises(TrainingFailed, match="collapsed"):
        run_ablation(broken, workspace, tmp_path, ["mnsce_only"], seeds=1)


def call(workspace, capsys, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["mrse", "--quiet", "--params", str(workspace / "params.yaml"), *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    printed = capsys.readouterr()
    return stop.value.code, printed.out, printed.err


def test_the_command_prints_the_comparison(workspace, finished, capsys, monkeypatch):
    calls = counted(monkeypatch)
    code, out, err = call(workspace, capsys, monkeypatch, "ablate", "--seeds", "2")
    assert (code, err, calls) == (0, "", [])
    assert [line.split()[0] for line in out.splitlines()[1:7]] == NAMES
    assert "reports/ablation/ablation.md" in out and "convergence.svg" in out


def test_the_command_names_what_it_does_not_know(workspace, capsys, monkeypatch):
    code, out, err = call(workspace, capsys, monkeypatch, "ablate", "--only", "no_pictures")
    assert (code, out) == (1, "")
    assert err.startswith("mrse: no variant or group 'no_pictures' in ablate.variants") and err.count("\n") == 1


def test_missing_inputs_are_named(tmp_path, params, capsys, monkeypatch):
    workspace = write_workspace(tmp_path)
    (workspace / "data/profiles/examples.parquet").unlink()
    code, _, err = call(workspace, capsys, monkeypatch, "ablate")
    assert code == 1 and "examples.parquet: no such file; run `dvc repro build_features` first" in err
