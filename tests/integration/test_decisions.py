"""Decisions over time on a real MLflow store: looks at one window, overrides, the golden requests, the history."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from components.gate.__main__ import body
from mrse import tracking
from mrse.config import Params, ServicesConfig
from mrse.data.contract import write_meta
from mrse.errors import DataError
from mrse.evaluation import champion as champion_module
from mrse.evaluation import run as run_module
from mrse.evaluation import scoring
from mrse.evaluation.history import read_history
from mrse.evaluation.override import force
from mrse.jsonfile import read_json, write_json
from tests.integration.test_gate_run import ToyRetriever, meta, settings, toy_catalogue, write_model, write_shop


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace with an MLflow store of its own and no challenger yet."""
    monkeypatch.setattr(run_module, "Retriever", ToyRetriever)
    monkeypatch.setattr(champion_module, "Retriever", ToyRetriever)
    monkeypatch.setattr(scoring, "load_catalogue", toy_catalogue)
    monkeypatch.setattr("components.gate.__main__.log_card", lambda services, workspace: False)
    for name in ("MLFLOW_TRACKING_URI", "MRSE_STATE_DIR", "MRSE_CACHE_DIR", "MRSE_MILVUS_URI"):
        monkeypatch.delenv(name, raising=False)
    return write_shop(tmp_path, None)


def params() -> Params:
    return settings(resamples=300)


def services(shop: Path) -> ServicesConfig:
    return params().services.under(shop)


def train(shop: Path, flavour: str) -> int:
    """Register a challenger, as the train stage does; its version."""
    package = shop / "models/challenger"
    if package.exists():
        (package / "flavour").unlink()
        package.rmdir()
    write_model(package, flavour)
    fingerprint = ToyRetriever(flavour).fingerprint
    version = tracking.log_training_run(
        services(shop), params={}, metrics={}, curves={}, package=package, fingerprint=fingerprint
    )
    write_json(shop / "models/challenger.json", version)
    return int(version["version"])


def decide(shop: Path) -> dict[str, Any]:
    body(params(), shop)
    decision: dict[str, Any] = read_json(shop / "reports/decision.json")
    return decision


def test_decisions_are_kept_once_each_with_their_looks_at_the_window(shop: Path) -> None:
    first_version = train(shop, "good")
    first = decide(shop)
    assert decide(shop) == first, "the same decision again"
    second_version = train(shop, "random")
    second = decide(shop)
    train(shop, "good")
    assert decide(shop)["look"] == first["look"] == {"number": 1, "alpha": 0.05, "of": 0.05}
    assert second["look"] == {"number": 2, "alpha": pytest.approx(0.05 / 3), "of": 0.05}
    assert second["config"]["alpha"] == 0.05 and second["primary"]["alpha"] == pytest.approx(0.05 / 3)
    kept = read_history(services(shop))
    assert [(each.version, each.outcome) for each in kept] == [(first_version, "PROMOTE"), (second_version, "REJECT")]
    assert kept[0].figures["lift"] == pytest.approx(first["primary"]["lift"])
    fetched = tracking.download_artifacts(services(shop), kept[1].run_id, "gate", shop / "fetched")
    assert second["sentence"] in (fetched / "index.html").read_text(), "the report is opened from MLflow"
    assert kept[0].window_hash == first["window"]["hash"] and kept[0].forced is None


def test_an_override_is_kept_for_good_and_holds_when_the_gate_runs_again(shop: Path) -> None:
    version = train(shop, "random")
    ruled = decide(shop)
    said = force(services(shop), shop, version, " The  supplier changed\n all titles ", "Ada")
    assert said.startswith(f"Version {version} is promoted by Ada over REJECT;") and "dvc repro" in said
    changed = read_json(shop / "reports/decision.json")
    again = decide(shop)
    assert again == changed, "DVC runs the gate again after the file changed"
    assert again["outcome"] == "PROMOTE"
    assert again["forced"]["outcome"] == "REJECT" and again["forced"]["by"] == "Ada"
    assert again["sentence"].startswith(
        "PROMOTE, forced by Ada (The supplier changed all titles). The rule says REJECT: "
    )
    assert again["reasons"][1:] == ruled["reasons"] and again["reasons"][0]["code"] == "forced"
    assert "forced by Ada" in (shop / "reports/gate/index.html").read_text()
    (kept,) = read_history(services(shop))
    assert (kept.outcome, kept.forced.by, kept.forced.reason) == ("REJECT", "Ada", "The supplier changed all titles")  # type: ignore[union-attr]
    tags = tracking.get_version(services(shop), version).tags  # type: ignore[union-attr]
    assert (tags["forced_by"], tags["forced_over"]) == ("Ada", "REJECT")
    with pytest.raises(DataError, match=f"version {version} was forced already, by Ada on 20"):
        force(services(shop), shop, version, "again", "Bob")


def test_an_override_that_was_cut_off_and_a_run_made_by_hand_stop_nothing(shop: Path) -> None:
    version = train(shop, "random")
    decide(shop)
    (ruled,) = read_history(services(shop))
    tracking.tag_version(services(shop), version, {"forced_by": "Ada"})
    tracking.tag_record(services(shop), ruled.run_id, {"forced_by": "Ada", "forced_reason": "none yet"})
    client = tracking.connect(services(shop))
    client.create_run(client.get_experiment_by_name(tracking.DECISIONS).experiment_id)  # type: ignore[union-attr]
    assert read_history(services(shop)) == [ruled]
    assert decide(shop)["outcome"] == "REJECT"
    force(services(shop), shop, version, "The supplier changed all titles", "Bob")
    assert decide(shop)["forced"]["by"] == "Bob"


def test_an_override_gets_past_a_champion_that_cannot_be_read(shop: Path) -> None:
    """The way out of docs/operations.md: without it every night would be a HOLD."""
    tracking.set_champion(services(shop), train(shop, "older format"))
    version = train(shop, "good")
    ruled = decide(shop)
    assert (ruled["outcome"], ruled["reasons"][0]["code"]) == ("HOLD", "champion_unreadable")
    force(services(shop), shop, version, "new package format", "Ada")
    assert decide(shop)["outcome"] == "PROMOTE"
    tracking.set_champion(services(shop), version)  # as swap_index does
    train(shop, "random")
    assert decide(shop)["primary"]["reference_name"] == "champion", "the next night is judged by the rule"


def test_an_override_is_of_one_decision_not_of_what_comes_next(shop: Path) -> None:
    version = train(shop, "random")
    decide(shop)
    force(services(shop), shop, version, "why not", "Ada")
    body(settings(resamples=300, delta=0.01), shop)
    assert read_json(shop / "reports/decision.json")["outcome"] == "REJECT", "other settings, another decision"
    train(shop, "nan queries")
    assert decide(shop)["outcome"] == "REJECT", "another model"


def test_overrides_that_cannot_be_are_one_clear_error(shop: Path) -> None:
    version = train(shop, "good")
    with pytest.raises(DataError, match=f"the gate has not judged version {version}; run it first"):
        force(services(shop), shop, version, "why not", "Ada")
    decide(shop)
    with pytest.raises(DataError, match=f"the gate itself promoted version {version}: there is nothing to force"):
        force(services(shop), shop, version, "why not", "Ada")
    with pytest.raises(DataError, match=r"an override needs a reason \(--reason\): it is kept for good"):
        force(services(shop), shop, version, " ", "Ada")
    with pytest.raises(DataError, match=r"an override needs a name \(--by\)"):
        force(services(shop), shop, version, "why not", "")
    with pytest.raises(DataError, match="longer than 500 characters"):
        force(services(shop), shop, version, "x" * 501, "Ada")


def test_an_override_from_elsewhere_says_where_it_takes_effect(shop: Path, tmp_path: Path) -> None:
    version = train(shop, "random")
    decide(shop)
    said = force(services(shop), tmp_path / "elsewhere", version, "why not", "Ada")
    assert said.endswith("It goes live when the gate decides this again where the version was trained.")
    assert decide(shop)["forced"]["by"] == "Ada"


def test_golden_requests_are_those_of_the_first_window_for_ever(shop: Path) -> None:
    train(shop, "good")
    first = decide(shop)
    golden = first["golden"]
    assert (golden["requests"], golden["asked"], golden["source"], golden["seen"]) == (301, 300, "events", False)
    assert golden["means"]["challenger"] == pytest.approx(first["primary"]["challenger"])
    assert golden["means"]["bm25"] == pytest.approx(first["primary"]["reference"])
    later = pq.read_table(shop / "data/profiles/requests.parquet").slice(100)
    pq.write_table(later, shop / "data/profiles/requests.parquet")
    train(shop, "random")
    second = decide(shop)
    assert second["window"]["hash"] != first["window"]["hash"] and second["look"]["number"] == 1
    assert second["golden"]["sha256"] == golden["sha256"] and second["golden"]["asked"] == 300
    assert second["golden"]["means"]["bm25"] == golden["means"]["bm25"]
    assert second["golden"]["means"]["challenger"] < golden["means"]["challenger"]
    assert [each.golden["bm25"] for each in read_history(services(shop))] == [golden["means"]["bm25"]] * 2


def test_shops_that_share_an_mlflow_have_their_own_golden_requests(shop: Path) -> None:
    requests = shop / "data/profiles/requests.parquet"
    tables = {"one": pq.read_table(requests), "other": pq.read_table(requests).slice(100)}
    train(shop, "good")
    found = []
    for name in ("one", "other", "one"):
        write_meta(shop / "data/clean", meta().model_copy(update={"shop": name}))
        pq.write_table(tables[name], requests)
        found.append(decide(shop)["golden"])
    assert [golden["shop"] for golden in found] == ["one", "other", "one"]
    assert found[2] == found[0] and found[1]["sha256"] != found[0]["sha256"]
    assert [each.shop for each in read_history(services(shop))] == ["one", "other"]


def test_golden_requests_that_were_changed_are_an_error(shop: Path) -> None:
    train(shop, "good")
    decide(shop)
    (kept,) = (shop / ".mrse/mlartifacts").rglob("golden/golden.json")
    kept.write_text(json.dumps({**json.loads(kept.read_text()), "sha256": "beef"}))
    with pytest.raises(DataError, match="are not what was frozen"):
        decide(shop)
