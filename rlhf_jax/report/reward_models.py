"""A figure of several reward models, written as PNG."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from rlhf_jax.measures import Interval
from rlhf_jax.report.plots import _BLUE, _GREY, _ORANGE, _figure, _save

__all__ = ["plot_reward_models"]


def plot_reward_models(
    accuracies: Mapping[str, Interval],
    transfer: np.ndarray,
    domains: Sequence[str],
    path: Path,
    *,
    marks: Mapping[str, float],
) -> None:
    """How often models are right about pairs, and how what they learnt in a domain does elsewhere.

    Args:
        accuracies: pair accuracy by model, in the order to show.
        transfer: ``float[D, D]``, ``[i, j]`` of the model trained in ``i`` on pairs of ``j``.
        domains: ``D`` names.
        path: the PNG to write.
        marks: accuracies to compare with, by name.

    Raises:
        ValueError: if ``transfer`` is not ``[D, D]``.
    """
    transfer, size = np.asarray(transfer), len(domains)
    if transfer.shape != (size, size):
        raise ValueError(f"transfer must be [{size}, {size}], not {list(transfer.shape)}")
    figure, (left, right) = _figure(2)
    estimate, low, high = np.array(list(accuracies.values()), float).T
    height = np.arange(len(accuracies))
    spread = [estimate - low, high - estimate]
    left.errorbar(estimate, height, xerr=spread, fmt="o", color=_BLUE, ms=4)
    for number, (name, value) in enumerate(marks.items()):
        left.axvline(value, color=(_GREY, _ORANGE)[number % 2], ls=":")
        left.text(value, -0.8, name, fontsize=7, ha="center", va="bottom")
    left.set_yticks(height, list(accuracies), fontsize=8)
    left.set_ylim(len(accuracies) - 0.5, -0.8)
    left.set_xlabel("pairs in the raters' mean's order (95% intervals)")
    right.imshow(transfer, cmap="Blues", vmin=0.5, vmax=max(0.85, transfer.max()))
    for (row, column), value in np.ndenumerate(transfer):
        dark = value > 0.72
        right.text(column, row, f"{value:.3f}", ha="center", va="center", c="w" if dark else "k")
    right.set_xticks(range(size), domains)
    right.set_yticks(range(size), domains)
    right.set(xlabel="judged in", ylabel="trained in", title="pair accuracy, equal training sizes")
    right.spines[:].set_visible(False)
    _save(figure, path)
