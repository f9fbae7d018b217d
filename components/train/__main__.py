"""`train`: the challenger, its curves, and its MLflow run and model version."""

from __future__ import annotations

from pathlib import Path

from mrse import component, tracking
from mrse.config import Params
from mrse.jsonfile import write_json
from mrse.training import checkpoint
from mrse.training.lineage import lineage
from mrse.training.reports import write_curves
from mrse.training.train import train


def body(params: Params, workspace: Path) -> str:
    """Read `data/{clean,profiles,features}`; write `models/challenger`, `models/challenger.json`, `reports/train`."""
    services = params.services.under(workspace)
    cache_dir = Path(services.cache_dir)
    package, curves = workspace / "models/challenger", workspace / "reports/train"
    report = train(
        params.train,
        features=workspace / "data/features",
        clean=workspace / "data/clean",
        profiles=workspace / "data/profiles",
        workspace=workspace,
        out=package,
        cache_dir=cache_dir,
    )
    write_curves(report, curves)
    write_json(workspace / "reports/train.json", report.metrics)
    version = tracking.log_training_run(
        services,
        params=params.train.model_dump(mode="json"),
        metrics=report.metrics,
        curves=report.series(),
        package=package,
        artifacts=[curves, workspace / "reports/train.json"],
        tags=lineage(workspace),
        fingerprint=report.fingerprint,
    )
    write_json(workspace / "models/challenger.json", version)
    if report.checkpoints is not None:
        checkpoint.clear(report.checkpoints)
    resumed = f", resumed at step {report.resumed_from}" if report.resumed_from else ""
    recall = report.metrics.get("recall")
    score = "no validation requests" if recall is None else f"validation recall@{params.train.valid_k} {recall:.3f}"
    return f"model version {version['version']}, {score}{resumed}"


if __name__ == "__main__":
    component.run("train", body)
