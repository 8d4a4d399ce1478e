"""Rewards that are plain Python on strings: a test, a checker, a parser, somebody's service.

The compiled step calls them through ``jax.pure_callback``: a ``RewardFn`` is a pure function, so
this one may be vmapped (the rows of all copies come in one call), left out where nobody uses what
it gives, and has no gradient, which rewards do not need. It is called once a step with all rows in
their order, also on a mesh; a pmapped step calls it once a device, with that device's rows, one
call after the other.
"""

import contextlib
import inspect
import math
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.types import Params, RewardFn, Sequences

__all__ = ["RewardError", "deferred", "from_python"]

# Tokens in one array that goes to the host. jax hands arrays above 100 KiB to its own threads, and
# on several CPU devices these may be waiting for the very callback that waits for the array
# (https://github.com/jax-ml/jax/issues/24255).
_BLOCK = 16_384
# The longest text that an error quotes in full.
_QUOTED = 2_000

# Where failures go; empty if they are raised at once. See `deferred`.
_listeners: list[list["RewardError"]] = []


class RewardError(RuntimeError):
    """A Python reward function failed, or gave what is no reward; the message says on which text.

    Attributes:
        prompt: the text's prompt, or ``None`` if no single text is to blame.
        completion: its completion, likewise.
    """

    def __init__(self, message: str, prompt: str | None = None, completion: str | None = None):
        super().__init__(message)
        self.prompt, self.completion = prompt, completion


@contextlib.contextmanager
def deferred() -> Iterator[list[RewardError]]:
    """Inside, a failing reward function does not stop the compiled program: it is nan from there.

    An exception inside a program is raised when its results are looked at. By then the state that
    was donated to it is gone; and if there are several devices, the others wait for the one that
    failed, until the runtime ends the whole process. Deferred, the program comes to its end: the
    algorithms skip an update whose reward is nan, so the state is the last good one, and the
    function is not called again. Whoever runs the steps must look at the list after each.

    Yields:
        The failures so far, empty while all is well.

    >>> def fails(completions):
    ...     raise KeyError("grade")
    >>> reward_fn = from_python(fails, lambda ids: bytes(ids).decode())
    >>> tokens, mask = jnp.array([[113, 97]]), jnp.ones([1, 2], bool)
    >>> with deferred() as failures:
    ...     print(reward_fn((), Sequences(tokens, mask, mask & (jnp.arange(2) > 0))))
    [nan]
    >>> print(failures[0])
    the reward function fails failed on row 0: KeyError: 'grade'
      prompt: 'q'
      completion: 'a'
    """
    failures: list[RewardError] = []
    _listeners.append(failures)
    try:
        yield failures
    finally:
        # By identity: of several empty lists, remove() would take the first.
        _listeners[:] = [other for other in _listeners if other is not failures]


def from_python(
    fn: Callable[..., Collection[float | None]],
    decode: Any,
    *,
    columns: Mapping[str, Mapping[str, Any]] | None = None,
    missing: float | None = None,
    special_ids: Collection[int] = (),
) -> RewardFn:
    """A reward in plain Python, as TRL's trainers take it, for the compiled step.

    ``fn(prompts, completions, completion_ids, **columns) -> rewards``, all lists of one length,
    passed by keyword; those that ``fn`` does not take are left out. Prompts that repeat come
    repeated. Rows of padding, whose response is empty, are not shown to it and are worth 0.

    It must be a function of the texts: a score that depends on the other rows differs between one
    device and a pmapped several, one that changes from call to call makes a resumed run another
    run. It may be slow, but not use JAX, which waits for it. Texts that come again are asked again:
    put ``functools.cache`` on what scores one text if that is dear.

    If it raises, it is called again on single rows until one raises, so that the error can name the
    text. The error is raised by the compiled program (see ``deferred``), whose own message quotes
    it.

    Args:
        fn: the function; not ``async``. Texts are strings, not lists of messages.
        decode: a Hugging Face tokenizer, whose ``decode`` leaves out special tokens, or a function
            ``list[int] -> str``.
        columns: the dataset's further columns: the prompt, as ``fn`` sees it, to the values by
            name. For every prompt the same names.
        missing: the reward where ``fn`` returns ``None``, that it does not apply. In a weighted sum
            of several rewards 0 leaves it out, as TRL does. By default ``None`` is an error.
        special_ids: tokens to leave out of the text (not of ``completion_ids``) before decoding.

    Returns:
        A ``RewardFn`` without parameters (give it ``()``): ``float32[B]``.

    Raises:
        ValueError: if ``fn`` asks for what there is not, is asynchronous, or an argument is
            unusable.
        RewardError: when called: ``fn`` raises, returns another number of rewards, something that
            is no finite number, or ``columns`` lacks a prompt.

    Reference: the signature, https://huggingface.co/docs/trl/grpo_trainer

    >>> def right(completions, answer):
    ...     return [float(c == a) for c, a in zip(completions, answer)]
    >>> decode = lambda ids: bytes(ids).decode()
    >>> reward_fn = from_python(right, decode, columns={"1+1=": {"answer": "2"}})
    >>> tokens = jnp.array([list(b"1+1=2"), list(b"1+1=3")])
    >>> mask = jnp.ones([2, 5], bool)
    >>> jax.jit(reward_fn)((), Sequences(tokens, mask, mask & (jnp.arange(5) > 3))).tolist()
    [1.0, 0.0]
    """
    name = getattr(fn, "__name__", None) or type(getattr(fn, "func", fn)).__name__
    if missing is not None and not math.isfinite(missing):
        raise ValueError(f"missing must be finite, not {missing}: what is not is no reward")
    taken = _arguments(fn, name, columns)
    decode, special = _decoder(decode), frozenset(special_ids)
    lock = threading.Lock()

    def called(**given: list[Any]) -> np.ndarray:
        prompts, completions = given["prompts"], given["completions"]
        if columns is not None:
            for row, prompt in enumerate(prompts):
                if prompt not in columns:
                    what = f"columns lacks row {row}'s prompt; it has {next(iter(columns))!r}"
                    raise RewardError(_blamed(what, prompt, completions[row]), prompt)
            values = [columns[prompt] for prompt in prompts]
            given |= {key: [row[key] for row in values] for key in values[0]}
        arguments = {key: value for key, value in given.items() if taken is None or key in taken}
        try:
            results = fn(**arguments)
        except Exception as error:
            raise _culprit(fn, name, arguments, given, error) from error
        return _numbers(results, name, prompts, completions, missing)

    def host(shape: tuple[int, ...], *blocks: np.ndarray) -> np.ndarray:
        ids = np.concatenate([np.asarray(block) for block in blocks]).reshape(shape)
        rewards = np.zeros(len(ids), np.float32)
        rows = np.flatnonzero((ids[:, 1] >= 0).any(axis=-1))
        if not len(rows):
            return rewards
        sides = [[row[row >= 0].tolist() for row in ids[rows, side]] for side in (0, 1)]
        # One at a time: a pmapped step comes from several threads, which fn need not be fit for.
        with lock:
            listener = _listeners[-1] if _listeners else None
            if listener:
                return np.full_like(rewards, np.nan)
            try:
                texts = [[decode([t for t in row if t not in special]) for row in s] for s in sides]
                rewards[rows] = called(
                    prompts=texts[0], completions=texts[1], completion_ids=sides[1]
                )
            except Exception as error:
                if not isinstance(error, RewardError):
                    error = RewardError(f"decode failed: {_said(error)}")
                if listener is None:
                    raise error from error.__cause__
                listener.append(error)
                return np.full_like(rewards, np.nan)
        return rewards

    @jax.custom_batching.custom_vmap
    def ask(ids: jax.Array) -> jax.Array:
        flat = ids.reshape(-1)
        blocks = [flat[i : i + _BLOCK] for i in range(0, flat.size, _BLOCK)]
        result = jax.ShapeDtypeStruct(ids.shape[:1], jnp.float32)
        return jax.pure_callback(partial(host, ids.shape), result, *blocks)

    @ask.def_vmap
    def ask_all(copies: int, batched: list[bool], ids: jax.Array) -> tuple[jax.Array, bool]:
        return ask(ids.reshape(-1, *ids.shape[2:])).reshape(copies, -1), True

    def reward_fn(params: Params, sequences: Sequences) -> jax.Array:
        response = sequences.mask & sequences.response_mask
        sides = [sequences.mask & ~response, response]
        ids = [jnp.where(side, sequences.tokens, -1).astype(jnp.int32) for side in sides]
        return ask(jnp.stack(ids, axis=1))

    return reward_fn


def _arguments(fn: Callable, name: str, columns: Mapping | None) -> set[str] | None:
    """The names of what ``fn`` takes, or ``None`` if it takes all."""
    if inspect.iscoroutinefunction(fn):
        raise ValueError(f"{name} is asynchronous: wrap it in a function that runs it to its end")
    given = {"prompts", "completions", "completion_ids"}
    if columns is not None:
        if not columns:
            raise ValueError("columns has no prompt; leave it out if there are no columns")
        first, names = next(iter(columns)), set(next(iter(columns.values())))
        for prompt, row in columns.items():
            if set(row) != names:
                raise ValueError(
                    f"columns must have the same names for every prompt: {first!r} has "
                    f"{sorted(names)}, {prompt!r} has {sorted(row)}"
                )
        if clash := names & given:
            raise ValueError(f"a column cannot be called {sorted(clash)[0]}: that is passed anyway")
        given |= names
    parameters = inspect.signature(fn).parameters.values()
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    required = [p.name for p in parameters if p.kind is p.POSITIONAL_ONLY and p.default is p.empty]
    required += [p.name for p in named if p.default is p.empty and p.name not in given]
    if required:
        raise ValueError(
            f"{name} needs {', '.join(required)}, but is called with the keywords "
            f"{', '.join(sorted(given))}: give the rest as columns"
        )
    everything = any(p.kind is p.VAR_KEYWORD for p in parameters)
    return None if everything else {p.name for p in named}


def _decoder(decode: Any) -> Callable[[list[int]], str]:
    if hasattr(decode, "decode"):
        return partial(decode.decode, skip_special_tokens=True)
    if not callable(decode):
        raise ValueError(f"decode must be a tokenizer or a function of tokens, not {decode!r}")
    return decode


def _culprit(
    fn: Callable, name: str, arguments: dict[str, list], given: dict[str, list], error: Exception
) -> RewardError:
    """The error of the first row on which ``fn`` fails by itself."""
    texts = list(zip(given["prompts"], given["completions"], strict=True))
    for row, (prompt, completion) in enumerate(texts):
        try:
            fn(**{key: value[row : row + 1] for key, value in arguments.items()})
        except Exception as own:
            what = f"the reward function {name} failed on row {row}: {_said(own)}"
            return RewardError(_blamed(what, prompt, completion), prompt, completion)
    what = (
        f"the reward function {name} failed on {len(texts)} rows together, though on none of them "
        f"alone: {_said(error)}; the first is"
    )
    return RewardError(_blamed(what, *texts[0]))


def _numbers(
    results: Any, name: str, prompts: list[str], completions: list[str], missing: float | None
) -> np.ndarray:
    """The rewards as numbers, or what is wrong with them."""
    what = f"the reward function {name} must return a list of {len(prompts)} numbers, one a row"
    if isinstance(results, str | Mapping) or not hasattr(results, "__len__"):
        raise RewardError(f"{what}, not {type(results).__name__}")
    if len(results) != len(prompts):
        raise RewardError(f"{what}, not {len(results)}")
    rewards = np.empty(len(prompts), np.float32)
    for row, result in enumerate(results):
        value = missing if result is None else result
        try:
            # A string that float() could read is a mistake none the less; it has no __float__.
            rewards[row] = value.__float__()
        except (AttributeError, TypeError, ValueError):
            rewards[row] = np.nan
        if not np.isfinite(rewards[row]):
            hint = "; say what None is worth by missing=" if result is None else ""
            what = f"the reward function {name} must return finite numbers, not {result!r}"
            text = prompts[row], completions[row]
            raise RewardError(_blamed(f"{what}, as for row {row}{hint}", *text), *text)
    return rewards


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _blamed(what: str, prompt: str | None = None, completion: str | None = None) -> str:
    """A message with the text that it speaks of."""
    lines = [what]
    for side, text in (("prompt", prompt), ("completion", completion)):
        if text is not None:
            cut = f"{text[:_QUOTED]!r}"
            more = f" ... ({len(text)} characters)" if len(text) > _QUOTED else ""
            lines.append(f"  {side}: {cut}{more}")
    return "\n".join(lines)
