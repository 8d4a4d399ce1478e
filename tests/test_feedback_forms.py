"""One form of feedback from another: hand-made answers, what is kept and what is left out."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax import feedback, losses
from rlhf_jax.feedback import (
    Attributes,
    Comparison,
    Correction,
    Critique,
    Label,
    Pairs,
    Ranking,
    Rating,
    Spans,
    Steps,
)
from rlhf_jax.types import Sequences

YES = jnp.array([True, True, False])


def texts(*tokens, log_probs=None):
    """One prompt token, then a response; 0 is padding."""
    tokens = jnp.array(tokens)
    mask = tokens > 0
    return Sequences(tokens, mask, mask.at[..., 0].set(False), log_probs)


def test_ratings_are_compared_within_one_raters_scale():
    first = Rating(
        value=jnp.array([3, 3, 1, 3, 3]),
        rater=jnp.array([0, 0, 0, 0, -1]),
        cost=jnp.ones(5),
        answered=jnp.array([True, True, True, False, True]),
    )
    second = Rating(value=jnp.array([1, 3, 2, 1, 1]), rater=jnp.array([0, 0, 1, 0, -1]))
    comparison = jax.jit(feedback.comparisons_from_ratings)(first, second)
    assert comparison.preference.tolist() == [1.0, 0.5, 0.0, 1.0, 1.0]
    assert comparison.answered.tolist() == [True, True, False, False, False]
    assert comparison.rater.tolist() == [0, 0, -1, 0, -1]
    assert comparison.cost.tolist() == [1.0] * 5
    assert comparison.seconds is None
    wide = feedback.comparisons_from_ratings(first, second, margin=2.0)
    assert wide.preference.tolist() == [0.5, 0.5, 0.5, 0.5, 0.5]
    with pytest.raises(ValueError, match="second names no raters"):
        feedback.comparisons_from_ratings(first, second.replace(rater=None))
    with pytest.raises(ValueError, match=r"first and second must have one shape"):
        feedback.comparisons_from_ratings(first, Rating(value=jnp.zeros(2)))


def test_comparisons_survive_an_increasing_transformation_of_the_ratings():
    first, second = jax.random.normal(jax.random.key(0), (2, 50))
    plain, bent = (
        feedback.comparisons_from_ratings(Rating(value=f(first)), Rating(value=f(second)))
        for f in (lambda x: x, jnp.exp)
    )
    np.testing.assert_array_equal(plain.preference, bent.preference)
    assert plain.answered is None


def test_a_ranking_implies_all_its_pairs():
    ranking = Ranking(
        order=jnp.array([[2, 0, 3, 1], [0, 1, 2, 3]]),
        rater=jnp.array([7, 8]),
        cost=jnp.array([6.0, 12.0]),
        answered=jnp.array([True, False]),
    )
    pairs, comparison = jax.jit(feedback.pairs_from_ranking)(ranking)
    places = {item: place for place, item in enumerate([2, 0, 3, 1])}
    found = list(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True))
    assert len(set(found[:6])) == 6
    assert all(places[better] < places[worse] for better, worse in found[:6])
    assert found[6:] == [(4, 5), (4, 6), (4, 7), (5, 6), (5, 7), (6, 7)]
    assert comparison.preference.tolist() == [1.0] * 12
    assert comparison.rater.tolist() == [7] * 6 + [8] * 6
    assert comparison.cost.tolist() == [1.0] * 6 + [2.0] * 6
    assert comparison.answered.tolist() == [True] * 6 + [False] * 6
    pairs, comparison = feedback.pairs_from_ranking(ranking, adjacent=True)
    assert pairs.first.tolist() == [2, 0, 3, 4, 5, 6]
    assert pairs.second.tolist() == [0, 3, 1, 5, 6, 7]
    assert comparison.cost.tolist() == [2.0] * 3 + [4.0] * 3


def test_the_pairs_of_a_ranking_are_not_its_likelihood():
    scores, order = jnp.array([[0.3, 1.0, -0.4]]), jnp.array([[1, 0, 2]])
    pairs, _ = feedback.pairs_from_ranking(Ranking(order=order))
    flat = scores.ravel()
    by_pairs = losses.bradley_terry(flat[pairs.first], flat[pairs.second]).sum()
    assert float(by_pairs - losses.plackett_luce(scores, order)[0]) > 0.05


def test_a_correction_is_better_unless_nothing_was_changed():
    examples = texts([1, 2, 3], [1, 4, 0], [1, 5, 6], log_probs=jnp.zeros([3, 3]))
    corrected = texts([1, 2, 9], [1, 4, 0], [1, 5, 0])
    # What stands on padding does not count.
    examples = examples.replace(tokens=examples.tokens.at[1, 2].set(8))
    correction = Correction(corrected=corrected, rater=jnp.arange(3), answered=YES)
    pairs, comparison = feedback.comparison_from_correction(examples, correction)
    assert comparison.preference.tolist() == [1.0, 0.5, 1.0]
    assert comparison.rater.tolist() == [0, 1, 2]
    assert comparison.answered.tolist() == YES.tolist()
    assert pairs.first.tokens[0].tolist() == [1, 2, 9]
    assert pairs.second.tokens[0].tolist() == [1, 2, 3]
    assert pairs.second.log_probs is None
    with pytest.raises(ValueError, match="examples and corrected must have one shape"):
        feedback.comparison_from_correction(jnp.zeros([2, 3]), Correction(corrected=jnp.zeros(2)))
    with pytest.raises(ValueError, match="must be pytrees of one structure"):
        feedback.comparison_from_correction((jnp.zeros(2),), Correction(corrected=jnp.zeros(2)))


def test_decided_leaves_out_ties_and_what_was_not_answered():
    pairs = Pairs({"x": np.arange(10).reshape(5, 2)}, {"x": -np.arange(10).reshape(5, 2)})
    answers = Comparison(
        preference=jnp.array([1.0, 0.5, 0.0, 1.0, 0.3]),
        answered=jnp.array([True, True, True, False, True]),
    )
    chosen, rejected = feedback.decided(pairs, answers)
    assert chosen["x"].tolist() == [[0, 1], [-4, -5], [-8, -9]]
    assert rejected["x"].tolist() == [[0, -1], [4, 5], [8, 9]]
    assert isinstance(chosen["x"], np.ndarray)
    with pytest.raises(ValueError, match="pairs and preference must have as many rows"):
        feedback.decided(pairs, Comparison(preference=jnp.zeros(4)))


def test_a_batch_of_preferences_keeps_ties_and_pads_what_was_not_answered():
    first = texts([1, 2, 3], [1, 4, 0], [1, 5, 6], [1, 7, 7], log_probs=jnp.zeros([4, 3]))
    second = texts([1, 8, 0], [1, 9, 9], [1, 6, 5], [1, 2, 2])
    answers = Comparison(
        preference=jnp.array([0.0, 0.5, 0.9, 0.5]), answered=jnp.array([True, True, True, False])
    )
    pairs = Pairs(first, second)
    batch = jax.jit(feedback.preferences)(pairs, answers)
    assert batch.chosen.tokens.tolist() == [[1, 8, 0], [1, 4, 0], [1, 5, 6], [1, 7, 7]]
    assert batch.rejected.tokens.tolist() == [[1, 2, 3], [1, 9, 9], [1, 6, 5], [1, 2, 2]]
    assert batch.tied.tolist() == [False, True, False, False]
    assert batch.chosen.log_probs is None
    for side in (batch.chosen, batch.rejected):
        assert side.response_mask.any(axis=1).tolist() == [True, True, True, False]
    assert batch.chosen.mask[0].tolist() == [True, True, False]
    without = feedback.preferences(pairs, answers, keep_ties=False)
    assert without.tied is None and without.rater is None
    assert without.chosen.response_mask.any(axis=1).tolist() == [True, False, True, False]
    soft = feedback.preferences(pairs, answers.replace(rater=jnp.arange(4)), soft=True)
    np.testing.assert_allclose(soft.probability, [1, 0.5, 0.9, 0.5])
    assert soft.tied is None and soft.rater.tolist() == [0, 1, 2, 3]
    np.testing.assert_array_equal(soft.chosen.tokens, batch.chosen.tokens)
    np.testing.assert_array_equal(soft.chosen.response_mask, batch.chosen.response_mask)
    with pytest.raises(ValueError, match="first and second must have one shape"):
        feedback.preferences(Pairs(first, texts([1, 2])), answers)


def test_a_batch_of_ratings():
    sequences = texts([1, 2, 3], [1, 4, 0], [1, 5, 6])
    rating = Rating(value=jnp.array([-4.0, 1.0, jnp.nan]), answered=YES)
    batch = feedback.rated(sequences, rating)
    assert batch.ratings.tolist() == [-4.0, 1.0, 0.0]
    assert batch.sequences.response_mask.any(axis=1).tolist() == [True, True, False]
    assert batch.unrelated is None
    steps = feedback.rated(sequences, rating, low=-4)
    assert (steps.ratings.tolist(), steps.ratings.dtype) == ([0, 5, 0], jnp.int32)
    good = feedback.rated(sequences, Label(choice=jnp.array([0, 1, 9]), answered=YES))
    assert good.ratings.dtype == bool
    assert good.ratings.tolist() == [False, True, False]
    several = feedback.rated(sequences, Label(choice=jnp.array([0, 2, 1])), choices=3)
    assert several.ratings.tolist() == [0, 2, 1]
    marked = feedback.rated(sequences, Spans(marks=jnp.ones([3, 3]), answered=YES))
    assert marked.ratings.tolist() == [[1.0] * 3, [1.0] * 3, [0.0] * 3]

    with pytest.raises(ValueError, match=r"choice must be from 0 to 1, not 2 as in \[1\]"):
        feedback.rated(sequences, Label(choice=jnp.array([0, 2, 1])))
    with pytest.raises(ValueError, match=r"value must be a whole number from 0 up, not 0.5 as in"):
        feedback.rated(sequences, Rating(value=jnp.array([1.0, 0.5, 0.0])), low=0)
    with pytest.raises(ValueError, match="as many rows, not 3 and 2"):
        feedback.rated(sequences, Rating(value=jnp.zeros(2)))
    with pytest.raises(TypeError, match="not Critique"):
        feedback.rated(sequences, Critique(text=sequences))


def test_a_batch_of_rankings():
    sequences = jax.tree.map(lambda x: jnp.stack([x, x]), texts([1, 2], [1, 3], [1, 4]))
    ranking = Ranking(order=jnp.array([[2, 0, 1], [0, 1, 2]]), answered=jnp.array([True, False]))
    batch = feedback.ranked(sequences, ranking)
    assert batch.rankings.tolist() == [[2, 0, 1], [0, 1, 2]]
    assert batch.sequences.response_mask[..., 1].tolist() == [[True] * 3, [False] * 3]
    with pytest.raises(ValueError, match=r"order must have the shape \(2, 3\) of the sequences"):
        feedback.ranked(sequences, Ranking(order=jnp.array([[0, 1], [1, 0]])))


def test_several_answers_become_one():
    votes = Comparison(
        preference=jnp.array([[1.0, 1.0, jnp.nan], [0.0, 1.0, 0.0], [1.0, 0.5, 1.0]]),
        answered=jnp.array([[True, True, False], [True, False, False], [True, True, False]]),
        cost=jnp.ones([3, 3]),
        rater=jnp.zeros([3, 3], int),
    )
    soft = jax.jit(feedback.averaged)(votes)
    np.testing.assert_allclose(soft.preference, [2 / 3, 0.75, 0.5], atol=1e-6)
    assert soft.answered.tolist() == [True, True, False]
    assert soft.cost.tolist() == [3.0] * 3
    assert soft.rater is None
    assert feedback.majority(votes).preference.tolist() == [1.0, 1.0, 0.5]
    weighted = feedback.averaged(votes, weights=jnp.array([1.0, 3.0, 0.0]))
    np.testing.assert_allclose(weighted.preference[:2], [0.25, 1.0])
    even = feedback.majority(votes, weights=jnp.array([0.6, 0.9, 0.3]))
    assert float(even.preference[0]) == 0.5, "rounding must not decide"
    mean = feedback.averaged(Rating(value=jnp.array([[1, 5], [2, -2]])))
    assert mean.value.tolist() == [1.5, 1.5]
    with pytest.raises(ValueError, match=r"preference must be \[R, B\]"):
        feedback.majority(Comparison(preference=jnp.zeros(3)))
    with pytest.raises(ValueError, match=r"weights must have the shape \(3,\) or \(3, 3\)"):
        feedback.averaged(votes, weights=jnp.ones(2))
    with pytest.raises(ValueError, match=r"weights must be at least 0, not -1.0 as in \[2\]"):
        feedback.averaged(votes, weights=jnp.array([1.0, 0.0, -1.0]))
    with pytest.raises(TypeError, match="not Label"):
        feedback.averaged(Label(choice=jnp.zeros([2, 2], int)))


def test_the_majority_of_many_is_right_more_often():
    right = jax.random.uniform(jax.random.key(0), (9, 20_000)) < 0.75
    together = feedback.majority(Comparison(preference=right.astype(jnp.float32)))
    np.testing.assert_allclose(together.preference.mean(), 0.951, atol=0.006)


def test_attributes_are_weighed():
    given = Attributes(
        values=jnp.array([[4.0, 2.0], [jnp.nan, 2.0], [1.0, 1.0]]),
        mask=jnp.array([[True, True], [False, True], [False, False]]),
        rater=jnp.arange(3),
    )
    rating = feedback.rating_from_attributes(given, jnp.array([3.0, -1.0]))
    assert rating.value.tolist() == [(12 - 2) / 4, -2.0, 0.0]
    assert rating.answered.tolist() == [True, True, False]
    assert rating.rater.tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match=r"must be \[B, A\] and \[A\], not \[3, 2\] and \[3\]"):
        feedback.rating_from_attributes(given, jnp.ones(3))


STEPS = Steps(
    marks=jnp.array([[1.0, 0.5, 0.2], [0.0, jnp.nan, 1.0], [1.0, 1.0, 1.0]]),
    ends=jnp.array([[1, 2, 4], [3, 9, 4], [0, 0, 0]]),
    mask=jnp.array([[True, True, True], [True, False, True], [False, False, False]]),
)


@pytest.mark.parametrize(
    ("combine", "expected"),
    [("product", [0.1, 0.0]), ("minimum", [0.2, 0.0]), ("mean", [1.7 / 3, 0.5])],
)
def test_steps_become_one_rating(combine, expected):
    rating = feedback.rating_from_steps(STEPS, combine=combine)
    np.testing.assert_allclose(rating.value[:2], expected, rtol=1e-6)
    assert rating.answered.tolist() == [True, True, False]

    def total(marks):
        marked = STEPS.replace(marks=marks)
        return feedback.rating_from_steps(marked, combine=combine).value.sum()

    gradient = jax.grad(total)(jnp.nan_to_num(STEPS.marks))
    assert np.isfinite(gradient).all()
    assert not gradient[~STEPS.mask].any()


def test_steps_and_spans_become_rewards_of_tokens():
    rewards = jax.jit(partial(feedback.token_rewards, length=5))(STEPS)
    np.testing.assert_allclose(
        rewards, [[0, 1, 0.5, 0, 0.2], [0, 0, 0, 0, 1], [0, 0, 0, 0, 0]], atol=1e-7
    )
    spans = Spans(marks=jnp.array([[0, -1, -1, 1, 0], [2, 2, 0, 2, 2]]))
    assert feedback.token_rewards(spans).tolist() == spans.marks.tolist()
    ends = feedback.token_rewards(spans.replace(answered=jnp.array([True, True])), place="end")
    assert ends.tolist() == [[0, 0, -1, 1, 0], [0, 2, 0, 0, 2]]
    silent = spans.replace(answered=jnp.array([True, False]))
    assert not feedback.token_rewards(silent)[1].any()
    with pytest.raises(ValueError, match=r"ends must be from 0 to 3, not 4 as in \[0, 2\]"):
        feedback.token_rewards(STEPS, length=4)
    with pytest.raises(ValueError, match="length must be given"):
        feedback.token_rewards(STEPS)
    with pytest.raises(ValueError, match=r"marks must be \[B, 4\], not \[2, 5\]"):
        feedback.token_rewards(spans, length=4)
    with pytest.raises(ValueError, match="place must be every or end, not 'start'"):
        feedback.token_rewards(spans, place="start")
    with pytest.raises(ValueError, match="combine must be product, minimum or mean, not 'sum'"):
        feedback.rating_from_steps(STEPS, combine="sum")
    with pytest.raises(TypeError, match="not Rating"):
        feedback.token_rewards(Rating(value=jnp.zeros(2)))


NAN, PAIR = jnp.array([jnp.nan, 1.0]), Pairs(np.arange(2), np.arange(2))
TWICE = Ranking(order=jnp.array([[1, 0], [1, 1]]))


@pytest.mark.parametrize(
    ("convert", "wrong"),
    [
        (lambda: feedback.decided(PAIR, Comparison(preference=NAN)), "preference must be from 0"),
        (lambda: feedback.preferences(PAIR, Comparison(preference=1 + NAN)), "preference must be"),
        (lambda: feedback.rated(texts([1, 2], [1, 3]), Rating(value=NAN)), "value must be finite"),
        (
            lambda: feedback.comparisons_from_ratings(Rating(value=NAN), Rating(value=NAN)),
            "the first's value less the second's must be finite, not nan as in .0.",
        ),
        (lambda: feedback.averaged(Rating(value=NAN[None])), "value must be finite"),
        (lambda: feedback.averaged(Rating(value=YES[None] * 1.0), weights=NAN[:1]), "weights must"),
        (lambda: feedback.pairs_from_ranking(TWICE), r"order must be 0 to 1, each once.*\[1\]"),
        (
            lambda: feedback.ranked(jax.tree.map(lambda x: x[None], texts([1, 2])), TWICE),
            "order must be 0 to 1, each once",
        ),
    ],
)
def test_answers_that_mean_nothing_are_refused(convert, wrong):
    with pytest.raises(ValueError, match=wrong):
        convert()


def test_conversions_can_be_vmapped():
    ratings = jnp.arange(12.0).reshape(2, 3, 2) % 5
    first, second = Rating(value=ratings[0]), Rating(value=ratings[1])
    many = jax.vmap(feedback.comparisons_from_ratings)(first, second)
    one = feedback.comparisons_from_ratings(
        *(jax.tree.map(lambda x: x[2], side) for side in (first, second))
    )
    np.testing.assert_array_equal(many.preference[2], one.preference)
    orders = jnp.array([[[0, 1, 2]], [[2, 1, 0]]])
    pairs, _ = jax.vmap(feedback.pairs_from_ranking)(Ranking(order=orders))
    assert pairs.first.tolist() == [[0, 0, 1], [2, 2, 1]]
