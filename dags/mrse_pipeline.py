"""What the DAGs of MRSE share: a task for each stage of `dvc.yaml`, run as its `component.yaml` says.

Nothing here knows what a stage does. `MRSE_RUNNER` says where stages run: `local` (the default) is a process on the
worker, by the Python that `MRSE_PYTHON` names; `kubernetes` is a pod of the component's image, which the Airflow
variable `mrse_images` names by digest. Either way a task is `python -m components.exchange …` and hands on what that
writes to the file `MRSE_RESULT`.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml
from airflow.providers.standard.hooks.subprocess import SubprocessHook
from airflow.sdk import Asset, BaseOperator, BaseOperatorLink, Context, Param, TriggerRule, task
from airflow.sdk.exceptions import AirflowException, AirflowFailException
from airflow.sdk.execution_time.xcom import XCom

from components import exchange, spec
from mrse.errors import MrseError
from mrse.jsonfile import read_json
from mrse.layout import GATE_REPORT, VALIDATION_DOCS

PIPELINE = Path(os.environ.get("MRSE_PIPELINE") or Path(__file__).resolve().parents[1])
RUNNER = os.environ.get("MRSE_RUNNER", "local")
START_SECONDS = int(os.environ.get("MRSE_POD_START_SECONDS", "600"))  # to find room, and as long again to start

_PLAN = "plan"
_RESULT = "/airflow/xcom/return.json"  # where the sidecar of KubernetesPodOperator looks for what is handed on
_RETRY = {
    "retry_delay": timedelta(seconds=30),
    "retry_exponential_backoff": True,
    "max_retry_delay": timedelta(minutes=15),
}


# What `plan` asks for, in every DAG that has it.
RUN_PARAMS = {
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


class RunPage(BaseOperatorLink):
    """From the task that files a run with MLflow to the run's page there, or to a report filed with it."""

    def __init__(self, name: str, report: Path | None = None) -> None:
        self._name, self._report = name, report

    @property
    def name(self) -> str:
        """What the button says."""
        return self._name

    @property
    def xcom_key(self) -> str:
        """Where Airflow keeps the link."""
        return f"link_{self._name.replace(' ', '_').lower()}"

    def get_link(self, operator: BaseOperator, *, ti_key: Any) -> str:
        """The page; empty where MLflow has no server, and so no pages."""
        page = (XCom.get_value(ti_key=ti_key, key="return_value") or {}).get("page", "")
        return f"{page}/artifacts/{exchange.ARTIFACT}/{self._report}" if page and self._report else page


_PAGES = (
    RunPage("MLflow run"),
    RunPage("Gate report", GATE_REPORT),
    RunPage("Data Docs", VALIDATION_DOCS / "index.html"),
)


class Process(BaseOperator):
    """A component's command as a process on the worker; what it writes to `MRSE_RESULT` is what the task hands on.

    Args:
        arguments: what Python runs; templated.
        handed: JSON of what the tasks before handed on; templated.
    """

    template_fields = ("arguments", "handed")

    def __init__(self, *, arguments: Sequence[str], handed: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.arguments, self.handed = arguments, handed
        self._hook = SubprocessHook()

    def execute(self, context: Context) -> Any:
        """Run the command; where it fails, its last line is the reason."""
        with TemporaryDirectory() as scratch:
            result = Path(scratch) / "result.json"
            self._run(result)
            return read_json(result)

    def _run(self, result: Path) -> None:
        environment = os.environ | {
            "MRSE_HANDED": self.handed,
            "MRSE_PIPELINE": str(PIPELINE),
            "MRSE_RESULT": str(result),
            "PYTHONPATH": str(PIPELINE),
        }
        python = os.environ.get("MRSE_PYTHON") or sys.executable
        done = self._hook.run_command([python, *self.arguments], env=environment, cwd=str(PIPELINE))
        if done.exit_code < 0:
            raise AirflowException(f"{self.task_id}: killed by signal {-done.exit_code}")
        if done.exit_code:
            raise AirflowException(done.output or f"{self.task_id}: ended with exit code {done.exit_code}")

    def on_kill(self) -> None:
        """End the command with the task."""
        self._hook.send_sigterm()


def plan_task(offered: Mapping[str, Param] = RUN_PARAMS) -> Any:
    """The task that settles commit and parameters; a bad parameter fails it at once, with every wrong key named.

    It is tried again only where a worker failed it: one that was starved failed a day before its first stage.

    Args:
        offered: the DAG's parameters, `RUN_PARAMS` among them.
    """

    @task(
        task_id=_PLAN,
        retries=2,
        on_failure_callback=say_why,
        **_RETRY,
        doc_md="Settle the commit and the parameters of this run.",
    )
    def plan(params: dict[str, Any], dag_run: Any) -> dict[str, Any]:
        refuse_unknown(params, offered)
        # A run without a logical date (an API trigger) is of the day on which it may start.
        end = params["end"] or (dag_run.logical_date or dag_run.run_after).date().isoformat()
        try:
            return asdict(
                exchange.plan(PIPELINE, end, params["days"], params["overrides"], params["force_because"] or "")
            )
        except MrseError as error:
            raise AirflowFailException(str(error)) from None

    return plan()


def refuse_unknown(params: Mapping[str, Any], offered: Mapping[str, Param]) -> None:
    """Fail a run that has a parameter which its DAG does not offer: Airflow checks values, and takes any key."""
    if unknown := sorted(set(params) - set(offered)):
        raise AirflowFailException(f"no such parameter: {', '.join(unknown)}; there are {', '.join(offered)}")


def stage_tasks(planned: Any) -> None:
    """A task for each stage, the checks after stages that decide, and the one that files the run, after `planned`."""
    found = spec.stages(PIPELINE)
    components = {name: spec.component(PIPELINE, name) for name in found}
    tasks = _tasks(planned, found)
    for name, component in components.items():
        if component.decides is not None:
            readers = [tasks[other] for other, stage in found.items() if component.decides.file in stage.reads]
            tasks[name] >> _check(name, component.decides) >> readers
    maker = next(component for component in components.values() if component.makes_run is not None)
    filing = command_task(
        "file_run",
        maker,
        ["-m", "components.exchange", "keep"],
        after=[_PLAN, *found],
        pages=_PAGES,
        trigger_rule=TriggerRule.NONE_FAILED,
        doc_md="File `dvc.lock`, parameters, costs and reports with the MLflow run.",
    )
    list(tasks.values()) >> filing


def tasks_before(planned: Any, component: spec.Component) -> dict[str, BaseOperator]:
    """A task for each stage that a component, which is no stage, reads the files of, after `planned`."""
    return _tasks(planned, spec.needed(spec.stages(PIPELINE), component.reads))


def command_task(
    task_id: str, component: spec.Component, arguments: list[str], after: Sequence[str] = (), **settings: Any
) -> BaseOperator:
    """A task that runs Python in a component's environment, with its resources, retries, timeout and pool.

    Args:
        task_id: the task's name.
        component: whose environment it is.
        arguments: what Python runs.
        after: the tasks whose results it is handed.
        settings: of the operator.
    """
    pages = settings.pop("pages", ())
    operator, common = _operator(task_id, component, after, settings)
    made: BaseOperator = operator(arguments=arguments, **common)
    made.operator_extra_links = (*made.operator_extra_links, *pages)
    return made


def mapped_task(
    task_id: str, component: spec.Component, arguments: Any, after: Sequence[str] = (), **settings: Any
) -> Any:
    """As `command_task`, a task for each of many: `arguments` is the result of a task that lists them."""
    operator, common = _operator(task_id, component, after, settings)
    return operator.partial(**common).expand(arguments=arguments)


def _operator(
    task_id: str, component: spec.Component, after: Sequence[str], settings: dict[str, Any]
) -> tuple[type[BaseOperator], dict[str, Any]]:
    """The class of an operator, and all that it is made from but the arguments."""
    common: dict[str, Any] = {
        "task_id": task_id,
        "retries": component.retries,
        "execution_timeout": timedelta(minutes=component.timeout_minutes),
        "pool": component.pool,
        "on_failure_callback": say_why,
        "on_retry_callback": say_why,
        **_RETRY,
        **settings,
    }
    handed = f"{{{{ ti.xcom_pull(task_ids={list(after)!r}) | list | tojson }}}}"
    if RUNNER == "local":
        return Process, {"handed": handed, **common}
    if RUNNER == "kubernetes":
        return _pod(component, handed, common)
    raise ValueError(f"MRSE_RUNNER is {RUNNER!r}; it must be local or kubernetes")


def say_why(context: Context) -> None:
    """Log the one-line reason of a failed task."""
    lines = [line.strip() for line in str(context.get("exception")).splitlines() if line.strip()]
    logging.getLogger(__name__).error("%s", [*lines, f"{context['ti'].task_id} failed without a message"][0])


def _tasks(planned: Any, found: dict[str, spec.Stage]) -> dict[str, BaseOperator]:
    tasks = {name: _stage_task(stage, spec.component(PIPELINE, name)) for name, stage in found.items()}
    for name, stage in found.items():
        planned >> tasks[name]
        [tasks[before] for before in stage.after] >> tasks[name]
    return tasks


def _stage_task(stage: spec.Stage, component: spec.Component) -> BaseOperator:
    return command_task(
        stage.name,
        component,
        ["-m", "components.exchange", "run", stage.name],
        after=[_PLAN, *stage.after],
        outlets=[Asset(name) for name in component.updates],
        doc_md=stage.desc,
    )


def _check(stage: str, decides: spec.Decision) -> BaseOperator:
    wanted = " or ".join(decides.goes_on)

    @task.short_circuit(
        task_id=f"{stage}_goes_on",
        ignore_downstream_trigger_rules=False,
        doc_md=f"Goes on where {stage} says {wanted}; else what follows is skipped.",
    )
    def goes_on(ti: Any) -> bool:
        outcome = ti.xcom_pull(task_ids=stage)["outcome"]
        logging.getLogger(__name__).info("%s says %s; what follows runs on %s", stage, outcome, wanted)
        return outcome in decides.goes_on

    checked: BaseOperator = goes_on().operator
    return checked


def _pod(component: spec.Component, handed: str, common: dict[str, Any]) -> tuple[type[BaseOperator], dict[str, Any]]:
    from kubernetes.client import V1ResourceRequirements, V1Toleration
    from mrse_pod import StagePod  # here: see there

    template = PIPELINE / "k8s" / "pod.yaml"
    (stage,) = yaml.safe_load(template.read_text(encoding="utf-8"))["spec"]["containers"]
    asked = {name: amount for name, amount in component.resources.items() if name != "gpu"}
    extended = {"nvidia.com/gpu": component.resources["gpu"]} if "gpu" in component.resources else {}
    return StagePod, {
        "name": component.image,
        "component": component.name,
        "labels": {"app.kubernetes.io/name": component.name},  # by which the network lets it reach Milvus, or not
        "image": f"{{{{ var.json.get('mrse_images', {{}}).get('{component.name}', '') }}}}",
        "cmds": ["python"],
        "env_vars": {"MRSE_HANDED": handed, "MRSE_RESULT": _RESULT},
        "pod_template_file": str(template),
        # The namespace refuses a pod of which one container may do more than the restricted standard allows.
        "xcom_sidecar_container_security_context": stage["securityContext"],
        "container_resources": V1ResourceRequirements(
            requests=asked | extended, limits={"memory": component.resources["memory"]} | extended
        ),
        "node_selector": component.node_selector,
        "tolerations": [V1Toleration(**toleration) for toleration in component.tolerations],
        "termination_message_policy": "FallbackToLogsOnError",
        "log_pod_spec_on_failure": False,
        "startup_timeout_seconds": START_SECONDS,
        "deferrable": True,
        "do_xcom_push": True,
        **common,
    }
