import math

import pytest
import torch
from torch.nn import functional as F

from mrse.model.loss import hnst, mnsce


def unit(*shape, seed=0):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def naive_mnsce(query, candidate, target, temperature, log_q, excluded, weight):
    total = 0.0
    for b in range(len(query)):
        logits = {}
        for c in range(len(candidate)):
            if not excluded[b][c]:
                cosine = sum(float(x) * float(y) for x, y in zip(query[b], candidate[c], strict=True))
                logits[c] = cosine / temperature - float(log_q[c])
        log_sum = math.log(sum(math.exp(value) for value in logits.values()))
        total += float(weight[b]) * (log_sum - logits[int(target[b])])
    return total / float(weight.sum())


def naive_hnst(query, positive, negative, known, margin, weight):
    total = used = 0.0
    for b in range(len(query)):
        terms = [
            max(0.0, margin - float(query[b] @ positive[b]) + float(query[b] @ negative[b][k]))
            for k in range(negative.shape[1])
            if known[b][k]
        ]
        if terms:
            total += float(weight[b]) * sum(terms) / len(terms)
            used += float(weight[b])
    return total / used


def test_mnsce_is_its_formula():
    query, candidate = unit(5, 8), unit(9, 8, seed=1)
    target = torch.tensor([0, 3, 3, 8, 1])
    log_q, weight = torch.randn(9), torch.rand(5) + 0.1
    excluded = torch.rand(5, 9) < 0.4
    excluded[torch.arange(5), target] = False
    got = mnsce(query, candidate, target, 0.1, log_q, excluded, weight)
    assert float(got) == pytest.approx(naive_mnsce(query, candidate, target, 0.1, log_q, excluded, weight), rel=1e-5)


def test_gradient_of_mnsce_is_that_of_the_formula():
    query, candidate = unit(3, 4).double().requires_grad_(), unit(5, 4, seed=1).double().requires_grad_()
    excluded = torch.zeros(3, 5, dtype=torch.bool)
    excluded[0, 4] = True

    def loss(q, c):
        return mnsce(q, c, torch.tensor([0, 1, 2]), 0.2, torch.arange(5.0).double(), excluded)

    assert torch.autograd.gradcheck(loss, (query, candidate))


def test_an_excluded_candidate_changes_nothing_and_gets_no_gradient():
    query, target = unit(2, 4), torch.tensor([0, 1])
    candidate = unit(4, 4, seed=1).requires_grad_()
    excluded = torch.zeros(2, 4, dtype=torch.bool)
    excluded[:, 3] = True
    loss = mnsce(query, candidate, target, 0.1, None, excluded)
    alone = mnsce(query, candidate[:3], target, 0.1)
    assert loss.item() == pytest.approx(alone.item(), rel=1e-6)
    loss.backward()
    assert candidate.grad[3].abs().max() == 0 and candidate.grad[2].abs().max() > 0


def test_an_often_drawn_negative_is_pushed_less():
    """The sign of logQ: the more often a candidate is expected, the smaller its share of the softmax."""
    query, candidate, target = unit(1, 4), unit(3, 4, seed=1).requires_grad_(), torch.tensor([0])

    def push(log_q):
        (gradient,) = torch.autograd.grad(mnsce(query, candidate, target, 0.5, torch.tensor(log_q)), candidate)
        return float(gradient[1].norm())

    assert push([0.0, 2.0, 0.0]) < push([0.0, 0.0, 0.0]) < push([0.0, -2.0, 0.0])


def test_logq_makes_the_sampled_loss_estimate_the_full_softmax():
    """Sampling by popularity: the mean gradient is near the full one with the correction, not without or reversed."""
    generator = torch.Generator().manual_seed(0)
    query, items = unit(1, 6), unit(50, 6, seed=2)
    popularity = torch.softmax(3.0 * (items @ query[0]) + torch.randn(50, generator=generator), dim=0)
    target = 7

    def gradient(candidates, log_q):
        q = query.clone().requires_grad_()
        mnsce(q, items[candidates], torch.tensor([0]), 0.5, log_q).backward()
        return q.grad[0]

    others = torch.tensor([i for i in range(50) if i != target])
    full = gradient(torch.cat([torch.tensor([target]), others]), None)
    share = popularity[others] / popularity[others].sum()
    errors = {}
    for name, sign in (("right", 1.0), ("none", 0.0), ("wrong", -1.0)):
        total = torch.zeros(6)
        for _ in range(300):
            drawn = torch.multinomial(share, 20, replacement=True, generator=generator)
            # Expected count of each negative in the sample; the target is in every sample once.
            log_q = torch.cat([torch.zeros(1), (20 * share[drawn]).log()]) * sign
            total += gradient(torch.cat([torch.tensor([target]), others[drawn]]), log_q)
        errors[name] = float((total / 300 - full).norm() / full.norm())
    assert errors["right"] < 0.1 < errors["none"] < errors["wrong"]


def test_more_negatives_never_lower_the_loss():
    query, candidate, target = unit(4, 8), unit(64, 8, seed=3), torch.arange(4)
    losses = [float(mnsce(query, candidate[:count], target, 0.1)) for count in (4, 8, 16, 64)]
    assert losses == sorted(losses)


def test_wrong_arguments_are_refused():
    query, candidate = unit(2, 4), unit(3, 4)
    excluded = torch.tensor([[True, False, False], [False, False, False]])
    with pytest.raises(ValueError, match="own positive is excluded"):
        mnsce(query, candidate, torch.tensor([0, 1]), 0.1, None, excluded)
    with pytest.raises(ValueError, match="do not fit 2 queries and 3 candidates"):
        mnsce(query, candidate, torch.tensor([0, 1]), 0.1, torch.zeros(2))
    with pytest.raises(ValueError, match="do not fit 2 queries and 3 candidates"):
        mnsce(query, candidate, torch.tensor([0, 1]), 0.1, None, excluded[:, :2])
    with pytest.raises(ValueError, match="do not fit negatives"):
        hnst(query, query, unit(2, 3, 4), torch.ones(2, 2, dtype=torch.bool), 0.1)


def test_hnst_is_its_formula():
    query, positive, negative = unit(6, 8), unit(6, 8, seed=1), unit(6, 3, 8, seed=2)
    known = torch.tensor([[1, 1, 1], [0, 0, 0], [1, 0, 0], [0, 1, 1], [1, 1, 0], [0, 0, 1]], dtype=torch.bool)
    weight = torch.rand(6) + 0.1
    got = float(hnst(query, positive, negative, known, 0.2, weight))
    assert got == pytest.approx(naive_hnst(query, positive, negative, known, 0.2, weight), rel=1e-5)
    assert float(hnst(query, positive, negative, known, 0.2)) == pytest.approx(
        naive_hnst(query, positive, negative, known, 0.2, torch.ones(6)), rel=1e-5
    )


def test_hnst_without_any_negative_is_zero_with_a_zero_gradient():
    query = unit(3, 4).requires_grad_()
    loss = hnst(query, unit(3, 4, seed=1), unit(3, 2, 4, seed=2), torch.zeros(3, 2, dtype=torch.bool), 0.5)
    loss.backward()
    assert loss.item() == 0.0
    assert float(query.grad.abs().max()) == 0.0


def test_hnst_is_content_once_the_margin_is_kept():
    query = torch.tensor([[1.0, 0.0]])
    negative, known = torch.tensor([[[0.0, 1.0]]]), torch.ones(1, 1, dtype=torch.bool)
    assert float(hnst(query, query, negative, known, 0.9)) == 0.0
    assert float(hnst(query, query, negative, known, 1.5)) == pytest.approx(0.5)
