"""`train`: the challenger, its curves, and its MLflow run and model version; on one process or many."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

from mrse import component, tracking
from mrse.config import Params
from mrse.data.contract import read_items
from mrse.device import pick
from mrse.jsonfile import write_json
from mrse.layout import CHALLENGER_JSON, CHALLENGER_PACKAGE, CLEAN, FEATURES, PROFILES, TRAIN_CURVES, TRAIN_METRICS
from mrse.progress import say
from mrse.training import checkpoint, distributed
from mrse.training.lineage import lineage
from mrse.training.reports import write_curves
from mrse.training.train import TrainReport, train


def body(params: Params, workspace: Path) -> str:
    """Read `data/{clean,profiles,features}`; write `models/challenger`, `models/challenger.json`, `reports/train`.

    With `train.processes` above 1 the stage starts itself so many times; started by a launcher it joins the others.
    """
    processes = params.train.processes
    if processes > 1 and "WORLD_SIZE" not in os.environ:
        distributed.start(processes, "components.train", "--workspace", str(workspace))
        return f"{processes} processes are done"
    services, device = params.services.under(workspace), pick(params.train.device)
    with distributed.joined(params.train.process_timeout_seconds, device) as world:
        if world.first:
            tracking.connect(services)  # an MLflow that does not answer is told before the hours of training, not after
            if params.train.model.user_history:
                _say_if_taste_is_silent(workspace)
        report = train(
            params.train,
            features=workspace / FEATURES,
            clean=workspace / CLEAN,
            profiles=workspace / PROFILES,
            workspace=workspace,
            out=workspace / CHALLENGER_PACKAGE,
            cache_dir=Path(services.cache_dir),
            world=world,
            device=device,
        )
    if not world.first:
        return "the first process writes and registers"
    return _registered(params, workspace, report)


def _say_if_taste_is_silent(workspace: Path) -> None:
    """Taste is how an item differs from others of its category (`Mrse.start_fusion`): there must be two of them."""
    categories = read_items(workspace / CLEAN).column("category").fill_null("")
    if len(categories.unique()) < 2:
        say(
            "train: the items are of no two categories, so taste stays silent: of a shopper's history counts only "
            "what fits the query"
        )


def _registered(params: Params, workspace: Path, report: TrainReport) -> str:
    services = params.services.under(workspace)
    curves = workspace / TRAIN_CURVES
    write_curves(report, curves)
    write_json(workspace / TRAIN_METRICS, report.metrics)
    tags = lineage(workspace)
    version = tracking.log_training_run(
        services,
        params=params.train.model_dump(mode="json"),
        metrics=report.metrics,
        curves=report.series(),
        package=workspace / CHALLENGER_PACKAGE,
        artifacts=[curves, workspace / TRAIN_METRICS],
        tags=tags,
        fingerprint=report.fingerprint,
        name=f"{tags['data_source']} to {tags['data_end'][:10]}",
        started=datetime.now(UTC) - timedelta(seconds=report.metrics["seconds"]),
    )
    write_json(workspace / CHALLENGER_JSON, version)
    if report.checkpoints is not None:
        checkpoint.clear(report.checkpoints)
    resumed = f", resumed at step {report.resumed_from}" if report.resumed_from else ""
    recall = report.metrics.get("recall")
    score = "no validation requests" if recall is None else f"validation recall@{params.train.valid_k} {recall:.3f}"
    return f"model version {version['version']}, {score}{resumed}"


if __name__ == "__main__":
    component.run("train", body)
