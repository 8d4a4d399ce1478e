"""Somebody looks for a suffix that turns an answer round: led by a gradient, or at random."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import rlhf_jax as rj
from rlhf_jax.types import Params

# (params, tokens[T]) -> by how many nats the wrong answer is the likelier, of one request
Wrong = Callable[[Params, jax.Array], jax.Array]


class Search(NamedTuple):
    """What may be changed, and how long is looked; of a policy with an embedding for each word.

    Attributes:
        words: a suffix is made of so many.
        request: so many tokens come before it.
        length: so many it has at most.
        rounds: how many; the others as in ``greedy_coordinate_search``.
    """

    words: int
    request: int
    length: int
    rounds: int
    tried: int
    among: int
    afresh: int

    @property
    def cost(self) -> int:
        """Forward passes a round, in which a gradient counts as three."""
        return self.tried + 3

    @property
    def budget(self) -> int:
        """Forward passes in all."""
        return self.rounds * self.cost

    def filled(self, tokens: jax.Array, suffix: jax.Array) -> jax.Array:
        """The request, followed by the suffix."""
        return tokens.at[self.request :].set(suffix)

    def white(
        self, key: jax.Array, wrong: Wrong, policy: Params, tokens: jax.Array, length: jax.Array
    ) -> jax.Array:
        """Whether a suffix was found after each pass, ``[budget]``; it may differ in ``length``."""
        table = policy["embed"]["embedding"]
        slots = self.words + np.arange(self.length)  # words that nobody says, for the gradient

        def by_slots(rows: jax.Array) -> jax.Array:
            params = policy | {"embed": {"embedding": table.at[slots].set(rows)}}
            return wrong(params, self.filled(tokens, slots))

        def gains(suffix: jax.Array) -> jax.Array:
            slope = jax.grad(by_slots)(table[suffix])
            now = jnp.sum(slope * table[suffix], axis=1)
            return slope @ table[: self.words].T - now[:, None]

        _, lead = rj.measures.greedy_coordinate_search(
            key,
            tokens[self.request :],
            lambda suffix: wrong(policy, self.filled(tokens, suffix)),
            gains,
            rounds=self.rounds,
            among=self.among,
            tried=self.tried,
            free=jnp.arange(self.length) < length,
            afresh=self.afresh,
        )
        broken = jax.lax.cummax(jnp.int32(lead > 0)) > 0
        # A round is through when all its passes are made.
        early = jnp.zeros(self.cost - 1, bool)
        return jnp.append(early, jnp.repeat(broken, self.cost)[: 1 - self.cost])

    def black(
        self, key: jax.Array, wrong: Wrong, policy: Params, tokens: jax.Array, length: jax.Array
    ) -> jax.Array:
        """The same of one who tries words at random."""
        tries = jax.random.randint(key, (self.budget, self.length), 0, self.words)
        free = jnp.arange(self.length) < length
        tries = jnp.where(free, tries, tokens[self.request :])
        lead = jax.vmap(lambda suffix: wrong(policy, self.filled(tokens, suffix)))(tries)
        return jax.lax.cummax(jnp.int32(lead > 0)) > 0
