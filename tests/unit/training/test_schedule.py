import pytest
import torch
import transformers
from torch.nn import functional as F

from mrse.config import ExpertsConfig, LossConfig, TrainConfig
from mrse.model.towers import Mrse
from mrse.training.optimiser import Optimisers, rate
from mrse.training.steps import hard_share
from tests import tiny_shop

CONFIG = TrainConfig(align_steps=100, fuse_steps=200, warmup_share=0.1, expert_learning_rate_share=0.3)


def test_experts_rise_then_fall_and_go_on_where_they_were():
    shares = [rate(CONFIG, step, experts=True) for step in range(300)]
    assert shares[0] < 0.1 and max(shares) == pytest.approx(1.0)
    assert shares.index(max(shares)) == 10
    assert shares[99] == pytest.approx(shares[100], abs=0.01) == pytest.approx(0.3, abs=0.01)
    assert shares[99:] == sorted(shares[99:], reverse=True)
    assert 0 < shares[-1] < 0.02


def test_the_fusion_has_a_rise_of_its_own():
    shares = [rate(CONFIG, step, experts=False) for step in range(100, 300)]
    assert shares[0] < 0.1 and max(shares) == pytest.approx(1.0) and shares[-1] < 0.06


def test_without_a_first_phase_the_experts_train_at_full_rate():
    alone = CONFIG.model_copy(update={"align_steps": 0})
    assert max(rate(alone, step, experts=True) for step in range(200)) == pytest.approx(1.0)


def test_the_share_of_hard_negatives_goes_straight_from_start_to_end_over_the_second_phase():
    loss = LossConfig.model_validate({"hard_share": {"start": 0.2, "end": 1.0}})
    config = TrainConfig(align_steps=3, fuse_steps=5, loss=loss)
    shares = [hard_share(config, step) for step in range(3, 8)]
    assert shares == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    one_step = config.model_copy(update={"fuse_steps": 1})
    assert hard_share(one_step, 3) == 0.2
    assert [hard_share(TrainConfig(), step) for step in (0, 300, 512, 899)] == [1.0] * 4


def test_a_given_text_encoder_learns_at_its_own_share_of_the_rate():
    settings = transformers.BertConfig(
        vocab_size=50, hidden_size=24, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    given = transformers.BertModel(settings, add_pooling_layer=False)
    without_table = tiny_shop.config().model.model_copy(update={"experts": ExpertsConfig(ftatt=False)})
    model = Mrse(without_table, 50, 500, 6, 2, given)
    config = tiny_shop.config().model_copy(update={"text_encoder_learning_rate_share": 0.5})
    optimisers = Optimisers(config, model)
    before = {name: value.clone() for name, value in model.named_parameters()}
    loss = sum(parameter.sum() for parameter in model.parameters())
    optimisers.step(loss, config.align_steps // 2)
    moved = {name: float((value - before[name]).abs().max()) for name, value in model.named_parameters()}
    # Adam's first step has the size of the learning rate, whatever the gradient.
    encoder = moved["experts.each.light_bert.encoder.encoder.layer.0.output.dense.bias"]
    assert encoder == pytest.approx(0.5 * moved["experts.each.vbert.adaptor.0.bias"], rel=0.01)


def test_ngrams_learn_at_their_own_share_of_the_experts_rate():
    model = Mrse(tiny_shop.config().model, 50, 500, 6, 2)
    config = tiny_shop.config(ngram_learning_rate_share=0.4)
    optimisers, table = Optimisers(config, model), model.experts.each["ftatt"].grams.weight
    before, adaptor = table.detach().clone(), model.experts.each["vbert"].adaptor[0].bias
    start, step = adaptor.detach().clone(), config.align_steps // 2
    used = torch.tensor([3, 70])
    optimisers.step(F.embedding(used, table, sparse=True).sum() + adaptor.sum(), step)
    moved = (table.detach() - before).abs().amax(dim=1)
    assert moved.nonzero().flatten().tolist() == used.tolist()
    # The first step of Adam has the size of the learning rate, whatever the gradient.
    assert float(moved.max()) == pytest.approx(0.4 * float((adaptor.detach() - start).abs().max()), rel=0.01)
