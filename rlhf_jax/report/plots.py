"""Figures of a run, written as PNG."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from rlhf_jax.measures.calibration import Reliability

__all__ = [
    "COLOURS",
    "new_figure",
    "plot_diversity",
    "plot_overoptimisation",
    "plot_reliability",
    "plot_reward_model",
    "save_figure",
]

# Distinguishable without colour vision (Okabe and Ito 2008).
_BLUE, _ORANGE, _GREEN, _GREY = "#0072B2", "#D55E00", "#009E73", "#666666"
COLOURS = (_BLUE, _ORANGE, _GREEN, "#CC79A7", "#E69F00", "#56B4E9", _GREY)

Rows = Sequence[Mapping[str, float]]


def plot_overoptimisation(rows: Rows, path: Path, *, budget: float | None = None) -> None:
    """Proxy and gold reward against the square root of the divergence, and over the steps.

    Where the proxy goes on rising and gold does not, the policy exploits the reward model.

    Args:
        rows: of a policy's training, with ``step``, ``kl`` (nats), ``reward`` and ``gold`` (both in
            SDs over samples of the reference policy).
        path: the PNG to write.
        budget: a divergence to mark, in nats.

    Reference: Gao et al. 2022, figure 1, https://arxiv.org/abs/2210.10760
    """
    figure, (left, right) = new_figure(2)
    distance = np.sqrt(np.maximum(_column(rows, "kl"), 0))
    for name, label, colour in (
        ("reward", "proxy: the reward model trained on", _BLUE),
        ("gold", "gold: other snippets, other ratings", _ORANGE),
    ):
        left.plot(distance, _column(rows, name), color=colour, lw=0.6, alpha=0.5)
        left.scatter(distance, _column(rows, name), color=colour, s=12, label=label)
        right.plot(_column(rows, "step"), _column(rows, name), color=colour, label=label)
    if budget is not None:
        left.axvline(np.sqrt(budget), color=_GREY, ls=":", label=f"budget, {budget:g} nats")
    left.set(xlabel=r"$\sqrt{\mathrm{KL}}$ from the reference (nats$^{1/2}$ a sequence)")
    left.set(ylabel="mean score (SD over reference samples)")
    left.legend(frameon=False, fontsize=8)
    right.set(xlabel="policy step", ylabel="mean score (SD over reference samples)")
    divergence = right.twinx()
    divergence.plot(_column(rows, "step"), _column(rows, "kl"), color=_GREY, ls="--", lw=1)
    divergence.set_ylabel("KL (nats a sequence, dashed)", color=_GREY)
    save_figure(figure, path)


def plot_reward_model(
    accuracies: Mapping[str, float], curve: Reliability, path: Path, *, error: float
) -> None:
    """How often judges are right about pairs, and whether their confidence is warranted.

    Args:
        accuracies: pair accuracy by judge, in the order to show.
        curve: of predicted preferences against a human's answers.
        path: the PNG to write.
        error: the expected calibration error.
    """
    figure, (left, right) = new_figure(2)
    names = list(accuracies)
    bars = left.barh(names, list(accuracies.values()), color=[_BLUE, _ORANGE, _GREEN][: len(names)])
    left.bar_label(bars, fmt="%.3f", padding=3)
    left.axvline(0.5, color=_GREY, ls=":")
    left.set(xlim=(0.4, 1), xlabel="accuracy on unseen pairs, against the raters' mean")
    left.invert_yaxis()
    _reliability(right, {"": curve})
    right.set(title=f"calibration error {error:.3f}")
    save_figure(figure, path)


def plot_reliability(
    curves: Mapping[str, Reliability], path: Path, *, errors: Mapping[str, float]
) -> None:
    """Whether several models' confidence is warranted: predicted against observed preference.

    Args:
        curves: by model, of predicted preferences against a human's answers.
        path: the PNG to write.
        errors: the expected calibration error of each.

    Raises:
        ValueError: if ``errors`` are not of the same models as ``curves``.
    """
    if set(errors) != set(curves):
        raise ValueError(f"errors must be of {sorted(curves)}, not of {sorted(errors)}")
    figure, (axis,) = new_figure(1)
    _reliability(axis, {f"{name}, error {errors[name]:.3f}": c for name, c in curves.items()})
    axis.legend(frameon=False, fontsize=8, loc="upper left")
    save_figure(figure, path)


def plot_diversity(rows: Rows, path: Path, *, reference: Mapping[str, float]) -> None:
    """Length and diversity of the samples over the steps.

    Args:
        rows: of a policy's training, with ``step``, ``length`` and ``distinct_2``.
        path: the PNG to write.
        reference: the reference policy's values under the same names, from the first step's samples
            or as many.
    """
    figure, axes = new_figure(2)
    for axis, name, label in (
        (axes[0], "length", "mean length (tokens)"),
        (axes[1], "distinct_2", "distinct bigrams (share)"),
    ):
        axis.plot(_column(rows, "step"), _column(rows, name), color=_BLUE)
        axis.axhline(reference[name], color=_GREY, ls=":", label="reference policy")
        axis.set(xlabel="policy step", ylabel=label)
        axis.set_ylim(bottom=0)
        axis.legend(frameon=False, fontsize=8, loc="lower left")
    save_figure(figure, path)


def _reliability(axis: Axes, curves: Mapping[str, Reliability]) -> None:
    axis.plot([0, 1], [0, 1], color=_GREY, ls=":")
    colours = itertools.cycle((_BLUE, _ORANGE, _GREEN, _GREY))
    for (name, curve), colour in zip(curves.items(), colours, strict=False):
        seen = np.asarray(curve.count) > 0
        predicted, observed = np.asarray(curve.predicted)[seen], np.asarray(curve.observed)[seen]
        axis.plot(predicted, observed, "o-", c=colour, label=name)
    axis.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    axis.set(xlabel="predicted preference for the first", ylabel="one rater prefers the first")


def new_figure(
    columns: int = 1, *, width: float = 4.8, height: float = 3.8
) -> tuple[Figure, list[Axes]]:
    """An empty figure in the house's style, which needs no display.

    Args:
        columns: how many axes, side by side.
        width: of each, in inches.
        height: in inches.

    Returns:
        The figure and its axes.
    """
    made = Figure(figsize=(width * columns, height), layout="constrained", dpi=120)
    FigureCanvasAgg(made)
    axes = list(made.subplots(1, columns, squeeze=False)[0])
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    return made, axes


def save_figure(figure: Figure, path: Path) -> None:
    """Writes a figure, as what the path's ending says; the folder is made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _column(rows: Rows, name: str) -> np.ndarray:
    return np.array([row[name] for row in rows])
