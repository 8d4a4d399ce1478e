"""The pytrees that flow through RLHF, and the types of the functions that act on them.

Shapes: ``B`` batch, ``T`` tokens, ``P`` prompt tokens, ``V`` vocabulary, ``K`` samples per prompt,
``N`` prompts. Every ``[B, T]`` array is aligned with the token it speaks of: ``log_probs[b, t]`` is
the log-probability of ``tokens[b, t]`` given the tokens before it, so masks, rewards, values and
log-probs need no shifting against each other. Masks are boolean, true where an entry counts. Where
several sequences stand in one row, ``mask`` holds segment ids instead, ``int32[B, T]``: ``n`` for
the ``n``-th sequence of the row, which sees nothing of the others, and 0 on padding.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import flax.struct
import jax

__all__ = [
    "ActorCritic",
    "Algorithm",
    "Batch",
    "CachedLogitsFn",
    "Callback",
    "Decoder",
    "FactoredLogits",
    "Forked",
    "GroupAdvantage",
    "ImplicitReward",
    "JudgeFn",
    "Key",
    "LogitsFn",
    "Metrics",
    "Packed",
    "Params",
    "PolicyLoss",
    "PreferenceLoss",
    "Preferences",
    "Prompts",
    "PyTree",
    "Ranked",
    "RankingLoss",
    "Rated",
    "RatingLoss",
    "RewardFn",
    "SampleFn",
    "ScoreFn",
    "Sequences",
    "Shared",
    "TokenAdvantage",
    "TrainState",
    "TrunkFn",
    "ValueFn",
    "ValueLoss",
]

PyTree = Any
Params = PyTree
Key = jax.Array
Batch = PyTree
Metrics = dict[str, jax.Array]


@flax.struct.dataclass
class Prompts:
    """A batch of prompts, padded on the left so that every response starts in the same column.

    Attributes:
        tokens: ``int32[N, P]``.
        mask: ``bool[N, P]``, true on real tokens. A row without any is padding: it is generated
            from but counts for nothing.
    """

    tokens: jax.Array
    mask: jax.Array


@flax.struct.dataclass
class Sequences:
    """Token sequences of which some tokens are the response being learnt from or judged.

    Attributes:
        tokens: ``int32[B, T]``.
        mask: ``bool[B, T]``, true on real tokens (prompt and response), false on padding; or
            segment ids, ``int32[B, T]``, in the rows of ``Packed``.
        response_mask: ``bool[B, T]``, true on the response's tokens, its end-of-text included. A
            row with none is padding.
        log_probs: ``float32[B, T]`` in nats, the log-probability with which a sampler drew each
            response token, 0 elsewhere; ``None`` for text that no known policy wrote.
    """

    tokens: jax.Array
    mask: jax.Array
    response_mask: jax.Array
    log_probs: jax.Array | None = None


@flax.struct.dataclass
class Preferences:
    """Pairs of sequences of which a human preferred the first.

    Attributes:
        chosen: ``Sequences`` of ``B`` rows.
        rejected: ``Sequences`` of ``B`` rows.
        tied: ``bool[B]``, true where the human called the two equal, so that which of them stands
            first means nothing; ``None`` if that was not an answer. Where it is given, the loss
            is called with it: ``losses.davidson`` and ``losses.rao_kupper`` take it.
        probability: ``float[B]``, how probable it is that ``chosen`` is the better (a soft label, a
            judge's opinion); the loss is then its expectation. ``None`` where it is 1.
        margin: ``float[B]``, by how much ``chosen`` should win, in the reward's unit; the loss is
            then called with ``margin=``. Not together with ``probability``.
        weight: ``float[B]``, how much each pair counts; ``None`` if all alike.
        rater: ``int32[B]``, who preferred, for models of single raters; ``None`` if unknown.

    Of pairs compared in several respects, by a score of ``[B, A]``, ``probability`` and ``weight``
    may be ``[B, A]``: ``chosen`` is then no more than the first, and a weight of 0 says that nobody
    compared them in that respect.
    """

    chosen: Sequences
    rejected: Sequences
    tied: jax.Array | None = None
    probability: jax.Array | None = None
    margin: jax.Array | None = None
    weight: jax.Array | None = None
    rater: jax.Array | None = None


@flax.struct.dataclass
class Rated:
    """Sequences of which each was judged by itself.

    Attributes:
        sequences: ``Sequences`` of ``B`` rows.
        ratings: what was said of each: ``bool[B]``, good or bad; ``int32[B]``, a step on a scale;
            or ``float[B]``, a reward. Or of each in several respects, ``[B, A]``; or of each of its
            tokens, ``[B, T]``.
        unrelated: ``Sequences`` of ``B`` rows, prompts with answers to other prompts, from which
            ``losses.kto`` gets the policy's divergence from its reference; ``None`` without.
        rating_mask: ``bool``, of the ratings' shape, true where there is one; ``None`` if
            everywhere.
        weight: ``float[B]``, how much each row counts; ``None`` if all alike.
        rater: ``int32[B]``, who rated, for models of single raters; ``None`` if unknown.
    """

    sequences: Sequences
    ratings: jax.Array
    unrelated: Sequences | None = None
    rating_mask: jax.Array | None = None
    weight: jax.Array | None = None
    rater: jax.Array | None = None


@flax.struct.dataclass
class Ranked:
    """Several answers to each prompt, ordered by a human.

    Attributes:
        sequences: ``Sequences`` whose arrays are ``[B, N, T]``: ``N`` answers to each prompt. A
            prompt whose first answer has no response token is padding.
        rankings: ``int32[B, N]``, the answers' indices from the best to the worst.
        weight: ``float[B]``, how much each ranking counts; ``None`` if all alike.
        rater: ``int32[B]``, who ranked, for models of single raters; ``None`` if unknown.
    """

    sequences: Sequences
    rankings: jax.Array
    weight: jax.Array | None = None
    rater: jax.Array | None = None


@flax.struct.dataclass
class Packed:
    """A batch of whose sequences several stand in one row, so that little of it is padding.

    ``data.pack`` makes it, of ``R`` rows of ``W`` tokens with up to ``M`` judgements each; a
    judgement is a text, a pair or a ranking, of ``S`` sequences. None is split between rows, so
    that these may be shuffled, cut into parts and over devices like the rows of any batch.

    Attributes:
        rows: ``Sequences`` of ``R`` rows, whose ``mask`` holds segment ids.
        starts: ``int32[R, M, S]``, the column in which each sequence starts. Sequence ``s`` of
            judgement ``m`` has the segment id ``1 + m * S + s``.
        lengths: ``int32[R, M, S]``, in tokens; 0 for padding.
        index: ``int32[R, M]``, which judgement of the batch before it was packed this is, or -1
            for padding.
        said: that batch, a ``Preferences``, say, with its arrays as ``[R, M, ...]``, but for those
            of its sequences, which are ``None``.
        width: ``L``, columns of that batch: the most tokens that a sequence may have.
    """

    rows: Sequences
    starts: jax.Array
    lengths: jax.Array
    index: jax.Array
    said: PyTree
    width: int = flax.struct.field(pytree_node=False)


@flax.struct.dataclass
class Forked:
    """The mask of rows that each hold a prompt and, behind it, ``K`` answers of ``R`` columns.

    ``forks.fork`` makes such rows. An answer sees the prompt and itself, and nothing of the others.

    Attributes:
        mask: ``bool[N, P + K * R]``, true on real tokens.
        samples: ``K``.
        prompt_length: ``P``.
    """

    mask: jax.Array
    samples: int = flax.struct.field(pytree_node=False)
    prompt_length: int = flax.struct.field(pytree_node=False)

    @property
    def length(self) -> int:
        """Of a sequence: ``P + R``."""
        answers = self.mask.shape[1] - self.prompt_length
        return self.prompt_length + answers // self.samples


@flax.struct.dataclass
class FactoredLogits:
    """Logits that have not been multiplied out: ``hidden @ unembedding``, soft-capped if asked.

    A ``LogitsFn`` may return this instead of an array. ``sequences.token_log_probs`` then walks
    over the vocabulary in blocks and never holds a ``[B, T, V]`` array.

    Attributes:
        hidden: ``float[B, T, D]``.
        unembedding: ``float[D, V]``.
        softcap: ``c``, if the logits are ``c * tanh(product / c)``.
    """

    hidden: jax.Array
    unembedding: jax.Array
    softcap: float | None = flax.struct.field(pytree_node=False, default=None)


class Shared(NamedTuple):
    """What one forward pass of a frozen reference policy gives besides its logits.

    Attributes:
        logits: the reference's, as a ``LogitsFn`` returns them.
        rewards: as a ``RewardFn`` returns them.
        features: ``float[B, T, D]``, row ``t`` made of the tokens up to ``t``: what a critic reads.
    """

    logits: jax.Array | FactoredLogits
    rewards: jax.Array
    features: jax.Array


class ActorCritic(NamedTuple):
    """Parameters of a policy and of the critic that estimates its returns."""

    policy: Params
    critic: Params


@flax.struct.dataclass
class TrainState:
    """Everything that changes or is needed from one step to the next, as arrays.

    Attributes:
        step: ``int32[]``, steps taken, skipped ones included.
        key: the run's key. A step uses ``fold_in(key, step)``, so a resumed run draws what the
            uninterrupted one would have drawn.
        params: the parameters, whole; an algorithm's ``trainable`` says what of them is trained.
        opt_state: the optax state, of what is trained.
        frozen: parameters that are used and never trained (reference, reward): data, not closures,
            so that the compiled program does not contain them as constants. Where a reference has
            ``None``, it has what ``params`` has there.
        extra: an algorithm's own state (an adaptive coefficient, say).
        skipped: ``int32[]``, how many steps in a row were skipped for being non-finite.
    """

    step: jax.Array
    key: Key
    params: Params
    opt_state: PyTree
    frozen: PyTree
    extra: PyTree
    skipped: jax.Array


class Algorithm(NamedTuple):
    """A pair of pure functions; it holds no arrays and no state.

    Attributes:
        init: ``(params, key, **frozen) -> TrainState``.
        step: ``(state, batch) -> (state, metrics)``; metrics are ``float32[]``. It is itself the
            body of a ``jax.lax.scan``.
    """

    init: Callable[..., TrainState]
    step: Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


class CachedLogitsFn(Protocol):
    """``(params, tokens[B, S], mask[B, S], cache) -> (logits[B, V], cache)``.

    Reads ``S`` new tokens behind those in the cache; the logits are those that follow the last
    column. ``mask`` is false on padding, which nothing attends to.
    """

    def __call__(
        self, params: Params, tokens: jax.Array, mask: jax.Array, cache: PyTree
    ) -> tuple[jax.Array, PyTree]: ...


class Decoder(NamedTuple):
    """What generation needs of a model.

    Attributes:
        init_cache: ``(batch_size, length) -> cache``, an empty cache as an explicit pytree.
        apply: a ``CachedLogitsFn``.
        vocab_size: ``V``.
        max_length: the most tokens, prompt and response together, that the model can read.
        fork: ``(cache, samples, length) -> cache``, in which ``samples`` neighbouring rows continue
            each row of the other by up to ``length`` tokens. Without it the prompts of several
            samples are read once for each.
        refill: ``(cache, slots[N], source, rows[N]) -> cache``, where slots of one that was forked
            with ``samples=1`` begin anew as rows of a source; ``sampling.refilling_sampler`` needs
            it. A slot that there is not is left out.
        prepare: ``(params, cache) -> (params, cache)``, forked or not, as ``apply`` reads them
            fastest many times over; made once a call.
    """

    init_cache: Callable[[int, int], PyTree]
    apply: CachedLogitsFn
    vocab_size: int
    max_length: int
    fork: Callable[[PyTree, int, int], PyTree] | None = None
    refill: Callable[[PyTree, jax.Array, PyTree, jax.Array], PyTree] | None = None
    prepare: Callable[[Params, PyTree], tuple[Params, PyTree]] = lambda *both: both


# params, tokens[B, T], mask[B, T] -> logits[B, T, V]; entry t predicts token t + 1.
LogitsFn = Callable[[Params, jax.Array, jax.Array], jax.Array | FactoredLogits]
# params, tokens[B, T], mask[B, T] -> hidden[B, T, D], or any arrays [B, ...]: what lower layers,
# which do not train, make of the tokens, and a LogitsFn of the others reads in the tokens' place
TrunkFn = Callable[[Params, jax.Array, jax.Array], PyTree]
# params, tokens[B, T], mask[B, T] -> scores[B]; or [B, ...], several numbers a sequence. Where the
# mask holds segment ids: [B, T] or [B, T, ...], what each sequence is worth as far as each token
ScoreFn = Callable[[Params, jax.Array, jax.Array], jax.Array]
# params, tokens[B, T], mask[B, T] -> values[B, T]; entry t is the value before token t is chosen.
ValueFn = Callable[[Params, jax.Array, jax.Array], jax.Array]
# params, sequences -> rewards[B], or [B, T], each earned at its token; of several models [M, B]
# or [M, B, T]
RewardFn = Callable[[Params, Sequences], jax.Array]
# params, first, second (Sequences of B rows) -> probability[B] that the first is preferred
JudgeFn = Callable[[Params, Sequences, Sequences], jax.Array]
# params, prompts of B rows, keys[B * K] -> B * K sequences with log_probs, K neighbours a prompt:
# the P columns of the prompts, and the responses behind them
SampleFn = Callable[[Params, Prompts, Key], Sequences]
# chosen[B], rejected[B] -> loss[B]; with a third argument, tied[B], for data with ties
PreferenceLoss = Callable[..., jax.Array]
# scores[B, N], rankings[B, N] -> loss[B]
RankingLoss = Callable[[jax.Array, jax.Array], jax.Array]
# rewards[B], ratings[B] (and, for implicit rewards, the KL in the same unit) -> loss[B]
RatingLoss = Callable[..., jax.Array]
# log_probs[B, T], ref_log_probs[B, T], mask[B, T] -> reward[B]
ImplicitReward = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
# log_probs, old_log_probs, advantages, mask, all [B, T] -> loss[B, T]
PolicyLoss = Callable[[jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]
# values, old_values, returns, all [B, T] -> loss[B, T]
ValueLoss = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
# rewards[N, K] -> advantages[N, K]: the samples of a prompt are each other's baseline; with a
# second argument, baseline[N], where one more answer to each prompt is the baseline
GroupAdvantage = Callable[..., jax.Array]
# rewards, values, mask, all [B, T] -> advantages[B, T]: a critic is the baseline
TokenAdvantage = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


class Callback(Protocol):
    """What ``training.fit`` calls after each compiled chunk of steps.

    Args:
        state: the state after the chunk.
        rows: the chunk's metrics, one mapping of plain numbers a step, with its ``step``.
        last: true if no chunk follows (finished, stopped or interrupted): a checkpoint is due.

    Returns:
        A reason to stop, or ``None`` to go on.
    """

    def __call__(
        self, state: TrainState, rows: list[Mapping[str, float]], last: bool
    ) -> str | None: ...
