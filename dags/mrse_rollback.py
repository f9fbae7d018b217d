"""### Put an earlier index live again

Moves the alias `mrse_live`, and MLflow's `champion` with it, to a model version whose collection is still kept: the one
given, or the one before. `mrse runs` lists them.
"""

from __future__ import annotations

from datetime import UTC, datetime

from airflow.sdk import DAG, Asset, Param
from mrse_pipeline import PIPELINE, command_task, refuse_unknown

from components import spec

swap = next(
    component for component in (spec.component(PIPELINE, name) for name in spec.stages(PIPELINE)) if component.updates
)

PARAMS = {
    "version": Param(
        None,
        type=["null", "integer"],
        minimum=1,
        title="Model version",
        description="Empty: what was live before.",
    )
}

with DAG(
    "mrse_rollback",
    schedule=None,
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    max_active_runs=1,
    params=PARAMS,
    doc_md=__doc__,
    tags=["mrse"],
):
    command_task(
        "rollback",
        swap,
        ["-m", "components.rollback", "{{ params.version or '' }}"],
        pre_execute=lambda context: refuse_unknown(context["params"], PARAMS),
        outlets=[Asset(name) for name in swap.updates],
        # Without a version, a second attempt after an alias that moved would go back one step more.
        retries=0,
    )
