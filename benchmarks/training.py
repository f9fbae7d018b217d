"""What training and encoding cost, on made-up titles: `python -m benchmarks.training [--items N] [--steps N]`.

Prints seconds per step of both phases, items per second into the index, queries per second, and peak memory. Ratios say
more than seconds: compare switches in one run, not runs on different days.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from mrse.config import TrainConfig
from mrse.features.subword import SubwordHasher
from mrse.features.text import Tokenizer
from mrse.jsonfile import write_json
from mrse.model.arrays import Catalogue
from mrse.model.encode import ItemQueries, Pictures
from mrse.model.retriever import Retriever
from mrse.training.data import Examples, Requests, Shop, Shoppers
from mrse.training.optimiser import Optimisers
from mrse.training.steps import Steps

_WORDS, _TITLE_WORDS, _EXAMPLES, _HISTORY = 3000, 8, 20_000, 20


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=5000)
    parser.add_argument("--steps", type=int, default=20)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(Path(folder), arguments.items, arguments.steps), indent=2))


def measure(folder: Path, items: int, steps: int) -> dict[str, float]:
    """Seconds per step, items and queries per second, MiB."""
    config = TrainConfig()
    titles, queries = _texts(items)
    Tokenizer.train(titles, 6000).save(folder / "tokenizer.json")
    SubwordHasher(50_000).save(folder / "subword.json")
    write_json(folder / "features.json", {})
    torch.manual_seed(0)
    retriever = Retriever.create(config.model, folder)
    run = Steps(config, retriever, _shop(retriever, titles, queries))
    optimisers = Optimisers(config, retriever.model)
    retriever.model.train()
    align = _seconds(lambda step: optimisers.step(run.align(step)["loss"], step), steps)
    started = time.perf_counter()
    banks = run.refresh()
    refresh = time.perf_counter() - started
    fuse = _seconds(lambda step: optimisers.step(run.fuse(step, banks)["loss"], config.align_steps + step), steps)
    retriever.model.eval()
    catalogue = Catalogue(
        item_ids=[str(i) for i in range(items)],
        titles=titles,
        categories=[""] * items,
        image_row=np.full(items, -1, dtype=np.int64),
        image_features=np.zeros((0, 1, 1), dtype=np.float16),
        queries=[[] for _ in titles],
        query_weights=[[] for _ in titles],
    )
    encode = _seconds(lambda _: retriever.encode_catalogue(catalogue), 1, warm=0)
    asked = _seconds(lambda _: retriever.encode_queries(queries), 1, warm=0)
    return {
        "align_s_per_step": align,
        "fuse_s_per_step": fuse,
        "bank_refresh_s": refresh,
        "items_per_s": items / encode,
        "queries_per_s": len(queries) / asked,
        "default_run_s": align * config.align_steps
        + fuse * config.fuse_steps
        + refresh * (2 + config.fuse_steps / config.bank_refresh_steps),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "threads": float(torch.get_num_threads()),
    }


def _seconds(work: Callable[[int], object], times: int, warm: int = 2) -> float:
    for step in range(warm):
        work(step)
    started = time.perf_counter()
    for step in range(times):
        work(warm + step)
    return (time.perf_counter() - started) / times


def _texts(items: int) -> tuple[list[str], list[str]]:
    rng = np.random.default_rng(0)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    words = ["".join(rng.choice(letters, rng.integers(3, 9))) for _ in range(_WORDS)]
    picks = np.minimum(rng.zipf(1.3, (items, _TITLE_WORDS)) - 1, _WORDS - 1)
    titles = [" ".join(words[place] for place in row) for row in picks]
    queries = [" ".join(title.split()[:3]) for title in titles[: min(items, 3000)]]
    return titles, queries


def _shop(retriever: Retriever, titles: list[str], queries: list[str]) -> Shop:
    rng = np.random.default_rng(1)
    items = len(titles)
    query_M = rng.integers(0, len(queries), _EXAMPLES)
    shoppers = Shoppers(
        item_ML=rng.integers(0, items, (_EXAMPLES, _HISTORY)),
        action_ML=rng.integers(1, 4, (_EXAMPLES, _HISTORY)),
        age_ML=rng.integers(0, 14, (_EXAMPLES, _HISTORY)),
    )
    examples = Examples(
        query_M=query_M,
        item_M=query_M,
        asker_M=np.arange(_EXAMPLES),
        weight_M=np.ones(_EXAMPLES, dtype=np.float32),
        hard_MK=rng.integers(0, items, (_EXAMPLES, 3)),
        epoch_M=np.zeros(_EXAMPLES, dtype=np.int64),
        shoppers=shoppers,
    )
    none = np.zeros(0, dtype=np.int64)
    nobody = Shoppers(none.reshape(0, 1), none.reshape(0, 1), none.reshape(0, 1))
    history = ItemQueries(rng.integers(0, len(queries), (items, 8)), rng.random((items, 8), dtype=np.float32))
    return Shop(
        item_ids=[str(i) for i in range(items)],
        item_strings=titles,
        item_texts=retriever.item_texts(titles, [None] * items),
        query_texts=retriever.query_texts(queries),
        pictures=Pictures(np.full(items, -1, dtype=np.int64), np.zeros((0, 1, 1), dtype=np.float16)),
        profiles=[history],
        examples=examples,
        requests=Requests(none, [], none, nobody),
        dropped={},
    )


if __name__ == "__main__":
    main()
