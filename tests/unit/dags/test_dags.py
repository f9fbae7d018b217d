"""The DAGs as Airflow loads them: a task for each stage, settings from component.yaml, no network, both runners."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("airflow", reason="Airflow is not installed: pip install -c constraints.txt -e '.[airflow]'")

ROOT = Path(__file__).parents[3]
STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]

# Run in a process of its own: Airflow reads its settings when imported, and connects to nothing here.
LOAD = """
import json, socket, sys, time
def refuse(*_):
    raise OSError("a DAG opened a connection")
socket.socket.connect = refuse
from airflow.dag_processing.dagbag import DagBag
started = time.process_time()
DagBag(sys.argv[1])
first = time.process_time() - started
for name in [name for name in sys.modules if name.split(".")[0] in ("mrse", "components", "mrse_pipeline")]:
    del sys.modules[name]
started = time.process_time()
bag = DagBag(sys.argv[1])
again = time.process_time() - started
def told(task):
    links = [link.name for link in task.operator_extra_links]
    return {"upstream": sorted(task.upstream_task_ids), "retries": task.retries, "pool": task.pool, "doc": task.doc_md,
            "timeout": task.execution_timeout and task.execution_timeout.total_seconds() / 60, "links": links,
            "type": type(task).__name__, "rule": str(task.trigger_rule.value),
            "outlets": [asset.name for asset in task.outlets], "fields": {name: getattr(task, name) for name in
            ("image", "arguments", "cmds", "handed", "env_vars") if isinstance(getattr(task, name, None), (str, list))}}
print(json.dumps({"errors": bag.import_errors, "first": first, "again": again, "modules": sorted(sys.modules), "dags": {
    name: {"tasks": {task.task_id: told(task) for task in dag.tasks}, "catchup": dag.catchup,
           "active": dag.max_active_runs, "doc": dag.doc_md, "params": dag.params.dump()}
    for name, dag in bag.dags.items()}}))
"""

# The pod that the operator would send to the API server; a connection that is not set up names no sidecar settings.
BUILD = """
import json, sys
from unittest.mock import Mock, PropertyMock
from airflow.dag_processing.dagbag import DagBag
from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator
from kubernetes.client import ApiClient
unset = ("namespace", *(f"xcom_sidecar_container_{name}" for name in ("image", "resources", "security_context")))
hook = Mock(**{f"get_{name}.return_value": None for name in unset})
KubernetesPodOperator.hook = PropertyMock(return_value=hook)
task = DagBag(sys.argv[1]).dags["mrse_daily"].task_dict["train"]
print(json.dumps(ApiClient().sanitize_for_serialization(task.build_pod_request_obj(dry_run=True))))
"""

CHATTY = """
import json
from mrse_pipeline import Process
code = "import sys; from components.exchange import hand_on; hand_on({'it': 1}); print('bye', file=sys.stderr)"
print(json.dumps(Process(task_id="chatty", arguments=["-c", code], handed="[]").execute({})))
"""

# `plan` as the worker calls it, with a key that no form offers.
ASKED = """
import json, sys
from datetime import datetime
from unittest.mock import Mock
from airflow.dag_processing.dagbag import DagBag
from airflow.sdk.exceptions import AirflowFailException
dags, told = DagBag(sys.argv[1]).dags, {}
run = Mock(logical_date=None, run_after=datetime(2026, 3, 15))
for name in ("mrse_daily", "mrse_experiments"):
    asked = dags[name].params.dump() | {"overides": {"train.seed": 3}}
    try:
        dags[name].task_dict["plan"].python_callable(asked, run)
    except AirflowFailException as error:
        told[name] = [str(error), list(dags[name].params)]
rollback = dags["mrse_rollback"]
try:
    rollback.task_dict["rollback"]._pre_execute_hook({"params": rollback.params.dump() | {"overides": {}}})
except AirflowFailException as error:
    told["mrse_rollback"] = [str(error), list(rollback.params)]
print(json.dumps(told))
"""


def load(home: Path, script: str = LOAD, **environment: str) -> Any:
    code = [sys.executable, "-c", script, str(ROOT / "dags")]
    settings = {
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__LOGGING__LOGGING_LEVEL": "ERROR",
        "PYTHONPATH": f"{ROOT}:{ROOT / 'dags'}",
    }
    done = subprocess.run(code, env=os.environ | settings | environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load(tmp_path_factory.mktemp("airflow"))


@pytest.fixture(scope="module")
def pods(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load(tmp_path_factory.mktemp("airflow"), MRSE_RUNNER="kubernetes")


def test_every_dag_loads_quickly_and_says_what_it_is(local: Any) -> None:
    assert local["errors"] == {}
    assert set(local["dags"]) == {"mrse_daily", "mrse_experiments", "mrse_rollback"}
    assert not {"torch", "mlflow", "kubernetes"} & set(local["modules"]), "a scheduler loads DAGs again and again"
    assert local["first"] < 10, "processor time of all DAGs, Airflow's own imports with them"
    assert local["again"] < 2, "processor time of all DAGs in a process that has loaded them before"
    for dag in local["dags"].values():
        assert dag["doc"].startswith("### ")
        assert dag["active"] == 1
        assert not dag["catchup"]


@pytest.mark.parametrize("stage", STAGES)
def test_a_task_is_set_as_its_component_says(local: Any, stage: str) -> None:
    spec = yaml.safe_load((ROOT / "components" / stage / "component.yaml").read_text(encoding="utf-8"))
    task = local["dags"]["mrse_daily"]["tasks"][stage]
    assert (task["retries"], task["timeout"], task["pool"]) == (spec["retries"], spec["timeout_minutes"], spec["pool"])
    assert task["doc"] == STAGES[stage]["desc"]
    assert task["outlets"] == spec.get("updates", [])
    assert task["fields"]["arguments"] == ["-m", "components.exchange", "run", stage]


def test_what_follows_the_gate_waits_for_its_decision(local: Any) -> None:
    tasks = local["dags"]["mrse_daily"]["tasks"]
    assert tasks["gate_goes_on"]["upstream"] == ["gate"]
    assert all("gate_goes_on" in tasks[stage]["upstream"] for stage in ("build_index", "swap_index"))
    assert set(tasks["file_run"]["upstream"]) == set(STAGES)
    assert tasks["file_run"]["rule"] == "none_failed"
    assert tasks["file_run"]["links"] == ["MLflow run", "Gate report", "Data Docs"]


def test_a_parameter_that_is_not_there_is_named(tmp_path: Path) -> None:
    offered = {"mrse_daily": ["end", "days", "overrides", "force_because"]}
    offered["mrse_rollback"] = ["version"]
    offered["mrse_experiments"] = [*offered["mrse_daily"], "only", "seeds", "steps_share"]
    assert load(tmp_path, ASKED) == {
        dag: [f"no such parameter: overides; there are {', '.join(names)}", names] for dag, names in offered.items()
    }


def test_a_plan_is_tried_again_where_its_worker_was_lost(local: Any) -> None:
    # A bad parameter still fails it at once: `AirflowFailException`.
    assert local["dags"]["mrse_daily"]["tasks"]["plan"]["retries"] == 2


@pytest.mark.parametrize("runner", ["local", "pods"])
def test_each_variant_is_a_task_between_the_full_model_and_the_report(
    request: pytest.FixtureRequest, runner: str
) -> None:
    tasks = request.getfixturevalue(runner)["dags"]["mrse_experiments"]["tasks"]
    data = ["snapshot", "validate_logs", "build_profiles", "build_features"]
    assert set(tasks) == {"plan", *data, "variants", "full", "variant", "report"}
    assert tasks["full"]["upstream"] == sorted([*data, "variants"])
    assert tasks["variant"]["type"] == "MappedOperator"
    assert (tasks["variant"]["upstream"], tasks["report"]["upstream"]) == (["full", "variants"], ["variant"])
    spec = yaml.safe_load((ROOT / "components" / "ablate" / "component.yaml").read_text(encoding="utf-8"))
    for name in ("full", "variant", "report"):
        task = tasks[name]
        assert (task["retries"], task["timeout"], task["pool"]) == (
            spec["retries"],
            spec["timeout_minutes"],
            spec["pool"],
        )
    assert tasks["full"]["fields"]["arguments"][:4] == ["-m", "components.exchange", "component", "ablate"]
    assert tasks["report"]["links"][-1] == "MLflow run"


def test_the_form_of_the_experiments_is_typed(local: Any) -> None:
    asked = local["dags"]["mrse_experiments"]["params"]
    assert (asked["only"], asked["seeds"], asked["steps_share"]) == ([], 3, 1.0)
    assert set(local["dags"]["mrse_daily"]["params"]) < set(asked)


VARIANTS = """
import json
from dataclasses import asdict
from mrse_experiments import variants
from airflow.sdk.exceptions import AirflowFailException
call, params = variants.function, {"seeds": 2, "steps_share": 0.5}
planned = {"params": "snapshot: {end: '2026-03-15'}"}
told = [call(planned, params | {"only": ["size"]})]
for only in ("no_such", "full"):
    try:
        call(planned, params | {"only": [only]})
    except AirflowFailException as error:
        told.append(str(error))
print(json.dumps(told))
"""


def test_variants_are_those_of_the_parameters_and_a_wrong_name_is_told(tmp_path: Path) -> None:
    chosen, error, alone = load(tmp_path, VARIANTS)
    assert [arguments[-1] for arguments in chosen] == ["dim_64", "dim_128"]
    assert chosen[0][-6:] == ["--seeds", "2", "--steps-share", "0.5", "--only", "dim_64"]
    assert "no variant or group 'no_such'" in error
    assert alone == "only: full is trained in any case; name a variant or a group to compare with it"


def test_a_component_may_ask_for_nodes_with_gpus(tmp_path: Path) -> None:
    pipeline = tmp_path / "pipeline"
    (pipeline / "components").mkdir(parents=True)
    for name in ("dvc.yaml", "k8s"):
        (pipeline / name).symlink_to(ROOT / name)
    for folder in (ROOT / "components").glob("*/component.yaml"):
        (pipeline / "components" / folder.parent.name).symlink_to(folder.parent)
    (pipeline / "components" / "train").unlink()
    spec = yaml.safe_load((ROOT / "components" / "train" / "component.yaml").read_text(encoding="utf-8"))
    spec["resources"]["gpu"] = "1"
    spec["node_selector"] = {"pool": "gpu"}
    spec["tolerations"] = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    (pipeline / "components" / "train").mkdir()
    (pipeline / "components" / "train" / "component.yaml").write_text(yaml.safe_dump(spec))
    pod = load(tmp_path / "home", BUILD, MRSE_RUNNER="kubernetes", MRSE_PIPELINE=str(pipeline))["spec"]
    assert pod["nodeSelector"] == spec["node_selector"]
    assert spec["tolerations"][0] in pod["tolerations"]
    assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"


@pytest.mark.parametrize("runner", ["local", "pods"])
def test_a_rollback_is_tried_once(request: pytest.FixtureRequest, runner: str) -> None:
    tasks = request.getfixturevalue(runner)["dags"]["mrse_rollback"]["tasks"]
    assert set(tasks) == {"rollback"}
    task = tasks["rollback"]
    assert (task["retries"], task["pool"], task["outlets"]) == (0, "mrse_index", ["mrse/live-index"])
    assert task["fields"]["arguments"] == ["-m", "components.rollback", "{{ params.version or '' }}"]


def test_the_same_tasks_run_as_pods(local: Any, pods: Any) -> None:
    assert pods["errors"] == {}
    for name, dag in local["dags"].items():
        others = pods["dags"][name]["tasks"]
        assert {task: told["upstream"] for task, told in dag["tasks"].items()} == {
            task: told["upstream"] for task, told in others.items()
        }
    train = pods["dags"]["mrse_daily"]["tasks"]["train"]
    assert train["type"] == "StagePod"
    assert train["fields"]["image"] == "{{ var.json.get('mrse_images', {}).get('train', '') }}"
    assert train["fields"]["arguments"] == ["-m", "components.exchange", "run", "train"]


def test_a_process_may_print_after_it_has_handed_on(tmp_path: Path) -> None:
    assert load(tmp_path, CHATTY) == {"it": 1}


def test_the_pod_of_a_stage_is_one_that_its_namespace_takes(tmp_path: Path) -> None:
    pod = load(tmp_path, BUILD, MRSE_RUNNER="kubernetes")
    assert pod["metadata"]["namespace"] == "mrse"
    assert pod["metadata"]["labels"]["app.kubernetes.io/component"] == "stage"
    assert pod["metadata"]["labels"]["app.kubernetes.io/name"] == "train"
    spec = pod["spec"]
    assert spec["securityContext"]["runAsNonRoot"]
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert [container["name"] for container in spec["containers"]] == ["base", "airflow-xcom-sidecar"]
    assert not spec.get("nodeSelector") and not spec.get("tolerations"), "a CPU of any node, unless a component asks"
    for container in spec["containers"]:
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_a_stage_added_to_the_pipeline_appears(tmp_path: Path) -> None:
    pipeline = tmp_path / "pipeline"
    component = pipeline / "components" / "extra"
    component.mkdir(parents=True)
    for stage in STAGES:
        (pipeline / "components" / stage).symlink_to(ROOT / "components" / stage)
    spec = yaml.safe_load((ROOT / "components" / "gate" / "component.yaml").read_text(encoding="utf-8"))
    spec = {key: value for key, value in spec.items() if key != "decides"} | {"name": "extra"}
    (component / "component.yaml").write_text(yaml.safe_dump(spec))
    extra = {"cmd": "python -m components.extra", "deps": ["data/profiles"], "desc": "More."}
    (pipeline / "dvc.yaml").write_text(yaml.safe_dump({"stages": {**STAGES, "extra": extra}}))
    tasks = load(tmp_path / "home", MRSE_PIPELINE=str(pipeline))["dags"]["mrse_daily"]["tasks"]
    assert tasks["extra"]["upstream"] == ["build_profiles", "plan"]


def test_an_unknown_runner_is_an_import_error_that_names_it(tmp_path: Path) -> None:
    errors = load(tmp_path, MRSE_RUNNER="kubernets")["errors"]
    assert all("MRSE_RUNNER is 'kubernets'; it must be local or kubernetes" in error for error in errors.values())
    assert len(errors) == 3


# What befell a pod, as its status tells, and the one line that the task's log shall say.
BEFELL = """
import json
from kubernetes.client import ApiClient, V1Pod
from mrse_pod import reason
def pod(**status):
    class Answer: data = json.dumps({"metadata": {"name": "p"}, "status": status})
    return ApiClient()._ApiClient__deserialize(json.loads(Answer.data), "V1Pod")
def base(**state):
    return pod(phase="Pending", containerStatuses=[{"name": "base", "image": "i", "imageID": "", "ready": False,
                                                    "restartCount": 0, "state": state}])
error = Exception("Traceback (most recent call last):\\nKubernetesError: Pod train returned a failure.")
ended = {"exitCode": 1, "reason": "Error", "message": "INFO: 1\\ntrain: the loss is not finite\\nbye"}
unmet = [{"type": "PodScheduled", "status": "False", "message": "0/1 nodes are available"}]
names = ("full", "train")
print(json.dumps([reason(names, seen, error) for seen in (
    None,
    pod(phase="Pending", conditions=unmet),
    base(waiting={"reason": "ErrImagePull", "message": "rpc error\\nnot found"}),
    base(terminated={"exitCode": 137, "reason": "OOMKilled"}),
    base(terminated=ended),
    base(terminated=ended | {"message": "full: what its task is called\\nbye"}),
    base(terminated=ended | {"message": "INFO: 1\\nunexpected error"}),
    base(terminated=ended | {"message": ""}),
    base(running={}),
)]))
"""


def test_what_befell_a_pod_is_one_line(tmp_path: Path) -> None:
    assert load(tmp_path, BEFELL) == [
        "its pod is gone: it was deleted, or its node was lost",
        "its pod was not started: 0/1 nodes are available",
        "its pod was not started: ErrImagePull: not found",
        "OOMKilled: it needs more than the memory that its component.yaml gives it",
        "the loss is not finite",
        "what its task is called",
        "unexpected error",
        "its pod ended with exit code 1",
        "KubernetesError: Pod train returned a failure.",
    ]


UNNAMED = """
import json
from airflow.sdk.exceptions import AirflowFailException
from mrse_pod import StagePod
try:
    StagePod(task_id="full", component="ablate", image="").execute({})
except AirflowFailException as error:
    print(json.dumps(str(error)))
"""


def test_a_pod_without_an_image_is_one_message(tmp_path: Path) -> None:
    assert load(tmp_path, UNNAMED) == "full: Airflow's variable mrse_images has no image of ablate"
