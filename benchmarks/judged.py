"""A trained model and BM25 on a shop's human judgments, over the full catalogue; also with words blanked in the titles.

Run after `dvc repro` with a variant of `params/`:

    python benchmarks/judged.py WORKSPACE JUDGMENTS.parquet [--blank ITEMS.parquet:COLUMN]

`--blank` takes every word that the label column uses out of the titles, forgets the queries that led to each item, and
embeds the catalogue again with and without its pictures: what is left of the colour is what the picture tells. The
model was trained on the full titles.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from mrse.config import load
from mrse.data.contract import read_meta
from mrse.evaluation.lexical import BM25, item_text
from mrse.evaluation.metrics import Labels, evaluate
from mrse.evaluation.ranking import Ranking, exact_search
from mrse.features.text import normalise
from mrse.model.arrays import Catalogue
from mrse.model.retriever import Retriever, load_catalogue

RELEVANT = 0.75


def main() -> None:
    """Print one row per system."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("workspace", type=Path)
    parser.add_argument("judgments", type=Path)
    parser.add_argument("--blank", help="ITEMS.parquet:COLUMN")
    arguments = parser.parse_args()
    workspace: Path = arguments.workspace
    services = load(workspace / "params.yaml").services.under(workspace)
    retriever = Retriever.load(workspace / "models/challenger")
    meta = read_meta(workspace / "data/clean")
    catalogue = load_catalogue(
        retriever, workspace / "data/clean", workspace / "data/profiles", workspace, Path(services.cache_dir), meta.end
    )
    queries, labels = _labels(arguments.judgments, catalogue.item_ids)
    print(f"{len(queries)} judged queries, {len(catalogue.item_ids)} items, relevant = grade of {RELEVANT} and more")
    _report("BM25, full titles", _lexical(catalogue, queries), labels)
    _report("model, full titles", _dense(retriever, catalogue, queries), labels)
    if arguments.blank:
        path, _, column = arguments.blank.partition(":")
        blank = _blanked(catalogue, Path(path), column)
        no_pictures = dataclasses.replace(blank, image_row=np.full_like(blank.image_row, -1))
        _report(f"BM25, {column} blanked", _lexical(blank, queries), labels)
        _report(f"model, {column} blanked, no pictures", _dense(retriever, no_pictures, queries), labels)
        _report(f"model, {column} blanked, with pictures", _dense(retriever, blank, queries), labels)


def _labels(path: Path, item_ids: list[str]) -> tuple[list[str], Labels]:
    position = {item: row for row, item in enumerate(item_ids)}
    pairs: dict[str, list[int]] = {}
    gains: dict[str, list[float]] = {}
    for row in pq.read_table(path, columns=["query", "item_id", "grade"]).to_pylist():
        if row["item_id"] in position and row["grade"] >= RELEVANT:
            pairs.setdefault(row["query"], []).append(position[row["item_id"]])
            gains.setdefault(row["query"], []).append(row["grade"])
    queries = sorted(pairs)
    return queries, Labels.build([pairs[q] for q in queries], [gains[q] for q in queries], len(item_ids))


def _lexical(catalogue: Catalogue, queries: list[str]) -> Ranking:
    texts = [item_text(t, c) for t, c in zip(catalogue.titles, catalogue.categories, strict=True)]
    return BM25(catalogue.item_ids, texts).rank(queries, 100)[0]


def _dense(retriever: Retriever, catalogue: Catalogue, queries: list[str]) -> Ranking:
    vectors = retriever.encode_catalogue(catalogue).vectors
    return exact_search(retriever.encode_queries(queries), vectors, 100)


def _blanked(catalogue: Catalogue, items: Path, column: str) -> Catalogue:
    labels = pq.read_table(items, columns=[column])[column].drop_null().unique().to_pylist()
    words = {word for label in labels for word in normalise(label).split()}
    titles = [" ".join(w for w in title.split() if normalise(w) not in words) for title in catalogue.titles]
    nothing: list[list[str]] = [[] for _ in titles]
    return dataclasses.replace(catalogue, titles=titles, queries=nothing, query_weights=[[] for _ in titles])


def _report(name: str, ranking: Ranking, labels: Labels) -> None:
    at10, at100 = evaluate(ranking, labels, 10), evaluate(ranking, labels, 100)
    values = (at10["precision"], at10["recall"], at100["recall"])
    figures = "  ".join(
        f"{what} {np.nanmean(v):.3f}" for what, v in zip(("P@10", "R@10", "R@100"), values, strict=True)
    )
    print(f"{name:40s} {figures}", flush=True)


if __name__ == "__main__":
    main()
