"""A batch read in parts gives the numbers of the whole: masks and weights are unequal in all."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toys

from rlhf_jax import algorithms, losses
from rlhf_jax.algorithms import common
from rlhf_jax.models import TransformerConfig, language_model
from rlhf_jax.sequences import sequence_mean

SGD = optax.sgd(0.1)
WEIGHTED = toys.preferences(6, empty=[4]).replace(weight=np.arange(6.0, dtype=np.float32))


def cases():
    """name: (from accumulate to an algorithm, parameters, batch)."""
    bigram, bag = toys.bigram_params(), toys.bag_params()
    logits, sample = toys.bigram_logits, toys.sample_fn()
    policy_gradient = (logits, sample, lambda _, answers: toys.bag_reward(bag, answers), SGD)
    return {
        "supervised": (
            lambda n: algorithms.supervised(logits, SGD, aggregation=sequence_mean, accumulate=n),
            bigram,
            toys.sequences(6, empty=[1]),
        ),
        "direct": (
            lambda n: algorithms.direct(logits, SGD, supervised_weight=0.5, accumulate=n),
            bigram,
            WEIGHTED,
        ),
        "reward_model": (
            lambda n: algorithms.reward_model(
                toys.bag_scores,
                SGD,
                centering=0.1,
                token_dropout=0.3,
                regulariser=lambda params: optax.tree.norm(params, squared=True),
                accumulate=n,
            ),
            bag,
            WEIGHTED,
        ),
        "policy_gradient": (
            lambda n: algorithms.policy_gradient(
                *policy_gradient,
                samples_per_prompt=2,
                minibatches=2,
                entropy_weight=0.1,
                accumulate=n,
            ),
            bigram,
            toys.prompts(6, empty=[2]),
        ),
    }


@pytest.mark.parametrize("name", cases())
def test_parts_give_the_numbers_of_the_whole(name):
    make, params, batch = cases()[name]

    def stepped(accumulate):
        algorithm = make(accumulate)
        after, metrics = jax.jit(algorithm.step)(algorithm.init(params, jax.random.key(3)), batch)
        return after.params, metrics

    chex.assert_trees_all_close(stepped(3), stepped(1), rtol=1e-5, atol=1e-6)


def test_the_counts_cost_no_forward_pass():
    """The matrix products of a step: forward and backward once, in the body of one loop."""
    kernel, rows = np.ones([8, 8], np.float32), np.ones([4, 8], np.float32)

    def objective(params, batch):
        values = jnp.sum(batch @ params, axis=-1)
        return {
            "loss": common.Term(1.0, common.rows_mean(values, jnp.ones(values.shape, bool)))
        }, {}

    def dots(**settings):
        def gradient(params, batch):
            return common.gradients(objective, params, None, batch=batch, **settings)[0]

        return jax.jit(gradient).lower(kernel, rows).compile().as_text().count(" dot(")

    assert dots(accumulate=2) == dots()


def test_what_cannot_be_cut_is_refused():
    make, params, batch = cases()["supervised"]
    for parts, message in ((4, "accumulate=4 must divide the batch's 6 rows"), (0, "at least 1")):
        algorithm = make(parts)
        with pytest.raises(ValueError, match=message):
            algorithm.step(algorithm.init(params, jax.random.key(0)), batch)
    kto = algorithms.direct(toys.bigram_logits, SGD, loss=losses.kto, accumulate=2)
    state = kto.init(toys.bigram_params(), jax.random.key(0))
    with pytest.raises(ValueError, match="accumulate must be 1 with ratings that have unrelated"):
        kto.step(state, toys.rated(6))


def test_what_is_kept_for_the_backward_pass_changes_no_gradient():
    tokens, mask = np.array([[3, 1, 4, 1]]), np.ones([1, 4], bool)

    def gradient(remat):
        config = TransformerConfig(16, 8, 8, num_layers=2, num_heads=2, num_kv_heads=2, remat=remat)
        model = language_model(config)
        params = model.init(jax.random.key(0))
        loss = jax.jit(jax.grad(lambda p: (model.logits_fn(p, tokens, mask) ** 2).sum()))
        return loss(params)

    expected = gradient(False)
    for remat in (True, "dots_with_no_batch_dims_saveable"):
        chex.assert_trees_all_close(gradient(remat), expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="remat must be True, False or one of nothing_saveable"):
        TransformerConfig(16, remat="some")
