"""The pod of a stage: `KubernetesPodOperator`, which fails with one line that says why.

The operator's own message is a traceback, a pod's whole log or "pod failed"; what befell the pod stands in its status.
Imported only where stages run as pods: the Kubernetes client takes a second, which a local DAG need not wait for.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator
from airflow.sdk import Context
from airflow.sdk.exceptions import AirflowException, AirflowFailException
from kubernetes.client import V1ContainerStatus, V1Pod
from kubernetes.client.exceptions import ApiException


class StagePod(KubernetesPodOperator):
    """A pod whose failure is told in one line.

    Args:
        component: what runs in it; its messages begin with this name, or with the task's.
    """

    _handed: Any = None

    def __init__(self, *, component: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.component = component

    def execute(self, context: Context) -> Any:
        """Start the pod, or say what it lacks or why the API server refuses it."""
        if not self.image:
            raise AirflowFailException(
                f"{self.task_id}: Airflow's variable mrse_images has no image of {self.component}"
            )
        try:
            super().execute(context)
        except ApiException as error:
            raise AirflowException(f"{self.task_id}: Kubernetes refuses its pod: {_told(error)}") from None
        # Reached where the pod had ended already: the operator then does not defer, and drops what was handed on.
        return self._handed

    def trigger_reentry(self, context: Context, event: dict[str, Any]) -> Any:
        """Take up the pod that has ended, or did not start."""
        try:
            self._handed = super().trigger_reentry(context, event)
        except (AirflowException, ApiException) as error:
            raise AirflowException(
                f"{self.task_id}: {reason((self.task_id, self.component), self.pod, error)}"
            ) from None
        return self._handed


def reason(names: Collection[str], pod: V1Pod | None, error: Exception) -> str:
    """Why a stage's pod failed: its last message, else what its status tells, else the operator's last line.

    Args:
        names: of the task and its component; with one of them its own message begins.
        pod: as it was last seen; None where it is gone.
        error: the operator's.
    """
    if pod is None or pod.status is None:
        return "its pod is gone: it was deleted, or its node was lost"
    statuses: list[V1ContainerStatus] = pod.status.container_statuses or []
    state = next((status.state for status in statuses if status.name == "base"), None)
    if state is None:
        unmet = [condition.message for condition in pod.status.conditions or [] if condition.status == "False"]
        return f"its pod was not started: {pod.status.message or next(iter(unmet), pod.status.phase)}"
    if state.waiting is not None:
        return f"its pod was not started: {state.waiting.reason}: {_line(state.waiting.message or '')}"
    if state.terminated is None:
        return _line(str(error))
    if state.terminated.reason == "OOMKilled":
        return "OOMKilled: it needs more than the memory that its component.yaml gives it"
    lines = (state.terminated.message or "").splitlines()
    own = [line.partition(": ")[2] for line in lines if line.partition(": ")[0] in names]
    last = own[-1] if own else _line(state.terminated.message or "")
    return last or f"its pod ended with exit code {state.terminated.exit_code}"


def _line(text: str) -> str:
    """The last line of a text that says anything."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")


def _told(error: ApiException) -> str:
    try:
        return str(json.loads(error.body)["message"])
    except (TypeError, ValueError, KeyError):
        return str(error.reason)
