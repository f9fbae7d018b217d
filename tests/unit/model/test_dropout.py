import torch

from mrse.model.dropout import Dropout


def test_a_share_is_dropped_and_the_rest_scaled_up():
    torch.manual_seed(0)
    out = Dropout(0.1)(torch.ones(1000, 1000))
    assert abs(float((out == 0).float().mean()) - 0.1) < 2e-3
    assert abs(float(out.mean()) - 1.0) < 2e-3 and len(out.unique()) == 2


def test_the_gradient_goes_where_the_numbers_went():
    x = torch.randn(50, 50, requires_grad=True)
    out = Dropout(0.5)(x)
    out.sum().backward()
    assert torch.equal(out, x * x.grad)


def test_the_bits_follow_from_torchs_generator():
    x, dropout = torch.ones(100), Dropout(0.5)
    state = torch.get_rng_state()
    first, second = dropout(x), dropout(x)
    torch.set_rng_state(state)
    assert torch.equal(dropout(x), first) and not torch.equal(first, second)


def test_outside_training_and_at_zero_nothing_happens():
    x = torch.ones(3)
    assert Dropout(0.5).eval()(x) is x and Dropout(0.0)(x) is x
