"""### Retrain, prove, and put live: every day

Each task is a stage of `dvc.yaml`. `plan` settles the commit and the parameters; each stage then runs in a workspace of
its own and hands on `dvc.lock`. Where the gate says HOLD or REJECT, `build_index` and `swap_index` are skipped and what
is live stays. `file_run` files `dvc.lock`, parameters, costs and reports with the MLflow run.

A stage that has finished before is not run again, so a retry and a cleared day are cheap; `gate`, `build_index` and
`swap_index` always run, since they depend on what is live. To run a day again from the start, trigger the DAG with its
`end` and say in `force_because` why.
"""

from __future__ import annotations

from datetime import UTC, datetime

from airflow.sdk import DAG, Param
from mrse_pipeline import plan_task, stage_tasks

PARAMS = {
    "end": Param(
        None,
        type=["null", "string"],
        format="date",
        title="End of the window",
        description="The first day that is not in it; empty: the day of the run.",
    ),
    "days": Param(
        None,
        type=["null", "integer"],
        minimum=1,
        title="Days in the window",
        description="Empty: as params.yaml says.",
    ),
    "overrides": Param(
        {},
        type="object",
        title="Changes of params.yaml",
        description='Dotted keys, such as {"train.seed": 3}.',
    ),
    "force_because": Param(
        None,
        type=["null", "string"],
        title="Run finished stages anew, because",
        description="The reason; empty: only what depends on what is live runs again.",
    ),
}

with DAG(
    "mrse_daily",
    schedule="0 2 * * *",
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    params=PARAMS,
    render_template_as_native_obj=False,
    doc_md=__doc__,
    tags=["mrse"],
):
    stage_tasks(plan_task())
