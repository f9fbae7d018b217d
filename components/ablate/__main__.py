"""`mrse ablate` as a task: some variants trained, or the report on all of them.

Trainings are kept in `services.state_dir`, not in the workspace: tasks with different variants train beside each other,
and the one that reports finds them all. The full model is to be trained before, or every task would train it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mrse import component, config, tracking
from mrse.config import Params
from mrse.evaluation.ablation import run_ablation
from mrse.evaluation.ablation_report import in_short, write_ablation
from mrse.jsonfile import write_json
from mrse.layout import ABLATION


def body(params: Params, workspace: Path, asked: argparse.Namespace) -> str:
    """Read `data/`; with `--report` write `reports/ablation` and `reports/ablation.json`, and file them with MLflow."""
    services, only = params.services.under(workspace), asked.only.split(",")
    ablation = run_ablation(
        params, workspace, Path(services.state_dir) / ABLATION.name, only, asked.seeds, asked.steps_share
    )
    if not asked.report:
        return f"{asked.only} trained with {asked.seeds} seeds"
    write_ablation(ablation, workspace / ABLATION)
    print(in_short(ablation))
    run = tracking.log_record(
        services,
        tracking.ABLATIONS,
        name=f"{len(ablation.rows)} variants to {params.snapshot.end}",
        tags={"data_end": params.snapshot.end, "seeds": asked.seeds, "steps_share": asked.steps_share},
        metrics={},
        artifacts=[workspace / ABLATION],
    )
    write_json(workspace / ABLATION.with_suffix(".json"), {"run_id": run})
    return f"report on {len(ablation.rows)} variants"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m components.ablate")
    parser.add_argument("--workspace", type=Path, default=Path("."), help="folder that holds params.yaml and data/")
    parser.add_argument("--only", required=True, help="variants or groups of ablate.variants, or full; with commas")
    parser.add_argument("--seeds", type=int, required=True, help="how many trainings of each")
    parser.add_argument("--steps-share", type=float, default=1.0, help="of the training's steps")
    parser.add_argument("--report", action="store_true", help="compare them, and file the report")
    return parser


if __name__ == "__main__":
    given = _parser().parse_args()
    component.measure("ablate", lambda: body(config.load(given.workspace / "params.yaml"), given.workspace, given))
