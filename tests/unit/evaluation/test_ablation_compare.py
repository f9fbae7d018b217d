"""A variant against the full model, from literal results: pairing, pooling, intervals, and what is shown."""

import csv
import io
import re
from dataclasses import replace
from datetime import UTC, datetime
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mrse.config import DataChange, GateConfig, TrainConfig
from mrse.evaluation.ablation import Ablation, Run, compare, pooled
from mrse.evaluation.ablation_report import as_csv, as_markdown, in_short, sweeps, write_ablation
from mrse.evaluation.inputs import Inputs
from mrse.evaluation.slices import Slices
from mrse.evaluation.variants import Variant
from mrse.evaluation.window import Window
from mrse.jsonfile import write_json

SHOPPERS, EACH, SEEDS = 60, 5, (0, 1)
CLUSTERS = np.repeat(np.arange(SHOPPERS), EACH)
GATE = GateConfig(k=5, resamples=4000, min_clusters=10)
FULL = Variant("", "full", {}, TrainConfig(), DataChange(), 900)


def variant(name, **changes):
    train = TrainConfig()
    loss = train.loss.model_copy(update={key.removeprefix("loss."): value for key, value in changes.items()})
    return Variant("loss", name, changes, train.model_copy(update={"loss": loss}), DataChange(), 800)


def write_run(folder, of, seed, recall_Q, recall=0.5):
    run = Run(of, TrainConfig(seed=seed), folder / f"{of.name}{seed}")
    write_json(run.folder / "result.json", {"failed": None, "metrics": {"recall": recall}})
    columns = {"request_id": [f"r{place}" for place in range(len(recall_Q))], "recall_at_5": recall_Q}
    columns |= {"ndcg_at_10": recall_Q / 2}
    pq.write_table(pa.table(columns), run.folder / "events.parquet")
    (run.folder / "valid.csv").write_text(f"step,recall\n10,{recall - 0.1 - seed / 50}\n20,{recall - seed / 50}\n")
    return run


def inputs():
    asked = SimpleNamespace(hash="h", source="events", request_ids=list(range(300)), clusters=CLUSTERS)
    asked = type("Asked", (SimpleNamespace,), {"__len__": lambda self: 300})(**vars(asked))
    empty = type("Asked", (SimpleNamespace,), {"__len__": lambda self: 0})()
    meta = SimpleNamespace(
        simulated=True,
        note="Simulated: all made up.",
        start=datetime(2026, 3, 1, tzinfo=UTC),
        end=datetime(2026, 3, 15, tzinfo=UTC),
    )
    slices = Slices({"even": CLUSTERS % 2 == 0})
    window = Window({"events": asked, "judgments": empty}, None)
    return Inputs(SimpleNamespace(ids=["a", "b"]), meta, window, "events", slices, {}, None)


@pytest.fixture
def results(tmp_path):
    """Full and one variant for two seeds; a shopper's requests rise or fall together."""
    rng = np.random.default_rng(1)
    shared = np.repeat(rng.normal(-0.1, 0.2, SHOPPERS), EACH)
    full = {seed: rng.random(300) for seed in SEEDS}
    other = {seed: full[seed] + shared + rng.normal(0.02 * seed, 0.1, 300) for seed in SEEDS}
    of = variant("mnsce_only", **{"loss.beta": 0.0})
    runs = [write_run(tmp_path, of, seed, other[seed], 0.4) for seed in SEEDS]
    return full, other, of, runs, [write_run(tmp_path, FULL, seed, full[seed]) for seed in SEEDS]


def test_the_difference_and_its_interval_are_those_of_a_naive_count(results):
    full, other, of, runs, full_runs = results
    found = compare(GATE, inputs(), of, runs, full_runs)
    rows = [(int(CLUSTERS[q]), other[s][q] - full[s][q]) for s in SEEDS for q in range(300)]
    lift = found.lifts["recall_at_5"]
    assert lift.lift == pytest.approx(sum(d for _, d in rows) / len(rows))
    assert (lift.requests, lift.clusters) == (300, SHOPPERS)
    sums = [sum(d for shopper, d in rows if shopper == one) for one in range(SHOPPERS)]
    rng = np.random.default_rng(0)
    means = [sum(sums[one] for one in rng.integers(0, SHOPPERS, SHOPPERS)) / len(rows) for _ in range(4000)]
    assert [lift.lower, lift.upper] == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.006)
    assert lift.upper - lift.lower > 0.05  # so that the tolerance above means something
    assert found.by_seed == pytest.approx([float(np.mean(other[s] - full[s])) for s in SEEDS])
    even = CLUSTERS % 2 == 0
    assert found.slices["even"].lift == pytest.approx(np.mean([(other[s] - full[s])[even] for s in SEEDS]))
    assert set(found.slices) == {"even"}
    assert found.valid == pytest.approx(0.4)
    assert pooled(runs, "events")["recall_at_5"] == pytest.approx((other[0] + other[1]) / 2)


def test_a_failed_training_is_a_row_of_its_own(results):
    _, _, of, runs, full_runs = results
    write_json(runs[1].folder / "result.json", {"failed": "the item vectors collapsed"})
    found = compare(GATE, inputs(), of, runs, full_runs)
    assert (found.failed, found.lifts, found.by_seed) == ("the item vectors collapsed", {}, [])


def ablation_of(results):
    _, _, of, runs, full_runs = results
    compared = compare(GATE, inputs(), FULL, full_runs, full_runs), compare(GATE, inputs(), of, runs, full_runs)
    broken = replace(compared[1], variant=variant("hnst_only", **{"loss.alpha": 0.0}), failed="it | broke", lifts={})
    curves = {"full": [run.curve() for run in full_runs], of.name: [run.curve() for run in runs]}
    rows = [compared[1], broken]
    return Ablation(inputs(), GATE, "recall_at_5", list(SEEDS), compared[0], rows, curves)


def test_the_table_says_what_was_found(results):
    ablation = ablation_of(results)
    rows = list(csv.DictReader(io.StringIO(as_csv(ablation))))
    lift = ablation.rows[0].lifts["recall_at_5"]
    assert [row["variant"] for row in rows] == ["full", "mnsce_only", "hnst_only"]
    assert float(rows[1]["recall_at_5.lift"]) == lift.lift and float(rows[1]["recall_at_5.upper"]) == lift.upper
    assert float(rows[1]["recall_at_5"]) == lift.challenger and float(rows[0]["recall_at_5"]) == lift.reference
    assert (rows[2]["failed"], rows[2]["recall_at_5.lift"]) == ("it | broke", "")
    assert (rows[0]["window"], rows[0]["steps"], rows[1]["parameters"]) == ("h", "900", "800")
    page = as_markdown(ablation, ["ablation.svg"])
    assert "300 held-out requests (events) of 60 shoppers or queries over 2 items" in page
    assert "**Simulated data.** All made up." in page
    table = [line for line in page.splitlines() if line.startswith("|")]
    assert len(table) == 2 + 3
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table}) == 1, "every row has every cell"
    assert f"−{abs(lift.lift):.3f} [−" in table[3] and "training failed: it \\| broke" in table[4]
    short = in_short(ablation).splitlines()
    assert [line.split()[0] for line in short[1:]] == ["full", "mnsce_only", "hnst_only"]


def test_the_figures_are_drawn_from_what_is_there(results, tmp_path):
    ablation = ablation_of(results)
    files = write_ablation(ablation, tmp_path / "out")
    names = ["ablation.md", "ablation.csv", "ablation.svg", "sweeps.svg", "convergence.svg"]
    assert [path.name for path in files] == names
    for path in files[2:]:
        assert ElementTree.parse(path).getroot().tag.endswith("svg")
    before = [path.read_bytes() for path in files]
    assert [path.read_bytes() for path in write_ablation(ablation, tmp_path / "out")] == before
    no_curves = replace(ablation, rows=ablation.rows[1:])
    files = write_ablation(no_curves, tmp_path / "out")
    assert [path.name for path in files] == ["ablation.md", "ablation.csv"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["ablation.csv", "ablation.md"]


def test_a_sweep_is_every_number_that_is_changed_alone(results):
    ablation = ablation_of(results)
    shifted = ablation.rows[0]
    fewer = {"changes": {"data.examples_share": 0.5}, "data": DataChange(examples_share=0.5)}
    half = replace(shifted, variant=replace(FULL, name="half", **fewer))
    both = replace(shifted, variant=variant("both", **{"loss.beta": 1.0, "loss.margin": 0.2}))
    flag = replace(shifted, variant=variant("flag", **{"loss.logq": False}))
    broken = replace(shifted, variant=variant("more", **{"loss.beta": 2.0}), failed="it broke")
    one, two = sweeps(replace(ablation, rows=[half, shifted, both, flag, broken])).axes[:2]
    assert (one.get_xlabel(), two.get_xlabel()) == ("data.examples_share", "loss.beta")
    assert [label.get_text() for label in one.get_xticklabels()] == ["0.5", "1"]
    assert [label.get_text() for label in two.get_xticklabels()] == ["0", "0.5"]
    lift = shifted.lifts["recall_at_5"]
    line, interval = two.lines[0], two.lines[1]
    assert line.get_ydata() == pytest.approx([lift.challenger, lift.reference])
    assert interval.get_ydata() == pytest.approx([lift.reference + lift.lower, lift.reference + lift.upper])
    assert sweeps(replace(ablation, rows=[both, flag, broken])) is None
