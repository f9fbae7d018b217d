"""Where the stages find each other's files under a workspace: what `dvc.yaml` declares, and the commands' reports."""

from __future__ import annotations

from pathlib import Path

SNAPSHOT = Path("data/snapshot")
CLEAN = Path("data/clean")
QUARANTINE = Path("data/quarantine")
PROFILES = Path("data/profiles")
FEATURES = Path("data/features")
CHALLENGER_PACKAGE = Path("models/challenger")
CHALLENGER_JSON = Path("models/challenger.json")
INDEX_JSON = Path("models/index/index.json")
SERVING = Path("models/index/serving")
DECISION = Path("reports/decision.json")
LIVE_JSON = Path("reports/live.json")
TRAIN_CURVES = Path("reports/train")
TRAIN_METRICS = Path("reports/train.json")
VALIDATION_DOCS = Path("reports/validation")
GATE_REPORT = Path("reports/gate/index.html")
ABLATION = Path("reports/ablation")
CARD = Path("reports/model-card.md")
