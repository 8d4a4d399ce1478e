"""Language-model losses: from the log-probabilities of given text to a loss for each of its tokens.

``cross_entropy`` imitates the text. The others also know how good it is, and are the objectives of
pretraining with human feedback (Korbak et al. 2023, https://arxiv.org/abs/2302.08582): all take
``log_probs[B, T], mask[B, T]`` and a third array that says what each sequence, ``[B]``, or each
token, ``[B, T]``, is worth; it is a constant to the gradient. All return ``float[B, T]``, exactly 0
with zero gradient where the mask is false, whatever stands there.

Where a reward is only compared with a threshold it may also be boolean, good or bad, and then the
threshold plays no part (``False`` is 0, which would reach a threshold of 0), or an integer, a step
on a scale. Where it is exponentiated it must be floating.
"""

import math

import jax
import jax.numpy as jnp

from rlhf_jax import checks

__all__ = [
    "advantage_weighted",
    "conditional",
    "cross_entropy",
    "filtered",
    "reward_weighted",
    "unlikelihood",
]

# Nearer to certainty than this, in nats, the unlikelihood goes on as a straight line. Log-softmax
# in float32 is right to about 1e-7, so nothing is lost.
_CERTAIN = 1e-6


def _per_token(mask: jax.Array, **values: jax.Array) -> jax.Array:
    """The one of ``values``, which is ``[B]`` or ``[B, T]``, as ``[B, T]``."""
    ((name, array),) = values.items()
    shape, wanted = jnp.shape(array), jnp.shape(mask)
    if shape not in (wanted, wanted[:1]):
        raise ValueError(f"{name} must have the shape {wanted[:1]} or {wanted}, not {shape}")
    array = jnp.asarray(array)
    return jnp.broadcast_to(array if array.ndim == 2 else array[:, None], wanted)


def _good(mask: jax.Array, rewards: jax.Array, threshold: float | jax.Array) -> jax.Array:
    rewards = _per_token(mask, rewards=rewards)
    return rewards if rewards.dtype == bool else rewards >= threshold


def _exponents(mask: jax.Array, temperature: float | jax.Array, **values: jax.Array) -> jax.Array:
    """Constants ``values / temperature``, in float32 at least, 0 where the mask is false."""
    checks.floating(**values)
    checks.positive(temperature=temperature)
    array = jax.lax.stop_gradient(_per_token(mask, **values))
    array = array.astype(jnp.promote_types(array.dtype, jnp.float32))
    return jnp.where(mask, array, 0) / temperature


def _weighted(log_probs: jax.Array, mask: jax.Array, weights: jax.Array) -> jax.Array:
    return jnp.where(mask, -weights.astype(log_probs.dtype) * log_probs, 0)


def cross_entropy(log_probs: jax.Array, mask: jax.Array) -> jax.Array:
    r"""Negative log-likelihood of each token that counts.

    .. math:: \ell_t = -\log \pi_\theta(x_t \mid x_{<t})

    Args:
        log_probs: ``float[B, T]`` in nats, aligned with the tokens.
        mask: ``bool[B, T]``.

    Returns:
        ``float[B, T]``, 0 where the mask is false.

    Raises:
        ValueError: if the shapes differ.

    >>> cross_entropy(jnp.array([[-1.0, -2.0]]), jnp.array([[False, True]])).tolist()
    [[0.0, 2.0]]
    """
    checks.token_arrays(mask, log_probs=log_probs)
    return jnp.where(mask, -log_probs, 0)


def conditional(log_probs: jax.Array, mask: jax.Array, control: jax.Array) -> jax.Array:
    r"""Cross-entropy of the text given the control tokens that say how good it is.

    .. math:: \ell_t = \begin{cases} 0 & x_t \text{ is a control token} \\
              -\log \pi_\theta(x_t \mid x_{<t}) & \text{else} \end{cases}

    Control tokens are conditioned on and never predicted; asking the trained model for good text is
    to begin with the good one. ``data.with_control_tokens`` puts them there, outside of the
    ``response_mask``, so that there ``cross_entropy`` is the same; this loss is for text that has
    them in its mask. That the model was shown the control tokens it cannot check.

    Args:
        log_probs: ``float[B, T]`` in nats, aligned with the tokens.
        mask: ``bool[B, T]``.
        control: ``bool[B, T]``, true on control tokens, as of ``data.control_positions``.

    Returns:
        ``float[B, T]``, 0 where the mask is false or ``control`` is true.

    Raises:
        ValueError: if the shapes differ, or ``log_probs`` and ``control`` are not floating and
            boolean.

    Reference: Korbak et al. 2023, https://arxiv.org/abs/2302.08582

    >>> log_probs, mask = jnp.array([[-9.0, -1.0, -2.0]]), jnp.array([[True, True, False]])
    >>> conditional(log_probs, mask, jnp.array([[True, False, False]])).tolist()
    [[0.0, 1.0, 0.0]]
    """
    checks.token_arrays(mask, log_probs=log_probs)
    checks.alike(mask=mask, control=control)
    checks.booleans(control=control)
    return jnp.where(jnp.logical_and(mask, ~control), -log_probs, 0)


def filtered(
    log_probs: jax.Array,
    mask: jax.Array,
    rewards: jax.Array,
    *,
    threshold: float | jax.Array = 0.0,
) -> jax.Array:
    r"""Cross-entropy of what is good enough, nothing for the rest.

    .. math:: \ell_t = -[R_t \ge \tau] \log \pi_\theta(x_t \mid x_{<t})

    With "is the best of its prompt's" as boolean rewards it is best-of-n fine-tuning. A mean over
    all tokens, such as ``token_mean`` takes, divides by the tokens left out too: it is the mean
    over the good ones times their share, so a batch with fewer of them takes a smaller step and its
    loss is not nats a token. Drop the bad rows from the data instead where that matters.

    Args:
        log_probs: ``float[B, T]`` in nats, aligned with the tokens.
        mask: ``bool[B, T]``.
        rewards: ``float``, ``int`` or ``bool``, ``[B]`` or ``[B, T]``. ``nan`` is not good enough.
        threshold: the least reward that is good enough; not used where rewards are boolean.

    Returns:
        ``float[B, T]``, 0 where the mask is false.

    Raises:
        ValueError: if the shapes do not fit or ``log_probs`` is not floating.

    Reference: Korbak et al. 2023, https://arxiv.org/abs/2302.08582

    >>> log_probs, mask = jnp.array([[-1.0, -2.0], [-3.0, -4.0]]), jnp.ones([2, 2], bool)
    >>> filtered(log_probs, mask, jnp.array([0.5, -0.5])).tolist()
    [[1.0, 2.0], [0.0, 0.0]]
    """
    checks.token_arrays(mask, log_probs=log_probs)
    return jnp.where(jnp.logical_and(mask, _good(mask, rewards, threshold)), -log_probs, 0)


def unlikelihood(
    log_probs: jax.Array,
    mask: jax.Array,
    rewards: jax.Array,
    *,
    threshold: float | jax.Array = 0.0,
    weight: float | jax.Array = 1.0,
) -> jax.Array:
    r"""Cross-entropy of what is good enough; what is not is made unlikely.

    .. math:: \ell_t = \begin{cases} -\log \pi_\theta(x_t \mid x_{<t}) & R_t \ge \tau \\
              -\alpha \log(1 - \pi_\theta(x_t \mid x_{<t})) & \text{else} \end{cases}

    Unlike the negated cross-entropy, the second case is bounded below: by 0, as the token's
    probability goes to 0. As that goes to 1 it would be infinite. For log-probabilities above -1e-6
    it is therefore continued by its tangent, so that it is at most 14.9 and its slope at most 1e6
    (times ``weight``). That slope is in nats: by the softmax's derivative, 1 less the probability,
    what reaches a logit is at most 1, and is not cut off.

    Args:
        log_probs: ``float[B, T]`` in nats, aligned with the tokens.
        mask: ``bool[B, T]``.
        rewards: ``float``, ``int`` or ``bool``, ``[B]`` or ``[B, T]``. ``nan`` is not good enough.
        threshold: the least reward that is good enough; not used where rewards are boolean.
        weight: alpha, how much a bad token counts against a good one; a number.

    Returns:
        ``float[B, T]`` in nats, 0 where the mask is false.

    Raises:
        ValueError: if the shapes do not fit, ``log_probs`` is not floating, or ``weight`` is not
            positive.

    Reference: Welleck et al. 2019, https://arxiv.org/abs/1908.04319; chosen by rewards, Korbak et
    al. 2023, https://arxiv.org/abs/2302.08582

    >>> half = jnp.full([2, 1], -0.693147)
    >>> unlikelihood(half, half < 0, jnp.array([True, False]), weight=2.0).tolist()
    [[0.693147], [1.386294]]
    """
    checks.token_arrays(mask, log_probs=log_probs)
    checks.positive(weight=weight)
    good = _good(mask, rewards, threshold)
    # Both cases are computed everywhere: each must be finite, with a finite slope, off its own.
    bad = jnp.logical_and(mask, ~good)
    log_prob = jnp.where(bad, log_probs, -1.0)
    bounded = jnp.minimum(log_prob, -_CERTAIN)
    unlikely = (log_prob - bounded) / math.expm1(_CERTAIN) - jax.nn.log1mexp(-bounded)
    return jnp.where(bad, weight * unlikely, jnp.where(mask, -log_probs, 0))


def reward_weighted(
    log_probs: jax.Array,
    mask: jax.Array,
    rewards: jax.Array,
    *,
    temperature: float | jax.Array = 1.0,
    axis_name: str | None = None,
) -> jax.Array:
    r"""Cross-entropy in which good text counts exponentially more (reward-weighted regression).

    .. math:: \ell_t = -\frac{w_t}{\bar w} \log \pi_\theta(x_t \mid x_{<t}), \qquad
              w_t = e^{R_t / \beta}

    with :math:`\bar w` the mean weight of all tokens that count. The papers have no such divisor;
    with it a constant added to all rewards changes nothing, nothing overflows, and the size of a
    step does not hang on the unit of the rewards. The price is that an example's loss depends on
    the others of its batch.

    Args:
        log_probs: ``float[B, T]`` in nats, aligned with the tokens.
        mask: ``bool[B, T]``.
        rewards: ``float[B]`` or ``float[B, T]``; convert labels yourself.
        temperature: beta, in the unit of the rewards: small takes only the best, large takes all.
        axis_name: the pmapped axis over whose devices, too, the mean is taken.

    Returns:
        ``float[B, T]``, 0 where the mask is false. The weights are 1 on average.

    Raises:
        ValueError: if the shapes do not fit, ``log_probs`` or ``rewards`` is not floating, or
            ``temperature`` is not positive.

    Reference: Peters and Schaal 2007, ICML; on text, Korbak et al. 2023,
    https://arxiv.org/abs/2302.08582

    >>> log_probs, mask = jnp.full([2, 1], -1.0), jnp.ones([2, 1], bool)
    >>> reward_weighted(log_probs, mask, jnp.log(jnp.array([3.0, 1.0]))).tolist()
    [[1.5], [0.5]]
    """
    checks.token_arrays(mask, log_probs=log_probs)
    exponents = _exponents(mask, temperature, rewards=rewards)
    largest = jnp.max(jnp.where(mask, exponents, jnp.finfo(exponents.dtype).min))
    if axis_name is not None:
        largest = jax.lax.pmax(largest, axis_name)
    weights = jnp.where(mask, jnp.exp(jnp.where(mask, exponents - largest, 0)), 0)
    sums = jnp.stack([jnp.sum(weights), jnp.sum(mask).astype(weights.dtype)])
    total, count = sums if axis_name is None else jax.lax.psum(sums, axis_name)
    mean = total / jnp.maximum(count, 1)
    return _weighted(log_probs, mask, weights / jnp.where(count > 0, mean, 1))


def advantage_weighted(
    log_probs: jax.Array,
    mask: jax.Array,
    advantages: jax.Array,
    *,
    temperature: float | jax.Array = 1.0,
    maximum: float | jax.Array = 20.0,
) -> jax.Array:
    r"""Cross-entropy in which what beat expectation counts more (advantage-weighted regression).

    .. math:: \ell_t = -\min\left(e^{\hat A_t / \beta}, w_{max}\right)
              \log \pi_\theta(x_t \mid x_{<t})

    Args:
        log_probs: ``float[B, T]`` in nats, aligned with the tokens.
        mask: ``bool[B, T]``.
        advantages: ``float[B]`` or ``float[B, T]``: rewards less what was expected, for example by
            a critic. That this was fitted to the same text it cannot check.
        temperature: beta, in the unit of the advantages.
        maximum: the largest weight.

    Returns:
        ``float[B, T]``, 0 where the mask is false.

    Raises:
        ValueError: if the shapes do not fit, ``log_probs`` or ``advantages`` is not floating, or
            ``temperature`` or ``maximum`` is not positive.

    Reference: Peng et al. 2019, https://arxiv.org/abs/1910.00177; on text, Korbak et al. 2023,
    https://arxiv.org/abs/2302.08582

    >>> log_probs, mask = jnp.full([2, 1], -1.0), jnp.ones([2, 1], bool)
    >>> advantage_weighted(log_probs, mask, jnp.array([-0.693147, 9.0])).tolist()
    [[0.5], [20.0]]
    """
    checks.token_arrays(mask, log_probs=log_probs)
    checks.positive(maximum=maximum)
    exponents = _exponents(mask, temperature, advantages=advantages)
    # Before the exponential, which would overflow.
    return _weighted(log_probs, mask, jnp.exp(jnp.minimum(exponents, jnp.log(maximum))))
