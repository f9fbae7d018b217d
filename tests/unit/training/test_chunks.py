import numpy as np
import pytest
import torch
from torch.utils.checkpoint import checkpoint

from mrse.model.retriever import Retriever
from mrse.training import chunks
from mrse.training import steps as steps_module
from mrse.training.data import load_shop
from tests import tiny_shop

STILL = {"dropout": 0.0, "word_dropout": 0.0, "modality_dropout": 0.0, "history_dropout": 0.0}
RESTLESS = {"dropout": 0.3}
GIVEN = {"experts": {"vbert": False}, **STILL}  # whose only random bits are those of a given text encoder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    tiny_shop.write_shop(folder)
    return folder


@pytest.fixture(scope="module")
def text_encoder(tiny, tmp_path_factory):
    return tiny_shop.write_text_encoder(tmp_path_factory.mktemp("bert"), 300, hidden_dropout_prob=0.3)


def made(tiny, chunk_size, model, text_encoder=None):
    torch.manual_seed(0)
    config = tiny_shop.config(chunk_size=chunk_size, model=model)
    retriever = Retriever.create(config.model, tiny / "features", text_encoder)
    shop = load_shop(retriever, tiny / "features", tiny / "clean", tiny / "profiles", 0.7, 1000)
    retriever.model.train()
    return steps_module.Steps(config, retriever, shop)


def gradients(steps, phase):
    """Loss and dense gradients of one step."""
    banks = steps.refresh()
    torch.manual_seed(5)
    steps.model.zero_grad()
    loss = (steps.align(2) if phase == "align" else steps.fuse(2, banks))["loss"]
    loss.backward()
    grads = {name: p.grad.to_dense() for name, p in steps.model.named_parameters() if p.grad is not None}
    return float(loss.detach()), grads


def furthest(one, other):
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


@pytest.mark.parametrize("phase", ["align", "fuse"])
@pytest.mark.parametrize("chunk_size", [1, 7, 63])
def test_the_gradient_is_that_of_the_whole_batch(tiny, phase, chunk_size):
    whole_loss, whole = gradients(made(tiny, 0, STILL), phase)
    loss, chunked = gradients(made(tiny, chunk_size, STILL), phase)
    assert loss == pytest.approx(whole_loss, abs=1e-5)
    assert any(name.startswith("experts.each.vbert") for name in whole)
    assert max(float(g.abs().max()) for g in whole.values()) > 1e-2
    assert furthest(whole, chunked) < 1e-5


@pytest.mark.parametrize("given", [False, True])
def test_with_dropout_the_gradient_is_that_of_the_same_chunks_kept_in_memory(tiny, text_encoder, monkeypatch, given):
    """And only because each chunk gets its random bits again; of our own layers, or of a Hugging Face encoder."""
    kind = (GIVEN, text_encoder) if given else (RESTLESS, None)
    loss, cached = gradients(made(tiny, 16, *kind), "fuse")

    def kept(encode, anchor, **_):
        return encode(anchor)

    def forgetful(encode, anchor, use_reentrant, preserve_rng_state):
        return checkpoint(encode, anchor, use_reentrant=use_reentrant, preserve_rng_state=False)

    monkeypatch.setattr(chunks, "checkpoint", kept)
    kept_loss, plain = gradients(made(tiny, 16, *kind), "fuse")
    monkeypatch.setattr(chunks, "checkpoint", forgetful)
    _, wrong = gradients(made(tiny, 16, *kind), "fuse")
    assert loss == kept_loss
    assert any("encoder.encoder.layer" in name for name in plain) == given
    assert furthest(cached, plain) < 1e-6
    assert furthest(wrong, plain) > 1e-3


def kept_bytes(steps):
    """What the forward pass keeps for the backward one."""
    total = 0

    def pack(tensor):
        nonlocal total
        total += tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        steps.align(2)
    return total


def test_no_activation_of_the_experts_is_kept(tiny):
    assert kept_bytes(made(tiny, 8, STILL)) < 0.1 * kept_bytes(made(tiny, 0, STILL))


def test_rows_of_texts_are_those_of_a_smaller_batch(tiny):
    steps = made(tiny, 0, STILL)
    table, rows = steps.shop.item_texts, np.array([5, 90, 17, 44, 3])
    some, alone = table.batch(rows).rows(1, 4), table.batch(rows[1:4])
    for name in ("tokens_BL", "inside_BL"):
        assert torch.equal(getattr(some, name), getattr(alone, name))
    assert torch.equal(some.grams_UG[some.words_BW][:, : alone.words_BW.shape[1]], alone.grams_UG[alone.words_BW])
    assert len(some.grams_UG) == len(alone.grams_UG) and not some.grams_UG[0].any()
    with torch.no_grad():
        steps.model.eval()
        assert torch.allclose(steps.model.encode_texts(some), steps.model.encode_texts(alone), atol=1e-6)
