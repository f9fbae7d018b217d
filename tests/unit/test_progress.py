"""Progress: plain lines without a terminal, silence with `-q`, and the items themselves untouched."""

import itertools

import pytest

from mrse import progress


def test_items_pass_and_plain_lines_tell_rate_and_time_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = itertools.count(0.0, 6.0)
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    assert list(progress.track(range(4), "embedding items", unit="item")) == [0, 1, 2, 3]
    assert capsys.readouterr().err.splitlines() == [
        "embedding items: 2 of 4 (50%), 0.2 item/s, 12 s left",
        "embedding items: 4 of 4 (100%), 0.2 item/s, 0 s left",
    ]


def test_an_unknown_total_has_no_time_left(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    clock = itertools.count(0.0, 11.0)
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    assert list(progress.track(iter("ab"), "reading")) == ["a", "b"]
    assert capsys.readouterr().err.splitlines() == ["reading: 1, 0.1 it/s", "reading: 2, 0.1 it/s"]


def test_quiet_says_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("MRSE_QUIET", "1")
    progress.say("hello")
    assert capsys.readouterr().err == ""
