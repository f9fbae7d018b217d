"""The gate as a stage, over a literal little shop: files in, decision, report and per-request results out."""

import hashlib
import io
import json
import re
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from components.gate.__main__ import body
from mrse import tracking
from mrse.component import run
from mrse.config import BudgetsConfig, ModelConfig, Params, parse
from mrse.data.contract import EVENTS, ITEMS, SnapshotMeta, write_meta, write_parquet
from mrse.errors import DataError, ServiceError
from mrse.evaluation import champion as champion_module
from mrse.evaluation import run as run_module
from mrse.evaluation import scoring
from mrse.evaluation.run import flat_metrics, run_gate
from mrse.evaluation.window import read_window
from mrse.features.subword import SubwordHasher
from mrse.features.text import Tokenizer
from mrse.index.trial import trial
from mrse.model.arrays import Catalogue, EncodedCatalogue, History, HistoryBank
from mrse.model.retriever import Retriever
from mrse.profiles import tables

COLOURS = ("red", "blue", "green", "black", "white", "pink", "brown", "yellow")
TYPES = ("shirt", "dress", "trousers", "jacket", "skirt", "boots")
ASOF = datetime(2026, 3, 13, tzinfo=UTC)


def truth() -> list[tuple[str, str, str]]:
    """240 items: id, colour and type."""
    pairs = [(colour, kind) for colour in COLOURS for kind in TYPES]
    return [(f"i{at:03}", *pairs[at % len(pairs)]) for at in range(240)]


class ToyRetriever:
    """Bags of words over what items are, not over what their titles say: it sees the colour that a title forgot."""

    dim = 64

    def __init__(self, flavour: str) -> None:
        self.flavour = flavour
        self.fingerprint = hashlib.sha256(flavour.encode()).hexdigest()

    @classmethod
    def load(cls, folder: Path) -> Self:
        path = folder / "flavour"
        if not path.is_file():
            raise DataError(f"{folder}: no model here")
        if path.read_text() == "older format":
            raise DataError(f"{folder}: model format 1, this code reads 2")
        return cls(path.read_text())

    def to(self, device: torch.device) -> Self:
        return self

    def encode_catalogue(self, catalogue: Catalogue, batch_size: int = 512) -> EncodedCatalogue:
        known = {item: f"{colour} {kind}" for item, colour, kind in truth()}
        vectors = self._vectors([known[item] for item in catalogue.item_ids])
        if self.flavour == "nan items":
            vectors[3] = np.nan
        count = len(catalogue.item_ids)
        bank, shares = np.zeros((count, 1, 2), np.float16), np.ones((count, 1), np.float32)
        return EncodedCatalogue(catalogue.item_ids[::-1], vectors[::-1], bank, shares)

    def encode_queries(
        self, queries: Sequence[str], histories: Sequence[History | None] | None, bank: HistoryBank | None
    ) -> np.ndarray:
        assert histories is not None and len(histories) == len(queries) and bank is not None
        vectors = self._vectors(list(queries))
        if self.flavour == "nan queries":
            vectors[::2] = np.nan
        return vectors

    def _vectors(self, texts: list[str]) -> np.ndarray:
        if self.flavour == "random":
            return np.random.default_rng(0).standard_normal((len(texts), self.dim)).astype(np.float32)
        rows = np.zeros((len(texts), self.dim), np.float32)
        for row, text in enumerate(texts):
            for word in text.split():
                rows[row, int(hashlib.md5(word.encode()).hexdigest(), 16) % self.dim] += 1.0
        return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)


def toy_catalogue(
    retriever: object, clean: Path, profiles: Path, workspace: Path, cache_dir: Path, asof: datetime | None
) -> Catalogue:
    assert asof in (ASOF, None)
    ids = pq.read_table(clean / "items.parquet").column("item_id").to_pylist()
    nothing = np.zeros((0, 1, 1), np.float16)
    return Catalogue(
        ids, [""] * len(ids), [""] * len(ids), np.full(len(ids), -1), nothing, [[]] * len(ids), [[]] * len(ids)
    )


UNJUDGED = dict.fromkeys(BudgetsConfig.model_fields)


def settings(**gate: Any) -> Params:
    """Budgets are off: a toy that ranks at random shows all of the catalogue and answers in no time."""
    base = {"k": 5, "min_slice": 20, "guardrails": {"head": 0.02}, "resamples": 500, "budgets": UNJUDGED}
    return parse({"snapshot": {"end": "2026-03-15"}, "gate": {**base, **gate}})


def write_shop(workspace: Path, flavour: str | None, events: bool = True, judged: bool = True) -> Path:
    """A workspace with everything that the stage reads; a third of the titles forgot the colour."""
    clean, profiles = workspace / "data/clean", workspace / "data/profiles"
    items = truth()
    rows = [
        {
            "item_id": item,
            "title": kind if at % 3 == 0 else f"{colour} {kind}",
            "category": "Clothes",
            "price": 10.0,
            "image": None if at % 5 == 0 else f"{item}.jpg",
            "updated_at": ASOF,
        }
        for at, (item, colour, kind) in enumerate(items)
    ]
    write_parquet(pa.Table.from_pylist(rows, ITEMS), clean / "items.parquet")
    write_meta(clean, meta())
    write_pictures(workspace / "data/snapshot/images.zip", items)
    (profiles).mkdir(parents=True)
    requests = (event_requests(items) if events else []) + (judged_requests(items) if judged else [])
    pq.write_table(pa.Table.from_pylist(requests, tables.REQUESTS), profiles / "requests.parquet")
    asked = [{"query": f"{c} {k}", "requests": 5 + len(c)} for c in COLOURS for k in TYPES] if events else []
    pq.write_table(pa.Table.from_pylist(asked, tables.QUERIES), profiles / "queries.parquet")
    known = [
        {"item_id": item, "asof": ASOF, "clicks": at % 4, "queries": [colour], "query_weights": [1.0]}
        for at, (item, colour, _) in enumerate(items)
    ]
    pq.write_table(pa.Table.from_pylist(known if events else [], tables.ITEMS), profiles / "items.parquet")
    if events:
        left_alone = [
            {"event_time": ASOF, "session_id": f"s{at}", "query": "red shirt", "item_id": f"i{place:03}",
             "position": place + 1, "action": "impression", "propensity": 0.25}
            for at in range(30) for place in range(6)
        ]  # fmt: skip
        write_parquet(pa.Table.from_pylist(left_alone, EVENTS), clean / "events/dt=2026-03-13/part-0.parquet")
    pq.write_table(pa.Table.from_pylist([], tables.USERS), profiles / "users.parquet")
    if flavour is not None:
        write_model(workspace / "models/challenger", flavour)
    fingerprint = hashlib.sha256(str(flavour).encode()).hexdigest()
    challenger = {"run_id": "run1", "model_name": "mrse", "version": 7, "fingerprint": fingerprint}
    (workspace / "models").mkdir(exist_ok=True)
    (workspace / "models/challenger.json").write_text(json.dumps(challenger))
    return workspace


def write_model(folder: Path, flavour: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "flavour").write_text(flavour)
    return folder


def meta() -> SnapshotMeta:
    return SnapshotMeta(
        source="marketplace",
        start=datetime(2026, 3, 1, tzinfo=UTC),
        end=datetime(2026, 3, 15, tzinfo=UTC),
        simulated=True,
        note="The shop is simulated.",
        rows={"items": 240, "events": 400, "judgments": 48},
        fingerprint="feed",
        image_root="zip://::data/snapshot/images.zip",
    )


def write_pictures(path: Path, items: list[tuple[str, str, str]]) -> None:
    path.parent.mkdir(parents=True)
    with zipfile.ZipFile(path, "w") as archive:
        for item, colour, _ in items:
            out = io.BytesIO()
            Image.new("RGB", (40, 60), colour).save(out, "JPEG")
            # A few are not pictures at all, and some of the catalogue's are not in the archive.
            archive.writestr(f"{item}.jpg", b"broken" if item.endswith("7") else out.getvalue())


def request(name: str, source: str, query: str, relevant: list[str], **rest: Any) -> dict[str, Any]:
    empty = {"user_id": None, "event_time": None, "hist_items": [], "hist_actions": [], "hist_ages": []}
    gains = rest.pop("gains", [1.0] * len(relevant))
    asof = ASOF if source == "events" else None
    told = {"split": "test", "request_id": name, "source": source, "query": query, "relevant": relevant, "gains": gains}
    return empty | told | {"profile_asof": asof} | rest


def event_requests(items: list[tuple[str, str, str]]) -> list[dict[str, Any]]:
    generator = np.random.default_rng(0)
    rows = []
    for at in range(300):
        item, colour, kind = items[int(generator.integers(len(items)))]
        history = {"hist_items": ["i000"], "hist_actions": ["click"], "hist_ages": [2.0]} if at % 2 else {}
        user = None if at % 10 == 0 else f"u{at % 40}"
        same = [i for i, c, k in items if (c, k) == (colour, kind)]
        rows.append(request(f"e-{at:04}", "events", f"{colour} {kind}", [item, same[0]][: 1 + (same[0] != item)],
                            user_id=user, event_time=ASOF, **history, **page(items, item, generator)))  # fmt: skip
    rows.append(request("e-gone", "events", "red shirt", ["not-sold-any-more"], event_time=ASOF))
    rows.append(request("v-0001", "events", "red shirt", ["i000"], event_time=ASOF) | {"split": "valid"})
    return rows


def page(items: list[tuple[str, str, str]], first: str, generator: np.random.Generator) -> dict[str, Any]:
    """A page of six items in random order, the first of them clicked or ordered."""
    others = [items[int(at)][0] for at in generator.choice(len(items), 6, replace=False) if items[int(at)][0] != first]
    shown = generator.permutation([first, *others[:5]]).tolist()
    done = "order" if generator.random() < 0.2 else "click"
    return {
        "shown": shown,
        "shown_positions": [*range(1, 7)],
        "shown_propensities": [0.25] * 6,
        "shown_actions": [done if item == first else "impression" for item in shown],
    }


def judged_requests(items: list[tuple[str, str, str]]) -> list[dict[str, Any]]:
    rows = []
    for colour in COLOURS:
        for kind in TYPES:
            right = [i for i, c, k in items if (c, k) == (colour, kind)]
            wrong = [i for i, c, k in items if k == kind and c != colour][:3]
            grades = [1.0] * len(right) + [0.25] * len(wrong)
            rows.append(request(f"j-{colour}-{kind}", "judgments", f"{colour} {kind}", right + wrong, gains=grades))
    return rows


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "Retriever", ToyRetriever)
    monkeypatch.setattr(champion_module, "Retriever", ToyRetriever)
    monkeypatch.setattr(scoring, "load_catalogue", toy_catalogue)
    monkeypatch.setattr(tracking, "champion", lambda services: None)


def registered(monkeypatch: pytest.MonkeyPatch, flavour: str, broken: bool = False) -> None:
    fingerprint = hashlib.sha256(flavour.encode()).hexdigest()
    found = tracking.ModelVersion("mrse", 6, "run0", fingerprint, ASOF, champion=True)

    def download(services: object, version: object, to: Path) -> Path:
        return to if broken else write_model(to, flavour)

    monkeypatch.setattr(tracking, "champion", lambda services: found)
    monkeypatch.setattr(tracking, "download_package", download)


def codes(decision: dict[str, Any]) -> list[str]:
    return [reason["code"] for reason in decision["reasons"]]


@pytest.mark.usefixtures("toy")
def test_the_first_model_that_beats_bm25_is_promoted(tmp_path: Path) -> None:
    workspace = write_shop(tmp_path, "good")
    decision = run_gate(settings(resamples=2000), workspace)
    assert decision["outcome"] == "PROMOTE", decision["reasons"]
    assert decision == json.loads((workspace / "reports/decision.json").read_text())
    assert re.fullmatch(
        r"PROMOTE: recall@5 \+[\d.]+ \[\+[\d.]+, \+[\d.]+\] \(95%\) over BM25 \(there is no champion to compare "
        r"with\), 1.000 against [\d.]+, where the window could have shown [\d.]+; "
        r"the challenger is worth an online A/B test\.",
        decision["sentence"],
    )
    assert decision["champion"] is None
    assert decision["primary"]["metric"] == "recall_at_5"
    assert decision["primary"]["reference_name"] == "bm25"
    assert decision["window"]["requests"] == 300
    assert decision["window"]["left_out"] == {
        "no relevant item in the catalogue": 1,
        "relevant items that are not in the catalogue": 1,
    }
    assert decision["slices"]["picture"]["lower"] > 0 and decision["slices"]["picture"]["improved"]
    assert decision["slices"]["picture"]["p_adjusted"] >= decision["slices"]["picture"]["p"]
    assert decision["slices"]["picture"]["requests"] > 20
    assert "Anything about real shoppers: these are simulated." in decision["not_measured"]


@pytest.mark.usefixtures("toy")
def test_the_files_agree_with_each_other(tmp_path: Path) -> None:
    decision = run_gate(settings(), write_shop(tmp_path, "good"))
    table = pq.read_table(tmp_path / "data/gate/per_query.parquet")
    primary = decision["primary"]
    means = {n: np.mean(table.column(f"{n}.recall_at_5").to_numpy()) for n in ("challenger", "bm25")}
    assert means == pytest.approx({"challenger": primary["challenger"], "bm25": primary["reference"]})
    sliced = ["picture" in names for names in table.column("slices").to_pylist()]
    assert sum(sliced) == decision["slices"]["picture"]["requests"]
    assert len(set(table.column("cluster").to_pylist())) == decision["window"]["clusters"]
    flat = json.loads((tmp_path / "reports/gate.json").read_text())
    assert flat == flat_metrics(decision)
    assert flat["recall_at_5"] == primary["challenger"] and flat["bm25.recall_at_5"] == primary["reference"]
    assert flat["promoted"] == 1 and flat["judged.bm25.recall_at_10"] < flat["judged.recall_at_10"]


@pytest.mark.usefixtures("toy")
def test_judged_figures_are_those_of_a_naive_count(tmp_path: Path) -> None:
    decision = run_gate(settings(), write_shop(tmp_path, "good"))
    figures = decision["judged"]["systems"]["challenger"]
    # Five items of each colour and type, all found first; then others of the type or colour, three of them graded 0.25.
    assert decision["judged"]["queries"] == 48
    assert figures["recall_at_10"]["mean"] == 1.0
    assert figures["precision_at_10"]["mean"] == 0.5
    assert 0.5 <= figures["rele_at_10"]["mean"] <= 0.575
    assert decision["judged"]["lift_over_bm25"]["recall_at_10"]["lower"] > 0


@pytest.mark.usefixtures("toy")
def test_the_report_is_one_file_that_states_the_essentials(tmp_path: Path) -> None:
    decision = run_gate(settings(), write_shop(tmp_path, "good"))
    html = (tmp_path / "reports/gate/index.html").read_text()
    assert decision["sentence"] in html
    assert "Simulated data." in html and "The shop is simulated." in html
    assert "data:image/jpeg;base64," in html and "no picture" in html
    assert 'src="http' not in html and "<script" not in html and "<link" not in html
    assert decision["window"]["hash"] in html and decision["challenger"]["fingerprint"] in html
    assert html.count('<article class="case">') >= 10
    assert "CTR, doubly robust" in html and "Gini index of exposure" in html and "ordered recall" in html
    assert [p.name for p in (tmp_path / "reports/gate").iterdir()] == ["index.html"]


@pytest.mark.usefixtures("toy")
def test_the_log_is_replayed_and_the_lists_are_compared(tmp_path: Path) -> None:
    decision = run_gate(settings(), write_shop(tmp_path, "good"))
    replayed = decision["experiment"]["replay"]
    assert (replayed["pages"], replayed["slots"], replayed["left_out"]) == (330, 1980, {
        "pages without positions or propensities, or shown twice": 1  # the item that is not sold any more had no page
    })  # fmt: skip
    assert set(replayed["systems"]) == {"challenger", "bm25"}
    challenger = replayed["systems"]["challenger"]
    assert challenger["imp"]["value"] == 6.0 and challenger["effective"] > 50
    assert all(challenger[name]["lower"] <= challenger[name]["value"] for name in ("ctr.snips", "ctr.dr", "gmv.dr"))
    team = decision["experiment"]["interleaving"]
    assert team["wins"] + team["ties"] + team["losses"] == pytest.approx(1.0)
    assert team["preference"]["lower"] > 0 and team["examination_from"] == "log"
    lists = decision["experiment"]["lists"]
    assert lists["overlap_at_10"]["value"] < 1.0 and lists["found_only_by_challenger"]["value"] > 0.5
    assert 0 < decision["metrics"]["ordered_recall_at_5"]["requests"] == decision["slices"]["ordered"]["requests"] < 300
    assert decision["slices"]["category Clothes"]["requests"] == 300
    assert decision["judged"]["by_traffic"]["queries"] == 48


@pytest.mark.usefixtures("toy")
def test_both_lists_are_exported_for_an_online_experiment(tmp_path: Path) -> None:
    decision = run_gate(settings(), write_shop(tmp_path, "good"))
    rows = pq.read_table(tmp_path / "data/gate/interleaving.parquet").to_pylist()
    assert list(rows[0]) == ["request_id", "query", "system", "rank", "item_id", "score"]
    assert {row["system"] for row in rows} == {"challenger", "bm25"}
    first = [row for row in rows if (row["request_id"], row["system"]) == (rows[0]["request_id"], "challenger")]
    assert [row["rank"] for row in first] == [*range(1, 21)]
    assert [row["score"] for row in first] == sorted((row["score"] for row in first), reverse=True)
    table = pq.read_table(tmp_path / "data/gate/per_query.parquet").to_pylist()
    assert table[0]["challenger.top"] == [row["item_id"] for row in first][:10]
    assert len({row["request_id"] for row in rows}) == decision["window"]["requests"]


@pytest.mark.usefixtures("toy")
def test_a_broken_budget_stops_a_better_model(tmp_path: Path) -> None:
    decision = run_gate(settings(budgets=UNJUDGED | {"index_mib": 0.01}), write_shop(tmp_path, "good"))
    assert (decision["outcome"], codes(decision)[0]) == ("REJECT", "budget_broken")
    assert decision["reasons"][0]["message"] == (
        "The index takes 0 MiB of vectors; there is room for 0 (gate.budgets.index_mib)."
    )
    sizes = [budget for budget in decision["budgets"] if budget["name"] == "index_mib"]
    assert sizes[0]["challenger"] == 240 * 64 * 4 / 2**20 and sizes[0]["kept"] is False


@pytest.mark.usefixtures("toy")
def test_budgets_compare_with_the_champion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registered(monkeypatch, "random")
    bounds = UNJUDGED | {"rank": 2.0, "latency_p50": 1.5}
    decision = run_gate(settings(budgets=bounds), write_shop(tmp_path, "good"))
    assert (decision["outcome"], codes(decision)[0]) == ("HOLD", "budget_broken")
    found = {budget["name"]: budget for budget in decision["budgets"]}
    assert set(found) == {"coverage", "gini", "price", "rank", "latency_p50", "latency_p99", "index_mib"}
    assert found["rank"]["kept"] is False and found["coverage"]["kept"] is None
    assert found["coverage"]["champion"] == 1.0, "who ranks at random shows everything"
    assert decision["health"]["champion"]["dims"] == 64


@pytest.mark.usefixtures("toy")
def test_a_rerun_writes_the_same_bytes(tmp_path: Path) -> None:
    names = ("reports/decision.json", "reports/gate.json", "reports/gate/index.html", "data/gate/per_query.parquet",
             "data/gate/interleaving.parquet")  # fmt: skip
    workspace = write_shop(tmp_path, "good")
    run_gate(settings(), workspace)
    before = [(workspace / name).read_bytes() for name in names]
    run_gate(settings(), workspace)
    assert [(workspace / name).read_bytes() for name in names] == before


@pytest.mark.usefixtures("toy")
def test_a_champion_is_what_a_second_model_is_compared_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registered(monkeypatch, "random")
    decision = run_gate(settings(), write_shop(tmp_path, "good"))
    assert (decision["outcome"], decision["primary"]["reference_name"]) == ("PROMOTE", "champion")
    assert decision["champion"]["version"] == 6
    assert decision["baseline"]["primary"]["lift"] < decision["primary"]["lift"]
    assert set(decision["means"]) == {"bm25", "challenger", "champion", "challenger+bm25"}


@pytest.mark.usefixtures("toy")
def test_a_worse_model_is_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registered(monkeypatch, "good")
    decision = run_gate(settings(), write_shop(tmp_path, "random"))
    assert (decision["outcome"], codes(decision)[0]) == ("REJECT", "worse_than_reference")
    html = (tmp_path / "reports/gate/index.html").read_text()
    assert decision["sentence"].startswith("REJECT: recall@5 -")
    assert decision["sentence"].endswith("; the challenger is not worth an online A/B test.")
    assert "REJECT: recall@5" in html


@pytest.mark.usefixtures("toy")
def test_the_champion_itself_is_not_promoted_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registered(monkeypatch, "good")
    decision = run_gate(settings(), write_shop(tmp_path, "good"))
    assert decision["outcome"] == "HOLD"
    assert codes(decision)[0] == "same_model" and "no_proven_lift" in codes(decision)
    assert decision["primary"]["lift"] == 0.0


def registry_down(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(services: object) -> None:
        raise ServiceError("MLflow at http://nowhere:5000 does not answer")

    monkeypatch.setattr(tracking, "champion", fail)


def package_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    registered(monkeypatch, "good", broken=True)


def package_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    registered(monkeypatch, "good")
    monkeypatch.setattr(tracking, "download_package", lambda services, version, to: write_model(to, "another"))


@pytest.mark.usefixtures("toy")
@pytest.mark.parametrize("trouble", [package_gone, package_changed])
def test_a_champion_that_cannot_be_read_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trouble: Callable[[pytest.MonkeyPatch], None]
) -> None:
    trouble(monkeypatch)
    decision = run_gate(settings(), write_shop(tmp_path, "good"))
    assert (decision["outcome"], codes(decision)[0]) == ("HOLD", "champion_unreadable")
    assert decision["primary"]["reference_name"] == "bm25"
    assert any(note.startswith("The lift over the champion: ") for note in decision["not_measured"])


@pytest.mark.usefixtures("toy")
def test_a_registry_that_is_down_is_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry_down(monkeypatch)
    with pytest.raises(ServiceError, match="does not answer"):
        run_gate(settings(), write_shop(tmp_path, "good"))
    assert not (tmp_path / "reports/decision.json").exists()


@pytest.mark.usefixtures("toy")
@pytest.mark.parametrize(("flavour", "bad"), [("nan queries", 150), ("nan items", 300)])
def test_vectors_that_are_not_finite_are_rejected(tmp_path: Path, flavour: str, bad: int) -> None:
    decision = run_gate(settings(), write_shop(tmp_path, flavour))
    assert (decision["outcome"], codes(decision)) == ("REJECT", ["not_finite"])
    assert decision["reasons"][0]["numbers"] == {"requests": bad}
    assert json.loads((tmp_path / "reports/gate.json").read_text())["recall_at_5"] is None


@pytest.mark.usefixtures("toy")
def test_a_shop_with_judgments_alone_is_judged_by_them(tmp_path: Path) -> None:
    workspace = write_shop(tmp_path, "good", events=False)
    held = run_gate(settings(min_requests=20), workspace)
    assert (held["outcome"], codes(held)[0]) == ("HOLD", "guardrail_unavailable")
    assert held["unavailable_slices"]["taste"] == "no request of the window names a shopper"
    decision = run_gate(settings(min_requests=20, not_applicable=["head"]), workspace)
    assert (decision["outcome"], decision["window"]["source"]) == ("PROMOTE", "judgments")
    assert decision["window"]["clusters"] == 48


@pytest.mark.usefixtures("toy")
def test_a_window_without_requests_holds_and_still_reports(tmp_path: Path) -> None:
    decision = run_gate(settings(), write_shop(tmp_path, "good", events=False, judged=False))
    assert (decision["outcome"], decision["judged"]) == ("HOLD", None)
    assert "too_few_requests" in codes(decision)
    assert "HOLD" in (tmp_path / "reports/gate/index.html").read_text()


@pytest.mark.usefixtures("toy")
def test_the_source_of_requests_can_be_chosen(tmp_path: Path) -> None:
    decision = run_gate(settings(requests="judgments", min_requests=20), write_shop(tmp_path, "good"))
    assert decision["window"]["source"] == "judgments"


@pytest.mark.usefixtures("toy")
def test_more_requests_than_wanted_are_sampled_alike_for_every_model(tmp_path: Path) -> None:
    workspace = write_shop(tmp_path, "good")
    first = run_gate(settings(max_requests=120), workspace)
    assert first["window"]["requests"] == 120
    assert first["window"]["left_out"]["beyond gate.max_requests"] == 180
    ids = [item for item, _, _ in truth()]
    again = read_window(workspace / "data/profiles", ids, 0.7, 120)
    assert again.asked["events"].hash == first["window"]["hash"]
    assert read_window(workspace / "data/profiles", ids, 0.7, 121).asked["events"].hash != first["window"]["hash"]


def test_missing_inputs_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"requests\.parquet: no such file; run the build_profiles stage first"):
        read_window(tmp_path, ["a"], 0.7, 10)
    workspace = write_shop(tmp_path, None)
    with pytest.raises(DataError, match=r"models/challenger: no model here"):
        run_gate(settings(), workspace)
    (workspace / "models/challenger.json").write_text("{")
    with pytest.raises(DataError, match=r"challenger\.json: is not JSON .* run the train stage again"):
        run_gate(settings(), workspace)
    (workspace / "models/challenger.json").unlink()
    with pytest.raises(DataError, match=r"challenger\.json: no such file; run the train stage first"):
        run_gate(settings(), workspace)
    for name in ("queries", "items"):
        (workspace / f"data/profiles/{name}.parquet").unlink()
        with pytest.raises(DataError, match=rf"{name}\.parquet: no such file; run the build_profiles stage first"):
            run_gate(settings(), workspace)


def test_the_component_runs_with_a_real_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An untrained model of the real kind: a REJECT against BM25, which is a result and no failure."""
    workspace = write_shop(tmp_path, None)
    texts = [f"{colour} {kind}" for _, colour, kind in truth()]
    features = tmp_path / "features"
    features.mkdir()
    Tokenizer.train(texts, 300).save(features / "tokenizer.json")
    SubwordHasher(500).save(features / "subword.json")
    small = ModelConfig(dim=16, hidden=16, heads=2, layers=1, images=False)
    Retriever.create(small, features).save(workspace / "models/challenger")
    params = settings()
    text = json.dumps({"snapshot": {"end": "2026-03-15"}, "gate": params.gate.model_dump(mode="json")})
    (workspace / "params.yaml").write_text(text)
    for name in ("MLFLOW_TRACKING_URI", "MRSE_STATE_DIR", "MRSE_CACHE_DIR", "MRSE_MILVUS_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("sys.argv", ["gate", "--workspace", str(workspace)])
    run("gate", body)
    assert capsys.readouterr().out.startswith("REJECT: recall@5 -")
    assert (workspace / "reports/gate/index.html").is_file()


def test_the_catalogue_is_put_in_the_order_of_ids() -> None:
    encoded = EncodedCatalogue(
        ["b", "a"], np.eye(2, dtype=np.float32), np.zeros((2, 1, 1), np.float16), np.ones((2, 1))
    )
    ordered = scoring._by_id(replace(encoded))
    assert ordered.item_ids == ["a", "b"] and ordered.vectors.tolist() == [[0.0, 1.0], [1.0, 0.0]]


@pytest.mark.usefixtures("toy")
def test_the_loss_by_the_index_is_told_where_there_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = write_shop(tmp_path, "good")
    registered(monkeypatch, "random")
    params = settings(k=10)
    decision = run_gate(params, workspace, trial(params.build_index, params.services.under(workspace)))
    served = decision["served"]
    assert served["index"] == {"type": "HNSW", "build": {"M": 16, "efConstruction": 200}, "search": {"ef": 128}}
    assert set(served["systems"]) == {"challenger", "champion"} and served["requests"] == 300
    # Five items of a colour and type are alike: the index may list any of them first, but finds all in ten.
    assert served["systems"]["challenger"]["metrics"]["recall_at_10"]["served"] == pytest.approx(1.0, abs=0.02)
    assert served["lift"]["lower"] > 0
    assert json.loads((workspace / "reports/gate.json").read_text())["served.recall_at_10"] is not None
    assert "As it would be served" in (workspace / "reports/gate/index.html").read_text()
    assert not list((workspace / ".mrse/cache").glob("trial.*"))
    without = run_gate(params, workspace)
    assert without["served"] is None and without["outcome"] == decision["outcome"]
    assert any(note.startswith("The loss by approximate search") for note in without["not_measured"])
