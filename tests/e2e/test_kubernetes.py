"""A pod for every stage, on a real Kubernetes: a day meets what befalls pods, and a day runs in each component's image.

Images are the commit's own: one that can run every stage (`make pipeline-image`), and for the slow tests those of
`make images`. Pods hand data on through a DVC remote in an object store; that, Milvus and MLflow are servers outside
the cluster. The cluster is that of `shared/kube`, beside the repository; where it cannot be had, that is no
fault of MRSE's, and the tests are skipped. Another one, which nobody else uses, since its nodes are made unschedulable
and the namespace `mrse` is deleted, is named by the environment:

| variable | what |
|---|---|
| `MRSE_TEST_KUBECONFIG` | its administrator's kubeconfig |
| `MRSE_TEST_HOST` | this machine's address as its pods see it |
| `MRSE_TEST_REGISTRY` | where it finds the commit's images, made with `DVC_PLUGIN=dvc-s3` |
| `MRSE_TEST_MILVUS_URI` | a Milvus server that its pods reach; default: that of `shared/kube` on `MRSE_TEST_HOST` |
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.e2e.conftest import ROOT, TINY, merged
from tests.object_store import BUCKET, object_store

pytest.importorskip("airflow", reason="Airflow is not installed: pip install -c constraints.txt -e '.[airflow]'")
from tests.e2e.airflow import Airflow, missing, wait

KUBE = ROOT.parent / "shared" / "kube"
GIVEN = os.environ.get("MRSE_TEST_KUBECONFIG", "")
NO_CLUSTER = "there is no ../shared/kube/cluster to run pods on, nor does MRSE_TEST_KUBECONFIG name one"
pytestmark = [
    pytest.mark.skipif(not GIVEN and not (KUBE / "cluster").is_file(), reason=NO_CLUSTER),
    pytest.mark.skipif(not GIVEN and os.geteuid() != 0, reason="../shared/kube/cluster wants root"),
    pytest.mark.skipif(missing() != "", reason=f"not installed: {missing()}"),
    pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed"),
]

HOST = os.environ.get("MRSE_TEST_HOST", "10.213.0.1")  # this machine, as pods see it
REGISTRY = os.environ.get("MRSE_TEST_REGISTRY", "localhost")
MILVUS = os.environ.get("MRSE_TEST_MILVUS_URI", "") if GIVEN else ""
MLFLOW_PORT = 5000
USER = 10001  # of the images
STAGES = list(yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"])
# The shop is tiny, and so may be the node: what component.yaml asks for would not fit two cores.
ASKED = {"cpu": "100m", "memory": "2Gi"}
OVERRIDES = {section: keys for section, keys in TINY.items() if section not in ("snapshot", "services")}
# On cores that other tests keep busy, a pod is slow to start, and Airflow gives up tries of its own accord.
START_SECONDS = 120
RETRIES = 5


class Cluster:
    """The cluster with the manifests applied."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.env = os.environ | ({"KUBECONFIG": GIVEN} if GIVEN else borrowed())
        self.tag = run("git", "-C", ROOT, "rev-parse", "--short", "HEAD").strip()
        self.pipeline_image = f"{REGISTRY}/mrse-pipeline:{self.tag}"
        self.images = {stage: f"{REGISTRY}/mrse-{stage.replace('_', '-')}:{self.tag}" for stage in STAGES}

    def kubectl(self, *arguments: str, given: str | None = None) -> str:
        return run("kubectl", "-n", "mrse", *arguments, env=self.env, given=given)

    def build(self, target: str, images: set[str]) -> None:
        """Make and load the commit's images that are not there; a given cluster has them in its registry."""
        if GIVEN:
            return
        exists = [subprocess.run(["podman", "image", "exists", image], env=self.env, check=False) for image in images]
        if any(done.returncode for done in exists):
            checkout = self.folder / target
            run("git", "clone", "--quiet", ROOT, checkout)
            options = (f"BUILD_IMAGE={KUBE}/cluster build-image", f"TAG={self.tag}", "DVC_PLUGIN=dvc-s3")
            run("make", target, *options, env=self.env, cwd=checkout)
            shutil.rmtree(checkout)
        loaded = self.kubectl("get", "nodes", "-o", "jsonpath={.items[*].status.images[*].names}")
        for image in images:
            if f'"{image}"' not in loaded:
                run(KUBE / "cluster", "load", image)

    def furnish(self, store: Mapping[str, str]) -> None:
        """Apply the overlay `dev`, with this machine's addresses, a volume for the claim, and a Secret.

        Args:
            store: the variables by which pods find the object store, keys included.
        """
        self.kubectl("apply", "-f", "-", given=yaml.safe_dump_all([namespace(), *([] if GIVEN else [self.volume()])]))
        rendered = run("kubectl", "kustomize", ROOT / "k8s" / "overlays" / "dev")
        old = ("NetworkPolicy", "CronJob", "PodDisruptionBudget")  # batch/v1, policy/v1: newer than this cluster
        things = [thing for thing in yaml.safe_load_all(rendered) if thing["kind"] not in old]
        self.kubectl("apply", "-f", "-", given=yaml.safe_dump_all(things))
        services = {
            "MRSE_MILVUS_URI": MILVUS or f"http://{HOST}:19530",
            "MLFLOW_TRACKING_URI": f"http://{HOST}:{MLFLOW_PORT}",
            "MRSE_DVC_REMOTE": f"s3://{BUCKET}/dvc",
        }
        secrets = {"MRSE_MILVUS_TOKEN": "root:Milvus"}
        for name, value in store.items():
            (secrets if "KEY" in name else services)[name] = value
        self.kubectl("patch", "configmap", "mrse-services", "--patch", json.dumps({"data": services}))
        literals = [f"--from-literal={name}={value}" for name, value in secrets.items()]
        self.kubectl("create", "secret", "generic", "mrse-services", *literals)

    def volume(self) -> dict[str, Any]:
        """What the claim is bound to where no volume is made by itself."""
        shared = self.folder / "claim"
        shared.mkdir()
        os.chown(shared, USER, USER)
        spec = {"capacity": {"storage": "20Gi"}, "accessModes": ["ReadWriteOnce"], "hostPath": {"path": str(shared)}}
        return {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "mrse-state"}, "spec": spec}

    @contextmanager
    def cordoned(self) -> Iterator[None]:
        """Every node is unschedulable."""
        nodes = self.kubectl("get", "nodes", "-o", "name").split()
        self.kubectl("cordon", *nodes)
        try:
            yield
        finally:
            self.kubectl("uncordon", *nodes)

    def pod(self, stage: str) -> str:
        """The name of the pod that runs a stage."""
        names = self.pods(stage)
        assert names, f"no pod runs {stage}"
        return names[-1]

    def pods(self, stage: str) -> list[str]:
        newest_last = "--sort-by=.metadata.creationTimestamp"
        return self.kubectl("get", "pods", "-l", f"task_id={stage}", "-o", "name", newest_last).split()

    def runs(self, stage: str) -> bool:
        """Whether the container of a stage's newest pod runs."""
        state = "-o=jsonpath={.status.containerStatuses[?(@.name=='base')].state.running.startedAt}"
        return any(self.kubectl("get", name, state, "--ignore-not-found").strip() for name in self.pods(stage)[-1:])


class Pods(Airflow):
    """Airflow on a clone of the repository, whose commit is the images'."""

    def check_out(self, params: dict[str, Any]) -> None:
        """The file of parameters is the commit's; a run overrides what the tiny shop has otherwise (`begin`)."""
        run("git", "clone", "--quiet", ROOT, self.shop)
        for stage in STAGES:
            self.ask(stage, **ASKED)

    def ask(self, stage: str, **resources: str) -> None:
        """Change what a stage's pod asks for, and let it be tried often."""
        path = self.shop / "components" / stage / "component.yaml"
        changed = {"resources": resources, "retries": RETRIES}
        path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | changed))

    def begin(self, run: str, end: str) -> None:
        conf = {"end": end, "days": TINY["snapshot"]["days"], "overrides": OVERRIDES}
        self.trigger(run, conf)

    def use(self, images: Mapping[str, str]) -> None:
        self.command("variables", "set", "mrse_images", json.dumps(images))

    def meets(self, run: str, stage: str) -> str:
        """Wait until a try of a stage has failed; the reason that its log gives.

        A try that Airflow, short of processor time, gives up by itself gives none: the next one does.
        """
        self.until(run, lambda: bool(self.reasons(run, stage)))
        return self.reasons(run, stage)[-1]

    def costs(self, run: str) -> list[dict[str, Any]]:
        """What the stages of a run that were not skipped cost, as they told it."""
        states = self.states(run)
        return [self.result(run, stage) for stage in STAGES if states[stage] == "success"]


def lent(script: str, *arguments: str) -> None:
    """Run a script of `shared/kube`; where it fails, that is the machine's failure."""
    done = subprocess.run([KUBE / script, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(
            f"{script} {arguments[0]} failed: {(done.stderr.strip().splitlines() or ['it does not say why'])[-1]}"
        )


def borrowed() -> dict[str, str]:
    """Start the cluster of `shared/kube`; the variables by which it is found."""
    for command in ("install", "build", "up", "base-image"):
        lent("cluster", command)
    told = run("bash", "-c", f'eval "$({KUBE}/cluster env)" && echo "$KUBECONFIG" && echo "$CONTAINERS_CONF"')
    return dict(zip(("KUBECONFIG", "CONTAINERS_CONF"), told.split(), strict=True))


def down() -> None:
    """End what the tests have made, also where it never came up whole."""
    if GIVEN:
        run("kubectl", "delete", "namespace", "mrse", "--ignore-not-found", env=os.environ | {"KUBECONFIG": GIVEN})
    else:
        subprocess.run([KUBE / "cluster", "down"], capture_output=True, check=False)


def run(*command: Any, env: dict[str, str] | None = None, given: str | None = None, cwd: Path | None = None) -> str:
    words = [str(word) for word in command]
    done = subprocess.run(words, env=env, cwd=cwd, input=given, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def namespace() -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "mrse"}}


@contextmanager
def mlflow(folder: Path) -> Iterator[None]:
    """An MLflow server that pods reach."""
    command = [Path(sys.executable).parent / "mlflow", "server", "--host", HOST, "--port", str(MLFLOW_PORT)]
    command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{folder}/mlflow.db"]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    with (folder / "mlflow.log").open("wb") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        yield
    finally:
        os.killpg(server.pid, 15)
        server.wait(30)


@contextmanager
def milvus() -> Iterator[None]:
    """A Milvus server that pods reach."""
    if MILVUS:
        yield
        return
    for command in (["install"], ["clean"], ["up", "19530", HOST]):
        lent("milvus", *command)
    try:
        yield
    finally:
        run(KUBE / "milvus", "down")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    try:
        made = Cluster(tmp_path_factory.mktemp("cluster"))
        made.build("pipeline-image", {made.pipeline_image})
        with object_store(HOST) as store, milvus(), mlflow(made.folder):
            made.furnish(store)
            yield made
    finally:
        down()


@pytest.fixture(scope="module")
def own_images(cluster: Cluster) -> dict[str, str]:
    """The image of each component, by stage."""
    cluster.build("images", set(cluster.images.values()))
    return cluster.images


@pytest.fixture(scope="module")
def pods(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pods]:
    sidecar = {"xcom_sidecar_container_image": cluster.pipeline_image}  # any image that has a shell
    started = Pods(
        tmp_path_factory.mktemp("airflow"),
        TINY,
        KUBECONFIG=cluster.env["KUBECONFIG"],  # not in the connection, too: a deferred task takes one way alone
        MRSE_RUNNER="kubernetes",
        MRSE_POD_START_SECONDS=str(START_SECONDS),
        AIRFLOW_CONN_KUBERNETES_DEFAULT=json.dumps({"conn_type": "kubernetes", "extra": sidecar}),
    )
    try:
        yield started
    finally:
        started.stop()


def tell(pods: Pods, run: str, seconds: float) -> None:
    print(f"\n{run}: {seconds:.0f} s in all")
    for cost in pods.costs(run):
        own = f"{cost['seconds']} s after {cost['start_seconds']} s to start, {cost['peak_mib']} MiB"
        print(f"{cost['stage']}: {own}; exchange {cost['exchange_seconds']} s")


def test_a_day_meets_what_befalls_pods_and_still_goes_live(cluster: Cluster, pods: Pods) -> None:
    images = dict.fromkeys(STAGES, cluster.pipeline_image)
    pods.use(images | {"snapshot": "localhost/mrse-pipeline:none"})
    pods.ask("build_profiles", cpu="100m", memory="40Mi")
    began = time.monotonic()
    pods.begin("troubled", "2026-03-16")

    told = {"image": pods.meets("troubled", "snapshot")}
    pods.use(images)

    told["memory"] = pods.meets("troubled", "build_profiles")
    pods.ask("build_profiles", **ASKED)

    pods.until("troubled", lambda: cluster.runs("train"))
    cluster.kubectl("delete", cluster.pod("train"), "--force", "--grace-period=0")
    told["killed"] = pods.meets("troubled", "train")

    pods.until("troubled", lambda: cluster.runs("train"))
    with cluster.cordoned():
        told["node"] = pods.meets("troubled", "gate")

    states = pods.finished("troubled")
    print(json.dumps(told, indent=1))
    assert set(states.values()) == {"success"}, states
    tell(pods, "troubled", time.monotonic() - began)
    assert re.match("snapshot: its pod was not started: (ErrImagePull|ImagePullBackOff): ", told["image"])
    assert told["memory"].startswith("build_profiles: OOMKilled: ")
    assert told["killed"].startswith("train: its pod ")
    assert told["node"].startswith("gate: its pod was not started: ")
    assert "unschedulable" in told["node"]


@pytest.mark.slow
def test_an_image_runs_its_component_and_little_else(cluster: Cluster, own_images: dict[str, str]) -> None:
    for stage, image in own_images.items():
        inside = ["podman", "run", "--rm", "--read-only", "--network=none", "--cap-drop=all", "--tmpfs", "/tmp", image]
        asked = run(*inside, "python", "-m", f"components.{stage}", "--help", env=cluster.env)
        assert "--workspace" in asked
        run(*inside, "python", "-m", "components.exchange", "run", "--help", env=cluster.env)
        assert run(*inside, "id", "-u", env=cluster.env).strip() == str(USER)
        held = run(
            *inside, "sh", "-c", "ls /opt/venv/lib/python3.11/site-packages; which gcc make; true", env=cluster.env
        )
        modules = set(held.split())
        assert "airflow" not in modules
        assert not {"pip", "/usr/bin/gcc", "/usr/bin/make"} & modules
        assert ("torch" in modules) == (stage not in ("snapshot", "validate_logs", "build_profiles"))


@pytest.mark.slow
def test_a_day_runs_in_each_components_own_image(pods: Pods, own_images: dict[str, str]) -> None:
    pods.use(own_images)
    for stage in STAGES:
        pods.ask(stage, **ASKED)
    began = time.monotonic()
    pods.begin("first", "2026-03-15")
    assert "failed" not in (states := pods.finished("first")).values(), states
    tell(pods, "first", time.monotonic() - began)


@pytest.mark.slow
def test_a_night_goes_live_without_airflow(cluster: Cluster) -> None:
    """The Job that the overlay's CronJob makes, on a tiny shop."""
    overlay = ("--load-restrictor", "LoadRestrictionsNone", ROOT / "k8s" / "overlays" / "cron")
    things = yaml.safe_load_all(run("kubectl", "kustomize", *overlay))
    job = next(thing for thing in things if thing["kind"] == "CronJob")["spec"]["jobTemplate"]
    pod = job["spec"]["template"]["spec"]
    pod["containers"][0]["image"] = cluster.pipeline_image
    pod["containers"][0]["resources"] = {"requests": ASKED, "limits": {"memory": ASKED["memory"]}}
    pod["containers"][0]["command"] += ["--end", "2026-03-15"]
    params = merged(yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8")), TINY)
    settings = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": pod["volumes"][-1]["configMap"]["name"]},
        "data": {"params.yaml": yaml.safe_dump(params)},
    }
    night = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "night"}, "spec": job["spec"]}
    cluster.kubectl("apply", "-f", "-", given=yaml.safe_dump_all([settings, night]))
    wait(lambda: "True" in cluster.kubectl("get", "job", "night", "-o=jsonpath={.status.conditions[*].status}"))
    log = cluster.kubectl("logs", "job/night")
    assert cluster.kubectl("get", "job", "night", "-o=jsonpath={.status.succeeded}") == "1", log[-3000:]
    assert f"http://{HOST}:{MLFLOW_PORT}" in log.splitlines()[-1]  # the page of the run, filed
