"""What each part is worth on the simulated shop, beside what a shop would use instead, all in one run.

    python -m benchmarks.marketplace --work DIR

Over a workspace with a `params.yaml`, in which the stages up to `build_features` run where they have not. The full
model and its variants (`ablate.variants`) train as `mrse ablate` trains them, and are kept like its runs. The
bi-encoder is sentence-transformers over a BERT of Light-Bert's size and our tokeniser, trained by its own trainer on
the same pairs (query, item text) with MultipleNegativesRankingLoss, for as many steps of as many pairs; its learning
rate is chosen by the validation examples. All are scored by the same exact search on the gate's frozen requests:
Recall@50 on those of the log, Rele@10 on the judged queries. Relative gains with 95% intervals: paired bootstrap by
shopper, numerator and denominator drawn together.

    pip install --constraint constraints.txt -e '.[gate,bench]'
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from benchmarks import peer
from mrse.config import Params, load
from mrse.data.contract import read_items
from mrse.device import pick
from mrse.evaluation import gate
from mrse.evaluation.ablation import Run, Runner, pooled
from mrse.evaluation.bootstrap import Floats, Lift, Pair, paired_lifts
from mrse.evaluation.inputs import Inputs, read_inputs
from mrse.evaluation.lexical import BM25
from mrse.evaluation.ranking import Ranking, exact_search
from mrse.evaluation.scoring import Result, depths, score, score_bm25
from mrse.evaluation.variants import full_model, make_variant
from mrse.evaluation.window import Asked, Source
from mrse.model.arrays import item_text
from mrse.profiles import tables
from mrse.progress import say
from mrse.training.steps import use_bfloat16

STAGES = ("snapshot", "validate_logs", "build_profiles", "build_features")
FULL, PEER, LEXICAL = "full model", "sentence-transformers", "BM25"
TEXT = ("text_only", "light_bert_text")  # all experts on text, and one: the encoder that the peer has, too
# The slice that each mechanism is there for, and the model without the mechanism.
MECHANISMS = {"picture": "no_images", "taste": "no_user_history", "typo": "no_ftatt"}
RATES = (5e-4, 1e-3, 2e-3, 4e-3)
_VALID = 2000

Values = dict[Source, dict[str, Floats]]
Rank = Callable[[list[str]], Ranking]


def main() -> None:
    """Train what is not there, score, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="a workspace with a params.yaml")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--steps-share", type=float, default=1.0)
    arguments = parser.parse_args()
    work: Path = arguments.work.resolve()
    params = load(work / "params.yaml")
    prepare(work)
    inputs = read_inputs(params.gate, work)
    systems = ours(params, work, inputs, arguments.seeds, arguments.steps_share)
    systems[PEER] = bi_encoder(params, work, inputs, arguments.seeds, arguments.steps_share)
    systems[LEXICAL] = bm25(params, inputs)
    report(params, inputs, systems)


def prepare(work: Path) -> None:
    """Run the stages before training where their outputs are missing."""
    if (work / "data/features/features.json").is_file():
        return
    for stage in STAGES:
        subprocess.run([sys.executable, "-m", f"components.{stage}", "--workspace", str(work)], check=True)


def ours(params: Params, work: Path, inputs: Inputs, seeds: int, share: float) -> dict[str, Values]:
    """The full model and its variants, each the mean over the seeds."""
    runner = Runner(params, work, work / "reports/ablation", inputs)
    features = work / "data/features"
    full = full_model(params, features, share)
    chosen = params.ablate.choose((*TEXT, *MECHANISMS.values())).items()
    variants = [full, *(make_variant(params, group, name, full, features) for name, group in chosen)]
    found: dict[str, Values] = {}
    for variant in variants:
        runs: list[Run] = [runner.run(variant, params.train.seed + number) for number in range(seeds)]
        for run in runs:
            say(f"marketplace: {variant.name}, seed {run.config.seed}")
            runner.finish(run)
        name = variant.name if variant.group else FULL
        found[name] = {source: pooled(runs, source) for source in inputs.sources}
    return found


def bm25(params: Params, inputs: Inputs) -> Values:
    """The lexical baseline."""
    index = BM25(inputs.items.ids, inputs.items.texts)
    return _values(inputs, lambda asked: score_bm25(LEXICAL, asked, index, params.gate.k))


def bi_encoder(params: Params, work: Path, inputs: Inputs, seeds: int, share: float) -> Values:
    """The peer at its best learning rate, the mean over the seeds."""
    items = read_items(work / "data/clean").sort_by("item_id")
    columns = items.column("title").to_pylist(), items.column("category").to_pylist()
    texts = [item_text(title, category) for title, category in zip(*columns, strict=True)]
    position = {item: at for at, item in enumerate(inputs.items.ids)}
    train, valid = (_pairs(work, split, position) for split in ("train", "valid"))
    at = np.linspace(0, len(valid[0]) - 1, _VALID).astype(int)
    asked, wanted = [valid[0][i] for i in at], np.array([valid[1][i] for i in at])
    pairs = train[0], [texts[item] for item in train[1]]
    depth = max(depths(params.gate.k))

    def found(rate: float, seed: int) -> Rank:
        return _trained(params, work, pairs, texts, depth, rate, seed, share)

    first = params.train.seed
    trained = {rate: found(rate, first) for rate in RATES}
    recalls = {rate: _recall(rank(asked), wanted, params.gate.k) for rate, rank in trained.items()}
    say(f"marketplace: {PEER}, recall@{params.gate.k} on validation examples by learning rate: {recalls}")
    best = max(recalls, key=lambda rate: recalls[rate])
    ranks = [trained[best], *(found(best, first + number) for number in range(1, seeds))]
    by_seed = [
        _values(inputs, lambda asked, rank=rank: score(PEER, asked, rank(asked.queries), params.gate.k))
        for rank in ranks
    ]
    return {
        source: {name: np.mean([values[source][name] for values in by_seed], axis=0) for name in by_seed[0][source]}
        for source in by_seed[0]
    }


def _pairs(work: Path, split: str, position: Mapping[str, int]) -> tuple[list[str], list[int]]:
    """Queries and item rows of the examples."""
    table = tables.read(work / "data/profiles/examples.parquet", ["query", "item_id", "split"], split=split)
    rows = zip(table.column("query").to_pylist(), table.column("item_id").to_pylist(), strict=True)
    sold = [(query, position[item]) for query, item in rows if item in position]
    return [query for query, _ in sold], [item for _, item in sold]


def _trained(
    params: Params,
    work: Path,
    pairs: tuple[list[str], list[str]],
    texts: list[str],
    depth: int,
    rate: float,
    seed: int,
    share: float,
) -> Rank:
    """Train one bi-encoder; what ranks the catalogue with it."""
    config = params.train
    peer.transformers.set_seed(seed)
    with tempfile.TemporaryDirectory() as folder:
        bert = peer.same_bert(work / "data/features/tokenizer.json", config.model, Path(folder) / "bert")
        model = peer.sentence_transformer(bert, config.model.title_length)
        peer.trainer(
            model,
            pairs,
            Path(folder) / "out",
            steps=round(share * (config.align_steps + config.fuse_steps)),
            batch_size=config.batch_size,
            learning_rate=rate,
            bfloat16=use_bfloat16(config.precision, pick(config.device)),
            no_duplicates=True,
            seed=seed,
        ).train()

    def encode(some: list[str]) -> np.ndarray:
        return model.encode(some, normalize_embeddings=True, batch_size=128, show_progress_bar=False)

    item_ND = encode(texts)
    return lambda queries: exact_search(encode(queries), item_ND, depth)


def _recall(ranking_QK: Ranking, wanted_Q: np.ndarray, k: int) -> float:
    return float((ranking_QK[:, :k] == wanted_Q[:, None]).any(axis=1).mean())


def _values(inputs: Inputs, answer: Callable[[Asked], Result]) -> Values:
    return {source: dict(answer(asked).scored.values) for source, asked in inputs.sources.items()}


def report(params: Params, inputs: Inputs, systems: Mapping[str, Values]) -> None:
    """Figures of every system, then the full model's relative gains, all requests and mechanism by mechanism."""
    primary = f"recall_at_{params.gate.k}"
    rows = {name: values[inputs.source][primary] for name, values in systems.items()}
    slices = [gate.ALL, *(name for name in MECHANISMS if name in inputs.slices.masks)]
    lifts = {
        name: gate.slice_lifts(params.gate, inputs.gate_window, rows[FULL], values) for name, values in rows.items()
    }
    rele = _rele(params, inputs, systems)
    print(
        f"\nRecall@{params.gate.k} by slice (requests), and Rele@10 of {len(inputs.window.asked['judgments'])} judged"
    )
    head = [f"{name} ({lifts[FULL][name].requests:,})" for name in slices]
    print("| system | " + " | ".join([*head, "Rele@10"]) + " |\n|---|" + "---|" * (len(slices) + 1))
    for name in rows:
        cells = [f"{lifts[name][part].reference:.3f}" for part in slices]
        print(f"| {name} | " + " | ".join([*cells, f"{rele[name].reference:.3f}" if name in rele else "-"]) + " |")
    print("\nRelative gain of the full model, 95% interval")
    print("| over | " + " | ".join([*slices, "Rele@10"]) + " |\n|---|" + "---|" * (len(slices) + 1))
    for name in [name for name in rows if name != FULL]:
        cells = [_gain(lifts[name][part]) for part in slices]
        print(f"| {name} | " + " | ".join([*cells, _gain(rele[name]) if name in rele else "-"]) + " |")
    print("\nEach mechanism on its own slice, against the model without it")
    for part, name in MECHANISMS.items():
        if part in slices:
            lift = lifts[name][part]
            print(f"{part}: {lift.reference:.3f} ({name}) -> {lift.challenger:.3f}, {_gain(lift)}")


def _rele(params: Params, inputs: Inputs, systems: Mapping[str, Values]) -> dict[str, Lift]:
    """Full model against each system on the judged queries; empty without any."""
    asked = inputs.window.asked["judgments"]
    if not len(asked):
        return {}
    values = {name: by_source["judgments"]["rele_at_10"] for name, by_source in systems.items()}
    return paired_lifts(
        {name: Pair(values[FULL], value) for name, value in values.items()},
        asked.clusters,
        alpha=params.gate.alpha,
        resamples=params.gate.resamples,
        seed=params.gate.seed,
        min_clusters=params.gate.min_clusters,
    )


def _gain(lift: Lift) -> str:
    if lift.relative is None or lift.relative_lower is None or lift.relative_upper is None:
        return "too few to tell"
    return f"{lift.relative:+.1%} [{lift.relative_lower:+.1%}, {lift.relative_upper:+.1%}]"


if __name__ == "__main__":
    peer.quiet()
    main()
