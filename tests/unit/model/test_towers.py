import pytest
import torch
from torch.nn import functional as F

from mrse.config import ModelConfig
from mrse.model.arrays import action_code, age_bucket
from mrse.model.history import ItemHistory, Memory, ShopperHistory, TargetAttention, Taste
from mrse.model.towers import Mrse, set_apart

E, H = 3, 8
SMALL = ModelConfig(dim=12, hidden=H, heads=2, layers=1, dropout=0.0)


def unit(*shape, seed=0):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def shopper(memory, known):
    codes = torch.zeros(known.shape, dtype=torch.long)
    return Memory(memory, known, action_BM=codes + 1, age_BM=codes + 2)


def model(**switches):
    torch.manual_seed(0)
    built = Mrse(SMALL.model_copy(update=switches), 50, 100, 4, 2).eval()
    for parameter in built.parameters():  # zeros would hide what a test looks for
        if parameter.abs().sum() == 0:
            torch.nn.init.normal_(parameter, std=0.3)
    return built


def test_attention_is_its_formula():
    torch.manual_seed(0)
    attention = TargetAttention(E, H)
    torch.nn.init.normal_(attention.nothing_EH)
    target, memory, bias = unit(2, E, H), unit(2, 4, E, H, seed=1), torch.randn(2, 4, E)
    known = torch.tensor([[True, True, False, True], [False, False, False, False]])
    got = attention(target, memory, bias, known)
    for b in range(2):
        for e in range(E):
            logits, values = [attention.nothing_logit_E[e]], [attention.nothing_EH[e]]
            for m in range(4):
                if known[b, m]:
                    logits.append(target[b, e] @ attention.look_EHH[e] @ memory[b, m, e] + bias[b, m, e])
                    values.append(memory[b, m, e])
            shares = torch.softmax(torch.stack(logits), dim=0)
            expected = sum(share * value for share, value in zip(shares, values, strict=True))
            assert torch.allclose(got[b, e], expected, atol=1e-5)


def test_taste_is_its_formula():
    taste = Taste(E, H)
    torch.nn.init.normal_(taste.usual_EH)
    apart = torch.randn(E * H, E * H)
    taste.metric_WW.copy_(apart.T @ apart / (E * H))
    memory, bias = unit(2, 4, E, H), torch.randn(2, 4, E, generator=torch.Generator().manual_seed(1))
    known = torch.tensor([[True, True, False, True], [False, False, False, False]])
    got = taste(memory, bias, known)
    means = []
    for e in range(E):
        weight = bias[0, :, e].exp() * known[0]
        means.append((weight[:, None] * (memory[0, :, e] - taste.usual_EH[e])).sum(dim=0) / (weight.sum() + 2.0))
    assert torch.allclose(got[0].flatten(), taste.metric_WW @ torch.cat(means), atol=1e-5)
    assert (got[1] == 0).all()


def test_what_sets_things_apart_is_not_their_kind():
    """Two axes tell kinds apart, a third tells colours: the map keeps the third alone."""
    kind, colour = torch.arange(400) % 4, torch.linspace(-2.0, 2.0, 100).repeat_interleave(4)
    things = torch.stack([(kind % 2).float(), (kind // 2).float(), colour, torch.zeros(400)], dim=1)
    apart = set_apart(things, kind)
    assert torch.allclose(apart, torch.diag(torch.tensor([0.0, 0.0, 1.0, 0.0])), atol=0.1)
    assert set_apart(things, torch.zeros(400))[0, 0] > 0.9  # one kind: everything sets apart


def test_taste_starts_from_what_things_have_beyond_their_kind():
    """A shopper who took red shoes and asks for shirts is shown red ones first, and no shoes."""
    kinds, colours = torch.eye(16)[:6], torch.eye(16)[6:11]
    things = F.normalize(kinds[:, None] + colours, dim=2).flatten(0, 1)  # row 5 * kind + colour
    towers = Mrse(SMALL.model_copy(update={"dim": 16 * E, "hidden": 16}), 50, 100, 4, 2).eval()
    bank = things[:, None].repeat(1, E, 1)
    towers.start_fusion(bank, torch.arange(6).repeat_interleave(5))
    towers.query_tower.history.echo_E.data.zero_()  # not what fits the query
    took = bank[[2, 7, 22, 27]][None]  # colour 2, of the kinds 0, 1, 4 and 5
    shirts = kinds[2].repeat(1, E, 1)
    vector = towers.fuse_queries(shirts, shopper(took, torch.ones(1, 4, dtype=torch.bool))).vector_BD
    nothing = Memory(bank[:, None], torch.zeros(30, 1, dtype=torch.bool), weight_BM=torch.zeros(30, 1))
    ranked = (vector @ towers.fuse_items(bank, nothing).vector_BD.T)[0].argsort(descending=True).tolist()
    assert ranked[0] == 5 * 2 + 2 and set(ranked[:5]) == set(range(10, 15))


def test_what_is_not_known_has_no_say():
    history = ShopperHistory(E, H)
    memory = unit(1, 3, E, H, seed=1)
    known = torch.tensor([[True, False, False]])
    other = memory.clone()
    other[:, 1:] = 5.0
    assert torch.equal(history(unit(1, E, H), shopper(memory, known)), history(unit(1, E, H), shopper(other, known)))


@pytest.mark.parametrize("half", [slice(None, E), slice(E, None)], ids=["fit", "taste"])
def test_actions_and_ages_count(half):
    """For what fits the query and for the taste, each by itself."""
    torch.manual_seed(0)
    history = ShopperHistory(E, H)
    history.taste.metric_WW.copy_(torch.eye(E * H))
    torch.nn.init.normal_(history.action.weight[:, half])
    torch.nn.init.normal_(history.age.weight[:, half])
    memory, known = unit(1, 2, E, H, seed=1), torch.ones(1, 2, dtype=torch.bool)
    base = torch.tensor([[1, 2]])
    outs = [
        history(unit(1, E, H), Memory(memory, known, action_BM=actions, age_BM=ages))
        for actions, ages in ((base, base), (base.flip(1), base), (base, base.flip(1)))
    ]
    assert not torch.allclose(outs[0], outs[1]) and not torch.allclose(outs[0], outs[2])


def test_without_ages_no_age_is_ever_learned():
    history = ShopperHistory(E, H, ages=False)
    history.taste.metric_WW.copy_(torch.eye(E * H))
    memory, known, codes = unit(1, 2, E, H, seed=1), torch.ones(1, 2, dtype=torch.bool), torch.tensor([[1, 2]])
    history(unit(1, E, H), Memory(memory, known, action_BM=codes, age_BM=codes)).square().sum().backward()
    assert history.age.weight.grad is None and not history.age.weight.any()
    assert history.action.weight.grad.any()


def test_the_query_says_how_much_of_the_past_is_added():
    history = ShopperHistory(E, H)
    history.taste.metric_WW.copy_(torch.eye(E * H))
    query, past = unit(2, E, H), shopper(unit(2, 3, E, H, seed=1), torch.ones(2, 3, dtype=torch.bool))
    whole = history(query, past)  # all of it, until something is learned
    torch.nn.init.normal_(history.trust.weight)
    torch.nn.init.normal_(history.trust.bias)
    trust = 2.0 / (1.0 + torch.exp(-(query.flatten(1) @ history.trust.weight[0] + history.trust.bias)))
    assert abs(float((trust[0] - trust[1]).detach())) > 0.1
    assert torch.allclose(history(query, past), trust[:, None, None] * whole, atol=1e-6)


def test_weights_count():
    torch.manual_seed(0)
    memory, known = unit(1, 2, E, H, seed=1), torch.ones(1, 2, dtype=torch.bool)
    items = ItemHistory(E, H)
    heavy = items(unit(1, E, H), Memory(memory, known, weight_BM=torch.tensor([[9.0, 1.0]])))
    even = items(unit(1, E, H), Memory(memory, known, weight_BM=torch.tensor([[1.0, 1.0]])))
    closer = F.cosine_similarity(heavy, memory[:, 0], dim=2) > F.cosine_similarity(even, memory[:, 0], dim=2)
    assert closer.all()


def test_a_history_without_its_parts_is_refused():
    memory, known = unit(1, 2, E, H), torch.ones(1, 2, dtype=torch.bool)
    with pytest.raises(ValueError, match="actions and ages"):
        ShopperHistory(E, H)(unit(1, E, H), Memory(memory, known))
    with pytest.raises(ValueError, match="needs weights"):
        ItemHistory(E, H)(unit(1, E, H), Memory(memory, known))


def test_codes():
    assert [action_code(a) for a in ("click", "add_to_cart", "order", "wish")] == [1, 2, 3, 0]
    assert [age_bucket(h) for h in (-5.0, 0.5, 1.0, 23.0, 1e9)] == [0, 0, 1, 4, 13]
    assert [age_bucket(7 * 24.0 * weeks) for weeks in (1, 2, 4, 8, 16, 32)] == [7, 8, 9, 10, 11, 12]


def test_preferences_sum_to_one_and_follow_query_and_history():
    towers = model()
    query = unit(4, E, H)
    known = torch.ones(4, 2, dtype=torch.bool)
    with_history = towers.fuse_queries(query, shopper(unit(4, 2, E, H, seed=1), known))
    without = towers.fuse_queries(query, shopper(unit(4, 2, E, H, seed=1), ~known))
    assert torch.allclose(with_history.preference_BE.sum(dim=1), torch.ones(4))
    assert torch.allclose(with_history.vector_BD.norm(dim=1), torch.ones(4), atol=1e-6)
    assert not torch.allclose(with_history.preference_BE, without.preference_BE)
    assert not torch.allclose(with_history.preference_BE[0], with_history.preference_BE[1])


def test_preferences_off_are_uniform():
    fused = model(preferences=False, item_history=False).fuse_items(unit(2, E, H), None)
    assert torch.equal(fused.preference_BE, torch.full((2, E), 1 / E))


def test_histories_off_ignore_the_memory():
    towers = model(user_history=False, item_history=False)
    memory = shopper(unit(2, 3, E, H, seed=1), torch.ones(2, 3, dtype=torch.bool))
    query = unit(2, E, H)
    assert torch.equal(towers.fuse_queries(query, memory).vector_BD, towers.fuse_queries(query, None).vector_BD)
    assert towers.item_tower.history is None


def test_fusing_starts_from_what_aligning_learned():
    """Before the fusion has learned anything, its cosines are those of the experts together."""
    towers = Mrse(SMALL.model_copy(update={"dim": E * H}), 50, 100, 4, 2).eval()
    sample = unit(200, E, H)
    towers.start_fusion(sample, torch.arange(200) % 7)
    query, item = unit(5, E, H, seed=1), unit(7, E, H, seed=2)
    none = Memory(torch.zeros(5, 1, E, H), torch.zeros(5, 1, dtype=torch.bool), torch.zeros(5, 1, dtype=torch.long),
                  torch.zeros(5, 1, dtype=torch.long))  # fmt: skip
    empty = Memory(torch.zeros(7, 1, E, H), torch.zeros(7, 1, dtype=torch.bool), weight_BM=torch.zeros(7, 1))
    fused = towers.fuse_queries(query, none).vector_BD @ towers.fuse_items(item, empty).vector_BD.T
    together = torch.einsum("qeh,ieh->qi", query, item) / E
    assert torch.allclose(fused, together, atol=1e-5)


def test_start_fills_up_when_the_vector_is_wider_than_the_experts():
    towers = Mrse(SMALL.model_copy(update={"dim": 40}), 50, 100, 4, 2)
    towers.start_fusion(unit(60, E, H), torch.zeros(60))
    assert towers.query_tower.fusion.own.weight.shape == (40, E * H)
    assert towers.query_tower.fusion.own.weight[E * H :].abs().max() == 0
