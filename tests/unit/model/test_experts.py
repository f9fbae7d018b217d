import numpy as np
import pytest
import torch

from mrse.config import ExpertsConfig, ModelConfig
from mrse.features.subword import SubwordHasher
from mrse.features.text import Tokenizer
from mrse.model.experts import Experts, FtAtt, LightTransformer, Packing
from mrse.model.inputs import TextTable, concatenated

TEXTS = ["red shirt", "a blue cotton shirt with long sleeves for men", "", "reds", "!!!"]
SMALL = ModelConfig(dim=16, hidden=16, heads=2, layers=2, dropout=0.0)


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train([*TEXTS, "green boots"], 300)


@pytest.fixture(scope="module")
def table(tokenizer):
    return TextTable.build(TEXTS, tokenizer, SubwordHasher(500), 12)


@pytest.fixture
def experts(tokenizer):
    torch.manual_seed(0)
    built = Experts(SMALL, tokenizer.vocab_size, 500, image_dim=6, image_tokens=2).eval()
    torch.nn.init.normal_(built.tower_TEHH, std=0.1)
    return built


def rows(*places):
    return np.array(places, dtype=np.int64)


def as_queries(experts, texts):
    return experts(texts, len(texts))


def test_a_text_is_the_same_alone_and_in_any_batch(experts, table):
    """Padding, neighbours and the batch's word list leave no trace."""
    together = as_queries(experts, table.batch(rows(0, 1, 2, 3, 4)))
    for place in range(5):
        alone = as_queries(experts, table.batch(rows(place)))
        assert torch.allclose(alone[0], together[place], atol=1e-5), TEXTS[place]


def test_texts_joined_from_two_batches_are_the_same(experts, table):
    joined = concatenated(table.batch(rows(1, 3)), table.batch(rows(0, 2, 1)))
    assert torch.allclose(as_queries(experts, joined), as_queries(experts, table.batch(rows(1, 3, 0, 2, 1))), atol=1e-5)


def test_no_text_joined_to_some_leaves_them_as_they_are(table):
    """A process may have queries alone, or items alone."""
    some, none = table.batch(rows(1, 3)), table.batch(rows(0, 2, 1)).rows(2, 2)
    assert len(none) == 0
    assert concatenated(some, none) is some and concatenated(none, some) is some


def test_words_can_be_wider_than_the_transformers(tokenizer, table):
    narrow = SMALL.model_copy(update={"hidden": 24, "transformer_hidden": 8})
    built = Experts(narrow, tokenizer.vocab_size, 500, image_dim=6, image_tokens=2).eval()
    assert built.each["ftatt"].grams.weight.shape[1] == 24
    assert {built.each[name].pieces.token.weight.shape[1] for name in ("vbert", "light_bert")} == {8}
    assert as_queries(built, table.batch(rows(0, 1, 2))).shape == (3, 3, 24)
    layers = built.each["light_bert"].layers
    wide, layers.out = layers.out, torch.nn.Identity()
    inner = built.each["light_bert"](table.batch(rows(0, 1, 3)), 3)
    # The projection starts orthogonal: texts keep their angles.
    assert torch.allclose(wide(inner) @ wide(inner).T, inner @ inner.T, atol=1e-4)


def test_outputs_are_unit_vectors_and_finite_even_for_empty_texts(experts, table):
    out = experts(table.batch(rows(0, 1, 2, 3, 4)), 0)
    norms = out.norm(dim=2)
    assert out.shape == (5, 3, 16)
    assert torch.isfinite(out).all()
    no_words = [2, 4]
    ftatt = experts.names.index("ftatt")
    assert torch.allclose(norms[no_words, ftatt], torch.zeros(2))
    norms[no_words, ftatt] = 1.0
    assert torch.allclose(norms, torch.ones_like(norms), atol=1e-5)


def test_only_vbert_reads_pictures(experts, table):
    texts = table.batch(rows(0, 1))
    shown = experts(texts, 0, torch.randn(2, 2, 6), torch.tensor([True, True]))
    plain = experts(texts, 0)
    changed = (shown - plain).abs().amax(dim=(0, 2)) > 1e-4
    assert dict(zip(experts.names, changed.tolist(), strict=True)) == {
        "vbert": True,
        "ftatt": False,
        "light_bert": False,
    }


def test_a_missing_picture_is_the_stand_in_whatever_its_features_hold(experts, table):
    texts = table.batch(rows(0, 1))
    features = torch.randn(2, 2, 6)
    mixed = experts(texts, 0, features, torch.tensor([True, False]))
    assert torch.allclose(mixed[1], experts(texts, 0)[1], atol=1e-5)
    features[1] += 3.0
    assert torch.equal(mixed[1], experts(texts, 0, features, torch.tensor([True, False]))[1])


@pytest.mark.parametrize("pictured", [None, (True, False, True), (False, False, True)])
def test_queries_and_items_in_one_pass_are_what_they_are_apart(experts, table, pictured):
    queries, items = table.batch(rows(0, 3)), table.batch(rows(1, 2, 4))
    pictures = () if pictured is None else (torch.randn(3, 2, 6), torch.tensor(pictured))
    apart = torch.cat([as_queries(experts, queries), experts(items, 0, *pictures)])
    assert torch.allclose(experts(concatenated(queries, items), 2, *pictures), apart, atol=1e-5)
    assert not torch.allclose(experts(concatenated(queries, items), 1), experts(concatenated(queries, items), 2))


def test_packed_layers_are_the_padded_ones():
    """Work on real tokens only against the plain loop: each text alone, without padding."""
    torch.manual_seed(0)
    layers = LightTransformer(ModelConfig(hidden=8, heads=2, dropout=0.0), 2).eval()
    x, sizes = torch.randn(3, 5, 8), [5, 2, 1]
    inside = torch.arange(5)[None, :] < torch.tensor(sizes)[:, None]
    plain = [layers(x[b : b + 1, :n], torch.ones(1, n, dtype=torch.bool))[0] for b, n in enumerate(sizes)]
    assert torch.allclose(layers(x, inside), torch.stack(plain), atol=1e-5)


@pytest.mark.parametrize("training", [False, True])
def test_packing_goes_there_and_back(training):
    inside = torch.tensor([[True, False, True], [True, False, False]])
    x = torch.randn(2, 3, 4)
    with torch.set_grad_enabled(training):
        packing = Packing(inside)
        packed = packing.rounded(packing.enter(x))
        there = packing.unpack(packed)
        assert torch.equal(there[:2, :3], x * inside[:, :, None]) and there.abs().sum() == there[:2, :3].abs().sum()
        assert torch.equal(packing.pack(there), packed)
        assert torch.equal(packed[:3], x[inside]) and not packed[3:].any()
        assert torch.allclose(packing.mean(packed)[0], (x[0, 0] + x[0, 2]) / 2)
        assert packing.mean(packed).shape == (2, 4)


def test_in_training_few_shapes_come():
    shapes = set()
    for rows in range(97, 129):
        for length in range(4, 17):
            packing = Packing(torch.rand(rows, length) < 0.9)
            shapes.add(packing.unpack(packing.rounded(packing.enter(torch.zeros(rows, length, 4)))).shape)
    assert shapes == {(128, 16, 4)}


def test_a_full_batch_is_not_moved():
    inside = torch.ones(2, 3, dtype=torch.bool)
    x = torch.randn(2, 3, 4)
    with torch.no_grad():
        packing = Packing(inside)
        assert packing.bias_B11S is None and packing.enter(x).data_ptr() == x.data_ptr()
        assert torch.equal(packing.unpack(packing.enter(x)), x)
        assert torch.allclose(packing.mean(packing.enter(x)), x.mean(dim=1), atol=1e-6)


def test_with_and_without_gradients_the_experts_say_the_same(experts, table):
    """Training spells attention and n-gram sums out for its gradients; inference takes fused kernels."""
    texts = table.batch(rows(0, 1, 2, 3, 4))
    with torch.no_grad():
        fused = as_queries(experts, texts)
    assert torch.allclose(fused, as_queries(experts, texts), atol=1e-5)


def test_ftatt_is_attention_over_sums_of_ngrams(table):
    torch.manual_seed(0)
    expert = FtAtt(8, 500)
    expert.fit_words(torch.from_numpy(table.word_counts(500)), len(table))
    texts = table.batch(rows(0, 1))
    with torch.no_grad():
        got = expert(texts)
        for row in range(2):
            words = []
            for word in texts.words_BW[row][texts.words_BW[row] > 0]:
                grams = [g for g in texts.grams_UG[word].tolist() if g]
                words.append(torch.stack([expert.grams.weight[g] for g in grams]).sum(dim=0) / len(grams) ** 0.25)
            rare = [
                expert.log_rarity_R[int(texts.grams_UG[word, 0])]
                for word in texts.words_BW[row][texts.words_BW[row] > 0]
            ]
            shares = torch.softmax(torch.cat([expert.score(word) for word in words]) + torch.stack(rare) / 2, dim=0)
            expected = sum(share * word for share, word in zip(shares, words, strict=True))
            assert torch.allclose(got[row], expected, atol=1e-6)


def test_the_table_of_ngrams_gets_a_sparse_gradient_and_padding_none(table):
    expert = FtAtt(8, 500)
    expert(table.batch(rows(0))).sum().backward()
    gradient = expert.grams.weight.grad
    assert gradient.is_sparse
    dense = gradient.to_dense()
    used = set(table.batch(rows(0)).grams_UG.flatten().tolist()) - {0}
    assert set(dense.abs().sum(dim=1).nonzero().flatten().tolist()) <= used
    assert dense[0].abs().max() == 0


def test_attention_starts_from_how_rare_a_word_is(tokenizer):
    texts = ["red shirt", "blue shirt", "shirt shirt zebra", ""]
    hasher = SubwordHasher(500)
    table = TextTable.build(texts, tokenizer, hasher, 8)
    counts = table.word_counts(500)
    ids = {word: int(hasher.hash_words([word], 4)[0, 0]) for word in ("shirt", "red", "zebra")}
    assert [counts[ids[word]] for word in ("shirt", "red", "zebra")] == [3, 1, 1]
    expert = FtAtt(8, 500)
    torch.nn.init.zeros_(expert.score[2].weight)
    expert.fit_words(torch.from_numpy(counts), len(texts))
    rarity = expert.log_rarity_R
    assert rarity[ids["red"]] == rarity[ids["zebra"]] > rarity[ids["shirt"]]
    weight = rarity[[ids["red"], ids["shirt"]]].softmax(dim=0)  # of the words of "red shirt"
    assert torch.allclose(weight[0] / weight[1], torch.log1p(torch.tensor(4 / 2)) / torch.log1p(torch.tensor(4 / 4)))


@pytest.mark.parametrize("on", [("vbert",), ("ftatt",), ("light_bert",), ("vbert", "ftatt"), ("ftatt", "light_bert")])
def test_any_experts_can_be_off(tokenizer, table, on):
    switches = ExpertsConfig(**{name: name in on for name in ("vbert", "ftatt", "light_bert")})
    experts = Experts(SMALL.model_copy(update={"experts": switches}), tokenizer.vocab_size, 500, 6, 2)
    assert experts.names == on
    assert as_queries(experts, table.batch(rows(0, 1))).shape == (2, len(on), 16)


def test_towers_start_in_one_space_and_may_part(tokenizer, table):
    """A title finds itself before anything is learned."""
    torch.manual_seed(0)
    experts = Experts(SMALL, tokenizer.vocab_size, 500, 6, 2).eval()
    ftatt = experts.names.index("ftatt")
    texts = table.batch(rows(0, 1))
    assert torch.equal(as_queries(experts, texts)[:, ftatt], experts(texts, 0)[:, ftatt])
    torch.nn.init.normal_(experts.tower_TEHH, std=0.1)
    assert not torch.allclose(as_queries(experts, texts)[:, ftatt], experts(texts, 0)[:, ftatt])


def test_batches_are_cut_to_their_longest_text(table):
    assert table.batch(rows(0)).tokens_BL.shape[1] < table.batch(rows(1)).tokens_BL.shape[1]
    assert table.batch(rows(2)).words_BW.shape == (1, 1)
