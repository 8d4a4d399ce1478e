"""Simulated people whose wishes differ, change, or rest on a part of what there is to see.

Each makes a human of another, or of a function from a utility to a human (``answer``): ``oracle``,
``boltzmann``, ``partial(approval, threshold=0.5)``, or any other that takes a utility.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import checks
from rlhf_jax.feedback import Pairs
from rlhf_jax.humans.common import Human, Utility, given, row_count, rows_where, steps_of
from rlhf_jax.humans.comparisons import boltzmann, oracle
from rlhf_jax.types import Key, PyTree

__all__ = ["drifting", "hidden_context", "limited_checker", "partial_observer", "population"]


def population(humans: Sequence[Human], *, weights: jax.Array | None = None) -> Human:
    r"""People who differ: each question goes to one of them, drawn at random.

    .. math:: P(y) = \sum_g w_g P_g(y)

    A mixture of Bradley-Terry people is in general not a Bradley-Terry person. Two answers to one
    question come from one member only as often as both draws fall on it; with 13 members that err
    in a quarter of their answers (with ``with_mistakes``), independently, two agree
    ``0.75 ** 2 + 0.25 ** 2 = 0.625`` of the time.

    Args:
        humans: the members, or one for each group, who all answer in one form. All are asked every
            question, so ``G`` members take ``G`` times as long.
        weights: ``float[G]``, their shares, which need not sum to 1; equal by default.

    Returns:
        ``(key, examples) -> feedback`` whose ``rater`` is the member's number. If members have
        raters of their own, those are lost.

    Raises:
        ValueError: if there is no member, the weights are not ``[G]``, negative or all 0, or two
            members answer in different forms.

    Reference: 13 simulated annotators with mistakes are those of Dubois et al. 2023,
    https://arxiv.org/abs/2305.14387

    >>> likes, dislikes = oracle(lambda x: x), oracle(lambda x: -x)
    >>> human = population([likes, dislikes], weights=jnp.array([1.0, 3.0]))
    >>> answer = human(jax.random.key(0), Pairs(jnp.ones(4000), jnp.zeros(4000)))
    >>> print(f"{answer.preference.mean():.2f}, {answer.rater.mean():.2f}")
    0.24, 0.76
    """
    if not humans:
        raise ValueError("humans must have at least one member, not none")
    weights = jnp.ones(len(humans)) if weights is None else jnp.asarray(weights, jnp.float32)
    if weights.shape != (len(humans),):
        raise ValueError(f"weights must be [{len(humans)}], not {list(weights.shape)}")
    _check_shares(weights=weights)

    def human(key: Key, examples: PyTree):
        who_key, *keys = jax.random.split(key, len(humans) + 1)
        rows = row_count(examples)
        who = jax.random.categorical(who_key, jnp.log(weights), shape=(rows,)).astype(jnp.int32)
        answers = [
            member(own, examples).replace(rater=who)
            for member, own in zip(humans, keys, strict=True)
        ]
        answer = answers[0]
        for number, other in enumerate(answers[1:], start=1):
            answer = rows_where(who == number, other, answer)
        return answer

    return human


def partial_observer(human: Human, *, observe: Callable[[PyTree], PyTree]) -> Human:
    r"""Sees of the examples only what ``observe`` shows, and judges that.

    .. math:: u(o) = \mathbb E_{B(s \mid o)}[r(s)]

    It is for the human's own utility, a function of observations, to say what they believe about
    what they do not see; whoever hides a failure from them gets the reward of what they believe.

    Args:
        human: who judges observations.
        observe: from examples (of pairs, each side; of ``[B, ...]``) to observations of ``B`` rows.

    Returns:
        A human to whom whole examples are shown.

    Reference: Lang et al. 2024, https://arxiv.org/abs/2402.17747

    >>> outcome_and_log = lambda outcome, log: jnp.array([[outcome, log]])
    >>> judge = oracle(lambda log: log[:, 0])
    >>> human = partial_observer(judge, observe=lambda example: example[:, 1:])
    >>> pairs = Pairs(outcome_and_log(0.0, 1.0), outcome_and_log(1.0, 0.0))
    >>> human(jax.random.key(0), pairs).preference.tolist()
    [1.0]
    """

    def observer(key: Key, examples: PyTree):
        if isinstance(examples, Pairs):
            return human(key, Pairs(observe(examples.first), observe(examples.second)))
        return human(key, observe(examples))

    return observer


def limited_checker(
    correct: Callable[[PyTree], tuple[jax.Array, jax.Array]],
    cue: Utility,
    *,
    limit: int | jax.Array,
    answer: Callable[[Utility], Human] = oracle,
) -> Human:
    r"""Checks the first steps of a solution, as many as they can, and trusts a cue for the rest.

    .. math::
        u = \begin{cases} 0 & \text{a step is wrong among the first } M \\
            1 & \text{all steps were checked, and are right} \\
            \text{cue} & \text{otherwise} \end{cases}

    The error is one that raters share: asking more of them does not help.

    Args:
        correct: ``(examples) -> (bool[B, S], bool[B, S])``, whether each step is right, and where
            there is a step.
        cue: ``(examples) -> float[B]``, from 0 to 1, how right they take an unchecked rest to be
            (its confidence, length or looks).
        limit: ``M``, how many steps they check; may be traced.
        answer: from this utility to a human: ``oracle``, ``partial(boltzmann, rationality=4.0)``,
            ``partial(approval, threshold=0.5)``.

    Returns:
        The human whom ``answer`` returned.

    Raises:
        ValueError: if ``limit`` is negative, or the steps are not ``[B, S]``.

    >>> everywhere = lambda steps: jnp.ones(steps.shape, bool)
    >>> human = limited_checker(
    ...     lambda steps: (steps, everywhere(steps)), cue=lambda steps: jnp.full(len(steps), 0.9),
    ...     limit=2)
    >>> late = jnp.array([[True, True, False]])
    >>> early = jnp.array([[False, True, True]])
    >>> human(jax.random.key(0), Pairs(late, early)).preference.tolist()
    [1.0]
    """
    if not isinstance(limit, jax.core.Tracer) and limit < 0:
        raise ValueError(f"limit must be at least 0, not {limit}")

    def utility(examples: PyTree) -> jax.Array:
        right, mask = steps_of(correct, examples)
        number = jnp.cumsum(mask, axis=1)
        found_wrong = jnp.any(mask & (number <= limit) & ~right, axis=1)
        checked_all = number[:, -1] <= limit
        believed = jnp.where(checked_all, 1.0, given(cue, examples, "cue"))
        return jnp.where(found_wrong, 0.0, believed)

    return answer(utility)


def drifting(
    features: Callable[[PyTree], jax.Array],
    weights: jax.Array,
    *,
    deviation: float | jax.Array,
    answer: Callable[[Utility], Human] = boltzmann,
) -> Human:
    r"""Wants something else as time goes by: the weights of the features walk at random.

    .. math:: u_t(x) = w_t \cdot \phi(x), \qquad w_t = w_{t-1} + \sigma \xi_t,
              \quad \xi_t \sim \mathcal N(0, I)

    The rows are in the order of time, and each call begins anew from ``weights``.

    Args:
        features: ``(examples) -> float[B, F]``.
        weights: ``float[F]``, before the first answer.
        deviation: sigma, standard deviation of each step, for each feature.
        answer: from a utility to a human.

    Returns:
        A human as ``answer`` makes them; both sides of a pair are seen with the same weights.

    Raises:
        ValueError: if ``weights`` is not ``[F]`` or the features are not ``[B, F]``.

    >>> human = drifting(lambda x: x, jnp.array([1.0]), deviation=0.0, answer=oracle)
    >>> human(jax.random.key(0), Pairs(jnp.ones([2, 1]), jnp.zeros([2, 1]))).preference.tolist()
    [1.0, 1.0]
    """
    checks.vectors(weights=weights)
    weights = jnp.asarray(weights, jnp.float32)

    def human(key: Key, examples: PyTree):
        walk_key, answer_key = jax.random.split(key)
        steps = jax.random.normal(walk_key, (row_count(examples), len(weights)))
        now = weights + deviation * jnp.cumsum(steps, axis=0)

        def utility(example: PyTree) -> jax.Array:
            seen = jnp.asarray(features(example))
            if seen.shape != now.shape:
                found = f"{list(now.shape)}, not {list(seen.shape)}"
                raise ValueError(f"features must return {found}")
            return jnp.sum(seen * now, axis=1)

        return answer(utility)(answer_key, examples)

    return human


def hidden_context(
    utility: Callable[[PyTree, jax.Array], jax.Array],
    *,
    probabilities: jax.Array,
    answer: Callable[[Utility], Human] = oracle,
) -> Human:
    """Wants what depends on something that the data do not show.

    Of pairs, a reward model that does not know the context learns the Borda count, which is not
    the mean utility. Unlike in a ``population`` nobody can be told apart: there is no rater.

    Args:
        utility: ``(examples, context: int[B]) -> float[B]``.
        probabilities: ``float[C]``, how probable each context is, up to a factor.
        answer: from a utility to a human.

    Returns:
        A human as ``answer`` makes them; both sides of a pair are seen in the same context.

    Raises:
        ValueError: if ``probabilities`` is not of rank 1, some are negative or all of them 0.

    Reference: Siththaranjan et al. 2023, https://arxiv.org/abs/2312.08358

    >>> human = hidden_context(
    ...     lambda x, context: jnp.where(context == 0, x, -x), probabilities=jnp.array([0.9, 0.1]))
    >>> pairs = Pairs(jnp.ones(4000), jnp.zeros(4000))
    >>> print(f"{human(jax.random.key(0), pairs).preference.mean():.2f}")
    0.89
    """
    checks.vectors(probabilities=probabilities)
    chances = jnp.asarray(probabilities, jnp.float32)
    _check_shares(probabilities=chances)

    def human(key: Key, examples: PyTree):
        context_key, answer_key = jax.random.split(key)
        shape = (row_count(examples),)
        context = jax.random.categorical(context_key, jnp.log(chances), shape=shape)
        return answer(lambda example: utility(example, context))(answer_key, examples)

    return human


def _check_shares(**values: jax.Array) -> None:
    for name, shares in values.items():
        if isinstance(shares, jax.core.Tracer):
            continue
        if not np.all(np.asarray(shares) >= 0) or not np.any(shares):
            raise ValueError(f"{name} must be at least 0, and not all of them 0: {shares}")
