"""What people can say about texts: one small dataclass for each form of feedback.

Every array is aligned with the ``B`` examples that were shown: row ``b`` is the answer about
example ``b``. The examples themselves are not repeated. An example is whatever pytree the human
looks at: sequences, feature vectors, or indices into a table of items.
"""

from collections.abc import Sequence

import flax.struct
import jax

from rlhf_jax.types import PyTree, Sequences

__all__ = [
    "Attributes",
    "Comparison",
    "Correction",
    "Critique",
    "Demonstration",
    "Feedback",
    "Label",
    "Pairs",
    "Ranking",
    "Rating",
    "Spans",
    "Steps",
]


@flax.struct.dataclass
class Pairs:
    """Examples to compare: two of a kind in each row.

    Attributes:
        first: a pytree of arrays ``[B, ...]``, shown first.
        second: one of the same structure, shown second.
    """

    first: PyTree
    second: PyTree


@flax.struct.dataclass(kw_only=True)
class Feedback:
    """What all forms have: who answered, and what it took.

    Attributes:
        rater: ``int32[B]``, who answered, or -1 where that is unknown; ``None`` if never known.
        cost: ``float32[B]``, in the unit of the study's budget, also of answers not given;
            ``None`` if not recorded.
        seconds: ``float32[B]``, how long it took; ``None`` if not recorded.
        answered: ``bool[B]``, false where the rater declined and the rest of the row means nothing;
            ``None`` if all answered.
    """

    rater: jax.Array | None = None
    cost: jax.Array | None = None
    seconds: jax.Array | None = None
    answered: jax.Array | None = None


@flax.struct.dataclass(kw_only=True)
class Comparison(Feedback):
    """Which of two is better.

    Attributes:
        preference: ``float32[B]``, 1 if the first is preferred, 0 if the second, 0.5 for a tie. A
            judge that is asked for its probabilities may give any number from 0 to 1.
        strength: ``float32[B]``, by how much, from 0 (hardly) to 1 (by far); ``None`` if not asked.
    """

    preference: jax.Array
    strength: jax.Array | None = None


@flax.struct.dataclass(kw_only=True)
class Rating(Feedback):
    """How good one example is, on the rater's own scale.

    Attributes:
        value: ``float32[B]``, higher is better.
    """

    value: jax.Array


@flax.struct.dataclass(kw_only=True)
class Attributes(Feedback):
    """How good one example is in several respects.

    Attributes:
        values: ``float32[B, A]``, higher is better.
        mask: ``bool[B, A]``, true where there is a rating; ``None`` if everywhere.
    """

    values: jax.Array
    mask: jax.Array | None = None


@flax.struct.dataclass(kw_only=True)
class Label(Feedback):
    """Which of a fixed set of choices applies.

    Attributes:
        choice: ``int32[B]``, index of the choice; of good and bad, 1 is good. How many there are to
            choose from is not repeated: what must know it takes ``choices``.
    """

    choice: jax.Array


@flax.struct.dataclass(kw_only=True)
class Ranking(Feedback):
    """The order of several examples, shown together.

    Attributes:
        order: ``int32[B, N]``, their indices from the best to the worst.
    """

    order: jax.Array


@flax.struct.dataclass(kw_only=True)
class Correction(Feedback):
    """The example as it should have been.

    Attributes:
        corrected: a pytree as the examples'; of the ``judges``, their ``Texts``.
    """

    corrected: PyTree


@flax.struct.dataclass(kw_only=True)
class Demonstration(Feedback):
    """What to answer.

    Attributes:
        shown: a pytree of answers, ``Sequences`` for texts.
    """

    shown: PyTree


@flax.struct.dataclass(kw_only=True)
class Critique(Feedback):
    """What is wrong with the example, in words.

    Attributes:
        text: the ``B`` critiques: ``Sequences``; the numbers ``int32[B]`` of statements that are
            known; or, outside compiled functions, a list of strings, as the ``judges`` give it.
    """

    text: Sequences | jax.Array | Sequence[str]


@flax.struct.dataclass(kw_only=True)
class Spans(Feedback):
    """Marks on parts of a text (fine-grained feedback).

    Attributes:
        marks: ``float32[B, T]``, aligned with the tokens: negative on what is bad, positive on what
            is good, 0 where nothing was marked.
    """

    marks: jax.Array


@flax.struct.dataclass(kw_only=True)
class Steps(Feedback):
    """A mark for each step of a solution (process supervision).

    Attributes:
        marks: ``float32[B, S]``, 1 if the step is right, 0 if wrong, 0.5 for neither.
        ends: ``int32[B, S]``, the column of each step's last token.
        mask: ``bool[B, S]``, true where there is a step that was marked.
    """

    marks: jax.Array
    ends: jax.Array
    mask: jax.Array
