import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from mrse.errors import DataError, TrainingFailed
from mrse.model.arrays import History, HistoryBank
from mrse.model.retriever import Retriever
from mrse.profiles import tables
from mrse.training import batches, checkpoint
from mrse.training import steps as steps_module
from mrse.training import train as train_module
from mrse.training.banks import Banks
from mrse.training.data import load_shop
from mrse.training.optimiser import Optimisers
from mrse.training.train import train
from mrse.training.valid import Scores
from tests import tiny_shop

QUICK = {"align_steps": 6, "fuse_steps": 9, "eval_every": 5, "bank_refresh_steps": 4, "checkpoint_every": 4}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    tiny_shop.write_shop(folder)
    return folder


def run(folder, out, config, cache_dir=None):
    inputs = [folder / name for name in ("features", "clean", "profiles")]
    return train(config, *inputs, folder, out, cache_dir)


def weights(folder):
    return load_file(folder / "model.safetensors")


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def replaced(path, name, values):
    """One column of a file anew."""
    table = pq.read_table(path)
    place = table.schema.get_field_index(name)
    field = table.schema.field(place)
    pq.write_table(table.set_column(place, field, pa.array(values, field.type)), path)


@pytest.fixture(scope="module")
def unbroken(tiny, tmp_path_factory):
    """A short run, its package and its report."""
    out = tmp_path_factory.mktemp("unbroken") / "out"
    return run(tiny, out, tiny_shop.config(**QUICK)), out


def test_two_runs_give_the_same_weights_and_another_seed_others(tiny, tmp_path, unbroken):
    first, out = unbroken
    second = run(tiny, tmp_path / "b", tiny_shop.config(**QUICK))
    run(tiny, tmp_path / "c", tiny_shop.config(**QUICK, seed=1))
    assert same(weights(out), weights(tmp_path / "b"))
    assert first.fingerprint == second.fingerprint and first.losses == second.losses
    assert not same(weights(out), weights(tmp_path / "c"))


@pytest.mark.parametrize("killed_at", [5, 9, 13])
def test_a_killed_run_goes_on_to_the_weights_and_curves_of_an_unbroken_one(
    tiny, tmp_path, monkeypatch, unbroken, killed_at
):
    """Killed while aligning, while fusing before a score, and after one."""
    config = tiny_shop.config(**QUICK)
    whole, out = unbroken

    class Killed(BaseException):
        pass

    for name in ("align", "fuse"):
        real = getattr(steps_module.Steps, name)

        def stop(self, step, *rest, real=real):
            if step == killed_at:
                raise Killed
            return real(self, step, *rest)

        monkeypatch.setattr(steps_module.Steps, name, stop)
    with pytest.raises(Killed):
        run(tiny, tmp_path / "broken", config, tmp_path / "cache")
    assert not (tmp_path / "broken").exists()
    monkeypatch.undo()
    resumed = run(tiny, tmp_path / "broken", config, tmp_path / "cache")
    assert resumed.resumed_from == killed_at // 4 * 4 > 0
    assert same(weights(out), weights(tmp_path / "broken"))
    assert resumed.losses == whole.losses and resumed.valid == whole.valid


def test_what_a_pass_reads_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("MRSE_QUIET", raising=False)
    tiny_shop.write_shop(tmp_path)
    replaced(tmp_path / "profiles/examples.parquet", "action", ["click"] * 150 + [None] * 900)
    run(tmp_path, tmp_path / "out", tiny_shop.config(**QUICK))
    assert "a pass reads 150 examples of the log and 50 judged ones" in capsys.readouterr().err


def test_a_changed_configuration_or_input_starts_anew(tiny, tmp_path):
    config = tiny_shop.config(**QUICK)
    run(tiny, tmp_path / "a", config, tmp_path / "cache")
    assert run(tiny, tmp_path / "a", config, tmp_path / "cache").resumed_from == 12  # the last checkpoint
    assert run(tiny, tmp_path / "a", config.model_copy(update={"clip": 0.9}), tmp_path / "cache").resumed_from == 0
    assert len(list((tmp_path / "cache/train").iterdir())) == 2  # another run may be training on the first


def test_changed_code_starts_anew(tiny, tmp_path, monkeypatch):
    assert {"train.py", "steps.py", "towers.py", "retriever.py"} <= {p.name for p in train_module.source_files()}
    source = tmp_path / "code/step.py"
    source.parent.mkdir()
    source.write_text("a = 1")
    monkeypatch.setattr(train_module, "_SOURCES", (source.parent,))
    config = tiny_shop.config(**QUICK)
    run(tiny, tmp_path / "out", config, tmp_path / "cache")
    assert run(tiny, tmp_path / "out", config, tmp_path / "cache").resumed_from == 12
    source.write_text("a = 2")
    assert run(tiny, tmp_path / "out", config, tmp_path / "cache").resumed_from == 0


def test_a_checkpoint_of_another_model_starts_anew(tiny, tmp_path, monkeypatch, capsys, unbroken):
    monkeypatch.delenv("MRSE_QUIET", raising=False)
    config = tiny_shop.config(**QUICK)
    folder = run(tiny, tmp_path / "a", config, tmp_path / "cache").checkpoints
    found = checkpoint.load(folder)
    name = next(name for name in found.tensors if name.startswith("model/"))
    wider = found.tensors | {name: torch.zeros(3, 3, 3)}
    checkpoint.save(folder, replace(found, tensors=wider))
    report = run(tiny, tmp_path / "b", config, tmp_path / "cache")
    assert report.resumed_from == 0 and "is of another model; starting anew" in capsys.readouterr().err
    assert same(weights(unbroken[1]), weights(tmp_path / "b"))


def test_banks_are_made_once_for_the_same_weights(tiny, tmp_path, monkeypatch):
    """Scored and refreshed at the same steps, whether or not the run goes on from a checkpoint right there."""
    config = tiny_shop.config(**(QUICK | {"eval_every": 4, "checkpoint_every": 5}))
    made = []
    real = steps_module.Steps.refresh
    monkeypatch.setattr(steps_module.Steps, "refresh", lambda self: made.append(1) or real(self))
    run(tiny, tmp_path / "a", config)
    assert len(made) == 4  # after 6, 10, 14 and 15 steps
    align = steps_module.Steps.fuse
    monkeypatch.setattr(
        steps_module.Steps, "fuse", lambda self, step, banks: 1 / (step != 12) and align(self, step, banks)
    )
    with pytest.raises(ZeroDivisionError):
        run(tiny, tmp_path / "b", config, tmp_path / "cache")
    monkeypatch.setattr(steps_module.Steps, "fuse", align)
    made.clear()
    assert run(tiny, tmp_path / "b", config, tmp_path / "cache").resumed_from == 10
    assert len(made) == 2 and same(weights(tmp_path / "a"), weights(tmp_path / "b"))


def test_the_grade_of_relevance_is_configured(tmp_path):
    tiny_shop.write_shop(tmp_path, events=False)
    path = tmp_path / "profiles/requests.parquet"
    replaced(path, "gains", [[0.5] * len(row) for row in pq.read_table(path).column("relevant").to_pylist()])
    strict = run(tmp_path, tmp_path / "a", tiny_shop.config(**QUICK))
    lax = run(tmp_path, tmp_path / "b", tiny_shop.config(**QUICK, relevant_grade=0.5))
    assert "recall" not in strict.metrics and "recall" in lax.metrics


@pytest.mark.parametrize(
    "change",
    [
        {"model": {"experts": {"vbert": False}}},
        {"model": {"experts": {"ftatt": False}}},
        {"model": {"experts": {"light_bert": False, "vbert": False}}},
        {"model": {"user_history": False}},
        {"model": {"item_history": False}},
        {"model": {"preferences": False}},
        {"model": {"images": False}},
        {"model": {"modality_dropout": 0.0, "history_dropout": 0.0, "word_dropout": 0.0, "dropout": 0.0}},
        {"loss": {"alpha": 0.0, "hard_negatives": 2}},
        {"loss": {"beta": 0.0}},
        {"loss": {"hard_negatives": 0}},
        {"loss": {"hard_share": {"start": 0.0, "end": 1.0}}},
        {"loss": {"mine": {"first": 5, "last": 30}}},
        {"loss": {"matryoshka": [4, 16]}},
        {"loss": {"catalogue_negatives": 0, "logq": False}},
        {"self_pairs": 0.0},
        {"chunk_size": 10},
        {"align_steps": 0},
        {"precision": "bfloat16"},
        {"keep": "last"},
    ],
    ids=str,
)
def test_every_mechanism_can_be_switched(tiny, tmp_path, change):
    config = tiny_shop.config(
        **(QUICK | {"align_steps": 2, "fuse_steps": 3, "min_rank": 1.0, "max_uniformity": 0.0} | change)
    )
    report = run(tiny, tmp_path / "out", config)
    assert all(np.isfinite(value) for _, row in report.losses for value in row.values())
    loaded = Retriever.load(tmp_path / "out")
    assert loaded.encode_catalogue(tiny_shop.catalogue()).vectors.shape == (128, 32)


def test_judged_positives_are_expected_as_often_as_they_are_drawn(tmp_path, fresh_retriever):
    """logQ, and the sampling: 150 examples of the log and 50 of the 900 judged ones in a pass."""
    tiny_shop.write_shop(tmp_path)
    replaced(tmp_path / "profiles/examples.parquet", "action", ["click"] * 150 + [None] * 900)
    shop = load_shop(fresh_retriever, tmp_path / "features", tmp_path / "clean", tmp_path / "profiles", 0.7, 1000)
    batches = steps_module.Steps(tiny_shop.config(self_pairs=0.0), fresh_retriever, shop).batches
    expected = np.zeros(128)
    for item, judged in zip(shop.examples.item_M, shop.examples.judged_M, strict=True):
        expected[item] += 50 / 900 if judged else 1.0
    batch = batches.make(0, reads_shoppers=False)
    found = np.exp(batches.log_q(batch, np.arange(128), drawn=0))
    assert found == pytest.approx(np.maximum(len(batch.row_B) * expected / expected.sum(), 1e-9), rel=0.05)
    by_examples = np.bincount(shop.examples.item_M, minlength=128)
    assert not np.allclose(found, len(batch.row_B) * by_examples / by_examples.sum(), rtol=0.3)


def test_hard_negatives_count_by_their_share(tiny, fresh_retriever):
    shop = load_shop(fresh_retriever, tiny / "features", tiny / "clean", tiny / "profiles", 0.7, 1000)
    loss = {"beta": 0.5, "hard_share": {"start": 0.0, "end": 0.8}}
    steps = steps_module.Steps(tiny_shop.config(align_steps=2, fuse_steps=5, loss=loss), fresh_retriever, shop)
    banks = steps.refresh()
    for step, share in ((2, 0.0), (4, 0.4), (6, 0.8)):
        parts = {name: float(value.detach()) for name, value in steps.fuse(step, banks).items()}
        assert parts["hnst"] > 0
        assert parts["loss"] == pytest.approx(parts["mnsce"] + 0.5 * share * parts["hnst"], rel=1e-6)


def test_vague_queries_keep_their_history_and_have_no_hard_negatives(tiny, monkeypatch):
    """The log's or mined ones; where every other history is forgotten, theirs is not."""
    torch.manual_seed(0)
    loss = {"hard_negatives": 2, "mine": {"first": 1, "last": 30}}
    config = tiny_shop.config(vague_pairs=1.0, loss=loss, model={"history_dropout": 1.0})
    retriever = Retriever.create(config.model, tiny / "features")
    shop = load_shop(retriever, tiny / "features", tiny / "clean", tiny / "profiles", 0.7, 1000)
    steps = steps_module.Steps(config, retriever, shop)
    seen = {}

    def record(name, real, take):
        def call(*args):
            seen[name] = take(args)
            return real(*args)

        return call

    made = batches.vague_pairs
    monkeypatch.setattr(batches, "vague_pairs", lambda *args: seen.setdefault("vague", made(*args)))
    monkeypatch.setattr(steps_module, "hnst", record("hard", steps_module.hnst, lambda args: args[3].any(dim=1)))
    fuse_queries = steps.model.fuse_queries
    known = record("known", fuse_queries, lambda args: args[1].known_BM.any(dim=1))
    monkeypatch.setattr(steps.model, "fuse_queries", known)
    banks = steps.refresh()
    banks.mined = steps.mine(banks, 0)
    seen.clear()
    steps.fuse(0, banks)
    rows = steps.batches.sampler.draw(0).example_rows
    assert 10 < len(seen["vague"]) < len(rows)
    assert seen["known"].nonzero().flatten().tolist() == list(seen["vague"])
    assert seen["hard"].nonzero().flatten().tolist() == [row for row in range(len(rows)) if row not in seen["vague"]]


def test_no_query_is_vague_where_no_shopper_is_read(tiny, fresh_retriever, monkeypatch):
    shop = load_shop(fresh_retriever, tiny / "features", tiny / "clean", tiny / "profiles", 0.7, 1000)
    asked, query_texts = [], fresh_retriever.query_texts
    without = Retriever.create(tiny_shop.config(model={"user_history": False}).model, tiny / "features")
    for retriever, phase in ((fresh_retriever, "align"), (without, "fuse")):
        monkeypatch.setattr(retriever, "query_texts", lambda texts: asked.append(texts) or query_texts(texts))
        config = tiny_shop.config(vague_pairs=1.0, model={"user_history": retriever is not without})
        steps = steps_module.Steps(config, retriever, shop)
        steps.align(0) if phase == "align" else steps.fuse(0, steps.refresh())
        assert len(asked.pop()) == len(steps.batches.sampler.draw(0).self_items) and not asked


@pytest.mark.parametrize("lacking", ["pictures", "users", "events", "hard"])
def test_shops_that_lack_something_train(tmp_path, lacking):
    tiny_shop.write_shop(tmp_path, **{lacking: False})
    report = run(tmp_path, tmp_path / "out", tiny_shop.config(**QUICK))
    assert report.metrics["recall"] >= 0 and report.losses[-1][0] == 15


def test_learning_lowers_the_loss_and_tells_both_curves(tiny, tmp_path):
    config = tiny_shop.config(align_steps=20, fuse_steps=30, eval_every=15)
    report = run(tiny, tmp_path / "out", config)
    aligned = [row["loss"] for step, row in report.losses if step <= 20]
    fused = [row["loss"] for step, row in report.losses if step > 20]
    assert aligned[-1] < 0.95 * aligned[0] and fused[-1] < 0.98 * fused[0]
    assert [step for step, _ in report.valid] == [20, 35, 50]
    series = report.series()
    assert series["valid/recall"][-1] == (50, report.valid[-1][1]["recall"])
    assert [step for step, _ in series["train/mnsce"]] == [30, 40, 50]


def test_the_best_scored_weights_are_kept(tiny, tmp_path, unbroken):
    report, _ = unbroken
    best = max(row["recall"] for _, row in report.valid)
    assert report.metrics["recall"] == best
    assert dict(report.valid)[int(report.metrics["kept_step"])]["recall"] == best
    last = run(tiny, tmp_path / "last", tiny_shop.config(**QUICK, keep="last"))
    assert last.metrics["kept_step"] == 15


def test_the_package_scores_what_training_said(tiny, tmp_path):
    """Trained banks and a loaded package are one model: recall measured from outside is the reported one."""
    config = tiny_shop.config(align_steps=15, fuse_steps=15, eval_every=15, keep="last", model={"item_history": False})
    report = run(tiny, tmp_path / "out", config)
    retriever = Retriever.load(tmp_path / "out")
    encoded = retriever.encode_catalogue(tiny_shop.catalogue())
    bank = HistoryBank(encoded.item_ids, encoded.bank)
    requests = [row for row in pq.read_table(tiny / "profiles/requests.parquet").to_pylist()]
    histories = [History(r["hist_items"], r["hist_actions"], r["hist_ages"]) for r in requests]
    vectors = retriever.encode_queries([r["query"] for r in requests], histories, bank)
    top = np.argsort(-(vectors @ encoded.vectors.T), axis=1)[:, : config.valid_k]
    found = [
        np.mean([item in {encoded.item_ids[i] for i in row} for item in request["relevant"]])
        for row, request in zip(top, requests, strict=True)
    ]
    assert float(np.mean(found)) == pytest.approx(report.metrics["recall"], abs=0.01)


def test_a_loss_that_is_not_finite_names_its_step(tiny, tmp_path, monkeypatch):
    real = steps_module.Steps.fuse

    def broken(self, step, banks):
        parts = real(self, step, banks)
        return parts | {"loss": parts["loss"] * (float("nan") if step == 8 else 1.0)}

    monkeypatch.setattr(steps_module.Steps, "fuse", broken)
    with pytest.raises(TrainingFailed, match="step 8: the loss is not finite"):
        run(tiny, tmp_path / "out", tiny_shop.config(**QUICK))
    assert not (tmp_path / "out").exists()


def test_a_gradient_that_is_not_finite_names_its_step(tiny, tmp_path, monkeypatch):
    real = Optimisers.step
    monkeypatch.setattr(
        Optimisers, "step", lambda self, loss, step: real(self, loss, step) / (0.0 if step == 5 else 1.0)
    )
    with pytest.raises(TrainingFailed, match="step 5: the gradient is not finite"):
        run(tiny, tmp_path / "out", tiny_shop.config(**QUICK))


def test_a_collapsed_model_fails_the_run(tiny, tmp_path):
    with pytest.raises(TrainingFailed, match="effective rank"):
        run(tiny, tmp_path / "out", tiny_shop.config(**QUICK, min_rank=31.9))
    with pytest.raises(TrainingFailed, match=r"expert \w+ collapsed"):
        run(tiny, tmp_path / "out", tiny_shop.config(**QUICK, min_expert_share=0.9))
    with pytest.raises(TrainingFailed, match="uniformity"):
        run(tiny, tmp_path / "out", tiny_shop.config(**QUICK, max_uniformity=-7.9))


@pytest.mark.parametrize(("collapsed", "kept"), [(15, False), (6, True)])
def test_collapse_is_that_of_the_weights_that_are_kept(tiny, tmp_path, monkeypatch, collapsed, kept):
    """The first scores are the best here: only their collapse counts."""
    done = iter((6, 11, 15))

    def scored(*_):
        step = next(done)
        return Scores(1.0 / step, 1.0 if step == collapsed else 9.0, -3.0, None, {}, {})

    monkeypatch.setattr(train_module, "evaluate", scored)
    config = tiny_shop.config(**QUICK, min_rank=4.0)
    if kept:
        with pytest.raises(TrainingFailed, match=r"effective rank 1\.00"):
            run(tiny, tmp_path / "out", config)
    else:
        assert run(tiny, tmp_path / "out", config).metrics["kept_step"] == 6


def test_features_that_are_missing_or_broken_name_their_stage(tmp_path):
    tiny_shop.write_shop(tmp_path)
    file = tmp_path / "features/features.json"
    file.write_text("{")
    with pytest.raises(DataError, match=r"features\.json: is not JSON .* run the build_features stage again"):
        run(tmp_path, tmp_path / "out", tiny_shop.config(**QUICK))
    file.unlink()
    with pytest.raises(DataError, match=r"features\.json: no such file; run the build_features stage first"):
        run(tmp_path, tmp_path / "out", tiny_shop.config(**QUICK))


def test_nothing_to_learn_from_is_said(tmp_path):
    tiny_shop.write_shop(tmp_path)
    pq.write_table(pa.Table.from_pylist([], tables.EXAMPLES), tmp_path / "profiles/examples.parquet")
    with pytest.raises(TrainingFailed, match="no training example"):
        run(tmp_path, tmp_path / "out", tiny_shop.config(**QUICK, self_pairs=0.0))
    report = run(tmp_path, tmp_path / "out", tiny_shop.config(**QUICK))  # from the titles alone
    assert report.metrics["recall"] > 0
    (tmp_path / "profiles/requests.parquet").unlink()
    with pytest.raises(DataError, match="run the build_profiles stage first"):
        run(tmp_path, tmp_path / "out", tiny_shop.config(**QUICK))


def test_without_validation_requests_the_last_weights_are_kept(tmp_path):
    tiny_shop.write_shop(tmp_path)
    pq.write_table(pa.Table.from_pylist([], tables.REQUESTS), tmp_path / "profiles/requests.parquet")
    report = run(tmp_path, tmp_path / "out", tiny_shop.config(**QUICK))
    assert report.metrics["kept_step"] == 15 and "recall" not in report.metrics


def test_the_shop_is_indexed_as_written(tiny, fresh_retriever):
    """Against the rows of the files, one by one."""
    shop = load_shop(fresh_retriever, tiny / "features", tiny / "clean", tiny / "profiles", 0.7, 1000)
    table = pq.read_table(tiny / "profiles/examples.parquet")
    rows = table.to_pylist()
    item = {name: place for place, name in enumerate(shop.item_ids)}
    assert len(shop.examples) == len(rows) == 1050
    for place in (0, 1, 17, 1049):
        row = rows[place]
        assert shop.examples.item_M[place] == item[row["item_id"]]
        hard = [i for i in shop.examples.hard_MK[place] if i >= 0]
        assert hard == [item[name] for name in row["hard_negatives"]]
        known = shop.examples.shoppers.item_ML[place]
        assert known.tolist() == [item[name] for name in row["hist_items"]]
        assert shop.examples.shoppers.age_ML[place].tolist() == [1, 3, 4, 5, 5]
        assert shop.examples.epoch_M[place] == (0 if row["profile_asof"] else -1)
    assert float(shop.examples.weight_M.mean()) == pytest.approx(1.0, rel=1e-5)
    askers = {(row["query"], row["user_id"]) for row in rows}
    assert len(set(shop.examples.asker_M.tolist())) == len(askers)
    assert shop.item_queries(-1).query_NK.max() == -1
    assert (shop.item_queries(0).query_NK[:, 0] >= 0).sum() == 64


def test_kinds_queries_and_judgments_are_told_apart(tmp_path, fresh_retriever):
    tiny_shop.write_shop(tmp_path)
    categories = [None, "", "Wear > shirt", "Wear > dress"] * 32
    queries = ["red  Shirt", "red shirt", "boots"] * 350
    judged = [False, True, True, False, True] * 210
    replaced(tmp_path / "clean/items.parquet", "category", categories)
    replaced(tmp_path / "profiles/examples.parquet", "query", queries)
    replaced(tmp_path / "profiles/examples.parquet", "action", [None if people else "click" for people in judged])
    shop = load_shop(fresh_retriever, tmp_path / "features", tmp_path / "clean", tmp_path / "profiles", 0.7, 1000)
    none, empty, shirt, dress = shop.category_N[:4]
    assert none == empty and len({empty, shirt, dress}) == 3 and shop.category_N.tolist() == [*shop.category_N[:4]] * 32
    assert [shop.query_strings[row] for row in shop.examples.query_M] == ["red shirt", "red shirt", "boots"] * 350
    assert len(set(shop.query_strings)) == len(shop.query_strings) == len(shop.query_texts)
    assert shop.examples.judged_M.tolist() == judged


def test_histories_are_as_long_as_the_model_reads(tiny, tmp_path):
    """Of training, of validation, and of the package that comes out."""
    config = tiny_shop.config(**QUICK, model={"history_length": 2})
    inputs = tiny / "features", tiny / "clean", tiny / "profiles"
    shop, short = (
        load_shop(Retriever.create(model, inputs[0]), *inputs, 0.7, 1000)
        for model in (tiny_shop.config().model, config.model)
    )
    for part in ("examples", "requests"):
        whole, cut = getattr(shop, part).shoppers, getattr(short, part).shoppers
        for name in ("item_ML", "action_ML", "age_ML"):
            assert getattr(whole, name).shape[1] == 5
            assert np.array_equal(getattr(cut, name), getattr(whole, name)[:, :2])
    run(tiny, tmp_path / "out", config)
    loaded = Retriever.load(tmp_path / "out")
    bank = HistoryBank(["a", "b", "c"], np.ones((3, 3, 32), dtype=np.float16))
    known = History(["a", "b", "c"], ["click"] * 3, [1.0, 2.0, 3.0])
    assert loaded.shopper_memory([known], bank).known_BM.shape == (1, 2)


def test_judged_requests_count_only_what_is_good_enough(tmp_path, fresh_retriever):
    tiny_shop.write_shop(tmp_path, events=False)
    path = tmp_path / "profiles/requests.parquet"
    relevant = pq.read_table(path).column("relevant").to_pylist()
    replaced(path, "gains", [[1.0, 0.69, *([0.0] * (len(row) - 2))] for row in relevant])
    inputs = (fresh_retriever, tmp_path / "features", tmp_path / "clean", tmp_path / "profiles", 0.7)
    assert {len(relevant) for relevant in load_shop(*inputs, 1000).requests.relevant} == {1}
    assert len(load_shop(*inputs, 10).requests) == 10


def test_examples_of_items_that_are_gone_are_counted(tmp_path):
    tiny_shop.write_shop(tmp_path)
    path = tmp_path / "clean/items.parquet"
    items = pq.read_table(path)
    pq.write_table(items.filter(pc.invert(pc.starts_with(items.column("item_id"), "boots"))), path)
    report = run(tmp_path, tmp_path / "out", tiny_shop.config(**QUICK))
    table = pq.read_table(tmp_path / "profiles/examples.parquet")
    gone = sum(name.startswith("boots") for name in table.column("item_id").to_pylist())
    assert report.metrics["dropped_examples_of_unknown_items"] == gone > 0


def test_no_candidate_shows_a_profile_newer_than_the_example_may_see(tiny, fresh_retriever, monkeypatch):
    shop = load_shop(fresh_retriever, tiny / "features", tiny / "clean", tiny / "profiles", 0.7, 1000)
    steps = steps_module.Steps(tiny_shop.config(), fresh_retriever, shop)
    asked = []
    monkeypatch.setattr(type(shop), "item_queries", lambda self, epoch: asked.append(epoch) or self.profiles[0])
    banks = steps.refresh()
    for step in range(12):
        draw = steps.batches.sampler.draw(step)
        steps.fuse(step, banks)
        assert asked[-1] == draw.epoch
        assert set(shop.examples.epoch_M[draw.example_rows].tolist()) == {draw.epoch}
    assert {-1, 0} == set(asked)


@pytest.fixture(scope="module")
def fresh_retriever(tiny):
    torch.manual_seed(0)
    return Retriever.create(tiny_shop.config().model, tiny / "features")


def test_an_older_package_is_replaced_whole(tiny, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "stale.txt").write_text("of an earlier run")
    run(tiny, out, tiny_shop.config(**QUICK))
    assert not (out / "stale.txt").exists() and json.loads((out / "config.json").read_text())["format"] == 3
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_stale_negative_never_meets_a_fresh_positive(tiny, monkeypatch):
    """Banks turned upside down leave the in-batch softmax as it was, and its candidates hold no banked item."""
    torch.manual_seed(0)
    config = tiny_shop.config(model={"user_history": False, "item_history": False})
    retriever = Retriever.create(config.model, tiny / "features")
    shop = load_shop(retriever, tiny / "features", tiny / "clean", tiny / "profiles", 0.7, 1000)
    steps = steps_module.Steps(config, retriever, shop)
    calls = []
    real = steps_module.mnsce

    def seen(query, candidates, *rest):
        calls.append((candidates.detach().clone(), rest))
        return real(query, candidates, *rest)

    monkeypatch.setattr(steps_module, "mnsce", seen)
    banks = steps.refresh()
    for sign in (1.0, -1.0):
        torch.manual_seed(0)
        steps.fuse(3, Banks(banks.items_NEH * sign, banks.queries_QEH))
    (fresh, _), (banked, _), (fresh_again, _), (banked_again, _) = calls
    assert torch.equal(fresh, fresh_again) and not torch.allclose(banked, banked_again)
    assert len(banked) > len(fresh)
