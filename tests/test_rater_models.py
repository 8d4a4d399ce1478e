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


def fitted(algorithm, init, read, steps, *batches):
    """What ``read`` finds in the parameters after full-batch steps, for each batch; one program."""

    @jax.jit
    def fit(batch):
        state = algorithm.init(init(), jax.random.key(0))
        state, history = jax.lax.scan(lambda s, _: algorithm.step(s, batch), state, None, steps)
        return read(state.params), history["accuracy" if "accuracy" in history else "loss"][-1]

    return jax.device_get([fit(batch) for batch in batches])


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

    def read(params):
        scores = scale.score_fn(params, unseen.sequences.tokens, None)[None]
        both = [scale.personal(params, scores, who)[0] for who in (unseen.rater, 0 * unseen.rater)]
        loss = [jnp.mean(likelihood(said, unseen.ratings)) for said in both]
        alone = jnp.full(2, params["raters"]["typical_noise"])
        return params["score"], scale.effects(params), loss, jnp.sqrt(NORMAL.variance(alone))

    batches = batch, batch.replace(rater=0 * batch.rater)
    found = fitted(algorithm, lambda: scale.init(jnp.zeros(ITEMS)), read, 500, *batches)
    ((score, effects, (own, _), typical), _), ((*_, (_, alike), _), _) = found
    assert own < alike - 0.5
    # The reward's own zero and unit are where the priors are likeliest.
    unit, zero = np.polyfit(UTILITY, score, 1)
    slope, careful, many = TRUTH["slope"] / unit, slice(0, 6), slice(0, RATERS - 1)
    np.testing.assert_allclose(effects["slope"][careful], slope[careful], atol=0.1)
    np.testing.assert_allclose(effects["slope"][many], slope[many], atol=0.3)
    bias = TRUTH["bias"] - slope * zero
    np.testing.assert_allclose(effects["bias"][careful], bias[careful], atol=0.25)
    noise = np.sqrt(TRUTH["noise"] ** 2 + 1 / 12)  # They round to whole steps.
    np.testing.assert_allclose(effects["noise"][many], noise[many], rtol=0.3)
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
    init = lambda: scale.init(jnp.zeros(ITEMS))  # noqa: E731
    [(found, accuracy)] = fitted(algorithm, init, scale.effects, 200, batch)
    bias, found = found["bias"], found["slope"]
    assert (found[0] < found[1] < found[2]) and found[3] < 0
    np.testing.assert_allclose(found[3] / found[1], -1, atol=0.3)
    assert not bias.any() and accuracy > 0.7


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
    bradley_terry = algorithms.reward_model(table, optax.adam(0.1))
    [(one, _)] = fitted(bradley_terry, lambda: jnp.zeros(40), lambda params: params, 300, pairs)
    assert stats.spearmanr(one, borda)[0] > 0.99 and a[np.argmax(one)] < 0.8

    loss = partial(losses.distributional, distribution=NORMAL)
    algorithm = algorithms.reward_model(
        table, optax.adam(0.1), loss=loss, reward=lambda scores: scores[..., 0]
    )

    def read(outputs):
        mean, variance = NORMAL.mean(outputs), NORMAL.variance(outputs)
        share = distributions.explained_share
        return variance, share(mean, variance), share(mean[:32], variance[:32])

    [((variance, few, most), _)] = fitted(algorithm, lambda: jnp.zeros([40, 2]), read, 300, pairs)
    above = stats.mannwhitneyu(variance[32:], variance[:32])
    assert above.statistic / (8 * 32) > 0.99  # AUROC
    assert few < 0.6 and most > 0.9
