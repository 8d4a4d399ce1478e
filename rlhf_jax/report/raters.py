"""Figures about raters, written as PNG, or as PDF or SVG where the path ends so."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from rlhf_jax.measures import Interval, RaterEffects, SuspectRaters
from rlhf_jax.report.plots import _BLUE, _GREEN, _GREY, _ORANGE, new_figure, save_figure

__all__ = ["plot_agreement", "plot_groups", "plot_rater_effects"]

_COLOURS = (_BLUE, _ORANGE, _GREEN, "#CC79A7", _GREY, "#E69F00")


def plot_agreement(
    measured: Mapping[str, Mapping[str, Interval]],
    by_gap: Mapping[str, Sequence[float]],
    ceilings: Mapping[str, Interval],
    path: Path,
    *,
    gaps: np.ndarray,
) -> None:
    """How far raters agree, by how far apart two items are, and with how many raters.

    Args:
        measured: intervals by measure, by group of items; at most six groups.
        by_gap: for each group, how often two raters prefer the same, in each bin of gaps.
        ceilings: for each group, how often the mean of 1, 2, ... raters prefers what as many others
            as there are numbers do: arrays of one length, with intervals.
        path: the file to write.
        gaps: ``float[bins + 1]``, the bins' edges.
    """
    figure, (left, middle, right) = new_figure(3)
    for n, (group, intervals) in enumerate(measured.items()):
        settings = {"color": _COLOURS[n], "label": group, "ms": 4}
        estimate, low, high = np.array(list(intervals.values())).T
        height = np.arange(len(intervals)) + 0.16 * (n - (len(measured) - 1) / 2)
        left.errorbar(estimate, height, xerr=[estimate - low, high - estimate], fmt="o", **settings)
        middle.plot((gaps[1:] + gaps[:-1]) / 2, by_gap[group], "o-", **settings)
        ceiling, low, high = (np.asarray(x) for x in ceilings[group])
        counts = np.arange(1, 1 + len(ceiling))
        right.fill_between(counts, low, high, color=_COLOURS[n], alpha=0.2, lw=0)
        right.plot(counts, ceiling, "o-", **settings)
    labels = [name.replace(", ", ",\n") for name in intervals]
    left.set_yticks(range(len(labels)), labels, fontsize=8)
    left.invert_yaxis()
    left.set(xlim=(None, 1), xlabel="α, or share of pairs without a tie")
    left.grid(axis="x", lw=0.3)
    left.set_title("(a) agreement, 95% intervals")
    middle.axhline(0.5, color=_GREY, ls=":")
    middle.set(ylim=(None, 1.01), xlabel="difference of the two mean ratings")
    middle.set_ylabel("two raters prefer the same")
    middle.set_title("(b) by how far apart two items are")
    middle.legend(frameon=False, fontsize=8, loc="center right")
    right.set(xlabel="raters whose mean is taken", xticks=counts)
    right.set_ylabel(f"same preference as {len(counts)} others' mean")
    right.set_title("(c) by how many raters are asked")
    right.grid(axis="y", lw=0.3)
    save_figure(figure, path)


def plot_rater_effects(effects: RaterEffects, suspect: SuspectRaters, path: Path) -> None:
    """Distributions of raters' bias, slope and correlation with others; the careless set apart.

    The few who are beyond an axis are in its last bars.

    Args:
        effects: of all raters; those who rated nothing are left out.
        suspect: the same raters.
        path: the file to write.
    """
    figure, axes = new_figure(3)
    there = np.asarray(effects.count) > 0
    careless = np.asarray(suspect.careless)[there]
    share = careless.mean() if careless.size else 0.0
    shown = (
        (effects.bias, (-2.5, 2.5), "bias: mean rating less others'"),
        (effects.slope, (-1, 3), "slope, per point of others' mean"),
        (effects.correlation, (-0.5, 1), "correlation with others' mean"),
    )
    for axis, (values, limits, label) in zip(axes, shown, strict=True):
        values = np.clip(np.asarray(values)[there], *limits)
        # The careless below, where few of them can still be seen.
        parts, names = [values[careless], values[~careless]], [f"careless ({share:.1%})", "others"]
        axis.hist(parts, 45, range=limits, stacked=True, color=[_ORANGE, _BLUE], label=names)
        axis.set(xlabel=label, ylabel="raters")
    axes[0].axvline(0, color=_GREY, ls=":")
    axes[1].axvline(1, color=_GREY, ls=":")
    for letter, axis, name in zip("abc", axes, ("bias", "slope", "correlation"), strict=True):
        axis.set_title(f"({letter}) {name} of {len(careless):,} raters")
    axes[2].legend(frameon=False, fontsize=8, loc="upper left")
    save_figure(figure, path)


def plot_groups(
    gains: Mapping[str, Interval],
    members: Mapping[str, tuple[np.ndarray, np.ndarray]],
    path: Path,
) -> None:
    """What it is worth to know raters' groups, and whom each second group holds.

    Args:
        gains: in nats a comparison, by model.
        members: by model, the raters' agreement with others, ``float[R]``, and how probably each is
            of the second group, ``float[R]``.
        path: the file to write.
    """
    figure, axes = new_figure(1 + len(members))
    estimate, low, high = np.array(list(gains.values()), float).T
    height = np.arange(len(gains))
    spread = [estimate - low, high - estimate]
    axes[0].errorbar(estimate, height, xerr=spread, fmt="o", color=_BLUE, ms=4)
    axes[0].axvline(0, color=_GREY, ls=":")
    axes[0].set_yticks(height, [name.replace(", ", ",\n") for name in gains], fontsize=8)
    axes[0].set_ylim(len(gains) - 0.5, -0.5)
    axes[0].set(xlabel="nats a comparison", title="(a) gain on unseen sentences, 95%")
    for letter, axis, (name, (agreement, second)) in zip(
        "bcdefg", axes[1:], members.items(), strict=False
    ):
        there, belongs = np.isfinite(agreement), second > 0.5
        parts = [agreement[there & which] for which in (belongs, ~belongs)]
        labels = [f"second group ({belongs.mean():.1%})", "first"]
        axis.hist(parts, 45, range=(-0.5, 1), stacked=True, color=[_ORANGE, _BLUE], label=labels)
        axis.set(
            xlabel="correlation with others' mean", ylabel="raters", title=f"({letter}) {name}"
        )
        axis.legend(frameon=False, fontsize=8, loc="upper left")
    save_figure(figure, path)
