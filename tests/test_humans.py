"""Simulated people and what can be wrong with them, against their closed forms."""

from functools import partial
from itertools import permutations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import binom, norm

from rlhf_jax import humans, losses
from rlhf_jax.feedback import (
    Attributes,
    Comparison,
    Correction,
    Demonstration,
    Label,
    Pairs,
    Ranking,
    Rating,
    Spans,
    Steps,
    comparison_from_correction,
)

KEY = jax.random.key(0)
ROWS = 20_000
SLACK = 0.015  # Over four standard errors of a frequency of so many.
GAP = 0.5
PAIRS = Pairs(jnp.full(ROWS, 1.0), jnp.full(ROWS, 1.0 - GAP))


def score(example):
    return example


def first_of(example):
    return example[:, 0]


BOLTZMANN = humans.boltzmann(score, rationality=2.0)
ORACLE = humans.oracle(score)
SURE = expit(2 * GAP)
THIRTEEN = [humans.with_mistakes(ORACLE, rate=0.25)] * 13
TIRED = np.minimum(0.1 + np.arange(ROWS) / ROWS, 0.5).mean()
EFFECTS = {"bias": jnp.zeros(1), "slope": jnp.ones(1), "noise": jnp.full(1, 2.0)}
INDIFFERENT = humans.boltzmann(lambda x: 0 * x)
TWO = [ORACLE, humans.oracle(lambda x: -x)]
BIASED = partial(humans.with_bias, feature=score, weight=2.0)
RATER = humans.rater_effects(score, **EFFECTS, low=-400, high=400)

# A human, and how often they prefer the first, ties counted half.
FREQUENCIES = {
    "boltzmann": (BOLTZMANN, SURE),
    "thurstone": (humans.thurstone(score, deviation=0.5), norm.cdf(GAP / (np.sqrt(2) * 0.5))),
    "oracle": (ORACLE, 1.0),
    "stoc": (humans.bpref_teacher(lambda x: x[:, None], rationality=2.0), SURE),
    "mistakes": (humans.with_mistakes(BOLTZMANN, rate=0.1), 0.5 + 0.8 * (SURE - 0.5)),
    "mistakes_twice": (
        humans.with_mistakes(humans.with_mistakes(ORACLE, rate=0.1), rate=0.2),
        0.5 + 0.5 * 0.8 * 0.6,
    ),
    "bias": (
        humans.with_bias(BOLTZMANN, feature=lambda x: 3 * x, weight=-1.5),
        expit(2 * GAP - 1.5 * 3 * GAP),
    ),
    "bias_on_the_certain": (humans.with_bias(ORACLE, feature=score, weight=-4.0), 1.0),
    "bias_with_ties": (
        BIASED(humans.with_ties(INDIFFERENT, rate=0.4)),
        0.5 + 0.3 * np.sinh(0.5) / (0.4 + 0.6 * np.cosh(0.5)),
    ),
    "bias_with_skips": (
        humans.with_bias(humans.with_skips(INDIFFERENT, rate=0.5), feature=score, weight=4.0),
        None,
    ),
    "bias_of_each": (humans.population([BIASED(member) for member in TWO]), 0.5),
    "bias_of_the_mixture": (BIASED(humans.population(TWO)), expit(1.0)),
    "position_bias": (humans.with_position_bias(BOLTZMANN, weight=-0.7), expit(2 * GAP - 0.7)),
    "ties": (humans.with_ties(BOLTZMANN, rate=0.4), 0.5 + 0.6 * (SURE - 0.5)),
    "population": (
        humans.population([BOLTZMANN, humans.boltzmann(lambda x: -x)], weights=jnp.array([3, 1])),
        0.75 * SURE + 0.25 * expit(-GAP),
    ),
    "panel": (humans.panel(THIRTEEN[0], size=9), binom.sf(4, 9, 0.75)),
    "panel_of_two": (humans.panel(THIRTEEN[0], size=2), 0.75),  # who tie where they disagree
    "panel_of_like_minds": (
        humans.panel(humans.partial_observer(ORACLE, observe=lambda x: -x), size=9),
        0.0,
    ),
    "annotators": (humans.population(THIRTEEN), 0.75),
    "hidden_context": (
        humans.hidden_context(lambda x, c: x * (1 - 2 * c), probabilities=jnp.array([4.0, 1.0])),
        0.8,
    ),
    "poisoned": (
        humans.poisoned(ORACLE, trigger=lambda pairs: jnp.arange(ROWS) % 2 == 0, rate=0.6),
        1 - 0.5 * 0.6,
    ),
    "attacker": (
        humans.poisoned(
            ORACLE,
            trigger=lambda pairs: pairs.first > 0,
            rate=0.5,
            attacker=humans.oracle(lambda x: 0 * x),
        ),
        0.75,
    ),
    "persuadable": (
        humans.persuadable(BOLTZMANN, argued=lambda pairs: 0 * pairs.first, rate=0.3),
        0.7 * SURE,
    ),
    "fatigue": (humans.with_fatigue(ORACLE, rate=0.1, drift=1 / ROWS), 1 - TIRED),
    "effort": (humans.with_effort(ORACLE, effort=1.3), 1 - 0.5 * np.exp(-1.3)),
    "partial_observer": (humans.partial_observer(ORACLE, observe=lambda x: -x), 0.0),
    "drifting": (
        humans.drifting(lambda x: x[:, None], jnp.array([2.0]), deviation=0.0),
        expit(2 * GAP),
    ),
    "comparing": (humans.comparing(RATER), None),
}


@pytest.fixture(scope="module")
def answers():
    """Two answers of everybody to each question, asked in one compiled program and vmapped."""

    @jax.jit
    def ask(keys):
        return {
            name: jax.vmap(human, in_axes=(0, None))(keys, PAIRS)
            for name, (human, _) in FREQUENCIES.items()
        }

    return ask(jax.random.split(KEY))


@pytest.mark.parametrize("name", FREQUENCIES)
def test_how_often_they_prefer_the_first(answers, name):
    expected, answer = FREQUENCIES[name][1], answers[name]
    if name == "comparing":  # The difference of two rounded Gaussians, by enumeration.
        first, second = (np.diff(norm.cdf(np.arange(-40, 41) + 0.5, m, 2)) for m in (1, 0.5))
        joint = np.outer(first, second)
        expected = np.tril(joint, -1).sum() + 0.5 * np.trace(joint)
    assert isinstance(answer, Comparison)
    assert answer.preference.shape == (2, ROWS)
    assert answer.preference.dtype == jnp.float32
    if expected is not None:
        np.testing.assert_allclose(answer.preference.mean(axis=1), expected, atol=SLACK)


def test_two_of_the_thirteen_agree_as_often_as_published(answers):
    first, second = answers["annotators"].preference
    np.testing.assert_allclose((first == second).mean(), 0.625, atol=SLACK)
    shares = np.bincount(np.asarray(answers["annotators"].rater[0]), minlength=13) / ROWS
    np.testing.assert_allclose(shares, 1 / 13, atol=0.01)


def test_a_bias_shifts_wins_ties_and_losses_as_davidson_has_it(answers):
    weights = np.array([0.3, 0.4, 0.3]) * np.exp(np.array([-0.5, 0.0, 0.5]))
    preference = np.asarray(answers["bias_with_ties"].preference)
    shares = [(preference == y).mean() for y in (0.0, 0.5, 1.0)]
    np.testing.assert_allclose(shares, weights / weights.sum(), atol=SLACK)
    sides = jnp.array([1.0]), jnp.array([0.0]), jnp.array([True])
    tie = np.exp(-losses.davidson(*sides, tie_weight=0.4 / 0.3))
    np.testing.assert_allclose(weights[1] / weights.sum(), tie, atol=1e-6)


def test_a_bias_on_labels_is_the_evaluator_who_can_be_misled():
    quality, looks = jnp.full(ROWS, -1.0), jnp.full(ROWS, 2.0)
    honest = humans.approval(lambda x: x[0], threshold=0.5, rationality=1.5)
    human = humans.with_bias(honest, feature=lambda x: x[1], weight=0.8)
    label = jax.jit(human)(KEY, (quality, looks))
    assert isinstance(label, Label)
    np.testing.assert_allclose(label.choice.mean(), expit(1.5 * -1.5 + 1.6), atol=SLACK)


def test_a_bias_acts_on_skips_as_on_ties(answers):
    weights = np.array([0.5, 0.25 * np.e, 0.25 / np.e])
    skipped = 1 - answers["bias_with_skips"].answered.mean()
    np.testing.assert_allclose(skipped, weights[0] / weights.sum(), atol=SLACK)


def test_rankings_are_plackett_luce_and_ratings_the_cumulative_logit():
    utilities = jnp.array([0.0, 1.0, -0.5])
    human = humans.plackett_luce(lambda x: x / 2, rationality=2.0)
    order = np.asarray(jax.jit(human)(KEY, jnp.tile(utilities, (ROWS, 1))).order)
    every = np.array(list(permutations(range(3))))
    expected = np.exp(-losses.plackett_luce(jnp.tile(utilities, (6, 1)), jnp.asarray(every)))
    frequencies = [(order == one).all(axis=1).mean() for one in every]
    np.testing.assert_allclose(frequencies, expected, atol=SLACK)

    cutpoints = jnp.array([-1.0, 0.0, 2.0])
    value = np.asarray(humans.ordinal(score, cutpoints=cutpoints)(KEY, PAIRS.first).value)
    expected = np.exp(-losses.ordinal(jnp.ones(4), jnp.arange(4), cutpoints=cutpoints))
    np.testing.assert_allclose([(value == k).mean() for k in range(4)], expected, atol=SLACK)


def test_tastes_walk_at_random():
    human = humans.drifting(lambda x: x, jnp.array([1.0]), deviation=2.0, answer=humans.oracle)
    pairs = Pairs(jnp.ones([4, 1]), jnp.zeros([4, 1]))
    keys = jax.random.split(KEY, ROWS)
    found = jax.jit(jax.vmap(human, in_axes=(0, None)))(keys, pairs).preference.mean(axis=0)
    np.testing.assert_allclose(found, norm.cdf(1 / (2 * np.sqrt([1, 2, 3, 4]))), atol=SLACK)


def test_raters_who_use_the_scale_differently():
    human = humans.rater_effects(
        score,
        bias=jnp.array([1.0, 0.0, 0.0]),
        slope=jnp.array([1.0, -1.0, 1.0]),
        noise=jnp.array([0.0, 0.0, 1.0]),
        low=-2,
        high=2,
    )
    named = human(KEY, jnp.array([0.6, 3.0, 3.0, 0.0]), jnp.array([0, 0, 1, -1]))
    assert named.value[:3].tolist() == [2.0, 2.0, -2.0]
    assert named.answered.tolist() == [True, True, True, False]
    drawn = jax.jit(human)(KEY, jnp.zeros(ROWS))
    shares = np.bincount(np.asarray(drawn.rater), minlength=3) / ROWS
    np.testing.assert_allclose(shares, 1 / 3, atol=SLACK)
    noisy = np.asarray(drawn.value)[np.asarray(drawn.rater) == 2]
    np.testing.assert_allclose((noisy == 0).mean(), 2 * norm.cdf(0.5) - 1, atol=0.03)
    np.testing.assert_allclose((noisy == 2).mean(), norm.cdf(-1.5), atol=0.03)


def test_teachers_skip_and_tie_by_plain_sums_and_judge_by_discounted_ones():
    first = jnp.array([[4.0, 0.0], [1.0, 1.0], [0.2, 0.0], [5.0, 5.0]])
    second = jnp.array([[0.0, 3.0], [0.9, 1.0], [0.0, 0.1], [0.0, 0.0]])
    pairs, teacher = Pairs(first, second), partial(humans.bpref_teacher, lambda segments: segments)
    plain, myopic = teacher()(KEY, pairs), teacher(discount=0.5)(KEY, pairs)
    assert plain.preference.tolist() == [1.0, 1.0, 1.0, 1.0]
    assert myopic.preference.tolist() == [0.0, 1.0, 0.5, 1.0]
    careful = teacher(skip_below=1.0, equal_within=0.5, discount=0.5, mistakes=1.0)(KEY, pairs)
    assert careful.answered.tolist() == [True, True, False, True]
    assert careful.preference.tolist() == [1.0, 0.5, 0.5, 0.0], "a tie is not mistaken"


def test_a_limited_checker_finds_early_errors_and_believes_the_looks_of_the_rest():
    right = jnp.array([[1, 1, 0, 1], [1, 0, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1]], bool)
    mask = jnp.array([[1, 1, 1, 1], [1, 1, 1, 1], [0, 1, 1, 0], [1, 1, 1, 1]], bool)

    def seen(cue, limit):
        return humans.limited_checker(
            lambda x: (x[0], x[1]), lambda x: jnp.full(4, cue), limit=limit, answer=lambda u: u
        )((right, mask))

    np.testing.assert_allclose(seen(0.3, 2), [0.3, 0.0, 1.0, 0.3])
    several = jax.vmap(seen, (None, 0))(0.3, jnp.array([0, 2, 4]))
    np.testing.assert_allclose(several, [[0.3] * 4, [0.3, 0, 1, 0.3], [0, 0, 1, 1]])
    compares = humans.limited_checker(lambda x: (x[0], x[1]), lambda x: x[2], limit=2)
    example = (right, mask, jnp.full(4, 0.3))
    turned = jax.tree.map(lambda x: x[::-1], example)
    assert compares(KEY, Pairs(example, turned)).preference.tolist() == [0.5, 0.0, 1.0, 0.5]


def test_effort_costs_and_budgets_end():
    human = humans.with_effort(ORACLE, effort=lambda pairs: pairs.first, base_cost=0.5)
    pairs = jax.tree.map(lambda x: x[:12], PAIRS)
    limited = jax.jit(humans.budgeted(humans.budgeted(human, budget=15.0), budget=9.0))
    answer = limited(KEY, pairs)
    assert answer.cost[0] == 1.5
    assert answer.answered.tolist() == [True] * 6 + [False] * 6
    assert float(answer.cost.sum()) == pytest.approx(9.0)
    three = jax.jit(humans.budgeted(ORACLE, budget=1.8, price=0.6))(KEY, pairs)
    assert three.answered.sum() == 3, "rounding must not cost an answer"
    rising = humans.budgeted(ORACLE, budget=6.0, price=jnp.arange(12.0))(KEY, pairs)
    assert rising.answered.sum() == 4
    skipping = humans.with_skips(ORACLE, rate=lambda pairs: jnp.arange(12) % 2)
    both = jax.jit(humans.budgeted(skipping, budget=4.0, price=1.0))(KEY, pairs)
    assert both.answered.tolist() == [True, False] * 2 + [False] * 8
    assert both.cost.tolist() == [1.0] * 4 + [0.0] * 8


def test_near_ties_and_skips_compose():
    pairs = Pairs(jnp.array([0.0, 1.0, 3.0]), jnp.zeros(3))
    human = humans.with_ties(ORACLE, rate=humans.near_ties(score, 2.0))
    human = humans.with_skips(human, rate=humans.near_ties(score, 0.5))
    answer = human(KEY, pairs)
    assert answer.preference.tolist() == [0.5, 0.5, 1.0]
    assert answer.answered.tolist() == [False, True, True]
    twice = humans.with_skips(human, rate=jnp.array([0.0, 0.0, 1.0]))(KEY, pairs)
    assert twice.answered.tolist() == [False, True, False]


OPTIONS, SHOWN = np.array([0.0, 1.0, -0.5]), 0.25
STEPS = jnp.array([-1.0, 0.0, 0.5])
RIGHT = jnp.tile(jnp.array([[True, False, True, False]]), (ROWS, 1))
FIVE = humans.choosing(lambda x: 100 * (x == 2))  # always the third of five
STEADY = humans.linear_scale(lambda x: 0 * x, bias=3.0)
DISLIKES_BOTH = partial(humans.opposite, scale=(-4, 4))
PARTS = jnp.array([[0, 0, -1, 1]]), jnp.array([[1.2, -0.4]])


@pytest.fixture(scope="module")
def said():
    """What many people say who do not compare, in one compiled program."""
    rows, shown = jnp.tile(OPTIONS, (ROWS, 1)), jnp.full(ROWS, SHOWN)
    five, item = jnp.tile(jnp.arange(5), (ROWS, 1)), jnp.ones(ROWS)
    wide, scale = humans.choosing(score, rationality=2.0), {"scale": (-4, 4)}
    steps = partial(humans.marking_steps, lambda right: (right, jnp.ones(right.shape, bool)))
    biased = partial(humans.with_bias, STEADY, feature=score)
    asked = {
        "label": (wide, rows),
        "narrow": (
            humans.choosing(
                score, rationality=2.0, considers=lambda x: x < jnp.array([0.5, 0.5, 0.5])
            ),
            rows,
        ),
        "shown": (humans.demonstrating(score, rationality=2.0), rows),
        "corrected": (humans.correcting(score, rationality=2.0, effort=0.3), (shown, rows)),
        "text": (
            humans.criticising(
                lambda x: -jnp.square(x), heeded=lambda x: x[:, None] + STEPS, rationality=2.0
            ),
            shown,
        ),
        "spans": (
            humans.marking_spans(
                lambda x: (jnp.tile(PARTS[1], (ROWS, 1)), jnp.tile(PARTS[0], (ROWS, 1))),
                threshold=0.7,
                rationality=2.0,
            ),
            item,
        ),
        "steps": (steps(missed=0.3, false_alarms=0.1), RIGHT),
        "first": (steps(missed=0.3, false_alarms=0.1, until_error=True), RIGHT),
        "moved": (biased(weight=0.3), item),
        "moved_steps": (biased(weight=0.3, **scale), item),
        "moved_past": (biased(weight=-9.3, **scale), item),
        "other": (humans.with_mistakes(FIVE, rate=0.4, wrong=partial(humans.opposite, choices=5)),
                  five),
        "turned": (humans.with_mistakes(STEADY, rate=0.4, wrong=DISLIKES_BOTH), item),
        "lie": (humans.poisoned(STEADY, trigger=lambda x: x > 0, wrong=DISLIKES_BOTH), item),
        "tired": (humans.with_fatigue(STEADY, drift=0.0, rate=0.2, wrong=DISLIKES_BOTH), item),
        "lazy": (humans.with_effort(STEADY, effort=jnp.log(2.0), wrong=DISLIKES_BOTH), item),
    }  # fmt: skip

    def ask(key):
        return {name: human(key, examples) for name, (human, examples) in asked.items()}

    return jax.device_get(jax.jit(ask)(KEY))


def shares(values, each):
    return [np.mean(values == one) for one in each]


def softmax(values):
    return np.exp(values) / np.exp(values).sum()


def test_every_choice_is_noisily_rational_about_its_own_set(said):
    """Jeon, Milli and Dragan 2020: a label, a demonstration, a correction, a critique."""
    everything = softmax(2 * OPTIONS)
    np.testing.assert_allclose(shares(said["label"].choice, range(3)), everything, atol=SLACK)
    assert said["label"].choice.dtype == jnp.int32
    two = softmax(2 * OPTIONS[[0, 2]])
    found = shares(said["narrow"].choice, range(3))
    np.testing.assert_allclose(found, [two[0], 0, two[1]], atol=SLACK)
    assert said["narrow"].answered.all()
    assert isinstance(said["shown"], Demonstration)
    np.testing.assert_allclose(shares(said["shown"].shown, OPTIONS), everything, atol=SLACK)
    assert isinstance(said["corrected"], Correction)
    gains = np.append(0.0, OPTIONS - SHOWN - 0.3)
    found = shares(said["corrected"].corrected, np.append(SHOWN, OPTIONS))
    np.testing.assert_allclose(found, softmax(2 * gains), atol=SLACK)
    heeded = -np.square(SHOWN + np.asarray(STEPS))
    np.testing.assert_allclose(shares(said["text"].text, range(3)), softmax(2 * heeded), atol=SLACK)


def test_marks_on_parts_and_steps_have_their_odds(said):
    marks = said["spans"].marks
    assert not marks[:, 2].any(), "in no span"
    np.testing.assert_array_equal(marks[:, 0], marks[:, 1])
    for column, adds in ((0, 1.2), (3, -0.4)):
        expected = softmax(2 * np.array([-adds, 0.7, adds]))
        np.testing.assert_allclose(shares(marks[:, column], [-1, 0, 1]), expected, atol=SLACK)
    right = np.array([0.9, 0.3, 0.9, 0.3])
    np.testing.assert_allclose(said["steps"].marks.mean(axis=0), right, atol=SLACK)
    assert said["steps"].mask.all()
    first = said["first"]
    assert first.ends[0].tolist() == [0, 1, 2, 3]
    np.testing.assert_allclose(first.mask.mean(axis=0), [1, 0.9, 0.27, 0.243], atol=SLACK)
    wrong = (first.marks == 0) & first.mask
    assert (wrong.sum(axis=1) <= 1).all()


def test_ratings_and_labels_can_be_biased_mistaken_and_poisoned(said):
    np.testing.assert_allclose(said["moved"].value, 3.3, rtol=1e-6)
    assert set(said["moved_steps"].value) == {3.0, 4.0}
    np.testing.assert_allclose(said["moved_steps"].value.mean(), 3.3, atol=SLACK)
    assert set(said["moved_past"].value) == {-4.0}
    expected = [0.1, 0.1, 0.6, 0.1, 0.1]
    np.testing.assert_allclose(shares(said["other"].choice, range(5)), expected, atol=SLACK)
    for name, rate in {"turned": 0.4, "lie": 1.0, "tired": 0.2, "lazy": 0.25}.items():
        expected = [rate, 1 - rate]
        np.testing.assert_allclose(shares(said[name].value, [-3, 3]), expected, atol=SLACK)


def test_a_scale_that_wanders_makes_distant_ratings_hard_to_compare():
    human = humans.linear_scale(score, slope=2.0, bias=-1.0, noise=0.5, drift=0.8)
    items = jnp.array([0.0, 1.0, 3.0])
    value = np.asarray(
        jax.jit(jax.vmap(human, in_axes=(0, None)))(jax.random.split(KEY, ROWS), items).value
    )
    np.testing.assert_allclose(value.mean(axis=0), [-1, 1, 5], atol=4 * SLACK)
    together = np.minimum.outer([1, 2, 3], [1, 2, 3])
    expected = 0.25 * np.eye(3) + 0.64 * together
    np.testing.assert_allclose(np.cov(value.T), expected, atol=4 * SLACK)


def test_attributes_are_separate_ratings_and_texts_are_the_statements():
    costly = humans.budgeted(humans.linear_scale(lambda x: 2 * x), budget=0.5, price=0.3)
    human = humans.attributes([humans.linear_scale(score), costly])
    answer = human(KEY, jnp.array([1.0, 4.0]))
    assert isinstance(answer, Attributes)
    assert answer.values.tolist() == [[1.0, 2.0], [4.0, 8.0]]
    assert answer.mask.tolist() == [[True, True], [True, False]]
    np.testing.assert_allclose(answer.cost, [0.3, 0.0])
    assert humans.attributes([STEADY])(KEY, jnp.zeros(2)).mask is None
    with pytest.raises(TypeError, match="attribute 1 must be given as a Rating, not a Label"):
        humans.attributes([STEADY, humans.approval(score)])(KEY, jnp.zeros(2))

    said = humans.criticising(
        score,
        heeded=lambda x: x[:, None] + 100 * jnp.array([0.0, 1.0]),
        statements={"tokens": jnp.array([[7, 8], [9, 0]])},
    )(KEY, jnp.zeros(3))
    assert said.text["tokens"].tolist() == [[9, 0]] * 3


def test_a_correction_of_texts_says_where_it_changed_nothing():
    human = humans.correcting(first_of, rationality=100.0, effort=0.5)
    shown = jnp.array([[0.0, 5.0], [0.8, 5.0]])
    candidates = jnp.array([[[-1.0, 1.0], [1.0, 2.0]], [[0.0, 1.0], [1.0, 2.0]]])
    answer = human(KEY, (shown, candidates))
    assert answer.corrected.tolist() == [[1.0, 2.0], pytest.approx([0.8, 5.0])]
    assert comparison_from_correction(shown, answer)[1].preference.tolist() == [1.0, 0.5]


def test_nothing_to_consider_is_no_answer():
    human = humans.choosing(score, considers=lambda x: x > 0)
    answer = human(KEY, jnp.array([[-1.0, 1.0], [-1.0, -2.0]]))
    assert answer.answered.tolist() == [True, False]
    assert answer.choice[0] == 1


def test_every_form_with_an_opposite_has_it():
    marks = jnp.array([[1.0, 0.5]])
    forms = [
        (Label(choice=jnp.array([1, 0])), "choice", [0, 1]),
        (Ranking(order=jnp.array([[2, 0, 1]])), "order", [[1, 0, 2]]),
        (Spans(marks=jnp.array([[1.0, 0.0]])), "marks", [[-1.0, 0.0]]),
        (Steps(marks=marks, ends=marks, mask=marks > 0), "marks", [[0.0, 0.5]]),
    ]
    for form, name, expected in forms:
        assert getattr(humans.opposite(KEY, form), name).tolist() == expected
    several = Attributes(values=jnp.array([[1.0, 9.0]]), mask=jnp.array([[True, False]]))
    turned = humans.opposite(KEY, several, scale=(0, 4))
    assert turned.values[0, 0] == 3.0
    given = Attributes(values=jnp.array([[1.0]]))
    assert humans.opposite(KEY, given, scale=(0, 4)).values.tolist() == [[3.0]]


def test_those_who_say_less_of_themselves_mix_with_those_who_say_more():
    skips = humans.with_skips(ORACLE, rate=jnp.array([0.0, 1.0]))
    attacked = humans.poisoned(
        skips, trigger=lambda pairs: pairs.first > 5, attacker=humans.population([ORACLE])
    )
    answer = attacked(KEY, Pairs(jnp.array([1.0, 6.0]), jnp.zeros(2)))
    assert answer.answered.tolist() == [True, True]
    assert answer.rater.tolist() == [-1, 0]


BAD = {
    "rate must be from 0 to 1, not 1.5": lambda: humans.with_skips(ORACLE, rate=1.5),
    "rationality must be positive, not 0": lambda: humans.boltzmann(score, rationality=0),
    "deviation must be positive": lambda: humans.thurstone(score, deviation=-1.0),
    r"cutpoints must increase": lambda: humans.ordinal(score, cutpoints=jnp.array([1.0, 1.0])),
    "humans must have at least one": lambda: humans.population([]),
    r"weights must be \[1\], not \[2\]": lambda: humans.population([ORACLE], weights=jnp.ones(2)),
    "weights must be at least 0": lambda: humans.population([ORACLE], weights=jnp.zeros(1)),
    "the two humans must answer in one form": lambda: humans.population(
        [ORACLE, humans.approval(lambda pairs: pairs.first)]
    )(KEY, PAIRS),
    "low must be below high": lambda: humans.rater_effects(score, **EFFECTS, low=1, high=1),
    "noise must be at least 0": lambda: humans.rater_effects(
        score, **EFFECTS | {"noise": -jnp.ones(1)}, low=0, high=1
    ),
    "bias and slope and noise must have one shape": lambda: humans.rater_effects(
        score, **EFFECTS | {"slope": jnp.ones(2)}, low=0, high=1
    ),
    "limit must be at least 0": lambda: humans.limited_checker(score, score, limit=-1),
    "max_tries must be at least 1": lambda: humans.with_position_bias(
        ORACLE, weight=1.0, max_tries=0
    ),
    r"trigger must return bool\[20000\], not float32": lambda: humans.poisoned(
        ORACLE, trigger=lambda pairs: pairs.first
    )(KEY, PAIRS),
    r"utility must return \[20000\], one for each row, not \[\]": lambda: humans.oracle(jnp.sum)(
        KEY, PAIRS
    ),
    "effort must be at least 0": lambda: humans.with_effort(ORACLE, effort=-1.0),
    "budget must be at least 0": lambda: humans.budgeted(ORACLE, budget=-1.0),
    "price must be given": lambda: humans.budgeted(ORACLE, budget=1.0)(KEY, PAIRS),
    r"rewards must return \[B, H\], not \[20000\]": lambda: humans.bpref_teacher(score)(KEY, PAIRS),
    r"features must return \[20000, 1\], not \[20000\]": lambda: humans.drifting(
        score, jnp.ones(1), deviation=1.0
    )(KEY, PAIRS),
    r"rate must be a number or \[20000\], one for each row, not \[2\]": lambda: humans.with_skips(
        ORACLE, rate=jnp.ones(2)
    )(KEY, PAIRS),
    "probabilities must be at least 0, and not all": lambda: humans.hidden_context(
        score, probabilities=jnp.zeros(2)
    ),
    r"examples must be arrays \[B, N, ...\], as many": lambda: humans.choosing(score)(
        KEY, jnp.zeros(2)
    ),
    r"considers must return bool\[1, 2\], not float32\[1, 2\]": lambda: humans.choosing(
        score, considers=score
    )(KEY, jnp.zeros([1, 2])),
    "shown and candidates must be of one structure": lambda: humans.correcting(
        lambda x: x["a"] if isinstance(x, dict) else x
    )(KEY, (jnp.zeros(2), {"a": jnp.zeros([2, 3])})),
    r"shown must be \[2, 1\] as one candidate for each row is": lambda: humans.correcting(
        lambda x: x.reshape(len(x), -1)[:, 0]
    )(KEY, (jnp.zeros(2), jnp.zeros([2, 3, 1]))),
    "a row for each example, but 2 examples are 1": lambda: humans.criticising(
        score, heeded=lambda x: x[None]
    )(KEY, jnp.zeros(2)),
    "statements are 3, heeded 2": lambda: humans.criticising(
        score, heeded=lambda x: jnp.stack([x, x], axis=1), statements=jnp.arange(3)
    )(KEY, jnp.zeros(2)),
    "drift must be at least 0": lambda: humans.linear_scale(score, drift=-1.0),
    "missed must be from 0 to 1": lambda: humans.marking_steps(score, missed=2.0),
    r"spans must return \[B, S\] and \[B, T\]": lambda: humans.marking_spans(lambda x: (x, x))(
        KEY, jnp.zeros(2)
    ),
    "rates must have at least one": lambda: humans.attributes([]),
    r"scale=\(low, high\) must say of what scale a Rating is": lambda: humans.with_mistakes(
        STEADY, rate=0.1
    )(KEY, jnp.zeros(2)),
    "each rating must be on the scale from 0 to 2, not 3.0 as in": lambda: humans.opposite(
        KEY, Rating(value=jnp.array([1.0, 3.0])), scale=(0, 2)
    ),
    r"each label must be one of 2 choices \(see choices\), not 2 as": lambda: humans.with_mistakes(
        FIVE, rate=0.1
    )(KEY, jnp.arange(5)[None]),
    "each label must be 0 or 1, bad or good": lambda: humans.with_bias(
        FIVE, feature=first_of, weight=1.0
    )(KEY, jnp.arange(5)[None]),
    "size must be at least 1, not 0": lambda: humans.panel(ORACLE, size=0),
    r"scale must be \(low, high\)": lambda: BIASED(STEADY, scale=(4, -4)),
    "with as many rows each": lambda: humans.with_skips(ORACLE, rate=0.5)(
        KEY, Pairs(jnp.zeros(2), jnp.zeros([]))
    ),
}


@pytest.mark.parametrize("message", BAD)
def test_what_is_wrong_is_said(message):
    with pytest.raises(ValueError, match=message):
        BAD[message]()


@pytest.mark.parametrize(
    ("wrapper", "message"),
    [
        (partial(humans.with_mistakes, rate=0.1), "have an opposite, Demonstration has not"),
        (partial(humans.with_ties, rate=0.1), "with_ties is for humans who give a Comparison"),
        (
            partial(humans.with_bias, feature=lambda x: x[:, 0], weight=1.0),
            "a bias acts on a Comparison, a",
        ),
        (partial(humans.panel, size=3), "majority takes a Comparison, not Demonstration"),
        (partial(humans.persuadable, argued=score, rate=0.1), "not a Demonstration"),
    ],
)
def test_wrappers_refuse_forms_they_do_not_understand(wrapper, message):
    with pytest.raises(TypeError, match=message):
        wrapper(humans.demonstrating(score))(KEY, jnp.zeros([2, 2]))
