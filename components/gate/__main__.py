"""The gate: challenger, champion and BM25 on the held-out window; `reports/decision.json` and its report out.

The challenger's model card is added to its training run in MLflow, the decision to the history there, and the first
window's requests as the golden ones.

A HOLD or a REJECT is a result, not a failure: the stage exits with 0 all the same, and the later stages do nothing.
"""

from pathlib import Path

from mrse.component import run
from mrse.config import Params
from mrse.evaluation.card import log_card
from mrse.evaluation.golden import keep_golden
from mrse.evaluation.history import log_decision
from mrse.evaluation.run import GOLDEN_FOLDER, run_gate
from mrse.index.trial import trial
from mrse.layout import GATE_REPORT


def body(params: Params, workspace: Path) -> str:
    """Read and write as `dvc.yaml` declares."""
    services = params.services.under(workspace)
    decision = run_gate(params, workspace, trial(params.build_index, services))
    log_card(services, workspace)
    keep_golden(services, workspace / GOLDEN_FOLDER)
    log_decision(services, decision, workspace / "reports")
    print(decision["sentence"])
    return f"report in {GATE_REPORT}"


if __name__ == "__main__":
    run("gate", body)
