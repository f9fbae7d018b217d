"""Two real processes against one: losses, gradients, banks, mined negatives; and what happens when one is lost."""

import os
import time

import numpy as np
import pytest
import torch

from mrse.errors import TrainingFailed
from mrse.model.retriever import Retriever
from mrse.training.banks import Banks
from mrse.training.data import load_shop
from mrse.training.distributed import ALONE, World, _meeting, _own_random_bits, joined, start
from mrse.training.steps import Steps
from mrse.training.train import Run
from tests import tiny_shop
from tests.processes import together

PLAIN = {"dropout": 0.0}  # texts, pictures and histories are still hidden at random
STILL = PLAIN | {"word_dropout": 0.0, "modality_dropout": 0.0, "history_dropout": 0.0}
CASES = {
    "align": ("align", {"model": STILL}),
    "fuse": ("fuse", {"model": STILL}),
    "mined": ("fuse", {"model": STILL, "loss": {"mine": {"first": 2, "last": 30}}}),
    "prefixes": ("fuse", {"model": STILL, "loss": {"matryoshka": [8]}}),
    "chunks": ("fuse", {"model": STILL, "chunk_size": 7}),
    "hidden": ("fuse", {"model": PLAIN}),
    "no table": ("fuse", {"model": STILL | {"experts": {"ftatt": False}}}),
    "one row": ("fuse", {"model": STILL, "batch_size": 1, "self_pairs": 0.0}),
}
STEP = 2
SHORT = {"align_steps": 4, "fuse_steps": 8, "eval_every": 4, "bank_refresh_steps": 3, "min_rank": 1.0}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    tiny_shop.write_shop(folder)
    return folder


def made(tiny, config, world):
    torch.manual_seed(0)
    retriever = Retriever.create(config.model, tiny / "features")
    shop = load_shop(retriever, tiny / "features", tiny / "clean", tiny / "profiles", 0.7, 1000)
    retriever.model.fit_shop(shop.item_texts, shop.pictures.sample(100))
    retriever.model.train()
    return retriever, shop, Steps(config, retriever, shop, world)


def split_parameters(model):
    tables = {n: p for n, p in model.named_parameters() if n.endswith("grams.weight")}
    return [p for n, p in model.named_parameters() if n not in tables], list(tables.values())


def one_step(tiny, case, world, banks=None):
    """Loss, summed gradients, own gradients before the sum, and the banks of one case."""
    phase, changes = CASES[case]
    _, _, steps = made(tiny, tiny_shop.config(**changes), world)
    refreshed = steps.refresh()
    banks = refreshed if banks is None else Banks.of(banks, steps.model.device)
    banks.mined = steps.mine(banks, STEP)

    def loss():
        torch.manual_seed(5)
        steps.model.zero_grad()
        return (steps.align(STEP) if phase == "align" else steps.fuse(STEP, banks))["loss"]

    def gradients():
        return {n: p.grad.to_dense().clone() for n, p in steps.model.named_parameters() if p.grad is not None}

    value = loss()
    (value / world.size).backward()
    own = gradients()
    world.backward(loss(), *split_parameters(steps.model))
    mined = torch.zeros(0) if banks.mined is None else torch.from_numpy(banks.mined.item_XW)
    return {"loss": value.detach(), "gradients": gradients(), "own": own, "mined": mined} | {
        "items": refreshed.items_NEH,
        "queries": refreshed.queries_QEH,
    }


def lone_row(world):
    """The gradient of a layer that a batch of one row went through."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(3, 2)
    encoded, no_items = world.encode(lambda queries, items: layer(torch.ones(1, 3))[queries], 1, 0)
    world.backward(encoded.square().sum() + no_items.sum(), list(layer.parameters()), [])
    return layer.weight.grad


def every_case(world, tiny, banks, out):
    found = {case: one_step(tiny, case, world, banks[case]) for case in CASES} | {"lone row": lone_row(world)}
    torch.save(found, out / f"{world.rank}.pt")


@pytest.fixture(scope="module")
def alone(tiny):
    return {case: one_step(tiny, case, ALONE) for case in CASES}


@pytest.fixture(scope="module")
def both(tiny, alone, tmp_path_factory):
    """What each of two processes found, with the banks of one process in the loss."""
    out = tmp_path_factory.mktemp("both")
    banks = {case: {"items": found["items"], "queries": found["queries"]} for case, found in alone.items()}
    codes, logs = together(2, out, every_case, tiny, banks, out)
    assert codes == [0, 0], logs
    return [torch.load(out / f"{rank}.pt") for rank in range(2)]


def furthest(one, other):
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradients_are_those_of_one_process(alone, both, case):
    want = alone[case]
    assert max(float(g.abs().max()) for g in want["gradients"].values()) > 1e-2
    for found in both:
        assert float(found[case]["loss"]) == pytest.approx(float(want["loss"]), rel=1e-6, abs=1e-6)
        assert furthest(found[case]["gradients"], want["gradients"]) < 1e-5
    first, second = both
    assert furthest(first[case]["gradients"], second[case]["gradients"]) == 0.0


@pytest.mark.parametrize("case", ["align", "fuse"])
def test_no_process_has_the_whole_gradient_before_the_sum(alone, both, case):
    want = alone[case]["gradients"]
    for found in both:
        own = found[case]["own"]
        for part in ("light_bert", "vbert", "ftatt"):
            names = [name for name in own if part in name]
            gap = furthest({n: own[n] for n in names}, {n: want[n] for n in names})
            assert gap > 0.1 * max(float(want[n].abs().max()) for n in names)


def test_hard_negatives_are_in_the_loss(tiny, both):
    _, _, steps = made(tiny, tiny_shop.config(model=STILL), ALONE)
    banks = steps.refresh()
    torch.manual_seed(5)
    assert float(steps.fuse(STEP, banks)["hnst"].detach()) > 0
    logged, mined = both[0]["fuse"], both[0]["mined"]
    assert float(logged["loss"]) != float(mined["loss"])


def test_banks_and_mined_negatives_are_those_of_one_process(alone, both):
    for case in ("fuse", "mined"):
        for name in ("items", "queries"):
            first, second = (found[case][name] for found in both)
            assert first.dtype == torch.float16 and torch.equal(first, second)
            assert torch.allclose(first.float(), alone[case][name].float(), atol=1e-3)
    mined = alone["mined"]["mined"]
    assert int((mined >= 0).sum()) > 100
    for found in both:
        assert torch.equal(found["mined"]["mined"], mined)


def test_a_process_without_a_row_takes_part(both):
    assert World(0, 2).share(1) == slice(0, 0)
    want = lone_row(ALONE)
    assert float(want.abs().min()) > 0
    assert all(torch.allclose(found["lone row"], want, atol=1e-6) for found in both)


def whole_run(world, tiny, out):
    retriever, shop, _ = made(tiny, config := tiny_shop.config(**SHORT, model={"dropout": 0.3}), world)
    if world.rank:  # as on a machine whose random numbers differ
        torch.nn.init.normal_(retriever.model.experts.tower_TEHH)
    run = Run(config, retriever, shop, None, world)
    run.resume()
    run.go()
    bits = torch.rand(4)
    with _own_random_bits(world.rank):
        own = torch.rand(4)
    found = {"model": retriever.model.state_dict(), "losses": run.losses, "valid": run.valid, "own": own, "bits": bits}
    torch.save(found, out / f"{world.rank}.pt")


def test_with_dropout_the_processes_stay_in_step(tiny, tmp_path):
    codes, logs = together(3, tmp_path, whole_run, tiny, tmp_path)
    assert codes == [0, 0, 0], logs
    first, *others = (torch.load(tmp_path / f"{rank}.pt") for rank in range(3))
    for other in others:
        assert furthest(first["model"], other["model"]) == 0.0
        assert other["losses"] == first["losses"] and other["valid"] == first["valid"]
        assert torch.equal(other["bits"], first["bits"]) and not torch.equal(other["own"], first["own"])
    assert all(np.isfinite(value) for _, row in first["losses"] for value in row.values())
    assert [step for step, _ in first["valid"]] == [4, 8, 12]
    assert "step 12: recall" in logs[0] and logs[1] == logs[2] == ""


def test_shares_are_all_rows_once_and_alike():
    for size in (1, 2, 3, 7):
        for rows in (0, 1, 2, 6, 7, 100):
            shares = [list(range(rows))[World(rank, size).share(rows)] for rank in range(size)]
            assert [row for share in shares for row in share] == list(range(rows))
            assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_own_random_bits_leave_the_shared_stream_alone():
    torch.manual_seed(3)
    plain = torch.rand(3)
    torch.manual_seed(3)
    with _own_random_bits(1):
        torch.rand(50)
    assert torch.equal(torch.rand(3), plain)


def meet(world, tmp_path):
    """What processes say to one another, in numbers that are known."""
    rank = world.rank
    assert torch.equal(world.gather(torch.full((rank, 2), float(rank))), torch.tensor([[1.0, 1.0]]))
    assert torch.equal(world.sum(torch.tensor([rank, 1])), torch.tensor([1, 2]))
    assert world.from_first(lambda: f"made by {rank}") == "made by 0"
    made = {"half": torch.full((2, 1), rank, dtype=torch.float16), "counter": torch.tensor(rank + 7)}
    handed = world.tensors_from_first(made if world.first else {})
    assert handed["half"].tolist() == [[0.0], [0.0]] and handed["half"].dtype == torch.float16
    assert handed["counter"].item() == 7
    world.check_same("one", "values")
    world.check_same(f"value {rank}", "inputs")


def test_processes_that_differ_are_named(tmp_path):
    codes, logs = together(2, tmp_path, meet, tmp_path)
    assert codes == [1, 1]
    assert "train: process 0 of 2: inputs differ between process 0 and process 1; give every machine" in logs[0]


def silent(world):
    if world.first:
        world.gather(torch.zeros(1))
    time.sleep(5)


def test_a_process_that_does_not_answer_ends_the_others_in_time(tmp_path):
    codes, logs = together(2, tmp_path, silent, timeout_s=2.0)
    assert codes[0] == 1 and "did not answer within train.process_timeout_seconds" in logs[0]


def test_only_a_lost_process_is_told_as_one():
    for lost in (
        RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer"),
        torch.distributed.DistBackendError("NCCL error"),
    ):
        with pytest.raises(TrainingFailed, match="another process of this training has ended"), _meeting():
            raise lost
    for fault in (RuntimeError("Invalid scalar type"), torch.OutOfMemoryError("CUDA out of memory")):
        with pytest.raises(type(fault), match=str(fault)), _meeting():
            raise fault


def test_a_process_whose_others_never_come_says_so(monkeypatch):
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(TrainingFailed, match="cannot meet the other processes"), joined(1.0):
        pass
    monkeypatch.delenv("RANK")
    with pytest.raises(TrainingFailed, match="start all of them with torchrun"), joined(1.0):
        pass


def launch(world, how):
    os.environ.pop("OMP_NUM_THREADS", None)
    torch.set_num_threads(4)
    start(2, "tests.ending", how)


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("killed", "train: process 1 of 2 was ended by SIGKILL; run again: training goes on"),
        ("failed", "train: process 1 of 2 has failed; its own message says why"),
        ("stopped", "train: stopped by SIGTERM; run again: training goes on"),
    ],
)
def test_a_started_process_that_ends_ends_all(tmp_path, how, says):
    codes, (log,) = together(1, tmp_path, launch, how)
    assert codes == [1] and log.splitlines()[-1].startswith(says), log
    assert log.count("train:") == 1 and "Traceback" not in log


def test_started_processes_share_the_threads(tmp_path):
    codes, (log,) = together(1, tmp_path, launch, "well")
    assert codes == [0] and sorted(log.splitlines()) == ["0 2 2", "1 2 2"]


def taken(world):
    """Which queries and items of a batch of 8 and 6 this process encodes."""
    own = []

    def encode(queries, items):
        own.append((queries, items))
        return torch.zeros(queries.stop - queries.start + items.stop - items.start, 1, requires_grad=True)

    asked, titled = world.encode(encode, 8, 6)
    assert (len(asked), len(titled)) == (8, 6)
    assert own == [(slice(4 * world.rank, 4 * world.rank + 4), slice(3 * world.rank, 3 * world.rank + 3))]


def test_every_process_encodes_queries_and_items(tmp_path):
    codes, logs = together(2, tmp_path, taken)
    assert codes == [0, 0], logs
