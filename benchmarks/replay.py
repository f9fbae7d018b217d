"""What the replayed log says of a model, beside what the simulated shop's shoppers would truly have done.

    python -m benchmarks.replay --work DIR

Over a workspace of the simulated shop with a `params.yaml`, `data/` and `models/challenger`. The truth is the sum of
the shop's own click probabilities over the pages that the model (and BM25) would have shown to the requests of the test
days: same shoppers, same page lengths. The shop breaks what the estimates assume: a page's shoppers open only a few
items whatever they like. About half a minute.

    pip install --constraint constraints.txt -e '.[gate]'
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mrse.config import MarketplaceConfig, Params, load
from mrse.data.marketplace.catalogue import open_catalogue
from mrse.data.marketplace.queries import grade
from mrse.data.marketplace.ranker import SLOTS
from mrse.data.marketplace.sessions import ORDERED, Shop
from mrse.data.marketplace.shoppers import fashion_of, gather
from mrse.device import pick
from mrse.evaluation.inputs import Inputs, read_inputs
from mrse.evaluation.lexical import BM25
from mrse.evaluation.pages import Log, read_pages, request_id
from mrse.evaluation.ranking import EMPTY, Ranking
from mrse.evaluation.scoring import Embedded
from mrse.evaluation.sections import replay_log
from mrse.layout import CHALLENGER_PACKAGE, CLEAN, PROFILES
from mrse.model.retriever import Retriever

MODEL, LEXICAL = "model", "BM25"


def main() -> None:
    """Rank the log's pages, replay, compute the truth, print both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="a workspace of the simulated shop")
    work = parser.parse_args().work
    params = load(work / "params.yaml")
    inputs = read_inputs(params.gate, work)
    log = read_pages(work / CLEAN, work / PROFILES, inputs.items.ids, inputs.window.asof, params.gate.max_requests)
    lists = {MODEL: _model_lists(params, inputs, log, work), LEXICAL: _bm25_lists(inputs, log)}
    replayed = replay_log(params.gate, inputs, log, lists)
    assert replayed is not None, "the simulated shop logs its propensities"
    print(f"{'':8}{'figure':10}{'truth':>9}{'doubly robust':>26}{'SNIPS':>26}{'naive':>9}")
    for name, list_PL in lists.items():
        clicks, gmv = _truth(params, inputs, log, np.where(log.pages.inside_PL, list_PL, EMPTY))
        slots = int((log.pages.inside_PL & (list_PL != EMPTY)).sum())
        figures = replayed["systems"][name]
        naive = figures["ctr.naive"]["value"]
        print(f"{name:8}{'CTR':10}{clicks / slots:9.4f}{_row(figures, 'ctr')}{naive:9.4f}")
        print(f"{name:8}{'GMV':10}{gmv / len(log):9.4f}{_row(figures, 'gmv')}")
    print(f"{'lift':8}{'CTR':10}{'':9}{_row(replayed['lift'], 'ctr')}")


def _row(figures: dict[str, dict[str, float]], what: str) -> str:
    cells = [figures[f"{what}.{how}"] for how in ("dr", "snips")]
    return "".join(f"{c['value']:10.4f} [{c['lower']:.3f}, {c['upper']:.3f}]" for c in cells)


def _model_lists(params: Params, inputs: Inputs, log: Log, work: Path) -> Ranking:
    retriever = Retriever.load(work / CHALLENGER_PACKAGE).to(pick(params.gate.device))
    cache = Path(params.services.under(work).cache_dir)
    model = Embedded(MODEL, retriever, work, cache, inputs.window.asof)
    return model.search(model.encode(log.queries, log.histories), SLOTS)


def _bm25_lists(inputs: Inputs, log: Log) -> Ranking:
    return BM25(inputs.items.ids, inputs.items.texts).rank(log.queries, SLOTS)[0]


def _truth(params: Params, inputs: Inputs, log: Log, list_PL: Ranking) -> tuple[float, float]:
    """Expected clicks and expected GMV over all pages."""
    prices_N = np.nan_to_num(np.array(inputs.items.prices, dtype=np.float64))
    page_of = {name: page for page, name in enumerate(log.request_ids)}
    clicks, gmv = 0.0, 0.0
    for names, chance_RL in _days(params.marketplace, params, inputs, list_PL, page_of):
        lists_RL = list_PL[[page_of[name] for name in names]]
        clicks += float(chance_RL.sum())
        gmv += float((chance_RL * np.where(lists_RL == EMPTY, 0.0, prices_N[lists_RL])).sum()) * ORDERED
    return clicks, gmv


def _days(
    config: MarketplaceConfig, params: Params, inputs: Inputs, list_PL: Ranking, page_of: dict[str, int]
) -> Iterator[tuple[list[str], np.ndarray]]:
    """Day by day: the requests' ids, and the shop's click probabilities on the given pages."""
    catalogue = open_catalogue(config, params.snapshot.end)
    row_of = {item: row for row, item in enumerate(catalogue.item_ids)}
    rows_N = np.array([row_of[item] for item in inputs.items.ids])
    stop = params.snapshot.end.toordinal()
    shop = Shop(config, catalogue, gather(config, catalogue, stop))
    for day in range(stop - params.build_profiles.test_days, stop):
        requests = shop.ask(day)
        prefix = f"s{params.snapshot.end.fromordinal(day):%Y%m%d}-"
        sessions = [f"{prefix}{session:06d}" for session in requests.session_R.tolist()]
        texts = [requests.texts[query] for query in requests.query_R.tolist()]
        names = [request_id(session, text) for session, text in zip(sessions, texts, strict=True)]
        lists_RL = list_PL[[page_of[name] for name in names]]
        items_RL = np.where(lists_RL == EMPTY, -1, rows_N[lists_RL])
        grades_RL = np.zeros(items_RL.shape, dtype=np.float32)
        for row, query in enumerate(requests.query_R.tolist()):
            there = items_RL[row] >= 0
            grades_RL[row, there] = grade(catalogue, requests.questions[query].intent, items_RL[row, there])
        yield (
            names,
            shop.click_chances(
                requests, fashion_of(config, catalogue, day), np.arange(len(names)), items_RL, grades_RL
            ),
        )


if __name__ == "__main__":
    main()
