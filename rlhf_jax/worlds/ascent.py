"""A policy over finitely many answers that improves step by step, without any noise of sampling."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from rlhf_jax import checks, divergences
from rlhf_jax.algorithms.common import advance, new_state
from rlhf_jax.algorithms.experience import Frozen
from rlhf_jax.types import Algorithm, Key, Metrics, Params, Prompts, TrainState

__all__ = ["mirror_ascent"]

# What a step that is exact needs of an optimiser.
_NOTHING = optax.identity()


def mirror_ascent(
    rewards: Callable[[Params], jax.Array],
    *,
    rate: float | jax.Array,
    kl_coefficient: float | jax.Array = 0.0,
) -> Algorithm:
    r"""The natural policy gradient with the exact expectation: from where the policy is, a bit on.

    .. math:: \pi_{t+1}(x) \propto \pi_t(x) \, \exp\left(\eta \left(r(x)
              - \beta \log \frac{\pi_t(x)}{\pi_{ref}(x)}\right)\right)

    Unlike ``Bandit.exact``, which goes to the optimum at once and forgets where it was, this one
    has a path: of a reward that is learnt anew in between, each version leaves its trace. As long
    as the reward stands still, ``M`` steps from the reference are its tilt by ``M eta`` (without a
    penalty), and one of rate ``M eta`` is ``M`` of rate ``eta``.

    Args:
        rewards: ``(reward model's parameters) -> float[N]``, of all answers, as ``Bandit.rewards``.
        rate: eta, nats per unit of reward; may be traced.
        kl_coefficient: beta, reward per nat.

    Returns:
        An ``Algorithm`` whose parameters are the policy's logits ``float[N]``, and whose ``step``
        looks at no batch. ``init(params, key, reward=(), reference=None)``; the reference is by
        default the initial policy. Metrics: ``reward`` and ``kl``, of the policy after the step.

    Raises:
        ValueError: if ``rate`` is not positive.

    Reference: Kakade 2001, A natural policy gradient, NeurIPS

    >>> step_by_step = mirror_ascent(lambda params: params, rate=0.5)
    >>> state = step_by_step.init(jnp.zeros(2), jax.random.key(0), reward=jnp.array([0.0, 1.0]))
    >>> for _ in range(4):
    ...     state, metrics = step_by_step.step(state)
    >>> state.params.tolist(), metrics["reward"].item()  # sigma(2)
    ([-2.126928, -0.126928], 0.880797)
    """
    checks.positive(rate=rate)

    def init(
        params: Params, key: Key, reward: Params = (), reference: Params | None = None
    ) -> TrainState:
        reference = params if reference is None else reference
        return new_state(params, _NOTHING, key, frozen=Frozen(reference, reward, ()))

    def step(state: TrainState, prompts: Prompts | None = None) -> tuple[TrainState, Metrics]:
        found = rewards(state.frozen.reward)
        reference = jax.nn.log_softmax(state.frozen.reference)
        policy = jax.nn.log_softmax(state.params)
        policy = policy + rate * (found - kl_coefficient * (policy - reference))
        policy = jax.nn.log_softmax(policy)
        metrics = {
            "reward": jnp.exp(policy) @ found,
            "kl": divergences.exact_kl(policy, reference),
        }
        return advance(state, metrics, params=policy, opt_state=state.opt_state)

    return Algorithm(init, step)
