"""Simulated people and what can be wrong with them, against their closed forms."""

from functools import partial
from itertools import permutations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import norm

from rlhf_jax import humans, losses
from rlhf_jax.feedback import Comparison, Label, Pairs, Ranking, Rating, Spans, Steps

KEY = jax.random.key(0)
ROWS = 20_000
SLACK = 0.015  # Over four standard errors of a frequency of so many.
GAP = 0.5
PAIRS = Pairs(jnp.full(ROWS, 1.0), jnp.full(ROWS, 1.0 - GAP))


def score(example):
    return example


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

    def seen(cue):
        return humans.limited_checker(
            lambda x: (x[0], x[1]), lambda x: jnp.full(4, cue), limit=2, answer=lambda u: u
        )((right, mask))

    np.testing.assert_allclose(seen(0.3), [0.3, 0.0, 1.0, 0.3])
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


def test_every_form_with_an_opposite_can_be_mistaken_or_poisoned():
    forms = [
        (Label(choice=jnp.array([1, 0])), "choice", [0, 1]),
        (Ranking(order=jnp.array([[2, 0, 1]])), "order", [[1, 0, 2]]),
        (Spans(marks=jnp.array([[1.0, 0.0]])), "marks", [[-1.0, 0.0]]),
    ]
    marks = jnp.array([[1.0, 0.5]])
    steps = Steps(marks=marks, ends=jnp.ones([1, 2], int), mask=jnp.ones([1, 2], bool))
    forms.append((steps, "marks", [[0.0, 0.5]]))
    for form, name, expected in forms:
        rows = jnp.zeros(len(getattr(form, name)))
        human = humans.with_mistakes(lambda key, examples, form=form: form, rate=1.0)
        assert getattr(human(KEY, rows), name).tolist() == expected
        lies = humans.poisoned(lambda key, examples, form=form: form, trigger=lambda x: x == 0)
        assert getattr(lies(KEY, rows), name).tolist() == expected


RATES = humans.ordinal(score, cutpoints=jnp.zeros(1))
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
        (partial(humans.with_mistakes, rate=0.1), "have an opposite, Rating has not"),
        (partial(humans.with_ties, rate=0.1), "with_ties is for humans who give a Comparison"),
        (partial(humans.with_bias, feature=score, weight=1.0), "a bias acts on a Comparison or"),
        (partial(humans.persuadable, argued=score, rate=0.1), "not a Rating"),
    ],
)
def test_wrappers_refuse_forms_they_do_not_understand(wrapper, message):
    assert isinstance(RATES(KEY, jnp.zeros(2)), Rating)
    with pytest.raises(TypeError, match=message):
        wrapper(RATES)(KEY, jnp.zeros(2))
