"""Raters who use a scale in their own way are recovered; a hidden context shows in the spread."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

from rlhf_jax import algorithms, distributions, humans, losses, models
from rlhf_jax.types import Preferences, Rated, Sequences

NORMAL = distributions.normal()


def table(params, tokens, mask):
    """What each item is worth, an item being one token."""
    return params[tokens[:, 0]]


def items(index):
    index = np.asarray(index, np.int32)[:, None]
    return Sequences(index, np.ones_like(index, bool), np.ones_like(index, bool))


def fitted(algorithm, params, batch, steps):
    state = algorithm.init(params, jax.random.key(0))
    fit = jax.jit(lambda s: jax.lax.scan(lambda s, _: algorithm.step(s, batch), s, None, steps))
    state, history = fit(state)
    return state.params, jax.tree.map(lambda x: x[-1], history)


RATERS, ITEMS = 12, 30
TRUTH = {
    "bias": np.linspace(-1.5, 1.5, RATERS).astype(np.float32),
    "slope": np.array([1, 1.4, 0.6, -0.8] * 3, np.float32),
    "noise": np.array([0.5] * 6 + [1.5] * 6, np.float32),
}
UTILITY = np.linspace(-4, 4, ITEMS).astype(np.float32)


def ratings(seed, rows):
    """All raters but the last rate many items; the last rates two."""
    rng = np.random.default_rng(seed)
    index, rater = rng.integers(0, ITEMS, rows), rng.integers(0, RATERS - 1, rows)
    rater[:2] = RATERS - 1
    human = humans.rater_effects(lambda x: x, **TRUTH, low=-40, high=40)
    value = human(jax.random.key(seed), UTILITY[index], rater).value
    return Rated(items(index), np.asarray(value), rater=rater.astype(np.int32))


def test_bias_slope_and_noise_are_recovered_and_predict():
    """Better than a model of one crowd, and one who rated twice is taken for an average one."""
    batch, unseen = ratings(0, 660), ratings(1, 300)
    likelihood = partial(losses.likelihood, distribution=NORMAL)
    scale = models.rater_scale(table, RATERS, answers=660, slope_spread=1.0)
    algorithm = algorithms.reward_model(
        scale.score_fn,
        optax.adam(0.05),
        loss=likelihood,
        reward=lambda scores: scores[..., 0],
        personal=scale.personal,
        regulariser=scale.regulariser,
    )
    state = algorithm.init(scale.init(jnp.zeros(ITEMS)), jax.random.key(0))

    @jax.jit
    def predicted(batch, unseen):
        after, _ = jax.lax.scan(lambda s, _: algorithm.step(s, batch), state, None, 500)
        scores = scale.score_fn(after.params, unseen.sequences.tokens, None)[None]
        said = scale.personal(after.params, scores, unseen.rater)[0]
        loss = jnp.mean(likelihood(said, unseen.ratings))
        return after.params, scale.effects(after.params), loss

    *_, alike = predicted(*(x.replace(rater=0 * x.rater) for x in (batch, unseen)))
    params, effects, own = predicted(batch, unseen)
    assert own < alike - 0.5
    # The reward's own zero and unit are where the priors are likeliest.
    unit, zero = np.polyfit(UTILITY, np.asarray(params["score"]), 1)
    slope, careful, many = TRUTH["slope"] / unit, slice(0, 6), slice(0, RATERS - 1)
    np.testing.assert_allclose(effects["slope"][careful], slope[careful], atol=0.1)
    np.testing.assert_allclose(effects["slope"][many], slope[many], atol=0.3)
    bias = TRUTH["bias"] - slope * zero
    np.testing.assert_allclose(effects["bias"][careful], bias[careful], atol=0.25)
    noise = np.sqrt(TRUTH["noise"] ** 2 + 1 / 12)  # They round to whole steps.
    np.testing.assert_allclose(effects["noise"][many], noise[many], rtol=0.3)
    typical = jnp.sqrt(NORMAL.variance(jnp.stack([params["raters"]["typical_noise"]] * 2)))
    assert abs(effects["noise"][-1] - typical) < 0.2


def test_of_comparisons_the_slope_is_how_sure_a_rater_is():
    rng = np.random.default_rng(0)
    sure = np.array([0.3, 1.0, 3.0, -1.0], np.float32)
    first, second, rater = (rng.integers(0, n, 1600) for n in (ITEMS, ITEMS, len(sure)))
    gap = sure[rater] * (UTILITY[first] - UTILITY[second]) / 2
    wins = rng.random(1600) < 1 / (1 + np.exp(-gap))
    chosen, rejected = np.where(wins, first, second), np.where(wins, second, first)
    batch = Preferences(items(chosen), items(rejected), rater=rater.astype(np.int32))
    scale = models.rater_scale(table, len(sure), answers=1600, noise=False, slope_spread=1.0)
    algorithm = algorithms.reward_model(
        scale.score_fn, optax.adam(0.05), personal=scale.personal, regulariser=scale.regulariser
    )
    params, metrics = fitted(algorithm, scale.init(jnp.zeros(ITEMS)), batch, 200)
    found = np.asarray(scale.effects(params)["slope"])
    assert (found[0] < found[1] < found[2]) and found[3] < 0
    np.testing.assert_allclose(found[3] / found[1], -1, atol=0.3)
    assert not scale.effects(params)["bias"].any() and metrics["accuracy"] > 0.7


def test_a_rater_who_is_not_known_is_an_average_one():
    scale = models.rater_scale(table, 2, answers=4, bias_spread=2.0)
    params = scale.init(jnp.zeros(3))
    raters = {"bias": jnp.array([1.0, 3.0]), "slope": jnp.array([-0.5, 1.0]), "noise": jnp.ones(2)}
    params["raters"] |= raters
    said = scale.personal(params, jnp.full([1, 4], 2.0), jnp.array([0, 1, -1, 2]))
    np.testing.assert_allclose(said[0, :, 0], [2.0, 7.0, 2.0, 2.0])
    np.testing.assert_allclose(said[0, 2, 1], params["raters"]["typical_noise"])
    # (1 + 9) / 4 of the biases, (1/4 + 1) * 4 of the slopes, 2 * 4 of the noises.
    np.testing.assert_allclose(scale.regulariser(params), 0.5 * (2.5 + 5 + 8) / 4)
    with pytest.raises(ValueError, match=r"scores must be \[S, 4\]"):
        scale.personal(params, jnp.zeros([1, 4, 2]), jnp.zeros(4, int))
    with pytest.raises(ValueError, match="answers must be at least 1"):
        models.rater_scale(table, 2, answers=0)
    with pytest.raises(ValueError, match="slope_spread must be positive"):
        models.rater_scale(table, 2, answers=1, slope_spread=0)


def test_hidden_context_shows_in_the_spread_where_one_number_learns_borda():
    """Siththaranjan et al. 2023: of a >= .8, half of the people think 0 and half 2a."""
    a = (np.arange(40) + 0.5) / 40
    first, second = np.triu_indices(40, 1)
    worlds = np.stack([a, a]) * np.where(a >= 0.8, [[0.0], [2.0]], 1.0)
    beats = (worlds[:, None, :, None] > worlds[None, :, None]).mean((0, 1))
    beats += 0.5 * (worlds[:, None, :, None] == worlds[None, :, None]).mean((0, 1))
    pairs = Preferences(
        items(first), items(second), probability=beats[first, second].astype(np.float32)
    )
    borda = beats.mean(axis=1)
    one, _ = fitted(algorithms.reward_model(table, optax.adam(0.1)), jnp.zeros(40), pairs, 300)
    assert stats.spearmanr(one, borda)[0] > 0.99 and a[np.argmax(one)] < 0.8

    loss = partial(losses.distributional, distribution=NORMAL)
    algorithm = algorithms.reward_model(
        table, optax.adam(0.1), loss=loss, reward=lambda scores: scores[..., 0]
    )
    spread, _ = fitted(algorithm, jnp.zeros([40, 2]), pairs, 300)
    above = stats.mannwhitneyu(*(NORMAL.variance(spread)[x] for x in (a >= 0.8, a < 0.8)))
    assert above.statistic / (8 * 32) > 0.99  # AUROC
    few = distributions.explained_share(NORMAL.mean(spread), NORMAL.variance(spread))
    sure = a < 0.8
    all_of_it = distributions.explained_share(
        NORMAL.mean(spread)[sure], NORMAL.variance(spread)[sure]
    )
    assert few < 0.6 and all_of_it > 0.9
