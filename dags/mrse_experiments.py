"""### What each part of the model is worth

Trains the full model, then each variant of `ablate.variants` in `params.yaml` as a task of its own, over the data of
one window, and files one report with MLflow. The data come from the stages' cache where a day has made them already.

A training that has finished is never done twice, also not by another run of this DAG; the pool `mrse_train` bounds how
many run at once. A variant that cannot be trained is a row of the report; the full model's failure ends the run.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import yaml
from airflow.sdk import DAG, Param, task
from airflow.sdk.exceptions import AirflowFailException
from mrse_pipeline import PIPELINE, RUN_PARAMS, RunPage, command_task, mapped_task, plan_task, say_why, tasks_before

from components import spec
from mrse import config
from mrse.errors import MrseError

ABLATE = spec.component(PIPELINE, "ablate")
COMMAND = ["-m", "components.exchange", "component", ABLATE.name]
PARAMS = {
    **RUN_PARAMS,
    "only": Param(
        [],
        type="array",
        items={"type": "string"},
        title="Variants",
        description="Names of variants or groups of ablate.variants, one a line; empty: all.",
    ),
    "seeds": Param(3, type="integer", minimum=1, title="Trainings of each", description="Seeds from train.seed on."),
    "steps_share": Param(
        1.0,
        type="number",
        exclusiveMinimum=0,
        maximum=1,
        title="Share of the steps",
        description="Less: a first look.",
    ),
}
ASKED = ["--seeds", "{{ params.seeds }}", "--steps-share", "{{ params.steps_share }}"]


@task(task_id="variants", retries=0, on_failure_callback=say_why, doc_md="Settle which variants are trained.")
def variants(planned: dict[str, Any], params: dict[str, Any]) -> list[list[str]]:
    """The arguments of each variant's task; the last one is its name."""
    asked = ["--seeds", str(params["seeds"]), "--steps-share", str(params["steps_share"])]
    try:
        ablate = config.parse(yaml.safe_load(planned["params"]), "the run's parameters").ablate
        chosen = ablate.choose(params["only"])
    except MrseError as error:
        raise AirflowFailException(str(error)) from None
    if not chosen:
        raise AirflowFailException("only: full is trained in any case; name a variant or a group to compare with it")
    return [[*COMMAND, *asked, "--only", name] for name in chosen]


with DAG(
    "mrse_experiments",
    schedule=None,
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    params=PARAMS,
    doc_md=__doc__,
    tags=["mrse"],
):
    settled = plan_task(PARAMS)
    data = tasks_before(settled, ABLATE)
    chosen = variants(settled)
    after = ["plan", *data]
    full = command_task("full", ABLATE, [*COMMAND, *ASKED, "--only", "full"], after, doc_md="Train the full model.")
    each = mapped_task("variant", ABLATE, chosen, after, doc_md="Train one variant, once per seed.")
    names = "{{ ti.xcom_pull(task_ids='variants') | map('last') | join(',') }}"
    report = command_task(
        "report",
        ABLATE,
        [*COMMAND, *ASKED, "--report", "--only", names],
        after,
        pages=[RunPage("MLflow run")],
        doc_md="Compare all with the full model; file the table and the figures with MLflow.",
    )
    [*data.values(), chosen] >> full >> each >> report
