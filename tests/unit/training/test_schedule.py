import pytest

from mrse.config import LossConfig, TrainConfig
from mrse.training.optimiser import rate
from mrse.training.steps import hard_share

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
