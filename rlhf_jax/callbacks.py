"""What may happen between the chunks of ``training.fit``: each function here builds a callback.

A callback is any function ``(state, rows, last) -> reason to stop or None``; see
``rlhf_jax.types.Callback``. Those that hold something open have an attribute ``close``, which
``fit`` calls when it ends, however it ends.

With several processes, those that show or write something do so in the first alone.
"""

import contextlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from rlhf_jax.types import Callback, TrainState

__all__ = ["jsonl", "progress", "read_jsonl", "stop_when", "tensorboard", "wandb"]

Row = Mapping[str, float]
_NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def _of_the_first(build: Callable[..., Callback]) -> Callable[..., Callback]:
    """The same builder; in all processes but the first it builds a callback that does nothing."""

    @wraps(build)
    def built(*args: Any, **kwargs: Any) -> Callback:
        return build(*args, **kwargs) if jax.process_index() == 0 else lambda *_: None

    return built


@_of_the_first
def progress(
    total: int,
    description: str,
    show: Sequence[str] = ("loss",),
    *,
    seconds: float = 10.0,
    console: Console | None = None,
) -> Callback:
    """Show how far training is: a bar in a terminal, elsewhere (a file, a notebook) some lines.

    Args:
        total: the steps of the whole training.
        description: what is being trained, in a word or two.
        show: the metrics to show, as of the last step; those that a run lacks are left out.
        seconds: the least time between two lines where there is no terminal.
        console: where to; standard error by default.
    """
    console = console or Console(stderr=True)
    live = console.is_terminal and not console.is_dumb_terminal and not console.is_jupyter
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[metrics]}"),
        TimeRemainingColumn(),
        console=console,
        disable=not live,
    )
    task = bar.add_task(description, total=total, metrics="compiling")
    bar.start()
    began: tuple[float, int] | None = None
    spoke = -math.inf

    def callback(state: TrainState, rows: list[Row], last: bool) -> None:
        nonlocal began, spoke
        now = time.monotonic()
        if rows:
            step, row = int(rows[-1]["step"]), rows[-1]
            speed = ""
            if began is None:  # the first chunk compiles: it says nothing of the speed
                began = now, step
            elif now > began[0]:
                speed = f"{(step - began[1]) / (now - began[0]):.3g} steps/s"
            shown = [f"{name} {row[name]:.4g}" for name in show if name in row]
            metrics = "  ".join([*shown, speed] if speed else shown)
            bar.update(task, completed=step, metrics=metrics)
            if not live and (last or now - spoke >= seconds):
                spoke = now
                line = f"{description} {step}/{total}  {metrics}"
                console.print(line, highlight=False, soft_wrap=True)
        if last:
            bar.stop()

    callback.close = bar.stop  # type: ignore[attr-defined]
    return callback


@_of_the_first
def jsonl(path: str | os.PathLike[str], stage: str | None = None, start_step: int = 0) -> Callback:
    """Append a line of JSON a step to a file, on the disk before the callback returns.

    Building it readies the file for a run that goes on from ``start_step``: a last line that is
    torn (the writer was killed) and every line of ``stage`` beyond ``start_step`` are dropped. So
    no step is doubled; and none is lost if a checkpoint is written only after this callback.

    A line is a function of its step alone: it holds no times. Floats are written so that they
    read back exactly; JSON has no numbers that are not finite, so those are the strings ``"NaN"``,
    ``"Infinity"`` and ``"-Infinity"``, which Python's ``float`` reads.

    Args:
        path: the file; it and its folder are made if need be.
        stage: written into every line as ``stage``, so that the stages of a run share a file.
        start_step: steps taken before.

    Raises:
        ValueError: if a line other than the last is not JSON; the file is left alone.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _forget(path, stage, start_step)

    def callback(state: TrainState, rows: list[Row], last: bool) -> None:
        if not rows:
            return
        label = {} if stage is None else {"stage": stage}
        with path.open("a", encoding="utf-8", newline="\n") as file:
            file.writelines(
                json.dumps(label | {k: _writable(v) for k, v in row.items()}, allow_nan=False)
                + "\n"
                for row in rows
            )
            file.flush()
            os.fsync(file.fileno())

    return callback


def read_jsonl(path: str | os.PathLike[str], stage: str | None = None) -> list[dict[str, float]]:
    """Read back what ``jsonl`` wrote for ``stage``, as ``fit`` gave it: floats that are the same.

    A torn last line is passed over. A file that does not exist holds no rows.

    Raises:
        ValueError: if a line other than the last is not JSON.
    """
    rows = [row for _, row in _lines(Path(path)) if row.get("stage") == stage]
    return [
        {name: _NOT_FINITE.get(value, value) for name, value in row.items() if name != "stage"}
        for row in rows
    ]


@_of_the_first
def tensorboard(folder: str | os.PathLike[str], start_step: int = 0) -> Callback:
    """Write every metric as a TensorBoard scalar; needs the extra ``tensorboard``.

    Args:
        folder: the log folder of this training.
        start_step: steps taken before; what an interrupted run wrote beyond them is hidden.

    Raises:
        ImportError: if tensorboardX is not installed.
    """
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise ImportError(_needs("tensorboard")) from error
    writer = SummaryWriter(str(folder), purge_step=start_step + 1 if start_step else None)

    def callback(state: TrainState, rows: list[Row], last: bool) -> None:
        for row in rows:
            for name, value in row.items():
                if name != "step":
                    writer.add_scalar(name, value, int(row["step"]))
        writer.flush()

    callback.close = writer.close  # type: ignore[attr-defined]
    return callback


@_of_the_first
def wandb(**kwargs: Any) -> Callback:
    """Log every metric to Weights & Biases; needs the extra ``wandb``.

    Args:
        **kwargs: for ``wandb.init``: ``project``, ``name``, ``config``, ``id``, ``resume`` ...

    Raises:
        ImportError: if wandb is not installed.
    """
    try:
        import wandb as library
    except ImportError as error:
        raise ImportError(_needs("wandb")) from error
    run = library.init(**kwargs)

    def callback(state: TrainState, rows: list[Row], last: bool) -> None:
        for row in rows:
            run.log({k: v for k, v in row.items() if k != "step"}, step=int(row["step"]))

    callback.close = run.finish  # type: ignore[attr-defined]
    return callback


def stop_when(predicate: Callable[[Row], bool], reason: str) -> Callback:
    """Stop after the chunk in which ``predicate`` is first true of a row.

    Example:
        >>> callback = stop_when(lambda row: row["kl"] > 12, "the KL budget of 12 nats is spent")
        >>> callback(None, [{"step": 1, "kl": 13.0}], False)
        'the KL budget of 12 nats is spent'
    """

    def callback(state: TrainState, rows: list[Row], last: bool) -> str | None:
        return reason if any(predicate(row) for row in rows) else None

    return callback


def _needs(extra: str) -> str:
    return f"callbacks.{extra} needs a package more: pip install 'rlhf_jax[{extra}]'"


def _writable(value: float) -> float | str:
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _lines(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """The complete lines of a file, as bytes and as what they say."""
    try:
        *complete, _ = path.read_bytes().split(b"\n")  # what follows the last end of line is torn
    except FileNotFoundError:
        return
    for number, line in enumerate(complete, 1):
        try:
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError("no JSON object")
        except ValueError as error:
            # A power cut can leave a last line of the right length and the wrong bytes.
            if number == len(complete):
                return
            raise ValueError(f"{path}, line {number}, is damaged: {error}") from error
        yield line + b"\n", row


def _forget(path: Path, stage: str | None, start_step: int) -> None:
    """Drop a stage's lines beyond a step, and a torn last one, in one atomic replacement."""
    kept = b"".join(
        line
        for line, row in _lines(path)
        if row.get("stage") != stage or row.get("step", 0) <= start_step
    )
    if not path.exists() or path.read_bytes() == kept:
        return
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(kept)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
