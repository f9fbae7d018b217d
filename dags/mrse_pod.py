"""The pod of a stage: `KubernetesPodOperator`, which fails with one line that says why.

The operator's own message is a traceback, a pod's whole log or "pod failed"; what befell the pod stands in its status.
Imported only where stages run as pods: the Kubernetes client takes a second, which a local DAG need not wait for.
"""

from __future__ import annotations

import json
from typing import Any

from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator
from airflow.sdk import Context
from airflow.sdk.exceptions import AirflowException
from kubernetes.client import V1ContainerStatus, V1Pod
from kubernetes.client.exceptions import ApiException


class StagePod(KubernetesPodOperator):
    """A pod whose failure is told in one line."""

    _handed: Any = None

    def execute(self, context: Context) -> Any:
        """Start the pod, or say why the API server refuses it."""
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
            raise AirflowException(f"{self.task_id}: {reason(self.task_id, self.pod, error)}") from None
        return self._handed


def reason(task: str, pod: V1Pod | None, error: Exception) -> str:
    """Why a stage's pod failed: its last message, else what its status tells, else the operator's last line.

    Args:
        task: the stage's task, with whose name its own message begins.
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
    own = [line for line in lines if line.startswith(f"{task}: ")] or [_line(state.terminated.message or "")]
    return own[-1].removeprefix(f"{task}: ") or f"its pod ended with exit code {state.terminated.exit_code}"


def _line(text: str) -> str:
    """The last line of a text that says anything."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")


def _told(error: ApiException) -> str:
    try:
        return str(json.loads(error.body)["message"])
    except (TypeError, ValueError, KeyError):
        return str(error.reason)
