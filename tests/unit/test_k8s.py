"""The manifests: every overlay renders, fits the schema of the oldest and newest Kubernetes, and is restricted."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from components.spec import component, stages

K8S = Path(__file__).parents[2] / "k8s"
OVERLAYS = sorted(path.name for path in (K8S / "overlays").iterdir())
VERSIONS = ("1.29.0", "1.37.0")
WHOLE = "mrse-daily"  # the night in one pod


def rendered(overlay: str) -> list[dict[str, Any]]:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl is not installed")
    command = [kubectl, "kustomize", str(K8S / "overlays" / overlay)]
    if overlay == "cron":  # it takes params.yaml from above, as its file says
        command += ["--load-restrictor", "LoadRestrictionsNone"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def pod() -> dict[str, Any]:
    return yaml.safe_load((K8S / "pod.yaml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_object_fits_the_schema(overlay: str, version: str) -> None:
    validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    for thing in [*rendered(overlay), pod()]:
        validate.validate(thing, version, strict=True)  # an unknown kind raises, too


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_nothing_secret_is_written_down(overlay: str) -> None:
    things = rendered(overlay)
    assert all(thing["kind"] != "Secret" for thing in things)
    settings = {key for thing in things if thing["kind"] == "ConfigMap" for key in thing["data"]}
    assert "MRSE_MILVUS_URI" in settings
    assert not any(word in key for key in settings for word in ("TOKEN", "PASSWORD", "SECRET", "KEY"))


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_stage_may_do_little_and_reach_little(overlay: str) -> None:
    things = rendered(overlay)
    namespace = next(thing for thing in things if thing["kind"] == "Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    policies = {thing["metadata"]["name"]: thing["spec"] for thing in things if thing["kind"] == "NetworkPolicy"}
    closed = policies.pop("mrse-nothing")
    assert closed == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    for policy in policies.values():
        assert policy["policyTypes"] == ["Egress"]
        assert all(rule["to"] and rule["ports"] for rule in policy["egress"])
    rules = [rule for thing in things if thing["kind"] == "Role" for rule in thing["rules"]]
    assert all("*" not in rule["verbs"] + rule["resources"] for rule in rules)
    assert not any("secrets" in rule["resources"] for rule in rules)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_who_works_on_the_index_and_nobody_else_reaches_milvus(overlay: str) -> None:
    policies = [thing["spec"] for thing in rendered(overlay) if thing["kind"] == "NetworkPolicy"]
    (milvus,) = [policy for policy in policies if "19530" in json.dumps(policy)]
    (names,) = milvus["podSelector"]["matchExpressions"]
    entries = yaml.safe_load((K8S.parent / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    works = [name for name, entry in entries.items() if "services.milvus_uri" in entry["params"]]
    assert names == {"key": "app.kubernetes.io/name", "operator": "In", "values": [*works, WHOLE]}


def test_the_pod_of_a_stage_passes_the_restricted_standard() -> None:
    assert pod()["metadata"]["namespace"] == "mrse"
    spec = pod()["spec"]
    (container,) = spec["containers"]
    assert spec["securityContext"]["runAsNonRoot"]
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec["automountServiceAccountToken"] is False
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert all(set(volume) <= {"name", "emptyDir", "persistentVolumeClaim"} for volume in spec["volumes"])


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_pod_names_what_the_overlays_make(overlay: str) -> None:
    made = {(thing["kind"], thing["metadata"]["name"]) for thing in rendered(overlay)}
    spec = pod()["spec"]
    assert ("Namespace", pod()["metadata"]["namespace"]) in made
    assert ("ServiceAccount", spec["serviceAccountName"]) in made
    assert ("PriorityClass", spec["priorityClassName"]) in made
    assert ("ConfigMap", spec["containers"][0]["envFrom"][0]["configMapRef"]["name"]) in made
    claims = [volume["persistentVolumeClaim"]["claimName"] for volume in spec["volumes"] if "emptyDir" not in volume]
    assert {("PersistentVolumeClaim", claim) for claim in claims} <= made


def test_the_pod_of_a_night_is_that_of_a_stage_with_the_parameters() -> None:
    things = rendered("cron")
    params = next(thing for thing in things if thing["metadata"]["name"].startswith("mrse-params-"))
    assert params["data"]["params.yaml"] == (K8S.parent / "params.yaml").read_text(encoding="utf-8")
    template = next(thing for thing in things if thing["kind"] == "CronJob")["spec"]["jobTemplate"]["spec"]["template"]
    assert template["metadata"]["labels"] == pod()["metadata"]["labels"] | {"app.kubernetes.io/name": WHOLE}
    night, stage = template["spec"], pod()["spec"]
    stage["volumes"].append({"name": "params", "configMap": {"name": params["metadata"]["name"]}})
    (container,) = stage["containers"]
    container["volumeMounts"].append({"name": "params", "mountPath": "/opt/mrse/params.yaml", "subPath": "params.yaml"})
    container["command"] = ["python", "-m", "components.exchange", "day"]
    for key in ("image", "resources"):
        container[key] = night["containers"][0][key]
    assert night == stage


def test_a_night_has_what_its_largest_stage_asks_for() -> None:
    (night,) = (thing for thing in rendered("cron") if thing["kind"] == "CronJob")
    (container,) = night["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    asked = [component(K8S.parent, stage).resources for stage in stages(K8S.parent)]
    for resource, unit in (("cpu", ""), ("memory", "Gi")):
        most = max(int(resources[resource].removesuffix(unit)) for resources in asked)
        assert container["resources"]["requests"][resource] == f"{most}{unit}"


def test_no_running_stage_is_evicted_in_production() -> None:
    things = {
        thing["kind"]: thing for thing in rendered("prod") if thing["kind"] in ("PodDisruptionBudget", "ResourceQuota")
    }
    budget = things["PodDisruptionBudget"]["spec"]
    assert budget["selector"]["matchLabels"].items() <= pod()["metadata"]["labels"].items()
    assert budget["minAvailable"] >= int(things["ResourceQuota"]["spec"]["hard"]["pods"])


# What checkov finds in the template of a pod, and why it stays; the overlays have no finding.
EXPLAINED = {
    **dict.fromkeys(("CKV_K8S_10", "CKV_K8S_12", "CKV_K8S_13"), "the DAG sets requests and limits from component.yaml"),
    **dict.fromkeys(("CKV_K8S_14", "CKV_K8S_43"), "the DAG sets the image, by digest"),
    "CKV_K8S_11": "a limit of processor time would slow a training down without helping another",
    "CKV_K8S_15": "an image by digest is what it is; pulling it again changes nothing",
    "CKV_K8S_35": "MLflow, Milvus's client and the object store's read their secrets from the environment",
    **dict.fromkeys(("CKV_K8S_8", "CKV_K8S_9"), "a stage serves nothing; its task has a timeout"),
}


@pytest.mark.slow
def test_checkov_finds_nothing_that_is_not_explained(tmp_path: Path) -> None:
    checkov = shutil.which("checkov")
    if checkov is None:
        pytest.skip("checkov is not installed: pip install checkov, in an environment of its own")
    for overlay in OVERLAYS:
        (tmp_path / f"{overlay}.yaml").write_text(yaml.safe_dump_all(rendered(overlay)), encoding="utf-8")
    shutil.copy(K8S / "pod.yaml", tmp_path)
    command = [checkov, "--framework", "kubernetes", "--skip-download", "-o", "json", "-d", str(tmp_path)]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=False).stdout)["results"]
    assert found["passed_checks"]
    assert {(check["check_id"], check["file_path"]) for check in found["failed_checks"]} <= {
        (name, "/pod.yaml") for name in EXPLAINED
    }
