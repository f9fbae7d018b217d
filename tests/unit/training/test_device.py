"""What must be true of any device, on a made-up one (`tests.far_device`) and, where there is one, on a GPU."""

from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
import torch
from torch.utils.checkpoint import checkpoint as computed_twice

from mrse.config import ImageEncoderConfig
from mrse.device import CPU, pick
from mrse.errors import ConfigError
from mrse.features.pretrain import pretrain
from mrse.model.arrays import History, HistoryBank
from mrse.model.experts import Block
from mrse.model.retriever import Retriever
from mrse.training import checkpoint, chunks
from mrse.training import train as training
from mrse.training.data import load_shop
from mrse.training.optimiser import Optimisers
from mrse.training.steps import Steps
from mrse.training.train import Run
from tests import tiny_shop
from tests.far_device import far_away
from tests.processes import together

SHORT = {"align_steps": 3, "fuse_steps": 4, "eval_every": 2, "bank_refresh_steps": 2, "min_rank": 1.0}
FULL = {"chunk_size": 17, "loss": {"matryoshka": [8], "mine": {"first": 2, "last": 30}}}
CLOSE = 1e-4


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    tiny_shop.write_shop(folder)
    return folder


def made(tiny, config, device):
    torch.manual_seed(0)
    retriever = Retriever.create(config.model, tiny / "features")
    shop = load_shop(retriever, tiny / "features", tiny / "clean", tiny / "profiles", 0.7, 1000)
    retriever.model.fit_shop(shop.item_texts, shop.pictures.sample(100))
    return retriever.to(device), shop


def losses(tiny, config, device, steps=5):
    """Of the first steps of both phases, each learning from the one before."""
    retriever, shop = made(tiny, config, device)
    work, optimisers = Steps(config, retriever, shop), Optimisers(config, retriever.model)
    banks = work.refresh()
    banks.mined = work.mine(banks, 0)
    retriever.model.train()
    found = []
    for step in range(2 * steps):
        torch.manual_seed(step)
        parts = work.align(step) if step < steps else work.fuse(step, banks)
        optimisers.step(parts["loss"], config.align_steps)
        found.append([float(value.detach()) for value in parts.values()])
    return np.concatenate(found)


def far_steps(world, tiny):
    with far_away() as device:
        for changes in ({}, FULL):
            config = tiny_shop.config(**changes, model={"dropout": 0.0})
            there, here = (losses(tiny, config, where, steps=3) for where in (device, CPU))
            assert np.abs(there - here).max() < CLOSE, np.abs(there - here)


def far_mistakes(world, tiny):
    with far_away() as device:
        config = tiny_shop.config()
        retriever, shop = made(tiny, config, device)
        work = Steps(config, retriever, shop)
        banks = work.refresh()
        with pytest.raises(RuntimeError, match="two devices"):
            work.fuse(0, replace(banks, items_NEH=banks.items_NEH.cpu()))
        with pytest.raises(RuntimeError, match="numpy"):
            banks.items_NEH.numpy()
        with work.precision():
            assert not torch.is_autocast_enabled(device.type)
        work = Steps(config.model_copy(update={"precision": "bfloat16"}), retriever, shop)
        with work.precision():
            assert torch.is_autocast_enabled(device.type) and not torch.is_autocast_enabled("cpu")


def far_run(world, tiny, out):
    """A run on the far device until its fifth step, gone on with on the CPU, and the other way round."""
    config = tiny_shop.config(**SHORT, model={"dropout": 0.0}, loss=FULL["loss"], checkpoint_every=1)
    with far_away() as device:
        runs = {}
        for name, (first, second) in {"far": (device, CPU), "near": (CPU, device), "here": (CPU, CPU)}.items():
            folder = out / name
            broken = Run(config, *made(tiny, config, first), folder)
            broken.model.train()
            for step in range(5):
                broken._one(step)
                broken._step = step + 1
            broken._read()
            checkpoint.save(folder, broken._state())
            retriever, shop = made(tiny, config, second)
            run = Run(config, retriever, shop, folder)
            run.resume()
            assert run.resumed_from == 5
            run.go()
            retriever.save(out / f"{name}-package")
            runs[name] = run
        for name in ("far", "near"):
            for curve in ("losses", "valid"):
                for (step, row), (_, other) in zip(
                    getattr(runs[name], curve), getattr(runs["here"], curve), strict=True
                ):
                    assert row == pytest.approx(other, rel=5e-3, abs=5e-3), (name, step)


def far_dropout(world, tiny):
    """Follows from the step, chunks included: the second time through the experts draws the bits of the first."""
    with far_away() as device:
        first, second = (losses(tiny, tiny_shop.config(chunk_size=17), device, steps=2) for _ in range(2))
        still = losses(tiny, tiny_shop.config(model={"dropout": 0.0}), device, steps=2)
        assert np.array_equal(first, second) and np.abs(first - still).max() > 1e-2


def given_text_encoder(tiny, out, device):
    """It draws its dropout on the device itself: chunks computed twice still give the gradient of chunks kept in
    memory.
    """
    bert = tiny_shop.write_text_encoder(out / "bert", 300, hidden_dropout_prob=0.3, attn_implementation="eager")
    still = {"dropout": 0.0, "word_dropout": 0.0, "experts": {"vbert": False, "ftatt": False}}
    config = tiny_shop.config(chunk_size=17, model=still)

    def gradient():
        torch.manual_seed(0)
        retriever = Retriever.create(config.model, tiny / "features", bert)
        shop = load_shop(retriever, tiny / "features", tiny / "clean", tiny / "profiles", 0.7, 1000)
        work = Steps(config, retriever.to(device), shop)
        retriever.model.train()
        torch.manual_seed(1)
        work.align(0)["loss"].backward()
        return retriever.model.experts.each["light_bert"].encoder.encoder.layer[0].output.dense.weight.grad.cpu()

    twice = gradient()
    with mock.patch.object(chunks, "checkpoint", lambda encode, anchor, **_: encode(anchor)):
        once = gradient()
    # Without a tensor that names the device, torch puts back the bits of the CPU and of no other.
    with mock.patch.object(chunks, "checkpoint", lambda encode, _, **how: computed_twice(encode, 0, **how)):
        wrong = gradient()
    assert float((twice - once).abs().max()) < 1e-6
    assert float((wrong - once).abs().max()) > 1e-4


def far_text_encoder(world, tiny, out):
    with far_away() as device:
        given_text_encoder(tiny, out, device)


def far_package(world, tiny, out):
    """Embedding, with histories; the package of a model says nothing of its device."""
    with far_away() as device:
        config = tiny_shop.config()
        near, _ = made(tiny, config, CPU)
        near.save(out / "near")
        catalogue = replace(tiny_shop.catalogue(), queries=[["red", "boots"]] * 128, query_weights=[[2.0, 1.0]] * 128)
        encoded = near.encode_catalogue(catalogue)
        bank = HistoryBank(encoded.item_ids, encoded.bank)
        history = History(bank.item_ids[:3], ["click"] * 3, [1.0, 2.0, 3.0])

        def embedded(retriever):
            vectors = retriever.encode_queries(["red shirt", "boots"], [history, None], bank)
            return [*vars(retriever.encode_catalogue(catalogue)).values()][1:], vectors

        far = Retriever.load(out / "near").to(device)
        assert far.model.device == device
        (here, queries), (there, far_queries) = embedded(Retriever.load(out / "near")), embedded(far)
        for one, other in zip([*here, queries], [*there, far_queries], strict=True):
            assert one.dtype == other.dtype and np.abs(one.astype(np.float32) - other.astype(np.float32)).max() < 1e-3
        far.save(out / "far")
        assert far.fingerprint == near.fingerprint


def far_pretraining(world):
    settings = {"patch_size": 16, "dim": 32, "depth": 1, "heads": 2, "pretrain_steps": 4, "pretrain_batch": 16}
    config = ImageEncoderConfig(image_size=32, **settings)
    pixels = np.random.default_rng(0).integers(0, 255, (40, 32, 32, 3), dtype=np.uint8)
    texts = [f"thing {number % 7}" for number in range(40)], ["a"] * 40, [[f"q{number}"] for number in range(40)]
    with far_away() as device:
        there, here = (pretrain(pixels, *texts, config, 3, where).encode_pixels(pixels) for where in (device, CPU))
        assert np.abs(there.astype(np.float32) - here.astype(np.float32)).max() < 1e-2


@pytest.mark.parametrize("work", [far_steps, far_mistakes, far_dropout], ids=lambda work: work.__name__)
def test_steps_on_another_device(tiny, tmp_path, work):
    codes, logs = together(1, tmp_path, work, tiny)
    assert codes == [0], logs


@pytest.mark.parametrize("work", [far_run, far_text_encoder, far_package], ids=lambda work: work.__name__)
def test_runs_and_packages_on_another_device(tiny, tmp_path, work):
    codes, logs = together(1, tmp_path, work, tiny, tmp_path)
    assert codes == [0], logs


def test_pretraining_on_another_device(tmp_path):
    codes, logs = together(1, tmp_path, far_pretraining)
    assert codes == [0], logs


def test_a_device_that_is_not_there_is_a_clear_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick("auto") == pick("cpu") == CPU
    with pytest.raises(ConfigError, match="finds no GPU here; set it to auto or cpu"):
        pick("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert pick("cpu") == CPU and pick("auto") == pick("cuda") == torch.device("cuda", 1)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ConfigError, match="process 2 of this machine has no GPU of its own, there are 2"):
        pick("auto")


def test_the_device_is_no_part_of_a_run(tiny, tmp_path, monkeypatch):
    """A checkpoint made elsewhere is found: the same run, however it is computed."""
    keys = []
    monkeypatch.setattr(checkpoint, "run_key", lambda settings, files: keys.append(settings) or "key")
    monkeypatch.setattr(training.Run, "go", lambda run: (_ for _ in ()).throw(KeyboardInterrupt))
    data = {name: tiny / name for name in ("features", "clean", "profiles")}
    for changes in ({"device": "auto"}, {"device": "cpu", "compile": True, "processes": 2}):
        with pytest.raises(KeyboardInterrupt):
            training.train(
                tiny_shop.config(**changes), **data, workspace=tiny, out=tmp_path / "out", cache_dir=tmp_path
            )
    assert len(keys) == 2 and len(set(keys)) == 1


def test_compiled_layers_give_the_same_losses(tiny, monkeypatch):
    """By the compiler's front alone: generating code takes a minute."""
    config = tiny_shop.config(model={"dropout": 0.0})
    plain = losses(tiny, config, CPU, steps=2)
    compiled = []

    def front(block, dynamic):
        compiled.append(block)
        torch.nn.Module.compile(block, dynamic=dynamic, backend="aot_eager")

    monkeypatch.setattr(Block, "compile", front)
    create = Retriever.create

    def created(*args):
        retriever = create(*args)
        names = list(retriever.model.state_dict())
        retriever.model.compile_layers()
        assert list(retriever.model.state_dict()) == names
        return retriever

    monkeypatch.setattr(Retriever, "create", created)
    assert np.abs(losses(tiny, config, CPU, steps=2) - plain).max() < CLOSE
    assert len(compiled) == 2  # one layer each of VBert and Light-Bert


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU (torch.cuda)")
@pytest.mark.parametrize("changes", [{}, FULL], ids=["plain", "full"])
def test_losses_of_a_gpu_are_those_of_the_cpu(tiny, changes):
    config = tiny_shop.config(**changes, model={"dropout": 0.0})
    assert np.abs(losses(tiny, config, pick("cuda")) - losses(tiny, config, CPU)).max() < 5e-3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU (torch.cuda)")
def test_dropout_on_a_gpu_follows_from_the_seed(tiny):
    config = tiny_shop.config(chunk_size=17)
    first, second = (losses(tiny, config, pick("cuda")) for _ in range(2))
    assert np.abs(first - second).max() < 5e-3
    still = losses(tiny, tiny_shop.config(model={"dropout": 0.0}), pick("cuda"))
    assert np.abs(first - still).max() > 1e-2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU (torch.cuda)")
def test_a_given_text_encoder_draws_the_same_bits_twice_on_a_gpu(tiny, tmp_path):
    given_text_encoder(tiny, tmp_path, pick("cuda"))
