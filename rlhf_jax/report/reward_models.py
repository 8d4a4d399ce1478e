"""The page of several reward models compared, and its figure."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_jax.measures import Interval
from rlhf_jax.report.plots import _BLUE, _GREY, _ORANGE, new_figure, save_figure
from rlhf_jax.report.transparency import table

__all__ = ["plot_reward_models", "reward_model_tables", "reward_models_page"]

_PAGE = """# Reward models of film reviews

{learnt_from:,} sentences of four domains learnt from, {judged:,} of films judged ({judged_on}
split); no text in common. Brackets are 95% bootstrap intervals: sentences are drawn, and accuracy
and calibration are of all pairs of them. Ties of people count as half. On other splits: {anchors}.

{models}

*Comparisons*: Bradley-Terry on two single ratings compared; the ensemble's members each learn from
a resample of the sentences. *Means*: squared error of the raters' means. *DPL*: distributional
preference learning, from the same comparisons. *Raters*: likelihood of single ratings, with bias,
slope and noise of each rater. ECE: the calibration error of predicted preferences, against single
raters. To know who rates adds {gain} nats to the log-density of a rating of an unseen sentence.

![Accuracy and transfer](plots/reward_models.png)

Rows: trained in; columns: judged in. Means of {domain_train:,} sentences each.

{transfer}

![Calibration](plots/calibration.png)

## What people disagree about

{share:.1%} of the sentences judged are polarised: at least a quarter of the raters above 0 and a
quarter below. How well each of these tells them from the others:

{polarised}

*Two sides*: the probability that two raters, drawn from the predicted distribution, stand on
different sides of neutral. *Others' comparisons*: of the very sentences, by the raters of the even
columns, with no text; the odd columns' ratings then say what is polarised. *Nearness*: minus
the distance of the predicted mean from neutral, which says nothing about people's spread.

## Claims

PASS: the estimate meets the threshold and the interval lies above the null (0.755 for the first,
0.5 for an AUROC, 0 for a difference); FAIL: the interval lies below the threshold or the null.

{claims}

{seconds}
"""
_COLUMNS = {
    "accuracy_mean": "pairs, raters' mean",
    "accuracy_one_rater": "pairs, one rater",
    "ece": "ECE, one rater",
}


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
    figure, (left, right) = new_figure(2)
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
    save_figure(figure, path)


def reward_model_tables(result: Mapping[str, Any]) -> dict[str, list[Sequence[str]]]:
    """What ``experiments/reward_models.py`` measured as tables of words, headers first.

    Args:
        result: what it writes as ``result.json``, its intervals as ``Interval``.

    Returns:
        Rows by the table's name.
    """
    transfer = result["transfer"]
    matrix = zip(transfer["domains"], transfer["accuracy"], strict=True)
    claims = result["claims"].values()
    return {
        "models": [
            ("model", *_COLUMNS.values()),
            *([n, *(_cell(x.get(c)) for c in _COLUMNS)] for n, x in result["models"].items()),
        ],
        "transfer": [
            ("trained in", *transfer["domains"]),
            *([name, *(f"{x:.3f}" for x in row)] for name, row in matrix),
        ],
        "polarised": [
            ("what is looked at", "AUROC"),
            *([name, _cell(x)] for name, x in result["polarised"]["auroc"].items()),
        ],
        "claims": [
            ("claim", "measured", "verdict"),
            *([x["claim"], _cell(x["measured"]), x["verdict"]] for x in claims),
        ],
        "seconds": [
            ("fit", "CPU seconds"),
            *([name, f"{x:.0f}"] for name, x in result["cpu_seconds"].items()),
        ],
    }


def reward_models_page(
    result: Mapping[str, Any], tables: Mapping[str, Sequence[Sequence[str]]]
) -> str:
    """The same as a page of Markdown.

    Args:
        result: as for ``reward_model_tables``.
        tables: what that made of it.

    Returns:
        The page, which shows ``plots/reward_models.png`` and ``plots/calibration.png``.
    """
    words = {name: table(rows, header) for name, (header, *rows) in tables.items()}
    return _PAGE.format(
        **words,
        **result["sentences"],
        judged_on=result["judged_on"],
        domain_train=result["domain_train"],
        share=result["polarised"]["share"],
        gain=_cell(result["known_raters_gain_nats"]),
        anchors=", ".join(f"{name} {x}" for name, x in result["anchors"].items()),
    )


def _cell(found: Interval | None) -> str:
    return "" if found is None else "{:.3f} [{:.3f}, {:.3f}]".format(*map(float, found))
