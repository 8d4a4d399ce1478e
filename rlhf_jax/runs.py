"""The folder of an experiment, the same for every script.

    config.json      the configuration, as it was last started
    metrics.jsonl    a line a step, of every stage in turn
    checkpoints/     a folder a stage
    ...              what the script writes: result.json, plots/, report.md

A run that is killed and started again with ``resume=True`` goes on where its last checkpoint is,
and ends with the files that an uninterrupted run would have written.

With several processes (``parallel.initialise``) the folder is on a disk that all of them see: they
write checkpoints together, and the first alone everything else.
"""

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import shutil
import signal
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax

from rlhf_jax import assets, checkpoint, parallel, training
from rlhf_jax import callbacks as cb
from rlhf_jax.configuration import Config, differences, plain
from rlhf_jax.types import Algorithm, Batch, Callback, TrainState

__all__ = ["Interrupted", "Run", "RunError", "begin", "cached", "start"]

_log = logging.getLogger(__name__)
# It marks a folder as one that may be emptied: others too have a config.json (a model's has).
_MARK = ".rlhf_jax"


class RunError(ValueError):
    """A run cannot start or go on; its message is one line, for a person at a terminal."""


class Interrupted(SystemExit):
    """A signal ended a stage, and everything is saved.

    A script that does not catch it ends with the shell's exit status for that signal.

    Attributes:
        fitted: what ``training.fit`` returned.
    """

    def __init__(self, fitted: training.Fit, number: int):
        super().__init__(128 + number)
        self.fitted = fitted


@dataclasses.dataclass(frozen=True)
class Run:
    """An experiment's folder and the configuration it was started with; made by ``start``.

    Attributes:
        folder: where everything is written.
        config: the configuration as plain values, without the fields that may change.
        resumed: whether it goes on with what an earlier start has left.
    """

    folder: Path
    config: Mapping[str, Any]
    resumed: bool

    def fit(
        self,
        stage: str,
        algorithm: Algorithm,
        init: Callable[[], TrainState],
        batches: Callable[[int], Batch],
        *,
        steps: int,
        chunk: int = 10,
        callbacks: Sequence[Callback] = (),
        show: Sequence[str] | None = None,
        save_every: int = 100,
        keep: int = 3,
        compile: Callable[[training.Chunk], training.Chunk] = training.donating_jit,
        max_skipped: int = 10,
    ) -> training.Fit:
        """Train one stage, from its last checkpoint if it has one.

        A stage that has taken its ``steps``, or that a callback stopped, is complete: it comes
        back from its checkpoint at once. One that a signal or a failure stopped goes on.

        Args:
            stage: the stage's name: of its checkpoints' folder, and in every line of metrics.
            algorithm: as for ``training.fit``, like ``batches``, ``steps``, ``chunk``,
                ``callbacks``, ``compile`` and ``max_skipped``.
            show: names of metrics to show beside a progress bar; ``None`` for no bar.
            init: makes the state to begin with. It is called on resuming too, for the shapes and
                places of the arrays; its result is dropped before the checkpoint is read.
            batches: ``step -> batch``.
            steps: the number of steps in the end.
            chunk: steps a compiled program.
            callbacks: called after the metrics are on disk and before the checkpoint is written.
            save_every: steps between checkpoints; there is one at the end in any case.
            keep: how many of the newest checkpoints to keep.
            compile: makes the compiled chunk.
            max_skipped: non-finite updates in a row after which to give up.

        Returns:
            The last state, the history of the whole stage (what earlier starts trained included)
            and the reason why it stopped early.

        Raises:
            Interrupted: after a signal, with everything saved.
            RunError: if the stage's checkpoints do not fit or are all damaged.
            training.NonFiniteError: see ``training.fit``.
        """
        if stage in ("", ".", "..") or "/" in stage or os.sep in stage:
            raise ValueError(f"stage {stage!r} cannot be the name of a folder")
        folder, metrics = self.folder / "checkpoints" / stage, self.folder / "metrics.jsonl"
        with contextlib.ExitStack() as stack:
            for callback in callbacks:
                if close := getattr(callback, "close", None):
                    stack.callback(close)
            found = None
            if parallel.first_does(folder.is_dir):
                try:
                    like = checkpoint.template(init())
                    found = checkpoint.restore(folder, like, config=self.config)
                except (ValueError, checkpoint.CheckpointError) as error:
                    raise RunError(str(error)) from error
            state, before = found or (init(), {})
            begin = int(state.step)
            reason = before.get("stopped")
            agreed = {"step": begin, "steps": steps, "chunk": chunk, "save_every": save_every}
            parallel.check_agreement(f"stage {stage}", agreed)
            if found and (reason is not None or begin >= steps):
                history = [r for r in cb.read_jsonl(metrics, stage) if r["step"] <= begin]
                return training.Fit(state, history, reason)
            write = cb.jsonl(metrics, stage, begin)
            parallel.first_does(lambda: None)  # The file is ready for the others to read.
            history = cb.read_jsonl(metrics, stage)
            if len(history) != begin:
                warnings.warn(
                    f"{metrics} has {len(history)} of the {begin} steps that {stage} has taken",
                    stacklevel=2,
                )
            if show is not None:
                callbacks = [*callbacks, cb.progress(steps, stage, show)]
            notes: dict[str, str | None] = {"stopped": None}
            # The order is what makes resuming exact: a step's line is on disk before a checkpoint
            # can hold the step, and why a callback stopped is known when the last is written.
            ordered = [
                write,
                *(_noting(callback, notes) for callback in callbacks),
                checkpoint.checkpoints(
                    folder, config=self.config, every=save_every, keep=keep, metadata=lambda: notes
                ),
            ]
            stack.pop_all()  # from here on fit closes them
            begins = [state]
            del state, found  # fit copies it; held on to here, it would take its memory to the end
            fitted = training.fit(
                algorithm,
                begins.pop(),
                batches,
                steps=steps,
                chunk=chunk,
                callbacks=ordered,
                compile=compile,
                max_skipped=max_skipped,
            )
        fitted = fitted._replace(history=history + fitted.history)
        if fitted.interrupted:
            taken = int(fitted.state.step)
            _log.warning(
                "%s, %s of %s steps into %s: all of it is saved, and --resume goes on",
                fitted.stopped,
                taken,
                steps,
                stage,
            )
            raise Interrupted(fitted, signal.Signals[fitted.stopped.split()[-1]])
        return fitted

    def write_json(self, name: str, value: Any) -> Path:
        """Write plain values (``configuration.plain``) as ``name`` in the folder, atomically."""
        path = self.folder / name
        if parallel.is_first():
            _write_json(path, value)
        return path


def _write_json(path: Path, value: Any) -> None:
    text = json.dumps(plain(value), indent=2, allow_nan=False, ensure_ascii=False)
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def start(
    run_dir: str | os.PathLike[str],
    config: Config,
    *,
    resume: bool = False,
    overwrite: bool = False,
    free: Collection[str] = ("run_dir", "resume", "overwrite"),
) -> Run:
    """Open the folder of a run, and write ``config.json`` into it.

    Args:
        run_dir: the folder; made if need be.
        config: the experiment's configuration, a dataclass or mapping of plain values.
        resume: go on with the run that is there; where there is none, begin one and say so.
        overwrite: delete what the run that is there has written, and begin anew.
        free: fields of ``config`` (dotted where nested) that may change from one start to the
            next: where the run is, and how long it is to be.

    Returns:
        The run.

    Raises:
        RunError: if the folder holds something and neither flag is given, is not a run's, cannot
            be written, or holds a run of another configuration; or if the processes of this run
            have been started with different ones.
    """
    folder = Path(run_dir).expanduser()
    try:
        values = plain(config)
    except ValueError as error:
        raise RunError(f"the configuration cannot be kept: {error}") from error
    if resume and overwrite:
        raise RunError("--resume and --overwrite exclude each other: go on, or begin anew?")
    try:
        versions = {"jax": jax.__version__, "configuration": values}
        parallel.check_agreement("configuration", versions)
        resumed = parallel.first_does(partial(_open, folder, values, resume, overwrite, free))
    except RunError:
        raise
    except ValueError as error:  # Another process's.
        raise RunError(str(error)) from error
    return Run(folder, _without(values, free), resumed)


def _open(
    folder: Path, values: dict[str, Any], resume: bool, overwrite: bool, free: Collection[str]
) -> bool:
    """Make a run's folder ready, and write its configuration; whether a run was there."""
    try:
        if folder.exists() and not folder.is_dir():
            raise RunError(f"{folder} is a file: choose another --run-dir")
        folder.mkdir(parents=True, exist_ok=True)
        inside = sorted(p.name for p in folder.iterdir() if not _ours_unfinished(p.name))
        if inside and overwrite:
            _empty(folder)
            inside = []
        if inside and not resume:
            raise RunError(
                f"the run folder {folder} is not empty: --resume goes on with it, --overwrite "
                "deletes it and begins anew, another --run-dir leaves it alone"
            )
        if inside:
            _refuse_other(folder, values, free)
        elif resume:
            _log.warning("nothing to resume in %s: beginning a new run", folder)
        (folder / _MARK).write_text("A run of rlhf_jax: --overwrite may delete this folder.\n")
        _write_json(folder / "config.json", values)
    except OSError as error:
        raise RunError(f"the run folder {folder} cannot be written: {error}") from error
    return bool(inside)


def begin(config: Config, *, free: Collection[str] = ()) -> Run:
    """``start`` for a script: ``config`` has the fields ``run_dir``, ``resume`` and ``overwrite``.

    Args:
        config: the experiment's configuration, a dataclass.
        free: further fields that may change from one start to the next.

    Returns:
        The run.

    Raises:
        RunError: as ``start``.
    """
    return start(
        config.run_dir,
        config,
        resume=config.resume,
        overwrite=config.overwrite,
        free=("run_dir", "resume", "overwrite", *free),
    )


def cached(kind: str, settings: Mapping[str, Any]) -> Run:
    """A run in the user's cache folder, the same for the same settings: to train something once.

    Args:
        kind: a folder's name for this kind of thing.
        settings: everything that its training depends on, the data's digest included.

    Returns:
        The run, new, half-way or complete: ``Run.fit`` does what is left.

    Raises:
        RunError: as ``start``.
    """
    text = json.dumps(plain(settings), sort_keys=True)
    name = hashlib.sha256(text.encode()).hexdigest()[:16]
    folder = assets.cache_folder() / kind / name
    return start(folder, settings, resume=parallel.first_does(folder.exists))


def _ours_unfinished(name: str) -> bool:
    """Whether a file is what a start leaves that was killed before it wrote ``config.json``."""
    return name in (_MARK, ".config.json.tmp")


def _empty(folder: Path) -> None:
    """Delete what a run has written, and nothing that is not a run's."""
    if not (folder / _MARK).is_file() or not (folder / "config.json").is_file():
        raise RunError(
            f"{folder} is not the folder of a run (it lacks config.json or {_MARK}), so "
            "--overwrite does not delete it: choose another --run-dir"
        )
    # The mark and the configuration last: cut short, this leaves what can be overwritten again.
    last = ("config.json", _MARK)
    for path in sorted(folder.iterdir(), key=lambda p: p.name in last and 1 + last.index(p.name)):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _refuse_other(folder: Path, values: dict[str, Any], free: Collection[str]) -> None:
    """Raise if the run in a folder has another configuration, the free fields aside."""
    try:
        saved = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunError(
            f"{folder} is not the folder of a run (it has no config.json), so there is nothing to "
            "resume: choose another --run-dir"
        ) from None
    except ValueError as error:
        raise RunError(f"{folder}/config.json is damaged: {error}") from error
    different = differences(_without(saved, free), _without(values, free))
    if different:
        raise RunError(
            f"the run in {folder} has another configuration, so it cannot be resumed with this "
            "one: " + "; ".join(different)
        )


def _without(values: dict[str, Any], names: Collection[str], prefix: str = "") -> dict[str, Any]:
    """Plain values without the fields of these dotted names."""
    return {
        key: _without(value, names, f"{prefix}{key}.") if isinstance(value, dict) else value
        for key, value in values.items()
        if f"{prefix}{key}" not in names
    }


def _noting(callback: Callback, notes: dict[str, str | None]) -> Callback:
    """The same callback; the first reason that any gives to stop is kept in ``notes``."""

    def noting(state: TrainState, rows: list[Mapping[str, float]], last: bool) -> str | None:
        reason = callback(state, rows, last)
        if notes["stopped"] is None:
            notes["stopped"] = reason
        return reason

    if close := getattr(callback, "close", None):
        noting.close = close  # type: ignore[attr-defined]
    return noting
