"""Retrieval quality on real catalogues with human labels, beside what a shop would use instead, all in one run.

    python -m benchmarks.quality fashion homedepot --data ../shared/data --work DIR
    python -m benchmarks.quality fashion-blank --work DIR --set train.fuse_steps=1200
    python -m benchmarks.quality homedepot --work DIR --minilm PATH --set build_features.text_encoder=PATH

| shop | what it is |
|---|---|
| `fashion` | real photos and titles; a query is a colour and an article type, relevant by the shop's own labels |
| `fashion-blank` | the same with every colour word taken out of the titles: only the picture tells the colour |
| `homedepot` | real queries and titles with human grades; relevant from 0.75 |

The stages from `snapshot` to `train` run as in production, on judgments alone. Queries are split by `build_profiles`:
the model learns from the training queries, whatever is chosen (the weight of the learned fusion) is chosen on the
validation queries, and the table is of the test queries. Intervals: paired bootstrap over queries against BM25.
`--minilm` names a folder or hub name of a sentence-transformers model: it is scored as it is and, with `--finetune`,
after one epoch over the same training pairs with in-batch negatives (MultipleNegativesRankingLoss).
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from mrse.config import load
from mrse.device import CPU, fast_at_bfloat16
from mrse.evaluation.bootstrap import Pair, paired_lifts
from mrse.evaluation.lexical import BM25
from mrse.evaluation.metrics import Labels, evaluate
from mrse.evaluation.ranking import Ranking, exact_search, fuse, top_k
from mrse.features.text import normalise
from mrse.model.arrays import Catalogue, item_text
from mrse.model.retriever import Retriever, load_catalogue

RELEVANT = 0.75  # the bar of the published figures for these judgments; the gate has its own (`gate.relevant_grade`)
DEPTH = 100
PEER_BATCH, PEER_RATE = 64, 2e-5  # of the fine-tuned peer
POOL = 1000  # candidates of each side that the learned fusion weighs
STAGES = ("snapshot", "validate_logs", "build_profiles", "build_features", "train")
COLUMNS = ("item_id", "title", "category", "price", "image")
FIGURES = (("P@10", "precision", 10), ("R@10", "recall", 10), ("R@100", "recall", 100))


@dataclass(frozen=True)
class Split:
    """The judged queries of one split."""

    queries: list[str]
    labels: Labels


@dataclass(frozen=True)
class Candidates:
    """What the weighed fusion chooses from for one query: item positions, cosines, BM25's scores."""

    items: np.ndarray
    dense: np.ndarray
    lexical: np.ndarray


def main() -> None:
    """Print one table per shop."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shops", nargs="+", choices=sorted(SHOPS))
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the real catalogues")
    parser.add_argument("--work", type=Path, required=True, help="where each shop gets a workspace")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a parameter, dotted")
    parser.add_argument("--keep", action="store_true", help="score the model that is there; train nothing")
    parser.add_argument("--minilm", help="a sentence-transformers model as a peer")
    parser.add_argument("--finetune", action="store_true", help="fine-tune that peer too")
    arguments = parser.parse_args()
    for shop in arguments.shops:
        folder = (arguments.work / shop).resolve()
        if not arguments.keep:
            prepare(shop, arguments.data.resolve(), folder, arguments.set)
        report(shop, folder, arguments.minilm, arguments.finetune)


def prepare(shop: str, data: Path, folder: Path, changes: list[str]) -> None:
    """Write the shop's workspace and run the stages up to a trained model."""
    folder.mkdir(parents=True, exist_ok=True)
    files = SHOPS[shop](data, folder)
    params: dict[str, Any] = {
        "snapshot": {"source": "files", "end": "2026-03-15", "days": 14, "files": files},
        "gate": {"not_applicable": ["head", "tail"]},
        "services": {"milvus_uri": ".mrse/milvus.db", "mlflow_uri": "sqlite:///.mrse/mlflow.db"},
    }
    for change in changes:
        key, _, value = change.partition("=")
        *path, last = key.split(".")
        section = params
        for name in path:
            section = section.setdefault(name, {})
        section[last] = yaml.safe_load(value)
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    for stage in STAGES:
        subprocess.run([sys.executable, "-m", f"components.{stage}", "--workspace", str(folder)], check=True)


def fashion(data: Path, folder: Path) -> dict[str, str]:
    """The catalogue without the columns that the labels came from."""
    return _fashion_files(data, folder, pq.read_table(data / "fashion/items.parquet"))


def fashion_blank(data: Path, folder: Path) -> dict[str, str]:
    """The same with the colour words taken out of the titles."""
    items = pq.read_table(data / "fashion/items.parquet")
    colours = {word for label in items["colour"].drop_null().unique().to_pylist() for word in normalise(label).split()}
    titles = [
        " ".join(word for word in title.split() if normalise(word) not in colours) or "item"
        for title in items["title"].to_pylist()
    ]
    return _fashion_files(data, folder, items.set_column(items.schema.get_field_index("title"), "title", [titles]))


def _fashion_files(data: Path, folder: Path, items: pa.Table) -> dict[str, str]:
    pq.write_table(items.select(list(COLUMNS)), folder / "items.parquet")
    return {
        "items": str(folder / "items.parquet"),
        "judgments": str(data / "fashion/judgments.parquet"),
        "image_root": f"zip://::{data / 'fashion/images.zip'}",
    }


def homedepot(data: Path, folder: Path) -> dict[str, str]:
    """Titles and human grades, as they are."""
    return {name: str(data / f"homedepot/{name}.parquet") for name in ("items", "judgments")}


SHOPS: dict[str, Callable[[Path, Path], dict[str, str]]] = {
    "fashion": fashion,
    "fashion-blank": fashion_blank,
    "homedepot": homedepot,
}


def report(shop: str, folder: Path, minilm: str | None, finetune: bool) -> None:
    """Score every system on the test queries and print the table."""
    services = load(folder / "params.yaml").services.under(folder)
    retriever = Retriever.load(folder / "models/challenger")
    clean, profiles = folder / "data/clean", folder / "data/profiles"
    catalogue = load_catalogue(retriever, clean, profiles, folder, Path(services.cache_dir))
    valid, test = (_judged(profiles, catalogue.item_ids, name) for name in ("valid", "test"))
    lexical = BM25(catalogue.item_ids, _texts(catalogue))
    vectors = retriever.encode_catalogue(catalogue).vectors
    dense = exact_search(retriever.encode_queries(test.queries), vectors, DEPTH)
    systems = {"BM25": lexical.rank(test.queries, DEPTH)[0], "MRSE": dense}
    if (catalogue.image_row >= 0).any():
        unseen = dataclasses.replace(catalogue, image_row=np.full_like(catalogue.image_row, -1))
        blind = retriever.encode_catalogue(unseen).vectors
        systems["MRSE, pictures hidden"] = exact_search(retriever.encode_queries(test.queries), blind, DEPTH)
    systems["MRSE + BM25, reciprocal rank"] = fuse([dense, systems["BM25"]], DEPTH)
    trial = _candidates(lexical, retriever, vectors, valid)
    weight = max(np.linspace(0, 1, 21), key=lambda share: _mean(_weighed(trial, share), valid.labels, "recall", 10))
    final = _candidates(lexical, retriever, vectors, test)
    systems[f"MRSE + BM25, weighed {weight:.2f}"] = _weighed(final, weight)
    if minilm is not None:
        systems |= _sentence_transformers(minilm, profiles, catalogue, test, finetune)
    print(f"\n{shop}: {len(test.queries)} test queries, {len(catalogue.item_ids)} items, relevant from {RELEVANT}")
    print("| system | " + " | ".join(name for name, _, _ in FIGURES) + " |\n|---|" + "---|" * len(FIGURES))
    for name, ranking in systems.items():
        print(f"| {name} | " + " | ".join(_figures(ranking, systems["BM25"], test.labels)) + " |", flush=True)


def _judged(profiles: Path, item_ids: list[str], split: str) -> Split:
    position = {item: row for row, item in enumerate(item_ids)}
    chosen = [("split", "=", split), ("source", "=", "judgments")]
    rows = pq.read_table(profiles / "requests.parquet", filters=chosen).to_pylist()
    queries, pairs, gains = [], [], []
    for row in rows:
        good = [(position[i], g) for i, g in zip(row["relevant"], row["gains"], strict=True) if g >= RELEVANT]
        if good:
            queries.append(row["query"])
            pairs.append([item for item, _ in good])
            gains.append([gain for _, gain in good])
    return Split(queries, Labels.build(pairs, gains, len(item_ids)))


def _texts(catalogue: Catalogue) -> list[str]:
    return [item_text(t, c) for t, c in zip(catalogue.titles, catalogue.categories, strict=True)]


def _candidates(lexical: BM25, retriever: Retriever, vectors: np.ndarray, split: Split) -> list[Candidates]:
    """The best `POOL` items of either side for each query, each with both scores; BM25's over its best."""
    queries_QD = retriever.encode_queries(split.queries)
    near_QK = exact_search(queries_QD, vectors, POOL)
    words_QK, scores = lexical.rank(split.queries, POOL)
    found = []
    for query_D, near_K, words_K, scores_K in zip(queries_QD, near_QK, words_QK, scores, strict=True):
        words_K = words_K[: len(scores_K)]
        items = np.union1d(near_K, words_K)
        lexical_scores = np.zeros(len(items), dtype=np.float32)
        lexical_scores[np.searchsorted(items, words_K)] = scores_K / max(float(scores_K.max(initial=0.0)), 1e-9)
        found.append(Candidates(items, vectors[items] @ query_D, lexical_scores))
    return found


def _weighed(candidates: list[Candidates], share: float) -> Ranking:
    """`share` of the cosine and the rest of BM25's score."""
    best = [c.items[top_k(share * c.dense + (1 - share) * c.lexical, DEPTH)] for c in candidates]
    return np.array(best, dtype=np.int32)


def _sentence_transformers(
    name: str, profiles: Path, catalogue: Catalogue, test: Split, finetune: bool
) -> dict[str, Ranking]:
    from benchmarks import peer  # an extra that the rest does without

    texts = _texts(catalogue)

    def rank(model: Any) -> Ranking:
        items, queries = (model.encode(t, normalize_embeddings=True, batch_size=128) for t in (texts, test.queries))
        return exact_search(queries, items, DEPTH)

    model = peer.SentenceTransformer(name, device="cpu")
    systems = {"sentence-transformers, as it is": rank(model)}
    if finetune:
        rows = pq.read_table(profiles / "examples.parquet", filters=[("split", "=", "train")])
        text = dict(zip(catalogue.item_ids, texts, strict=True))
        pairs = rows["query"].to_pylist(), [text[item] for item in rows["item_id"].to_pylist()]
        with tempfile.TemporaryDirectory() as folder:
            peer.trainer(
                model,
                pairs,
                Path(folder),
                steps=math.ceil(len(pairs[0]) / PEER_BATCH),
                batch_size=PEER_BATCH,
                learning_rate=PEER_RATE,
                bfloat16=fast_at_bfloat16(CPU),
            ).train()
        systems["sentence-transformers, fine-tuned"] = rank(model)
    return systems


def _mean(ranking: Ranking, labels: Labels, metric: str, k: int) -> float:
    return float(np.nanmean(evaluate(ranking, labels, k)[metric]))


def _figures(ranking: Ranking, reference: Ranking, labels: Labels) -> list[str]:
    clusters = np.arange(labels.requests)
    cells = []
    for _, metric, k in FIGURES:
        pair = Pair(evaluate(ranking, labels, k)[metric], evaluate(reference, labels, k)[metric])
        (lift,) = paired_lifts({"x": pair}, clusters, resamples=10_000, alpha=0.05, seed=0, delta=0.0).values()
        same = ranking is reference
        cells.append(f"{lift.challenger:.3f}" + ("" if same else f" [{lift.lower:+.3f}, {lift.upper:+.3f}]"))
    return cells


if __name__ == "__main__":
    main()
