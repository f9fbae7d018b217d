"""The gate's component: every outcome is a result, bad input is one message."""

from pathlib import Path
from typing import Any

import pytest

from components.gate import __main__ as component
from mrse.component import run
from mrse.errors import DataError

PARAMS = "snapshot:\n  end: 2026-03-15\n"


def start(monkeypatch: pytest.MonkeyPatch, workspace: Path) -> None:
    monkeypatch.setattr("sys.argv", ["gate", "--workspace", str(workspace)])
    run("gate", component.body)


@pytest.mark.parametrize("outcome", ["PROMOTE", "HOLD", "REJECT"])
def test_every_outcome_exits_cleanly_and_prints_its_sentence(
    outcome: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "params.yaml").write_text(PARAMS)
    seen: list[Any] = []

    def decide(params: Any, workspace: Path, trial: Any) -> dict[str, str]:
        seen.append((params.gate.k, workspace))
        return {"outcome": outcome, "sentence": f"{outcome}: because."}

    monkeypatch.setattr(component, "run_gate", decide)
    for kept in ("log_card", "keep_golden", "log_decision"):
        monkeypatch.setattr(component, kept, lambda services, *what, kept=kept: seen.append(kept))
    start(monkeypatch, tmp_path)
    assert capsys.readouterr().out == f"{outcome}: because.\n"
    assert seen == [(50, tmp_path), "log_card", "keep_golden", "log_decision"]


def test_missing_input_is_one_message_and_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "params.yaml").write_text(PARAMS)

    def fail(params: Any, workspace: Path, trial: Any) -> dict[str, str]:
        raise DataError("models/challenger.json: no such file; run the train stage first")

    monkeypatch.setattr(component, "run_gate", fail)
    with pytest.raises(SystemExit) as stopped:
        start(monkeypatch, tmp_path)
    assert stopped.value.code == 1
    assert capsys.readouterr().err == "gate: models/challenger.json: no such file; run the train stage first\n"
