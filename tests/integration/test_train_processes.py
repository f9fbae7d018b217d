"""Training on several processes: killed at any step, gone on with as many or another number, and as a stage."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from mrse import config as configuration
from mrse import tracking
from mrse.jsonfile import read_json
from mrse.model.retriever import package_fingerprint
from mrse.training.sampling import Sampler
from mrse.training.train import train
from tests import tiny_shop
from tests.processes import together

ROOT = Path(__file__).parents[2]
QUICK = {"align_steps": 6, "fuse_steps": 9, "eval_every": 5, "bank_refresh_steps": 4, "checkpoint_every": 4}
STILL = {"dropout": 0.0}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    tiny_shop.write_shop(folder)
    return folder


def run(world, folder, out, model, cache, killed=None, processes=1):
    """Train; `killed` is the process that ends itself by SIGKILL in a step, and the step."""
    if killed is not None and killed[0] == world.rank:
        _die_at(killed[1])
    config = tiny_shop.config(**QUICK, model=model, processes=processes)
    inputs = [folder / name for name in ("features", "clean", "profiles")]
    report = train(config, *inputs, folder, out / "package", cache, world)
    torch.save(report, out / f"{world.rank}.pt")


def _die_at(killed_step):
    draw = Sampler.draw

    def deadly(self, step):
        if step == killed_step:
            os.kill(os.getpid(), signal.SIGKILL)
        return draw(self, step)

    Sampler.draw = deadly


def many(size, tiny, out, model, cache, killed=None):
    return together(size, out, run, tiny, out, model, cache, killed, size)


def reports(out, size):
    return [torch.load(out / f"{rank}.pt", weights_only=False) for rank in range(size)]


def same_curves(one, other, rel):
    for curve in ("losses", "valid"):
        rows, others = getattr(one, curve), getattr(other, curve)
        assert [step for step, _ in rows] == [step for step, _ in others]
        for (_, row), (_, against) in zip(rows, others, strict=True):
            assert row == pytest.approx(against, rel=rel, abs=rel)


@pytest.fixture(scope="module")
def unbroken(tiny, tmp_path_factory):
    """Two processes, with dropout."""
    out = tmp_path_factory.mktemp("unbroken")
    codes, logs = many(2, tiny, out, {}, None)
    assert codes == [0, 0], logs
    return out


@pytest.fixture(scope="module")
def alone(tiny, tmp_path_factory):
    """One process, without dropout."""
    out = tmp_path_factory.mktemp("alone")
    codes, logs = many(1, tiny, out, STILL, None)
    assert codes == [0], logs
    return reports(out, 1)[0]


@pytest.mark.parametrize("killed", [(1, 5), (0, 9), (1, 13)], ids=str)
def test_a_killed_process_ends_the_other_and_the_run_goes_on_to_the_same_weights(tiny, tmp_path, unbroken, killed):
    """Killed while aligning, while fusing before a score, and after one."""
    died, killed_step = killed
    cache = tmp_path / "cache"
    codes, logs = many(2, tiny, tmp_path / "broken", {}, cache, killed)
    assert codes[died] == -signal.SIGKILL and codes[1 - died] == 1
    assert logs[1 - died].count("another process of this training has ended") == 1
    assert "goes on from the last checkpoint" in logs[1 - died] and "Traceback" not in logs[1 - died]
    assert not (tmp_path / "broken/package").exists()
    codes, logs = many(2, tiny, tmp_path / "resumed", {}, cache)
    assert codes == [0, 0], logs
    first, second = reports(tmp_path / "resumed", 2)
    assert first.resumed_from == second.resumed_from == killed_step // 4 * 4
    want = reports(unbroken, 2)[0]
    assert first.losses == want.losses == second.losses and first.valid == want.valid == second.valid
    ours, theirs = (load_file(out / "package/model.safetensors") for out in (tmp_path / "resumed", unbroken))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert first.fingerprint == second.fingerprint == want.fingerprint


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_a_killed_run_goes_on_with_another_number_of_processes(tiny, tmp_path, alone, before, after):
    cache = tmp_path / "cache"
    codes, _ = many(before, tiny, tmp_path / "broken", STILL, cache, (before - 1, 9))
    assert codes[-1] == -signal.SIGKILL
    codes, logs = many(after, tiny, tmp_path / "resumed", STILL, cache)
    assert codes == [0] * after, logs
    assert len(list((cache / "train").iterdir())) == 1
    assert all(row["hnst"] > 0 for step, row in alone.losses if step > 6), "hard negatives are in the curve"
    for report in reports(tmp_path / "resumed", after):
        assert report.resumed_from == 8
        same_curves(report, alone, rel=2e-3)


def test_two_processes_learn_what_one_learns(tiny, tmp_path, alone, unbroken):
    codes, logs = many(2, tiny, tmp_path, STILL, None)
    assert codes == [0, 0], logs
    first, second = reports(tmp_path, 2)
    assert first.losses == second.losses and first.fingerprint == package_fingerprint(tmp_path / "package")
    same_curves(first, alone, rel=2e-3)
    with pytest.raises(AssertionError):  # with dropout another is learned
        same_curves(reports(unbroken, 2)[0], alone, rel=2e-3)


def test_inputs_that_differ_between_processes_stop_the_run(tiny, tmp_path):
    codes, logs = together(2, tmp_path, _with_a_seed_of_its_own, tiny, tmp_path)
    assert codes == [1, 1] and "configuration, inputs or code differ between process 0 and process 1" in logs[0]


def _with_a_seed_of_its_own(world, folder, out):
    inputs = [folder / name for name in ("features", "clean", "profiles")]
    train(tiny_shop.config(**QUICK, seed=world.rank), *inputs, folder, out / "package", out / "cache", world)


def test_the_stage_starts_its_processes_and_registers_one_version(tmp_path):
    tiny_shop.write_shop(tmp_path / "data")
    train_section = tiny_shop.config(**QUICK, processes=2).model_dump(mode="json")
    params = {"snapshot": {"end": "2026-03-15"}, "train": train_section}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    environment = {key: value for key, value in os.environ.items() if key != "MRSE_QUIET"}
    done = subprocess.run(
        [sys.executable, "-m", "components.train", "--workspace", str(tmp_path)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("1050 examples, 128 items") == 1 and done.stderr.count("train: model version 1") == 1
    version = read_json(tmp_path / "models/challenger.json")
    services = configuration.parse(params).services.under(tmp_path)
    assert version["version"] == 1 and len(tracking.list_runs(services)) == 1
    assert version["fingerprint"] == package_fingerprint(tmp_path / "models/challenger")
    assert list((tmp_path / ".mrse/cache/train").iterdir()) == []
