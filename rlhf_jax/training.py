"""Many steps of an algorithm: a compiled scan over a chunk of them, and a plain loop over chunks.

Everything that decides what a step computes is an argument or in the state, so a run that is cut
short and continued from a checkpoint computes what an uninterrupted one would have computed.
"""

import contextlib
import ctypes
import functools
import math
import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import FrameType
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from rlhf_jax.rewards import deferred
from rlhf_jax.types import Algorithm, Batch, Callback, Metrics, PyTree, TrainState

__all__ = [
    "Fit",
    "NonFiniteError",
    "compilation_cache",
    "donating_jit",
    "fit",
    "keep_freed_memory",
    "run_chunk",
]

Step = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
Chunk = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
Row = dict[str, float]

# The state that goes into a chunk is not needed again: its memory is the next state's.
donating_jit = partial(jax.jit, donate_argnums=0)


class NonFiniteError(FloatingPointError):
    """So many updates in a row were non-finite, and skipped, that training was stopped."""


class Fit(NamedTuple):
    """What a call of ``fit`` leaves.

    Attributes:
        state: the state after the last step.
        history: one mapping of plain floats a step, with the step's number under ``step``.
        stopped: why training ended before its last step, or ``None``.
    """

    state: TrainState
    history: list[Row]
    stopped: str | None

    @property
    def interrupted(self) -> bool:
        """Whether a signal ended it, so that the program should save nothing more and exit."""
        return self.stopped is not None and self.stopped.startswith(_INTERRUPTED)


_INTERRUPTED = "interrupted by "


# Cached so that the same algorithm fitted twice is the same function to jit, and compiles once.
@functools.lru_cache(maxsize=32)
def run_chunk(step: Step) -> Chunk:
    """Turn a step into a function that takes ``n`` of them, by ``jax.lax.scan``.

    Args:
        step: ``(state, batch) -> (state, metrics)``, as in ``Algorithm.step``.

    Returns:
        ``(state, batches) -> (state, history)``, where every leaf of ``batches`` and of
        ``history`` has a leading axis ``[n, ...]``. It is not compiled: ``jax.jit`` does that.

    Example:
        >>> import jax.numpy as jnp
        >>> def step(total, batch):
        ...     return total + batch, {"total": total + batch}
        >>> total, history = run_chunk(step)(jnp.float32(0), jnp.arange(1.0, 4.0))
        >>> float(total), history["total"].tolist()
        (6.0, [1.0, 3.0, 6.0])
    """

    def chunk(state: TrainState, batches: Batch) -> tuple[TrainState, Metrics]:
        return jax.lax.scan(step, state, batches)

    return chunk


def fit(
    algorithm: Algorithm,
    state: TrainState,
    batches: Callable[[int], Batch],
    *,
    steps: int,
    chunk: int = 10,
    callbacks: Sequence[Callback] = (),
    compile: Callable[[Chunk], Chunk] = donating_jit,
    max_skipped: int = 10,
) -> Fit:
    """Train until ``state.step`` is ``steps``, ``chunk`` steps to a compiled program.

    Chunks end on multiples of ``chunk``, so a resumed run cuts the same chunks as one that was
    never interrupted. If ``steps`` (and the step begun at) is a multiple of ``chunk``, the program
    is compiled once; otherwise once more for a short chunk at that end.

    After each chunk its metrics come to the host, and the callbacks are called in order with
    ``(state, rows, last)``. Every callback is called with ``last=True`` once, as the final call,
    unless an exception ends the training; if the end was only known after an ordinary call (a
    callback gave a reason to stop, a signal came), that final call has no rows. A callback with an
    attribute ``close`` has it called when ``fit`` ends in whatever way. An exception of a callback
    or of ``batches`` is passed on as it is; checkpoints written until then remain.

    In the main thread, SIGINT (Ctrl-C) and SIGTERM end the training in good order after the chunk
    that is running; a second SIGINT raises ``KeyboardInterrupt`` as soon as Python has control.

    With several processes all call this alike, on a state of global arrays and with ``compile`` of
    ``parallel.shard_step``; a signal to one ends the training of all after the same chunk, and what
    a callback returns must be the same on all. The callbacks of ``rlhf_jax.callbacks`` write on the
    first alone; that of ``checkpoint`` is of all together.

    Args:
        algorithm: what to train; its ``step`` adds one to ``state.step``.
        state: where to begin. It is copied once, so the caller's arrays stay usable; the copy is
            donated from chunk to chunk, so a callback must copy whatever it keeps of the state.
        batches: ``step -> batch`` of NumPy arrays, the batch of the update that follows ``step``
            steps. A pure function: the position in the data *is* the step, and resuming is free.
            All batches have the same shapes.
        steps: the number of steps to have taken in the end, those before this call included.
        chunk: steps a compiled program.
        callbacks: see ``rlhf_jax.types.Callback`` and ``rlhf_jax.callbacks``.
        compile: turns ``(state, batches[n, ...]) -> (state, history)`` into a compiled function;
            by default ``partial(jax.jit, donate_argnums=0)``.
        max_skipped: the algorithm's metric ``skipped`` counts the updates in a row that it skipped
            because they were not finite; training stops when it reaches this.

    Returns:
        The last state, the history of the steps taken here, and why it stopped early, if it did.

    Raises:
        ValueError: if an argument is out of range, batches differ in shape, a metric is no scalar,
            or the algorithm does not count its steps.
        RewardError: if a reward function of ``rewards.from_python`` failed. The callbacks have been
            called with ``last=True`` and the state before the failing step, so nothing is lost. (If
            the algorithm skipped nothing, they have not, and the last checkpoint remains.)
        NonFiniteError: after ``max_skipped`` skipped updates in a row. The callbacks have been
            called with ``last=True`` by then, so the last good parameters are saved.
    """
    history: list[Row] = []
    reason: str | None = None
    ended = False
    with contextlib.ExitStack() as stack:
        for callback in callbacks:
            if close := getattr(callback, "close", None):
                stack.callback(close)
        limits = (("steps", steps, 0), ("chunk", chunk, 1), ("max_skipped", max_skipped, 1))
        for name, value, least in limits:
            if value < least:
                raise ValueError(f"{name} is {value}: it must be at least {least}")
        state = jax.tree.map(_own_copy, state)
        step = int(state.step)
        run = compile(run_chunk(algorithm.step))
        signals = stack.enter_context(_signals())
        stopped = _anyones(signals)
        failures = stack.enter_context(deferred())
        while step < steps and not (ended or stopped or reason):
            until = min(steps, (step // chunk + 1) * chunk)
            state, metrics = run(state, _stack([batches(i) for i in range(step, until)], step))
            rows = _rows(metrics, step, until)
            step = until
            if int(state.step) != step:
                raise ValueError(
                    f"after step {step} the state says {int(state.step)}: algorithm.step must add "
                    "exactly one to state.step"
                )
            if failures:
                # What was skipped since is undone; if nothing was, who knows what the state is.
                if undone := min(len(rows), int(np.min(state.skipped))):
                    state = _undone(state, undone)
                    _call(callbacks, state, rows[:-undone], last=True)
                raise failures[0]
            history += rows
            failed = next((row for row in rows if row.get("skipped", 0) >= max_skipped), None)
            stopped = _anyones(signals)
            ended = step >= steps or bool(failed) or bool(stopped)
            reason = _call(callbacks, state, rows, last=ended)
            if failed:
                raise NonFiniteError(_advice(failed, history, max_skipped))
        if not ended:
            reason = _call(callbacks, state, [], last=True) or reason
        if stopped:
            reason = _INTERRUPTED + stopped[0]
    return Fit(state, history, reason)


def compilation_cache(folder: str | os.PathLike[str] | None = None) -> Path:
    """Keep compiled programs on disk, so that the second run of a script need not compile.

    Programs that took less than half a second to compile are not kept.

    Args:
        folder: where to; by default ``compiled`` in ``$RLHF_JAX_CACHE`` or ``~/.cache/rlhf_jax``.

    Returns:
        The folder. If it cannot be made there is a warning, and training goes on without.
    """
    if folder is None:
        root = os.environ.get("RLHF_JAX_CACHE") or Path.home() / ".cache" / "rlhf_jax"
        folder = Path(root) / "compiled"
    folder = Path(folder).expanduser().absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        warnings.warn(f"compiled programs will not be kept: {error}", stacklevel=2)
        return folder
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    return folder


def keep_freed_memory() -> bool:
    """Have the C library keep the memory that is freed, for what comes next, in this process.

    On a CPU each call of a compiled program takes memory for its temporaries, and glibc by default
    gives large blocks back to the system, which clears every page of them anew: a tenth to a fifth
    of a step of a few milliseconds to a few hundred. The price: other processes cannot have the
    memory of the largest call while this one lives.

    What a process must be started with cannot be set here: with
    ``GLIBC_TUNABLES=glibc.malloc.hugetlb=1`` (Linux, glibc 2.35 or later) large blocks are of large
    pages, which for models of some ten million parameters and more matters as much.

    Returns:
        Whether it is so now: false where the C library is not glibc.
    """
    trim_threshold, mmap_max = -1, -4
    try:
        libc = ctypes.CDLL("libc.so.6")
        return bool(libc.mallopt(mmap_max, 0) and libc.mallopt(trim_threshold, 2**31 - 1))
    except (OSError, AttributeError):
        return False


def _anyones(signals: list[str]) -> list[str]:
    """The signals of this process; with several, that of any, so that all stop after one chunk."""
    if jax.process_count() == 1:
        return signals
    own = signal.Signals[signals[0]].value if signals else 0
    highest = int(np.max(multihost_utils.process_allgather(np.int32(own))))
    return [signal.Signals(highest).name] if highest else []


def _own_copy(leaf: PyTree) -> jax.Array:
    """A leaf in a buffer of its own, where it was, and of a type that a scan gives back.

    The copy is made even of NumPy arrays (jax may borrow their memory on a CPU, and would then
    write into it once they are donated) and undoes sharing inside the state (a frozen reference
    may be the very array of the parameters, and one buffer cannot be donated twice). The explicit
    dtype drops jax's weak types, which would make the second chunk compile anew.
    """
    leaf = leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)
    dtype = leaf.dtype if isinstance(leaf, jax.Array) else jax.dtypes.canonicalize_dtype(leaf.dtype)
    return jnp.array(leaf, dtype=dtype, copy=True)


def _stack(batches: list[Batch], first: int) -> Batch:
    """Stack the batches of a chunk along a new leading axis, on the host."""
    try:
        return jax.tree.map(lambda *leaves: np.stack(leaves), *batches)
    except ValueError as error:
        raise ValueError(
            f"the batches of steps {first + 1} to {first + len(batches)} differ in structure or "
            f"shape: {error}"
        ) from error


def _rows(metrics: Metrics, begin: int, end: int) -> list[Row]:
    """Bring a chunk's metrics to the host in one transfer, a mapping of plain floats a step."""
    columns = {name: np.asarray(value) for name, value in jax.device_get(metrics).items()}
    for name, column in columns.items():
        if column.ndim != 1:
            raise ValueError(
                f"metric {name!r} has shape {column.shape[1:]} a step: metrics must be scalars"
            )
    return [
        {"step": begin + i + 1}
        | {name: float(column[i]) for name, column in columns.items() if name != "step"}
        for i in range(end - begin)
    ]


def _undone(state: TrainState, steps: int) -> TrainState:
    """The state so many skipped steps ago: only the counts have gone on since."""
    return state.replace(step=state.step - steps, skipped=state.skipped - steps)


def _call(
    callbacks: Sequence[Callback], state: TrainState, rows: list[Row], last: bool
) -> str | None:
    """Call every callback, even after one of them gave a reason to stop; the first reason."""
    reasons = [callback(state, rows, last) for callback in callbacks]
    return next((reason for reason in reasons if reason is not None), None)


def _advice(row: Row, history: list[Row], max_skipped: int) -> str:
    """The message of a ``NonFiniteError``: where it is, and what to look at."""
    step = int(row["step"])
    names = sorted(name for name, value in row.items() if not math.isfinite(value))
    good = next((r for r in reversed(history) if r["step"] < step and not r.get("skipped")), None)
    since = f"the last good update was step {int(good['step'])}" if good else "none was good"
    what = f"Not finite there: {', '.join(names)}. " if names else ""
    return (
        f"{max_skipped} updates in a row were not finite and were skipped, up to step {step}; "
        f"{since}. {what}The parameters are those of the last good update. Look at the learning "
        "rate and the gradient's clipping first, then at the batches and rewards of these steps "
        "for infinities or empty masks; jax.config.update('jax_debug_nans', True) shows the "
        "operation that makes the first NaN."
    )


@contextlib.contextmanager
def _signals() -> Iterator[list[str]]:
    """Collect the names of SIGINT and SIGTERM instead of dying of them, while inside."""
    received: list[str] = []

    def handle(number: int, frame: FrameType | None) -> None:
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(signal.Signals(number).name)
        # Not print: the signal may have come in the midst of another print.
        with contextlib.suppress(OSError):
            os.write(2, f"\n{received[-1]}: stopping after this chunk of steps\n".encode())

    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    previous = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        # A signal that is ignored (nohup) stays so; None is a handler that Python cannot restore.
        if signal.getsignal(number) not in (None, signal.SIG_IGN):
            previous[number] = signal.signal(number, handle)
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
