"""Direct optimisation and reward models on every form of feedback, against sums by hand."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toys

from rlhf_jax import algorithms, implicit_rewards, losses
from rlhf_jax.types import Preferences, Ranked, Rated, Sequences

PARAMS, REFERENCE = toys.bigram_params(), toys.bigram_params(1)


def log_probs(params, text):
    """Of each response, added up token by token."""
    table = np.asarray(jax.nn.log_softmax(params["table"]))
    sums = []
    for tokens, counts in zip(text.tokens, text.response_mask, strict=True):
        sums.append(sum(table[tokens[t - 1], tokens[t]] for t in np.flatnonzero(counts)))
    return np.array(sums)


def stepped(batch, reference=REFERENCE, **settings):
    algorithm = algorithms.direct(toys.bigram_logits, optax.sgd(0.1), **settings)
    given = () if reference is None else (reference,)
    _, metrics = jax.jit(algorithm.step)(algorithm.init(PARAMS, jax.random.key(0), *given), batch)
    return {name: float(value) for name, value in metrics.items()}


def answer(tables, text):
    return log_probs(tables[0], text) - log_probs(tables[1], text)


def test_kto_by_hand():
    """The KL is that of the unrelated answers, in the unit of the rewards, and a constant."""
    batch, beta = toys.rated(8, empty=(3,)), 0.3
    metrics = stepped(batch, beta=beta, loss=losses.kto)
    kept = np.arange(8) != 3
    rewards = beta * answer((PARAMS, REFERENCE), batch.sequences)[kept]
    kl = max(0, beta * answer((PARAMS, REFERENCE), batch.unrelated)[kept].mean())
    good = batch.ratings[kept]
    expected = np.where(
        good, 1 - 1 / (1 + np.exp(kl - rewards)), 1 - 1 / (1 + np.exp(rewards - kl))
    )
    np.testing.assert_allclose(metrics["loss"], expected.mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["desirable_reward"], rewards[good].mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["undesirable_reward"], rewards[~good].mean(), rtol=1e-5)


def test_the_kl_of_kto_has_no_gradient():
    """With one good answer, moving the unrelated answers' words alone changes nothing."""
    batch = toys.rated(8)
    algorithm = algorithms.direct(toys.bigram_logits, optax.sgd(1.0), loss=losses.kto)
    state = algorithm.init(PARAMS, jax.random.key(0), REFERENCE)
    after, _ = jax.jit(algorithm.step)(state, batch)
    moved = np.abs(after.params["table"] - PARAMS["table"]).max(axis=1) > 0
    text = batch.sequences
    read = {text.tokens[b, t - 1] for b, t in zip(*np.nonzero(text.response_mask), strict=True)}
    assert set(np.flatnonzero(moved)) == read


def test_plackett_luce_and_rrhf_by_hand():
    batch, beta = toys.ranked(6), 0.5
    flat = jax.tree.map(lambda x: x.reshape(-1, x.shape[-1]), batch.sequences)
    rewards = beta * answer((PARAMS, REFERENCE), flat).reshape(6, 3)
    ranked = np.take_along_axis(rewards, batch.rankings, axis=1)
    metrics = stepped(batch, beta=beta, loss=losses.plackett_luce)
    choices = [np.log(np.exp(ranked[:, k:]).sum(axis=1)) - ranked[:, k] for k in range(3)]
    np.testing.assert_allclose(metrics["loss"], np.sum(choices, axis=0).mean(), rtol=1e-5)
    pairs = [ranked[:, i] > ranked[:, j] for i, j in ((0, 1), (0, 2), (1, 2))]
    np.testing.assert_allclose(metrics["accuracy"], np.mean(pairs), rtol=1e-5)
    np.testing.assert_allclose(metrics["best_reward"], ranked[:, 0].mean(), rtol=1e-5)


def test_a_ranking_of_two_is_a_preference():
    pairs = toys.preferences(6, empty=(2,))
    both = jax.tree.map(lambda *x: np.stack(x, axis=1), pairs.rejected, pairs.chosen)
    ranked = Ranked(both, np.tile(np.int32([1, 0]), (6, 1)))
    settings = {"supervised_weight": 0.3}
    paired = stepped(pairs, **settings)
    metrics = stepped(ranked, loss=losses.plackett_luce, **settings)
    for name in ("loss", "accuracy", "grad_norm", "supervised_loss"):
        np.testing.assert_allclose(metrics[name], paired[name], rtol=1e-5)


def test_ties_by_hand():
    batch = toys.ties(7)
    metrics = stepped(batch, beta=0.4, loss=partial(losses.davidson, tie_weight=0.7))
    lead = 0.4 * (
        answer((PARAMS, REFERENCE), batch.chosen) - answer((PARAMS, REFERENCE), batch.rejected)
    )
    total = np.exp(lead / 2) + np.exp(-lead / 2) + 0.7
    said = np.where(batch.tied, 0.7, np.exp(lead / 2))
    np.testing.assert_allclose(metrics["loss"], -np.log(said / total).mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["margin"], lead[~batch.tied].mean(), rtol=1e-5)


def test_orpo_by_hand():
    """Hong et al. 2024, eq. 6: SFT plus lambda times the odds ratio's loss."""
    batch = toys.preferences(6)
    metrics = stepped(batch, reference=None, **algorithms.orpo.keywords)
    lengths = [side.response_mask.sum(axis=1) for side in (batch.chosen, batch.rejected)]
    means = [
        log_probs(PARAMS, side) / n
        for side, n in zip((batch.chosen, batch.rejected), lengths, strict=True)
    ]
    odds = [mean - np.log1p(-np.exp(mean)) for mean in means]
    ratio = np.log1p(np.exp(-(odds[0] - odds[1]))).mean()
    text = -(log_probs(PARAMS, batch.chosen).sum() / lengths[0].sum())
    np.testing.assert_allclose(metrics["loss"], text + 0.1 * ratio, rtol=1e-5)


@pytest.mark.parametrize("form", ["preferences", "rated", "ranked"])
def test_the_supervised_term_imitates_what_was_called_good(form):
    batch = {"preferences": toys.ties, "rated": toys.rated, "ranked": toys.ranked}[form](6)
    zero = {"preferences": losses.davidson, "rated": losses.kto, "ranked": losses.plackett_luce}
    metrics = stepped(batch, loss=zero[form], supervised_weight=1.0)
    if form == "preferences":
        good, keep = batch.chosen, ~batch.tied
    elif form == "rated":
        good, keep = batch.sequences, batch.ratings
    else:
        best = batch.rankings[:, 0]
        good = jax.tree.map(lambda x: x[np.arange(6), best], batch.sequences)
        keep = np.ones(6, bool)
    tokens = good.response_mask[keep].sum()
    expected = -log_probs(PARAMS, good)[keep].sum() / tokens
    np.testing.assert_allclose(metrics["supervised_loss"], expected, rtol=1e-5)


def test_centering_holds_scores_around_zero():
    batch, weights = toys.preferences(6), np.asarray(toys.bag_params()["weights"])

    def scores(side):
        return np.where(side.mask, weights[side.tokens], 0).sum(axis=1)

    both = [scores(side) for side in (batch.chosen, batch.rejected)]
    algorithm = algorithms.reward_model(toys.bag_scores, optax.sgd(0.1), centering=0.01)
    _, metrics = algorithm.step(algorithm.init(toys.bag_params(), jax.random.key(0)), batch)
    expected = np.log1p(np.exp(both[1] - both[0])).mean() + 0.01 * np.square(sum(both)).mean()
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5)


def test_a_reward_model_learns_from_ratings_on_a_scale():
    """Of one-token texts; the fitted scores order the words as the raters did."""
    rng = np.random.default_rng(0)
    words = rng.integers(0, toys.VOCAB, 4000)
    truth, cutpoints = np.linspace(-2, 2, toys.VOCAB), np.array([-1.0, 0.0, 1.0])
    felt = truth[words] + rng.logistic(size=4000)
    ones = np.ones([4000, 1], bool)
    text = Sequences(words[:, None].astype(np.int32), ones, ones)
    batch = Rated(text, np.searchsorted(cutpoints, felt).astype(np.int32))
    loss = partial(losses.ordinal, cutpoints=jnp.asarray(cutpoints))
    algorithm = algorithms.reward_model(toys.bag_scores, optax.adam(0.1), loss=loss)
    state = algorithm.init(toys.bag_params(), jax.random.key(0))
    state, _ = jax.jit(lambda s: jax.lax.scan(lambda s, _: algorithm.step(s, batch), s, None, 150))(
        state
    )
    np.testing.assert_allclose(state.params["weights"], truth, atol=0.3)


def test_a_loss_that_does_not_fit_the_feedback_is_named():
    with pytest.raises(ValueError, match=r"loss will be called as loss\(rewards, ratings, kl\)"):
        stepped(toys.rated(4), loss=losses.bradley_terry)
    alone = toys.rated(4).replace(unrelated=None)
    with pytest.raises(ValueError, match=r"called as loss\(rewards, ratings\), but kto takes .*kl"):
        stepped(alone, loss=losses.kto)
    with pytest.raises(ValueError, match=r"called as loss\(chosen, rejected, tied\)"):
        stepped(toys.ties(4))
    with pytest.raises(TypeError, match="must be Preferences, Rated or Ranked, not Sequences"):
        stepped(toys.sequences(4))
    with pytest.raises(ValueError, match="ratings must be boolean, not int32"):
        numbers = alone.replace(ratings=np.zeros(4, np.int32))
        loss = partial(losses.ordinal, cutpoints=jnp.zeros(1))
        stepped(numbers, loss=loss, supervised_weight=1.0)
    assert stepped(alone, loss=losses.apo_zero_unpaired)["loss"] > 0


def test_reference_free_methods_see_no_reference():
    settings = {"implicit_reward": implicit_rewards.mean_log_prob, "reference_free": True}
    batch = toys.preferences(5)
    assert stepped(batch, **settings) == stepped(batch, reference=None, **settings)
    assert isinstance(batch, Preferences)
