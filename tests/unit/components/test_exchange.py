"""The exchange on a pipeline of two tiny stages: own workspaces, `dvc.lock` handed on, finished stages found again."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from components import exchange, spec
from components.exchange import ExchangeFailed, Plan, Result, current, merged, plan, run_day, run_stage
from mrse.errors import ConfigError, DataError

# `count` writes how often it ran into the shared home, so that a run which should not happen is seen.
PIPELINE = """
stages:
  first:
    cmd: python components/first/work.py
    deps: [components/first]
    params: [train.seed]
    outs: [out/first.txt]
    metrics: [out/first.json]
  second:
    cmd: python components/second/work.py
    deps: [components/second, out/first.txt]
    outs: [out/second.txt]
"""
TWO_INPUTS = PIPELINE.replace("out/first.txt]\n    outs", "out/first.txt, out/first.json]\n    outs")
FIRST = """
import os, pathlib
ran = pathlib.Path(os.environ["MRSE_STATE_DIR"], "ran")
ran.parent.mkdir(parents=True, exist_ok=True)
ran.open("a").write("first\\n")
pathlib.Path(os.environ["MRSE_COST"]).write_text('{"start_seconds": 0.1, "seconds": 0.5, "peak_mib": 7.0}')
out = pathlib.Path("out")
out.mkdir(exist_ok=True)
(out / "first.txt").write_text(pathlib.Path("params.yaml").read_text())
(out / "first.json").write_text('{"outcome": "HOLD"}')
print("first: two files")
"""
SECOND = """
import os, pathlib, signal, sys
text = pathlib.Path("out/first.txt").read_text()
if "seed: 13" in text:
    sys.exit("second: thirteen is an unlucky seed")
print("second: half done", flush=True)
if "seed: 14" in text:
    os.kill(os.getpid(), signal.SIGKILL)
if "seed: 15" in text:
    raise KeyError("shelf")
pathlib.Path("out/second.txt").write_text(text.upper())
"""
SLOW = """
import os, pathlib, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
pathlib.Path(os.environ["MRSE_STATE_DIR"], "pid").write_text(str(os.getpid()))
time.sleep(60)
"""
COMPONENT = {
    "image": "mrse-x",
    "command": ["python"],
    "extras": [],
    "resources": {"cpu": "1", "memory": "1Gi"},
    "retries": 1,
    "timeout_minutes": 5,
    "pool": "default_pool",
}


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    folder = tmp_path / "pipeline"
    for name, code in {"first": FIRST, "second": SECOND}.items():
        component = folder / "components" / name
        component.mkdir(parents=True)
        (component / "work.py").write_text(code)
        told = {"decides": {"file": "out/first.json", "key": "outcome", "goes_on": ["PROMOTE"]}}
        spec_of = COMPONENT | {"name": name} | (told if name == "first" else {})
        (component / "component.yaml").write_text(yaml.safe_dump(spec_of))
    (folder / "mrse").mkdir()
    (folder / "mrse" / "nothing.txt").write_text("")
    (folder / "dvc.yaml").write_text(PIPELINE)
    (folder / ".dvcignore").write_text("")
    (folder / "params.yaml").write_text(yaml.safe_dump({"snapshot": {"end": "2026-03-15"}, "train": {"seed": 1}}))
    git(folder, "init", "--quiet")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "pipeline")
    return folder


def git(folder: Path, *arguments: str) -> None:
    subprocess.run(["git", "-c", "user.name=t", "-c", "user.email=t@example.org", *arguments], cwd=folder, check=True)


def run(stage: str, pipeline: Path, ordered: Plan, *before: Result) -> Result:
    return run_stage(stage, pipeline, ordered, [result.lock for result in before], str(pipeline.parent / "remote"))


def runs(pipeline: Path) -> int:
    return len((pipeline / ".mrse" / "state" / "ran").read_text().splitlines())


def test_stages_hand_on_their_files_through_the_remote(pipeline: Path) -> None:
    ordered = plan(pipeline, "2026-03-16")
    first = run("first", pipeline, ordered)
    second = run("second", pipeline, ordered, first)
    assert (first.ran, first.start_seconds, first.seconds, first.peak_mib) == (True, 0.1, 0.5, 7.0)
    assert first.outcome == "HOLD"
    assert set(yaml.safe_load(second.lock)["stages"]) == {"first", "second"}
    assert not (pipeline / "out").exists()
    assert not (pipeline / "dvc.lock").exists()


def test_stages_hand_on_their_files_through_an_object_store(pipeline: Path, bucket: str) -> None:
    ordered, remote = plan(pipeline, "2026-03-16"), f"{bucket}/dvc"
    first = run_stage("first", pipeline, ordered, [], remote)
    assert "out/second.txt" in run_stage("second", pipeline, ordered, [first.lock], remote).lock
    assert not run_stage("first", pipeline, ordered, [], remote).ran


def test_a_retry_finds_the_finished_stage_and_its_metrics(pipeline: Path) -> None:
    ordered = plan(pipeline, "2026-03-16")
    first = run("first", pipeline, ordered)
    again = run("first", pipeline, ordered)
    assert not again.ran
    assert again.lock == first.lock
    assert again.outcome == "HOLD"
    assert runs(pipeline) == 1


def test_a_forced_run_runs_every_stage_anew(pipeline: Path) -> None:
    ordered = plan(pipeline, "2026-03-16")
    run("second", pipeline, ordered, run("first", pipeline, ordered))
    ordered = plan(pipeline, "2026-03-16", force="a test")
    forced = run("first", pipeline, ordered)
    assert forced.ran
    assert runs(pipeline) == 2
    assert "out/second.txt" in run("second", pipeline, ordered, forced).lock


@pytest.mark.parametrize(("goes_on", "ran"), [("HOLD", ["first", "second"]), ("PROMOTE", ["first"])])
def test_a_day_runs_what_its_decision_lets_run(pipeline: Path, goes_on: str, ran: list[str]) -> None:
    (pipeline / "dvc.yaml").write_text(TWO_INPUTS)
    component = pipeline / "components" / "first" / "component.yaml"
    decides = {"decides": {"file": "out/first.json", "key": "outcome", "goes_on": [goes_on]}}
    component.write_text(yaml.safe_dump(yaml.safe_load(component.read_text()) | decides))
    git(pipeline, "commit", "--quiet", "--all", "--message", "decides")
    results = run_day(pipeline, plan(pipeline, "2026-03-16"), str(pipeline.parent / "remote"))
    assert [result.stage for result in results] == ran


@pytest.mark.parametrize(
    ("seed", "why"),
    [(13, "thirteen is an unlucky seed"), (14, "killed by signal 9"), (15, "KeyError: 'shelf'")],
)
def test_a_failed_stage_gives_its_own_one_line_reason(pipeline: Path, seed: int, why: str) -> None:
    ordered = plan(pipeline, "2026-03-16", overrides={"train.seed": seed})
    first = run("first", pipeline, ordered)
    with pytest.raises(ExchangeFailed, match=f"^second: {re.escape(why)}$"):
        run("second", pipeline, ordered, first)


def test_what_is_run_is_the_commit_not_the_working_tree(pipeline: Path) -> None:
    ordered = plan(pipeline, "2026-03-16")
    (pipeline / "components" / "first" / "work.py").write_text("raise SystemExit('an edit that is not committed')")
    assert run("first", pipeline, ordered).ran


def test_an_image_of_another_commit_is_refused(pipeline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (pipeline / ".git").rename(pipeline.parent / "git")
    monkeypatch.setenv("MRSE_COMMIT", "b" * 40)
    ordered = plan(pipeline, "2026-03-16")
    assert run("first", pipeline, ordered).ran
    monkeypatch.setenv("MRSE_COMMIT", "c" * 40)
    with pytest.raises(DataError, match="use its image"):
        run("first", pipeline, ordered)


def test_a_checkout_that_git_refuses_is_one_line(pipeline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "true")  # as of a checkout copied into an image
    with pytest.raises(DataError, match=r"fatal: detected dubious ownership in repository at '.*'$"):
        plan(pipeline, "2026-03-16")
    monkeypatch.setenv("PATH", str(pipeline))
    with pytest.raises(DataError, match=r"is a git checkout, and git is not installed$"):
        plan(pipeline, "2026-03-16")


def test_two_runs_at_once_do_no_harm(pipeline: Path) -> None:
    def both(seed: int) -> Result:
        ordered = plan(pipeline, "2026-03-16", overrides={"train.seed": seed})
        return run("second", pipeline, ordered, run("first", pipeline, ordered))

    with ThreadPoolExecutor(2) as pool:
        one, two = pool.map(both, (1, 2))
    assert one.lock != two.lock
    assert {out["path"] for out in yaml.safe_load(one.lock)["stages"]["second"]["outs"]} == {"out/second.txt"}


@pytest.mark.parametrize(
    ("remote", "why"),
    [
        ("/dev/null/remote", r"Not a directory: '/dev/null/remote"),
        ("http://me:secret@127.0.0.1:9/remote", "Cannot connect to host 127.0.0.1:9"),
        ("gs://bucket/remote", "requires 'dvc-gs' to be installed"),
        ("s3://no-such-bucket/remote", "The specified bucket does not exist"),
    ],
)
def test_an_unreachable_remote_is_one_message_that_names_it(pipeline: Path, remote: str, why: str, bucket: str) -> None:
    with pytest.raises(ExchangeFailed, match=why) as failed:
        run_stage("first", pipeline, plan(pipeline, "2026-03-16"), [], remote)
    assert str(failed.value).endswith(f"(DVC remote: {remote.replace('me:secret@', '')})")
    assert len(str(failed.value).splitlines()) == 1


@pytest.mark.parametrize("force", ["", "a test"])
def test_files_that_are_gone_from_the_remote_are_named(pipeline: Path, force: str) -> None:
    (pipeline / "dvc.yaml").write_text(TWO_INPUTS)
    git(pipeline, "commit", "--quiet", "--all", "--message", "two inputs")
    ordered = plan(pipeline, "2026-03-16", force=force)
    first = run("first", pipeline, ordered)
    shutil.rmtree(pipeline.parent / "remote")
    with pytest.raises(ExchangeFailed, match=r"^failed to pull .*: out/first.*, out/first.* \(DVC remote: .*\)$"):
        run("second", pipeline, ordered, first)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"end": "someday"}, "snapshot.end"),
        ({"end": "2026-03-16", "days": 2}, "no training day"),
        ({"end": "2026-03-16", "overrides": {"train.sed": 3}}, "train.sed"),
        ({"end": "2026-03-16", "overrides": {"train.seed.x": 3}}, "train.seed.x"),
    ],
)
def test_a_bad_parameter_is_named(pipeline: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan(pipeline, **changes)  # type: ignore[arg-type]


def test_locks_of_branches_are_merged_and_of_different_runs_refused() -> None:
    def lock(**stages: int) -> str:
        return yaml.safe_dump({"schema": "2.0", "stages": {name: {"outs": value} for name, value in stages.items()}})

    assert yaml.safe_load(merged([lock(a=1, b=2), lock(a=1, c=3)])) == yaml.safe_load(lock(a=1, b=2, c=3))
    assert merged([]) == ""
    with pytest.raises(DataError, match="stage a"):
        merged([lock(a=1), lock(a=2)])


def test_what_a_skipped_task_handed_on_earlier_is_left_out() -> None:
    def result(stage: str, **stages: int) -> Result:
        lock = yaml.safe_dump({"schema": "2.0", "stages": {name: {"outs": value} for name, value in stages.items()}})
        return Result(stage, lock, True, 0.0, 0.0, 0.0, 0.0, None, None)

    first, gate = result("first", first=1), result("gate", first=1, gate=2)
    assert current([first, gate, result("swap", first=1, gate=1, swap=1)]) == [first, gate]
    assert current([first, gate, result("swap", first=1, gate=2, swap=1)])[-1].stage == "swap"


def test_the_command_says_one_line_and_fails(pipeline: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "components.exchange", "checkout", "none", str(pipeline)],
        cwd=Path(exchange.__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (1, f"checkout: {pipeline} is not empty\n")


def until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_gone(pid: int) -> bool:
    """Ended, and be it a zombie that nobody waits for."""
    command = Path(f"/proc/{pid}/cmdline")
    return not command.exists() or not command.read_bytes()


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGKILL])
def test_a_stage_ends_with_its_exchange_and_leaves_nothing(
    pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: signal.Signals
) -> None:
    (pipeline / "components" / "first" / "work.py").write_text(SLOW)
    git(pipeline, "commit", "--quiet", "--all", "--message", "slow")
    scratch, pid = tmp_path / "scratch", pipeline / ".mrse" / "state" / "pid"
    for folder in (scratch, pid.parent):
        folder.mkdir(parents=True)
    ordered = plan(pipeline, "2026-03-16")
    settings = {"MRSE_PIPELINE": str(pipeline), "MRSE_HANDED": json.dumps([asdict(ordered)]), "TMPDIR": str(scratch)}
    exchanging = subprocess.Popen(
        [sys.executable, "-m", "components.exchange", "run", "first"],
        cwd=Path(exchange.__file__).parents[1],
        env=os.environ | settings,
    )
    until(lambda: pid.exists() and pid.read_text() != "")
    exchanging.send_signal(by)
    assert exchanging.wait(60) == (128 + by if by == signal.SIGTERM else -by)
    until(lambda: is_gone(int(pid.read_text())))
    (scratch / f"mrse.{os.getpid()}.alive").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    if by == signal.SIGKILL:
        assert len(list(scratch.iterdir())) == 2
        with pytest.raises(ExchangeFailed):
            run("second", pipeline, ordered)
    assert [left.name for left in scratch.iterdir()] == [f"mrse.{os.getpid()}.alive"]


def test_stages_come_in_order_and_after_those_they_need(tmp_path: Path) -> None:
    stages = {
        "last": {"cmd": "x", "deps": ["b/file", "a"]},
        "middle": {"cmd": "x", "deps": ["a/one"], "outs": ["b"]},
        "first": {"cmd": "x", "outs": [{"a": {"persist": True}}]},
    }
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))
    found = spec.stages(tmp_path)
    assert {name: stage.after for name, stage in found.items()} == {
        "first": (),
        "middle": ("first",),
        "last": ("middle",),
    }
    stages["first"]["deps"] = ["b"]
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))
    with pytest.raises(DataError, match="circle"):
        spec.stages(tmp_path)


@pytest.mark.parametrize("broken", [{"pol": "x"}, {"decides": {"file": "a"}}])
def test_a_wrong_key_of_a_component_is_named(pipeline: Path, broken: dict[str, object]) -> None:
    path = pipeline / "components" / "first" / "component.yaml"
    path.write_text(yaml.safe_dump(COMPONENT | {"name": "first"} | broken))
    with pytest.raises(DataError, match=r"component\.yaml: wrong or missing key"):
        spec.component(pipeline, "first")
