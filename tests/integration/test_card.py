"""The model card over a real package and a real decision: it says what the files say, and its snippet runs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from components.gate.__main__ import body
from mrse import cli, tracking
from mrse.config import load
from mrse.errors import DataError
from mrse.evaluation.card import make_card
from mrse.jsonfile import read_json, write_json
from mrse.layout import CARD
from mrse.model.retriever import Retriever
from mrse.training.train import train
from tests import tiny_shop
from tests.integration.test_ablation import write_workspace

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """A workspace after `train` and `gate`, its parameters, and what the gate printed in MLflow."""
    workspace = write_workspace(tmp_path_factory.mktemp("workspace"))
    with pytest.MonkeyPatch.context() as patch:
        for name in ("MRSE_CACHE_DIR", "MRSE_STATE_DIR", "MLFLOW_TRACKING_URI", "MRSE_MILVUS_URI"):
            patch.delenv(name, raising=False)
        patch.setenv("MRSE_QUIET", "1")
        params = load(workspace / "params.yaml")
        folders = {name: workspace / "data" / name for name in ("features", "clean", "profiles")}
        package = workspace / "models/challenger"
        package.parent.mkdir()
        report = train(params.train, **folders, workspace=workspace, out=package)
        services = params.services.under(workspace)
        version = tracking.log_training_run(
            services, params={}, metrics={}, curves={}, package=package, fingerprint=report.fingerprint
        )
        write_json(workspace / "models/challenger.json", version)
        body(params, workspace)
        yield workspace


def cells(card, first):
    """The cells of the first table row that starts with a name."""
    line = next(line for line in card.splitlines() if line.startswith(f"| {first} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_card_says_what_the_files_say(shop):
    card = make_card(shop)
    decision, version = read_json(shop / "reports/decision.json"), read_json(shop / "models/challenger.json")
    assert f"# Model card: mrse, version {version['version']}\n" in card
    assert decision["sentence"] in card and version["run_id"] in card and version["fingerprint"] in card
    primary, baseline = decision["primary"], decision["baseline"]["primary"]
    shown = cells(card, "all requests")
    assert shown[1:3] == [f"{primary['requests']:,}", f"{primary['challenger']:.3f}"]
    assert shown[3] == f"{baseline['lift']:+.3f} [{baseline['lower']:+.3f}, {baseline['upper']:+.3f}]".replace("-", "−")
    names = {name.replace("_", " "): figures for name, figures in decision["slices"].items()}
    assert all(cells(card, name)[1] == f"{figures['requests']:,}" for name, figures in names.items())
    model = Retriever.load(shop / "models/challenger")
    count = sum(parameter.numel() for parameter in model.model.parameters())
    assert cells(card, "parameters")[1].startswith(f"{count:,};")
    assert "pictures" not in cells(card, "reads")[1] and "shoppers' histories" in cells(card, "reads")[1]
    assert "2026-03-01 to 2026-03-15" in cells(card, "window")[1] and "128 items" in cells(card, "rows")[1]
    assert all(f"Not measured: {note}" in card for note in decision["not_measured"])
    assert "Simulated data" not in card, "this shop is not"
    assert "What each part is worth" not in card, "nothing was ablated"
    assert "Taste is silent" not in card, "there are categories"
    assert "{{" not in card and "None" not in card


def test_the_card_says_where_taste_is_silent(shop, monkeypatch):
    model = Retriever.load(shop / "models/challenger")
    model.model.query_tower.history.taste.metric_WW.zero_()
    monkeypatch.setattr(Retriever, "load", lambda folder: model)
    assert "\n- Taste is silent: the items were of no two categories." in make_card(shop)


def test_the_snippet_of_the_card_runs_in_the_workspace(shop):
    snippet = make_card(shop).split("```python\n")[1].split("```")[0]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", snippet], cwd=shop, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.replace("'", '"'))
    assert len(found) == 5 and set(found) <= {row["title"] for row in tiny_shop.items()}


def test_the_gate_adds_the_card_to_the_run(shop, tmp_path):
    services = load(shop / "params.yaml").services.under(shop)
    version = read_json(shop / "models/challenger.json")
    folder = tracking.download_artifacts(services, version["run_id"], "card", tmp_path / "card")
    assert (folder / CARD.name).read_text() == make_card(shop)


def test_a_gate_whose_registry_does_not_know_the_model_still_decides(shop, tmp_path):
    sections = yaml.safe_load((shop / "params.yaml").read_text())
    services = {"mlflow_uri": f"sqlite:///{tmp_path}/other.db", "cache_dir": str(tmp_path / "cache")}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({**sections, "services": services}))
    before = read_json(shop / "reports/decision.json")
    assert body(load(tmp_path / "params.yaml"), shop) == "report in reports/gate/index.html"
    after = read_json(shop / "reports/decision.json")
    # An approximate index is not built the same twice: its threads meet in any order.
    assert before.pop("served") and after.pop("served")
    assert after == before


def test_the_command_writes_the_card_with_the_ablations_of_the_same_requests(shop, capsys, monkeypatch):
    monkeypatch.setenv("MRSE_QUIET", "1")
    call(shop, monkeypatch, "ablate", "--only", "mnsce_only", "--seeds", "1")
    capsys.readouterr()
    call(shop, monkeypatch, "card")
    path = shop / CARD
    assert capsys.readouterr().out == f"{path}\n"
    card = path.read_text()
    assert "means over 1 seed(s), 10 steps each" in card
    decision = read_json(shop / "reports/decision.json")
    # The full model of the ablation, with the seed of the training, is the challenger.
    assert cells(card, "full")[1] == f"{decision['primary']['challenger']:.3f}"
    assert "[" in cells(card, "mnsce_only")[2]
    table = shop / "reports/ablation/ablation.csv"
    rows = table.read_text()
    table.write_text(rows.replace(decision["window"]["hash"], "another"))
    assert "are of other requests or another metric" in make_card(shop)
    table.unlink()


def test_a_decision_about_another_model_makes_no_card(shop, tmp_path):
    for name in ("models", "reports", "data"):
        (tmp_path / name).mkdir()
    for link in ("models/challenger", "data/clean"):
        (tmp_path / link).symlink_to(shop / link)
    with pytest.raises(DataError, match=r"decision\.json: no such file; run the gate stage first"):
        make_card(tmp_path)
    decision = read_json(shop / "reports/decision.json")
    decision["challenger"]["fingerprint"] = "0" * 64
    write_json(tmp_path / "reports/decision.json", decision)
    with pytest.raises(DataError, match=r"is about another model than .*; run the gate stage again"):
        make_card(tmp_path)


def call(workspace, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["mrse", "--params", str(workspace / "params.yaml"), *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 0
