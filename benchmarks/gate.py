"""The gate tested on itself: what it does with equal models, damaged ones and better ones, and whether intervals hold.

    python -m benchmarks.gate [--workspace .] [--pairs 500] [--trials 200] [--resamples 2000]

The workspace holds `data/` and `models/challenger` of a finished run. Its held-out requests are the population: a trial
draws as many shoppers from it as there are, with replacement, and applies the rule with the workspace's own settings,
so the true lift of every planted effect is known. The champion is the model as it is; its twin has noise on its vectors
(`NOISE`), so that the two disagree as two trainings do.

* **Equal models**: per shopper a coin decides whose answers, the model's or the twin's, are the challenger's.
* **Coverage**: how often the interval holds the true lift, resampled by shopper and by request.
* **Damage** to the twin's index or to the model itself: rankings are computed anew. Counted are trials whose true loss
  is larger than the smallest effect that the decision prints; for the broken slice, loss and effect are the slice's,
  and all else gains.
* **Gains**: for a share of the requests one relevant item more is found. The share is chosen such that the true lift is
  a multiple of the printed smallest effect.

Prints one JSON object. Some minutes on one core.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from mrse.config import GateConfig, load
from mrse.evaluation.bootstrap import Floats, Lift, Pair, paired_lifts
from mrse.evaluation.gate import Scored, Verdict, Window, decide
from mrse.evaluation.inputs import read_inputs
from mrse.evaluation.metrics import Labels, evaluate
from mrse.evaluation.ranking import exact_search
from mrse.evaluation.slices import Mask, Slices
from mrse.evaluation.window import Asked
from mrse.model.arrays import Catalogue, HistoryBank
from mrse.model.retriever import Retriever, load_catalogue

NOISE = 0.3  # length of the noise on a vector of length 1
VARIANTS = 40  # of a random damage; each meets several windows
SETTLING = 6
METRIC = "recall"
Generator = np.random.Generator


@dataclass(frozen=True)
class Stand:
    """A frozen window, and a model's vectors over it.

    Attributes:
        labels: what each request was looking for.
        clusters: the shopper of each request (Q,).
        masks: slices of the requests.
        queries_QD, items_ND: unit vectors, items in the order of their ids.
        k: depth of the metric.
    """

    labels: Labels
    clusters: np.ndarray
    masks: dict[str, Mask]
    queries_QD: np.ndarray
    items_ND: np.ndarray
    k: int

    def recall(self, queries_QD: np.ndarray, items_ND: np.ndarray) -> Floats:
        """Recall of each request (Q,) by exact search."""
        return evaluate(exact_search(queries_QD, items_ND, self.k), self.labels, self.k)[METRIC]


@dataclass(frozen=True)
class Encoder:
    """A model, what it embeds and what it is asked."""

    retriever: Retriever
    catalogue: Catalogue
    asked: Asked

    def vectors(self, catalogue: Catalogue) -> tuple[np.ndarray, np.ndarray]:
        """Query and item vectors."""
        encoded = self.retriever.encode_catalogue(catalogue)
        bank = HistoryBank(encoded.item_ids, encoded.bank)
        return self.retriever.encode_queries(self.asked.queries, self.asked.histories, bank), encoded.vectors


@dataclass(frozen=True)
class Drawn:
    """A window of drawn shoppers: rows of the stand, and the draw that each belongs to."""

    rows: np.ndarray
    clusters: np.ndarray


@dataclass(frozen=True)
class Effect:
    """A planted change: the challenger's values (Q,), and its true effect on the whole window or on one slice."""

    values: Floats
    true: float
    slice: str | None = None

    @classmethod
    def of(cls, values: Floats, reference: Floats) -> Effect:
        """An effect on all requests."""
        return cls(values, float((values - reference).mean()))


def main() -> None:
    """Run all simulations and print their figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workspace", type=Path, default=Path("."))
    parser.add_argument("--pairs", type=int, default=500)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--resamples", type=int, default=2000)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    started = time.process_time()
    config = load(arguments.workspace / "params.yaml").gate.model_copy(update={"resamples": arguments.resamples})
    encoder, stand = open_stand(config, arguments.workspace)
    generator = np.random.default_rng(0)
    base, rival = stand.recall(stand.queries_QD, stand.items_ND), twin(stand, generator)
    twin_Q = stand.recall(*rival)
    effects = {
        "noise alone": [Effect.of(twin_Q, base)],
        **damages(stand, rival, base, generator),
        **encoder_damages(encoder, stand, base, generator),
        "a tenth of the tail broken, all else better": [broken_slice(stand, "tail", 0.1, twin_Q, base, generator)],
    }
    figures = {
        "window": {"requests": len(base), "shoppers": len(np.unique(stand.clusters)), "recall": float(base.mean())},
        "equal": equal_models(config, stand, base, twin_Q, arguments.pairs, generator),
        "coverage": {
            "this window": coverage(config, real_pairs(stand, twin_Q - base, generator), arguments.pairs),
            "60 shoppers of 20 requests": coverage(config, busy_shoppers(generator), arguments.pairs),
        },
        "damage": {
            name: caught(config, stand, found, base, arguments.trials, generator) for name, found in effects.items()
        },
        "gain": {
            f"{size:g} of the smallest effect": power(config, stand, base, twin_Q, size, arguments.trials, generator)
            for size in (0.5, 1.0, 1.5)
        },
    }
    print(json.dumps(figures | {"cpu_seconds": round(time.process_time() - started)}, indent=2))


def open_stand(config: GateConfig, workspace: Path) -> tuple[Encoder, Stand]:
    """The workspace's model over its catalogue, in the order of ids, and its held-out requests."""
    inputs = read_inputs(config, workspace)
    retriever = Retriever.load(workspace / "models/challenger")
    folders = workspace / "data/clean", workspace / "data/profiles"
    catalogue = in_order(load_catalogue(retriever, *folders, workspace, workspace / ".mrse/cache", inputs.window.asof))
    encoder = Encoder(retriever, catalogue, inputs.asked)
    vectors = encoder.vectors(catalogue)
    return encoder, Stand(inputs.asked.labels, inputs.asked.clusters, inputs.slices.masks, *vectors, config.k)


def in_order(catalogue: Catalogue) -> Catalogue:
    """The same items by ascending id."""
    order = sorted(range(len(catalogue.item_ids)), key=catalogue.item_ids.__getitem__)
    columns = ("item_ids", "titles", "categories", "queries", "query_weights")
    moved = {name: [getattr(catalogue, name)[at] for at in order] for name in columns}
    return replace(catalogue, image_row=catalogue.image_row[order], **moved)


def twin(stand: Stand, generator: Generator) -> tuple[np.ndarray, np.ndarray]:
    """Query and item vectors with noise, as another training would have them."""
    noisy = []
    for vectors in (stand.queries_QD, stand.items_ND):
        noise = generator.standard_normal(vectors.shape).astype(np.float32)
        noise *= NOISE / np.linalg.norm(noise, axis=1, keepdims=True)
        noisy.append((vectors + noise) / np.linalg.norm(vectors + noise, axis=1, keepdims=True))
    return noisy[0], noisy[1]


def draw(clusters: np.ndarray, generator: Generator) -> Drawn:
    """As many shoppers as there are, with replacement, each with all requests."""
    order = np.argsort(clusters, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(clusters[order])) + 1)
    drawn = [groups[at] for at in generator.integers(0, len(groups), len(groups))]
    return Drawn(np.concatenate(drawn), np.repeat(np.arange(len(drawn)), [len(group) for group in drawn]))


def judge(config: GateConfig, stand: Stand, drawn: Drawn, challenger: Floats, reference: Floats) -> Verdict:
    """The rule on a drawn window; both sides' values are of its rows."""
    ids = [f"r{at}" for at in range(len(drawn.rows))]
    masks = {name: mask[drawn.rows] for name, mask in stand.masks.items()}
    pair = [Scored(name, "drawn", ids, {METRIC: v}) for name, v in (("it", challenger), ("the model", reference))]
    return decide(config, Window("drawn", ids, drawn.clusters, Slices(masks)), pair[0], pair[1], "champion", METRIC)


def swapped(drawn: Drawn, one: Floats, other: Floats, generator: Generator) -> tuple[Floats, Floats]:
    """Both sides' values on a drawn window, whose is whose by a coin per shopper: two models of exactly one quality."""
    heads = (generator.random(drawn.clusters.max() + 1) < 0.5)[drawn.clusters]
    one, other = one[drawn.rows], other[drawn.rows]
    return np.where(heads, one, other), np.where(heads, other, one)


def equal_models(
    config: GateConfig, stand: Stand, one: Floats, other: Floats, pairs: int, generator: Generator
) -> dict[str, Any]:
    """Outcomes of pairs of equal models."""
    verdicts = []
    for _ in range(pairs):
        drawn = draw(stand.clusters, generator)
        verdicts.append(judge(config, stand, drawn, *swapped(drawn, one, other, generator)))
    lifts = [verdict.primary for verdict in verdicts if verdict.primary is not None]
    return {
        "pairs": pairs,
        "requests that differ": float((one != other).mean()),
        "promoted": share(verdict.outcome == "PROMOTE" for verdict in verdicts),
        "lower bound above zero": share(lift.lower > 0 for lift in lifts),
        "rejected": share(verdict.outcome == "REJECT" for verdict in verdicts),
        "printed smallest effect": float(np.mean([lift.mde for lift in lifts])),
    }


def real_pairs(stand: Stand, difference: Floats, generator: Generator) -> Callable[[], tuple[Floats, np.ndarray]]:
    """Draws of real differences, centred, so that the true lift is 0, and the shopper of each."""

    def one() -> tuple[Floats, np.ndarray]:
        drawn = draw(stand.clusters, generator)
        return (difference - difference.mean())[drawn.rows], drawn.clusters

    return one


def busy_shoppers(generator: Generator, shoppers: int = 60, each: int = 20) -> Callable[[], tuple[Floats, np.ndarray]]:
    """Draws of differences of mean 0, of whose variance half is the shopper's, and the shopper of each."""

    def one() -> tuple[Floats, np.ndarray]:
        clusters = np.repeat(np.arange(shoppers), each)
        return generator.standard_normal(shoppers)[clusters] + generator.standard_normal(len(clusters)), clusters

    return one


def coverage(config: GateConfig, one: Callable[[], tuple[Floats, np.ndarray]], pairs: int) -> dict[str, float]:
    """Share of intervals that hold the true lift of 0, and that claim a gain, by what is resampled."""
    found: dict[str, list[Lift]] = {"shoppers": [], "requests": []}
    for seed in range(pairs):
        difference, clusters = one()
        pair = {"all": Pair(difference, np.zeros(len(difference)))}
        for unit, drawn_by in (("shoppers", clusters), ("requests", np.arange(len(clusters)))):
            lifts = paired_lifts(pair, drawn_by, alpha=config.alpha, resamples=config.resamples, seed=seed)
            found[unit].append(lifts["all"])
    holds = {f"by {unit}": share(lift.lower <= 0 <= lift.upper for lift in lifts) for unit, lifts in found.items()}
    claims = {f"by {unit}, gain claimed": share(lift.lower > 0 for lift in lifts) for unit, lifts in found.items()}
    return {"nominal": 1 - config.alpha, **holds, **claims}


def damages(
    stand: Stand, rival: tuple[np.ndarray, np.ndarray], base: Floats, generator: Generator, variants: int = VARIANTS
) -> dict[str, list[Effect]]:
    """Damage to item vectors, each several times."""
    queries_QD, items_ND = rival
    made: dict[str, Callable[[], np.ndarray]] = {
        "5% of the items' vectors shuffled": lambda: shuffled(items_ND, 0.05, generator),
        "1% of the items' vectors shuffled": lambda: shuffled(items_ND, 0.01, generator),
        "index without 5% of its rows": lambda: emptied(items_ND, 0.05, generator),
    }
    return {
        name: [Effect.of(stand.recall(queries_QD, make()), base) for _ in range(variants)]
        for name, make in made.items()
    }


def shuffled(items_ND: np.ndarray, part: float, generator: Generator) -> np.ndarray:
    """Some items have each other's vectors."""
    rows = generator.permutation(len(items_ND))[: round(part * len(items_ND))]
    moved = items_ND.copy()
    moved[rows] = items_ND[np.roll(rows, 1)]
    return moved


def emptied(items_ND: np.ndarray, part: float, generator: Generator) -> np.ndarray:
    """Rows that nothing finds: a run of neighbours by id, as a cut-off load leaves them out."""
    size = round(part * len(items_ND))
    start = int(generator.integers(0, len(items_ND) - size + 1))
    cut = items_ND.copy()
    cut[start : start + size] = 0.0
    return cut


def broken_slice(stand: Stand, name: str, part: float, twin_Q: Floats, base: Floats, generator: Generator) -> Effect:
    """Requests of a slice find nothing; elsewhere so much more is found that the whole gains."""
    mask = stand.masks[name]
    better = np.where(mask, twin_Q, found_more(stand, twin_Q, 0.5, generator))
    values = np.where(mask & (generator.random(len(mask)) < part), 0.0, better)
    return Effect(values, float((values - base)[mask].mean()), name)


def found_more(stand: Stand, values_Q: Floats, part: float, generator: Generator) -> Floats:
    """One relevant item more is found for a share of the requests that miss one."""
    return values_Q + np.where(generator.random(len(values_Q)) < part, room(stand, values_Q), 0.0)


def room(stand: Stand, values: Floats, rows: np.ndarray | slice = slice(None)) -> Floats:
    """What one relevant item more adds to each request's recall, of all requests or of some rows."""
    return np.where(values < 1.0, 1.0 / stand.labels.relevant_counts[rows], 0.0)


def encoder_damages(encoder: Encoder, stand: Stand, base: Floats, generator: Generator) -> dict[str, list[Effect]]:
    """Damage to the model before its vectors: an expert that says nothing, pictures of other items."""
    found = {}
    for name in encoder.retriever.experts:
        hook = encoder.retriever.model.experts.each[name].register_forward_hook(
            lambda *args: torch.zeros_like(args[-1])
        )
        found[f"expert {name} says nothing"] = encoder.vectors(encoder.catalogue)
        hook.remove()
    rows = encoder.catalogue.image_row.copy()
    pictured = np.flatnonzero(rows >= 0)
    stale = generator.permutation(pictured)[: len(pictured) // 2]
    rows[stale] = rows[np.roll(stale, 1)]
    found["half of the pictures stale"] = encoder.vectors(replace(encoder.catalogue, image_row=rows))
    return {name: [Effect.of(stand.recall(*vectors), base)] for name, vectors in found.items()}


def caught(
    config: GateConfig, stand: Stand, effects: list[Effect], base: Floats, trials: int, generator: Generator
) -> dict[str, Any]:
    """Outcomes of trials whose true loss is larger than the printed smallest effect."""
    outcomes, printed = [], []
    for effect, drawn in windows(stand, effects, trials, generator):
        verdict = judge(config, stand, drawn, effect.values[drawn.rows], base[drawn.rows])
        lift = verdict.primary if effect.slice is None else verdict.slices[effect.slice]
        assert lift is not None and lift.mde is not None
        printed.append(lift.mde)
        if -effect.true > lift.mde:
            outcomes.append(verdict.outcome)
    return {
        "true loss": -float(np.mean([effect.true for effect in effects])),
        "printed smallest effect": float(np.mean(printed)),
        "trials": trials,
        "larger": len(outcomes),
        "promoted": outcomes.count("PROMOTE"),
        "rejected": outcomes.count("REJECT"),
    }


def windows(stand: Stand, effects: list[Effect], trials: int, generator: Generator) -> Iterator[tuple[Effect, Drawn]]:
    """A new window for each trial, the effects in turn."""
    for trial in range(trials):
        yield effects[trial % len(effects)], draw(stand.clusters, generator)


def power(
    config: GateConfig, stand: Stand, base: Floats, twin_Q: Floats, size: float, trials: int, generator: Generator
) -> dict[str, Any]:
    """Outcomes of trials whose true lift is so many times the printed smallest effect."""
    mean_room = float(np.mean([room(stand, values).mean() for values in (base, twin_Q)]))

    def judged(part: float) -> Verdict:
        drawn = draw(stand.clusters, generator)
        pair = swapped(drawn, base, twin_Q, generator)
        gained = np.where(generator.random(len(drawn.rows)) < part, room(stand, pair[0], drawn.rows), 0.0)
        return judge(config, stand, drawn, pair[0] + gained, pair[1])

    part = 0.0
    for _ in range(SETTLING):  # the printed effect grows with the gain
        part = size * smallest_effects([judged(part) for _ in range(5)]).mean() / mean_room
    verdicts = [judged(part) for _ in range(trials)]
    return {
        "true lift": part * mean_room,
        "printed smallest effect": float(smallest_effects(verdicts).mean()),
        "lift proven": share("proven_lift" in {reason.code for reason in verdict.reasons} for verdict in verdicts),
        "promoted, with guardrails": share(verdict.outcome == "PROMOTE" for verdict in verdicts),
    }


def smallest_effects(verdicts: Sequence[Verdict]) -> Floats:
    """What each decision prints."""
    return np.array([verdict.primary.mde for verdict in verdicts], dtype=np.float64)


def share(of: Iterable[bool]) -> float:
    """How many are true, as a share."""
    return float(np.mean(list(of)))


if __name__ == "__main__":
    main()
