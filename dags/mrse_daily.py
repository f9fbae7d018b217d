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

from airflow.sdk import DAG
from mrse_pipeline import RUN_PARAMS, plan_task, stage_tasks

with DAG(
    "mrse_daily",
    schedule="0 2 * * *",
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    params=RUN_PARAMS,
    render_template_as_native_obj=False,
    doc_md=__doc__,
    tags=["mrse"],
):
    stage_tasks(plan_task())
