"""A learner who knows how people answer, and which wishes they may have: the exact posterior."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Wishes(NamedTuple):
    """Wishes that are as probable at first, one of which, the first, is the truth.

    Log-likelihoods are of each answer by each wish, ``[wishes, answers]``.

    Attributes:
        worth: of what there is to choose, by each wish, ``[wishes, N]``.
    """

    worth: jax.Array

    def of_choices(
        self, options: jax.Array, choice: jax.Array, counts: jax.Array | bool = True
    ) -> jax.Array:
        """Log-likelihood of choices ``[answers]`` among options worth ``[wishes, answers, K]``."""
        said = jax.nn.log_softmax(options, axis=-1)
        return jnp.where(counts, jnp.take_along_axis(said, choice[None, :, None], 2)[..., 0], 0)

    def of_ratings(
        self, rated: jax.Array, value: jax.Array, *, noise: float, drift: jax.Array
    ) -> jax.Array:
        """Of ratings with noise on a scale whose zero walks at random, by so much an answer."""
        time = jnp.arange(1, len(rated) + 1)
        covariance = drift**2 * jnp.minimum(time[:, None], time) + noise**2 * jnp.eye(len(rated))
        missed = value - self.worth[:, rated]
        root = jnp.linalg.cholesky(covariance)
        apart = jax.scipy.linalg.solve_triangular(root, missed.T, lower=True).T
        return -0.5 * jnp.square(apart)

    def judged(self, likelihood: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Regret of the best answer by the posterior, SD of utility; what it tells in bits."""
        posterior, truth = jax.nn.softmax(likelihood.sum(axis=1)), self.worth[0]
        entropy = -jnp.sum(jax.scipy.special.xlogy(posterior, posterior))
        chosen = truth[jnp.argmax(posterior @ self.worth)]
        regret = (jnp.max(truth) - chosen) / jnp.std(truth)
        return regret, (jnp.log(len(self.worth)) - entropy) / jnp.log(2)
