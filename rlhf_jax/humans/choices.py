r"""Simulated people who choose from a set: an order, a label, an answer, a correction, what to say.

.. math:: P(c) \propto \exp(\beta \, u(\psi(c)))

All are one person, who is noisily rational about the options that they have; what differs is the
set, and what an option ``c`` stands for (its grounding psi). To learn from such a choice, one must
know the set that it was made from: ``considers`` says which of the options they thought of at all.
A learner who takes all options for the set is then wrong about it (Freedman, Shah and Dragan 2021,
https://arxiv.org/abs/2101.07691), as they are if what is best is not among the examples.

Reference: Jeon, Milli and Dragan 2020, https://arxiv.org/abs/2002.04833
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from rlhf_jax import checks
from rlhf_jax.feedback import Correction, Critique, Demonstration, Label, Ranking
from rlhf_jax.humans.common import Human, Utility, given, given_options, row_count
from rlhf_jax.types import Key, PyTree

__all__ = ["choosing", "correcting", "criticising", "demonstrating", "plackett_luce"]

# examples of B rows -> bool[B, N], the options that the human thinks of
Considers = Callable[[PyTree], jax.Array]


def plackett_luce(utility: Utility, *, rationality: float | jax.Array = 1.0) -> Human:
    r"""Ranks by choosing the best, then the best of the rest, and so on.

    .. math:: P(\text{order}) = \prod_n \frac{e^{\beta u_n}}{\sum_{m \ge n} e^{\beta u_m}}

    Any two of the answers come in the order in which ``boltzmann`` would put them.

    Args:
        utility: ``(examples) -> float[B]`` of examples of ``[B, ...]``.
        rationality: beta, per unit of utility.

    Returns:
        ``(key, examples of [B, N, ...]) -> Ranking``.

    Raises:
        ValueError: if ``rationality`` is not positive; when asked, if the examples are not
            ``[B, N, ...]``.

    Reference: Luce 1959, Individual Choice Behavior; Plackett 1975, Applied Statistics 24

    >>> human = plackett_luce(lambda score: score, rationality=100.0)
    >>> human(jax.random.key(0), jnp.array([[0.0, 2.0, 1.0]])).order.tolist()
    [[1, 2, 0]]
    """
    checks.positive(rationality=rationality)

    def human(key: Key, examples: PyTree) -> Ranking:
        each = given_options(utility, examples)
        # The order of utilities with Gumbel noise is one drawn from the model.
        felt = rationality * each + jax.random.gumbel(key, each.shape)
        return Ranking(order=jnp.argsort(felt, axis=1, descending=True).astype(jnp.int32))

    return human


def choosing(
    utility: Utility,
    *,
    rationality: float | jax.Array = 1.0,
    considers: Considers | None = None,
) -> Human:
    r"""Says which of several is best: a label among many.

    .. math:: P(n) = \frac{e^{\beta u_n}}{\sum_m e^{\beta u_m}}

    Args:
        utility: ``(examples) -> float[B]`` of examples of ``[B, ...]``.
        rationality: beta, per unit of utility.
        considers: ``(examples of [B, N, ...]) -> bool[B, N]``, the options that they think of; all
            by default.

    Returns:
        ``(key, examples of [B, N, ...]) -> Label``, the number of the option. With ``considers``, a
        row with nothing to consider is unanswered.

    Raises:
        ValueError: if ``rationality`` is not positive; when asked, if the examples are not
            ``[B, N, ...]`` or ``considers`` does not return ``bool[B, N]``.

    Reference: Luce 1959, Individual Choice Behavior; McFadden 1974, Conditional logit analysis

    >>> human = choosing(lambda score: score, rationality=100.0)
    >>> human(jax.random.key(0), jnp.array([[0.0, 2.0, 1.0]])).choice.tolist()
    [1]
    """
    checks.positive(rationality=rationality)

    def human(key: Key, examples: PyTree) -> Label:
        value = rationality * given_options(utility, examples)
        choice, answered = _chosen(key, value, examples, considers)
        return Label(choice=choice, answered=answered)

    return human


def demonstrating(
    utility: Utility,
    *,
    rationality: float | jax.Array = 1.0,
    considers: Considers | None = None,
) -> Human:
    r"""Shows how it is done: gives one of the things that they could have done.

    .. math:: P(n) = \frac{e^{\beta u_n}}{\sum_m e^{\beta u_m}}

    The choice is that of ``choosing``, but the options are the demonstrator's own: those who learn
    from it see only what is shown.

    Args:
        utility: ``(examples) -> float[B]`` of examples of ``[B, ...]``.
        rationality: beta, per unit of utility.
        considers: as in ``choosing``; what they are able to do, say.

    Returns:
        ``(key, candidates of [B, N, ...]) -> Demonstration`` of ``[B, ...]``.

    Raises:
        ValueError: as ``choosing``.

    >>> human = demonstrating(lambda score: score, rationality=100.0)
    >>> human(jax.random.key(0), jnp.array([[0.0, 2.0, 1.0]])).shown.tolist()
    [2.0]
    """
    checks.positive(rationality=rationality)

    def human(key: Key, examples: PyTree) -> Demonstration:
        value = rationality * given_options(utility, examples)
        choice, answered = _chosen(key, value, examples, considers)
        return Demonstration(shown=_options(examples, choice), answered=answered)

    return human


def correcting(
    utility: Utility,
    *,
    rationality: float | jax.Array = 1.0,
    effort: float | jax.Array = 0.0,
) -> Human:
    r"""Puts something better in the place of an example, if that is worth the trouble.

    .. math:: P(n) \propto \exp(\beta (u_n - u_0 - e)), \qquad P(\text{left as it is}) \propto 1

    where 0 is the example shown. Of many candidates one is the more likely taken: to leave the
    example is one option beside ``N``.

    Args:
        utility: ``(examples) -> float[B]`` of examples of ``[B, ...]``.
        rationality: beta, per unit of utility.
        effort: e, the gain in utility from which on a correction is worth its trouble.

    Returns:
        ``(key, (shown of [B, ...], candidates of [B, N, ...])) -> Correction`` of ``[B, ...]``.
        ``feedback.comparison_from_correction(shown, correction)`` calls it a tie where nothing was
        changed.

    Raises:
        ValueError: if ``rationality`` is not positive; when asked, if what is shown and the
            candidates are not of one structure and kind.

    >>> human = correcting(lambda score: score, rationality=100.0, effort=0.5)
    >>> shown, candidates = jnp.array([0.0, 0.8]), jnp.array([[-1.0, 1.0], [0.0, 1.0]])
    >>> human(jax.random.key(0), (shown, candidates)).corrected.tolist()
    [1.0, 0.8]
    """
    checks.positive(rationality=rationality)

    def human(key: Key, examples: tuple[PyTree, PyTree]) -> Correction:
        shown, candidates = examples
        row_count(examples)
        gain = given_options(utility, candidates, "candidates") - given(utility, shown)[:, None]
        if jax.tree.structure(shown) != jax.tree.structure(candidates):
            found = f"{jax.tree.structure(shown)} and {jax.tree.structure(candidates)}"
            raise ValueError(f"shown and candidates must be of one structure, not {found}")
        value = jnp.pad(rationality * (gain - effort), ((0, 0), (1, 0)))
        choice, _ = _chosen(key, value, examples, None)

        def corrected(left, taken):
            if jnp.shape(left) != jnp.shape(taken):
                wanted = f"{list(jnp.shape(taken))} as one candidate for each row is"
                raise ValueError(f"shown must be {wanted}, not {list(jnp.shape(left))}")
            return jnp.where(_aligned(choice == 0, left), left, taken)

        taken = _options(candidates, jnp.maximum(choice - 1, 0))
        return Correction(corrected=jax.tree.map(corrected, shown, taken))

    return human


def criticising(
    utility: Utility,
    *,
    heeded: Callable[[PyTree], PyTree],
    statements: PyTree | None = None,
    rationality: float | jax.Array = 1.0,
) -> Human:
    r"""Says the one of several things of which most would be gained if it were heeded.

    .. math:: P(k) \propto \exp\big(\beta (u(\psi_k(x)) - u(x))\big)

    The words mean what ``heeded`` makes of them; that a reader takes them so cannot be checked. A
    statement that changes nothing ("it is fine as it is") says that no other gains much.

    Args:
        utility: ``(examples) -> float[B]``.
        heeded: psi, ``(examples of [B, ...]) -> examples of [B, K, ...]``, what each example would
            be if each statement were heeded (shorter, say: moved in a known direction).
        statements: the texts, a pytree of arrays ``[K, ...]`` such as ``Sequences``; by default
            they are given by their numbers.
        rationality: beta, per unit of utility.

    Returns:
        ``(key, examples) -> Critique`` whose text is the ``B`` statements made, or their numbers
        ``int32[B]``.

    Raises:
        ValueError: if ``rationality`` is not positive; when asked, if there are not as many
            statements as ``heeded`` has it.

    >>> directions = jnp.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]])
    >>> human = criticising(lambda x: -jnp.sum(x**2, axis=1), rationality=100.0,
    ...                     heeded=lambda x: x[:, None] + directions)
    >>> human(jax.random.key(0), jnp.array([[2.0, 0.0], [0.0, -1.0]])).text.tolist()
    [1, 2]
    """
    checks.positive(rationality=rationality)

    def human(key: Key, examples: PyTree) -> Critique:
        # What the example is worth as it is would cancel.
        value = rationality * given_options(utility, heeded(examples), "heeded")
        if len(value) != row_count(examples):
            found = f"{row_count(examples)} examples are {len(value)}"
            raise ValueError(f"heeded must return a row for each example, but {found}")
        said, _ = _chosen(key, value, examples, None)
        if statements is None:
            return Critique(text=said)
        if row_count(statements) != value.shape[1]:
            found = f"{row_count(statements)}, heeded {value.shape[1]}"
            raise ValueError(f"statements and heeded must be as many, but statements are {found}")
        return Critique(text=jax.tree.map(lambda words: jnp.asarray(words)[said], statements))

    return human


def _chosen(
    key: Key, value: jax.Array, examples: PyTree, considers: Considers | None
) -> tuple[jax.Array, jax.Array | None]:
    """One column of each row, by the softmax of its values; whether there was any, if not sure."""
    answered = None
    if considers is not None:
        thought_of = jnp.asarray(considers(examples))
        if thought_of.dtype != bool or thought_of.shape != value.shape:
            found = f"{thought_of.dtype}{list(thought_of.shape)}"
            raise ValueError(f"considers must return bool{list(value.shape)}, not {found}")
        value, answered = jnp.where(thought_of, value, -jnp.inf), thought_of.any(axis=1)
    return jax.random.categorical(key, value, axis=1).astype(jnp.int32), answered


def _options(options: PyTree, choice: jax.Array) -> PyTree:
    rows = jnp.arange(len(choice))
    return jax.tree.map(lambda array: jnp.asarray(array)[rows, choice], options)


def _aligned(rows: jax.Array, like: jax.Array) -> jax.Array:
    return rows.reshape(rows.shape + (1,) * (jnp.ndim(like) - 1))
