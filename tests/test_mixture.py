"""Groups of raters with tastes of their own are found, and the one worse off can be served."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toys

from rlhf_jax import aggregates, algorithms, losses, rewards
from rlhf_jax.types import Preferences, Prompts, Sequences

# What a token is worth to the larger group and to the smaller one, in nats: each has words that the
# other cannot stand, and there are some for both. The larger group feels more strongly.
WORTH = np.array([[-2.04] * 5 + [3.0] * 3, [-1.14] * 2 + [1.5] * 3 + [-1.14] * 3], np.float32)
WORTH = np.pad(WORTH, ((0, 0), (0, 3)), constant_values=0.4)
RATERS = 12
GROUP = (np.arange(RATERS) >= 8).astype(int)


def society(seed, pairs=960):
    """Pairs of answers of two tokens, each compared by one of the raters."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, toys.VOCAB, [2, pairs, 2]).astype(np.int32)
    rater = rng.integers(0, RATERS, pairs).astype(np.int32)
    first, second = WORTH[GROUP[rater][:, None], tokens].sum(axis=-1)
    wins = (rng.random(pairs) < 1 / (1 + np.exp(second - first)))[:, None]
    mask = np.ones([pairs, 2], bool)
    chosen, rejected = np.where(wins, *tokens), np.where(wins, *tokens[::-1])
    return Preferences(Sequences(chosen, mask, mask), Sequences(rejected, mask, mask), rater=rater)


def penalty(params):
    return 0.0005 * jnp.sum(jnp.square(params["weights"]))


def start(groups):
    rng = np.random.default_rng(0)
    return {"weights": 0.1 * rng.normal(size=[groups, toys.VOCAB]).astype(np.float32)}


@pytest.fixture(scope="module")
def fitted():
    algorithm = algorithms.mixture(
        toys.bag_scores, optax.adam(0.03), groups=2, raters=RATERS, regulariser=penalty
    )

    @jax.jit
    def fit(batch):
        state = algorithm.init(start(2), jax.random.key(0))
        state, history = jax.lax.scan(lambda s, _: algorithm.step(s, batch), state, None, 200)
        return state, history, algorithms.group_posterior(state.extra)

    return jax.device_get(fit(society(0)))


def test_two_groups_are_recovered(fitted):
    state, history, posterior = fitted
    order = [0, 1] if posterior[0, 0] > 0.5 else [1, 0]
    assert (posterior[:, order][np.arange(RATERS), GROUP] > 0.95).all()
    unseen, accuracy = society(1, 2000), []
    better, worse = unseen.chosen.tokens, unseen.rejected.tokens
    for group, found in enumerate(state.params["weights"][order]):
        truth, lead = (w[better].sum(1) - w[worse].sum(1) for w in (WORTH[group], found))
        theirs = (GROUP[unseen.rater] == group) & (truth != 0)
        accuracy.append(np.mean((lead > 0) == (truth > 0), where=theirs))
    assert min(accuracy) > 0.9
    share = np.exp(state.extra.log_prior)[order]
    np.testing.assert_allclose(share, [9 / 14, 5 / 14], atol=0.01)  # One more counted in each.
    # The optimiser may wander a little about the optimum.
    assert np.diff(history["log_likelihood"]).min() > -1e-3
    assert history["log_likelihood"][-1] > history["log_likelihood"][0] + 0.15
    assert history["certainty"][-1] > 0.95 and history["smallest_share"][-1] < 0.4


def test_maxmin_serves_the_group_that_is_worse_off(fitted):
    """From answers of people who do not say to which group they belong, to a policy for both."""
    models = fitted[0].params
    # A common zero: what a policy earns that knows nothing. The unit, nats, they share already.
    zero = models["weights"][:, 0] + 2 * np.mean(models["weights"], axis=1)
    reward = rewards.Standardised(models, zero, np.ones(2))
    prompts = Prompts(np.zeros([16, 1], np.int32), np.ones([16, 1], bool))

    @jax.jit
    def served(rate, reward, watched):
        algorithm = algorithms.policy_gradient(
            toys.bigram_logits,
            toys.sample_fn(new_tokens=2, eos_id=None),
            rewards.ensemble(rewards.standardised(toys.bag_scores)),
            optax.adam(0.1),
            aggregate=aggregates.maxmin(2, rate=rate),
            kl_coefficient=0.02,
            samples_per_prompt=8,
            watch=lambda worth, sequences: {
                name: jnp.sum(each[sequences.tokens[:, 1:]], axis=-1)
                for name, each in zip(("larger", "smaller"), worth, strict=True)
            },
        )
        params = {"table": jnp.zeros([toys.VOCAB, toys.VOCAB])}
        state = algorithm.init(params, jax.random.key(1), reward=reward, watched=watched)
        _, history = jax.lax.scan(lambda s, _: algorithm.step(s, prompts), state, None, 80)
        return [jnp.mean(history[name][-20:]) for name in ("larger", "smaller")]

    # At a rate of 0 the weights stay equal: the mean.
    by_mean, fairly = (jax.device_get(served(rate, reward, WORTH)) for rate in (0.0, 0.3))
    assert by_mean[1] < -1 and by_mean[0] > 4
    assert min(fairly) > 0.5


def test_one_group_is_a_reward_model():
    batch = toys.ranked(8, empty=(2,)).replace(rater=np.arange(8) % 3, weight=np.arange(8) / 4.0)
    settings = {"loss": losses.plackett_luce, "regulariser": penalty}
    one = algorithms.mixture(toys.bag_scores, optax.sgd(0.3), groups=1, raters=3, **settings)
    plain = algorithms.reward_model(toys.bag_scores, optax.sgd(0.3), **settings)

    @jax.jit
    def both(params):
        alone = jax.tree.map(lambda x: x[0], params)
        key = jax.random.key(0)
        return one.step(one.init(params, key), batch), plain.step(plain.init(alone, key), batch)

    (after, metrics), (alone, expected) = jax.device_get(both(start(1)))
    np.testing.assert_allclose(after.params["weights"][0], alone.params["weights"], rtol=1e-6)
    for name in ("loss", "preference_loss", "regulariser_loss", "grad_norm"):
        np.testing.assert_allclose(metrics[name], expected[name], rtol=1e-5)


def test_a_step_is_the_gradient_of_the_marginal_likelihood():
    """Of raters, and of single answers where the rater is unknown; padding is nobody's."""
    rater = np.array([0, 1, 0, 1, 0, -1, 1, 7])
    batch = toys.preferences(8, empty=(4,)).replace(rater=rater)
    algorithm = algorithms.mixture(
        toys.bag_scores, optax.sgd(1.0), groups=2, raters=3, memory=4, pseudo_count=0.5
    )
    before = np.array([[0.3, -0.2], [0.0, 0.5], [0.0, 0.0]], np.float32)
    share = np.log(np.array([0.3, 0.7], np.float32))
    answers = np.array([2, 1, 0], np.float32)

    def log_likelihoods(params):
        scores = [
            jax.vmap(toys.bag_scores, (0, None, None))(params, side.tokens, side.mask)
            for side in (batch.chosen, batch.rejected)
        ]
        return -losses.bradley_terry(*scores)

    def marginal(params):
        found = log_likelihoods(params)
        known = [
            before[r] * 3 / 4 + found[:, (rater == r) & (np.arange(8) != 4)].sum(1) for r in (0, 1)
        ]
        evidence = jnp.stack([*known, found[:, 5], found[:, 7]])
        return -jnp.sum(jax.nn.logsumexp(share + evidence, axis=1)) / 7, evidence

    @jax.jit
    def both(params):
        state = algorithm.init(params, jax.random.key(0))
        state = state.replace(extra=algorithms.Groups(share, before, answers))
        return jax.grad(marginal, has_aux=True)(params), algorithm.step(state, batch)

    (gradient, evidence), (after, metrics) = jax.device_get(both(start(2)))
    expected = start(2)["weights"] - gradient["weights"]
    np.testing.assert_allclose(after.params["weights"], expected, atol=1e-6)
    np.testing.assert_allclose(after.extra.evidence[:2], evidence[:2], rtol=1e-5)
    np.testing.assert_allclose(after.extra.answers, [3.5, 3.75, 0])
    assert not after.extra.evidence[2].any()  # Has not answered, and does not count:
    posterior = np.exp(share + evidence[:2])
    total = np.log(posterior.sum(axis=1)).sum()
    np.testing.assert_allclose(metrics["log_likelihood"], total / 7.25, rtol=1e-5)
    posterior /= posterior.sum(axis=1, keepdims=True)
    members = posterior.sum(axis=0) + 0.5
    np.testing.assert_allclose(np.exp(after.extra.log_prior), members / 3, rtol=1e-5)
    np.testing.assert_allclose(metrics["certainty"], posterior.max(axis=1).mean(), rtol=1e-5)


def test_what_cannot_be_is_named():
    build = partial(algorithms.mixture, toys.bag_scores, optax.sgd(0.1))
    for settings, message in (
        ({"groups": 0, "raters": 3}, "groups must be at least 1"),
        ({"groups": 2, "raters": 0}, "raters must be at least 1"),
        ({"groups": 2, "raters": 3, "memory": 0.5}, "memory must be at least 1 step"),
        ({"groups": 2, "raters": 3, "pseudo_count": 0}, "pseudo_count must be positive"),
    ):
        with pytest.raises(ValueError, match=message):
            build(**settings)
    two = build(groups=2, raters=3)
    with pytest.raises(ValueError, match=r"params\['weights'\] must be \[2, ...\], one a group"):
        two.init(start(3), jax.random.key(0))
    with pytest.raises(ValueError, match="must not be the same in all groups"):
        two.init({"weights": np.ones([2, toys.VOCAB])}, jax.random.key(0))
    state = two.init(start(2), jax.random.key(0))
    with pytest.raises(ValueError, match="the batch's rater is None"):
        two.step(state, toys.preferences(4))
    with pytest.raises(ValueError, match="unrelated must be None"):
        two.step(state, toys.rated(4).replace(rater=np.zeros(4, int)))
