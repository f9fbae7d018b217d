import numpy as np
import pytest
import torch

from mrse.model.inputs import Texts
from mrse.training.augment import hide_words, pseudo_query, vague_pairs, vague_query
from mrse.training.data import Examples, Shoppers
from mrse.training.sampling import Exclusions, Sampler, catalogue_items, log_q, pick_hard


def examples(items, askers=None, epochs=None, judged=None):
    count = len(items)
    none = np.full((count, 1), -1, dtype=np.int64)
    zeros = np.zeros(count, dtype=np.int64)
    return Examples(
        query_M=zeros,
        item_M=np.array(items, dtype=np.int64),
        asker_M=np.array(askers if askers is not None else range(count), dtype=np.int64),
        weight_M=np.ones(count, dtype=np.float32),
        hard_MK=none,
        epoch_M=np.array(epochs if epochs is not None else zeros, dtype=np.int64),
        judged_M=np.array(judged if judged is not None else zeros, dtype=bool),
        shoppers=Shoppers(none, none, none),
    )


def test_a_pass_sees_each_example_once_in_batches_of_one_profile_cut():
    epochs = [-1] * 7 + [0] * 10 + [1] * 3
    sampler = Sampler(
        examples(range(20), epochs=epochs), items=30, batch_size=8, self_pairs=0.25, judged_share=1.0, seed=1
    )
    first = [sampler.draw(step) for step in range(5)]  # 2 + 2 + 1 batches of at most 6
    assert sorted(np.concatenate([draw.example_rows for draw in first]).tolist()) == list(range(20))
    for draw in first:
        assert len(draw.example_rows) <= 6 and len(draw.self_items) == 2
        assert {epochs[row] for row in draw.example_rows} == {draw.epoch}
    second = [sampler.draw(step).example_rows.tolist() for step in range(5, 10)]
    assert sorted(row for rows in second for row in rows) == list(range(20))
    assert second != [draw.example_rows.tolist() for draw in first]


def test_judged_examples_keep_to_their_share_and_others_come_in_each_pass():
    judged = [False] * 30 + [True] * 90
    epochs = [-1] * 10 + [0] * 20 + [0] * 90
    sampler = Sampler(examples(range(120), epochs=epochs, judged=judged), 120, 10, 0.0, judged_share=0.25, seed=1)
    assert sampler.rate_M.tolist() == pytest.approx([1.0] * 30 + [1 / 9] * 90)
    assert (sampler.logged, sampler.judged) == (30, 10)
    passes = [[row for step in range(4 * n, 4 * n + 4) for row in sampler.draw(step).example_rows] for n in range(20)]
    for rows in passes:  # 1 batch of the first cut, 3 of the second
        assert len(set(rows)) == len(rows) == 40 and set(range(30)) <= set(rows)
    assert len({row for rows in passes for row in rows}) > 100


@pytest.mark.parametrize(("judged", "share"), [([True] * 6, 0.25), ([True] * 3 + [False] * 3, 0.5)])
def test_judged_examples_are_all_drawn_without_a_log_or_within_their_share(judged, share):
    assert (Sampler(examples(range(6), judged=judged), 6, 4, 0.0, share, seed=0).rate_M == 1.0).all()


@pytest.mark.parametrize(("logged", "judged"), [(7, 90), (8, 3)])
def test_a_log_that_fills_no_batch_bounds_no_judged_examples(logged, judged):
    """Batches of 10 hold 2 self-made pairs and 8 examples."""
    mixed = examples(range(logged + 90), judged=[False] * logged + [True] * 90)
    sampler = Sampler(mixed, 120, 10, self_pairs=0.2, judged_share=0.25, seed=1)
    assert (sampler.logged, sampler.judged) == (logged, judged)
    rows = np.concatenate([sampler.draw(step).example_rows for step in range(-(-(logged + judged) // 8))])
    assert len(set(rows)) == len(rows) == logged + judged and set(range(logged)) < set(rows)


def test_no_judged_example_is_drawn_where_their_share_is_nothing():
    """Also where a profile cut has no other examples."""
    mixed = examples(range(10), epochs=[0] * 5 + [1] * 5, judged=[False] * 5 + [True] * 5)
    sampler = Sampler(mixed, 10, 4, 0.0, judged_share=0.0, seed=0)
    assert sorted(row for step in range(2) for row in sampler.draw(step).example_rows) == [0, 1, 2, 3, 4]


def test_a_vague_query_keeps_some_of_its_words_in_their_order():
    rng = np.random.default_rng(0)
    made = [vague_query("red linen shirt", rng).split() for _ in range(200)]
    assert {len(words) for words in made} == {1, 2, 3}
    assert all(words == [word for word in ("red", "linen", "shirt") if word in words] for words in made)
    assert vague_query("shirt", rng) == "shirt" and vague_query("", rng) == ""


def test_vague_pairs_are_of_shoppers_with_a_history_whose_query_lost_a_word():
    queries = ["red linen shirt", "shirt", "blue wool coat"] * 100
    known = np.arange(300) >= 150
    made = vague_pairs(queries, known, 1.0, np.random.default_rng(0))
    assert set(made) < set(np.flatnonzero(known)) and 75 < len(made) < 100  # all words are kept in one of eight
    assert all(made[row] != queries[row] and made[row].split()[0] in queries[row] for row in made)
    assert 5 < len(vague_pairs(queries, known, 0.2, np.random.default_rng(0))) < 35
    assert vague_pairs(queries, known, 0.0, np.random.default_rng(0)) == {}


def test_a_draw_depends_on_seed_and_step_alone():
    def draw(seed, steps):
        sampler = Sampler(examples(range(50)), 60, 16, 0.5, 1.0, seed)
        return [(d.example_rows.tolist(), d.self_items.tolist()) for d in map(sampler.draw, steps)]

    assert draw(3, [9, 2, 30]) == [draw(3, [step])[0] for step in (9, 2, 30)]
    assert draw(3, [9]) != draw(4, [9])


def test_without_examples_all_pairs_are_made_from_titles():
    draw = Sampler(examples([]), items=10, batch_size=32, self_pairs=0.5, judged_share=1.0, seed=0).draw(0)
    assert len(draw.example_rows) == 0 and sorted(draw.self_items.tolist()) == list(range(10))


def test_exclusions_against_the_naive_rule():
    rng = np.random.default_rng(0)
    logged = examples(rng.integers(0, 12, 40), askers=rng.integers(0, 6, 40))
    twins = rng.integers(0, 8, 12)
    rule = Exclusions(logged, twins)
    positives: dict[int, set[int]] = {}
    for asker, item in zip(logged.asker_M, logged.item_M, strict=True):
        positives.setdefault(int(asker), set()).add(int(item))
    candidates = rng.permutation(12)[:9]
    askers = np.array([0, 3, -1, 5, -1])
    targets = np.array([0, 4, 8, 2, 2])
    mask = rule.mask(askers, targets, candidates)
    for b in range(5):
        for c in range(9):
            known = positives.get(int(askers[b]), set()) if askers[b] >= 0 else set()
            twin = twins[candidates[c]] == twins[candidates[targets[b]]]
            assert mask[b, c] == ((candidates[c] in known or twin) and c != targets[b]), (b, c)


def test_another_shoppers_positive_of_the_same_query_is_a_negative():
    """Where taste decides, what others chose is the very thing to tell apart."""
    rule = Exclusions(examples([0, 1, 2], askers=[0, 0, 1]), np.arange(3))
    assert rule.mask(np.array([0]), np.array([0]), np.arange(3)).tolist() == [[False, True, False]]


def test_logq_is_how_often_an_item_is_drawn():
    counts = np.array([0, 1, 3, 0], dtype=np.int64)
    real, made, drawn, rounds = 2, 1, 2, 6_000
    rng = np.random.default_rng(0)
    seen = np.zeros(4)
    for _ in range(rounds):
        seen += np.bincount(rng.choice(4, real, p=counts / counts.sum()), minlength=4)
        seen += np.bincount(rng.choice(4, made, replace=False), minlength=4)
        seen += np.bincount(rng.choice(4, drawn, replace=False), minlength=4)
    assert np.exp(log_q(counts, np.arange(4), real, made, drawn)) == pytest.approx(seen / rounds, rel=0.05)


def test_hard_negatives_are_known_ones_without_repeats():
    hard = np.array([[5, 6, 7, -1], [-1, -1, -1, -1], [8, -1, -1, -1]])
    picked = pick_hard(hard, 2, seed=0, step=3)
    assert picked.shape == (3, 2)
    assert set(picked[0]) < {5, 6, 7} and len(set(picked[0])) == 2
    assert picked[1].tolist() == [-1, -1] and picked[2].tolist() == [8, -1]
    assert pick_hard(hard, 9, seed=0, step=3).shape == (3, 4)


def test_catalogue_draws_are_distinct_and_bounded():
    assert sorted(catalogue_items(0, 1, 5, 100).tolist()) == [0, 1, 2, 3, 4]
    assert len(set(catalogue_items(0, 1, 1000, 64).tolist())) == 64


def test_made_up_queries_are_words_of_the_item():
    words = ["Levis", "slim", "blue", "denim", "jeans", "men"]
    rng = np.random.default_rng(0)
    made = [pseudo_query(words, rng).split() for _ in range(500)]
    assert {len(parts) for parts in made} == {1, 2, 3, 4, 5}
    misspelt = [word for parts in made for word in parts if word not in words]
    share = len(misspelt) / sum(map(len, made))
    assert 0.05 < share < 0.2
    assert all(min(_edits(w, word) for w in words) <= 2 for word in misspelt)  # a swap is two edits
    assert pseudo_query([], rng) == ""


def test_words_are_hidden_from_every_expert_but_no_text_is_left_without():
    torch.manual_seed(0)
    words = torch.tensor([[1, 2, 3, 4]] * 500 + [[5, 0, 0, 0]] * 500 + [[0, 0, 0, 0]])
    inside = torch.ones(len(words), 6, dtype=torch.bool)
    texts = Texts(torch.zeros(len(words), 6, dtype=torch.long), inside, words, torch.zeros(6, 1, dtype=torch.long))
    assert hide_words(texts, 0.0) is texts
    hidden = hide_words(texts, 0.5)
    assert hidden.inside_BL[:, 0].all() and hidden.inside_BL[:, 1:].float().mean() == pytest.approx(0.5, abs=0.05)
    assert ((hidden.words_BW == words) | (hidden.words_BW == 0)).all()
    left = (hidden.words_BW > 0).sum(dim=1)
    assert left[:500].float().mean() == pytest.approx(2.0 + 4 * 0.5**4, abs=0.2)  # all four come back when none is left
    assert left[:500].min() == 1 and (left[500:1000] == 1).all() and left[-1] == 0


def _edits(a, b):
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        last, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (x != y))
    return row[-1]
