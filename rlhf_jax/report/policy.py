"""The report of a policy trained on one judge and watched by another."""

from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from rlhf_jax import measures
from rlhf_jax.feedback import Comparison, Pairs
from rlhf_jax.report.page import report_page
from rlhf_jax.report.plots import plot_diversity, plot_overoptimisation, plot_reward_model
from rlhf_jax.report.transparency import samples_page
from rlhf_jax.training import Fit
from rlhf_jax.types import Sequences

__all__ = ["policy_report", "show"]

# answers, and what policy_evaluation measured on them
Evaluated = tuple[Sequences, Mapping[str, jax.Array]]


def policy_report(
    folder: Path,
    fitted: Fit,
    *,
    budget: float | None,
    samples: tuple[Evaluated, Evaluated],
    decode: Callable[[np.ndarray], str],
    prompt_length: int,
    held_out: Mapping[str, jax.Array],
    truth: jax.Array,
    compared: tuple[Pairs, Comparison],
    others: jax.Array,
    disclosed: Mapping[str, str],
    title: str = "Reinforcement learning from human feedback",
    shown: int = 16,
) -> dict[str, float | int | str]:
    """Writes ``report.md``, ``samples.md`` and ``plots/`` and returns what was measured.

    Args:
        folder: of the run.
        fitted: the policy's training; its history has ``gold`` and ``distinct_2``.
        budget: of divergence, in nats; ``None`` if there was none.
        samples: answers of the reference policy and of the trained one to the same prompts, with
            ``proxy`` and ``gold`` in SDs of the first.
        decode: a row of tokens to text.
        prompt_length: columns of the prompt.
        held_out: scores ``float[N]`` by judge (``proxy``, ``gold``) of items that none has seen.
        truth: ``float[N]``, the raters' mean of these items.
        compared: pairs of indices of these items, and single raters' comparisons of them.
        others: ``float[N]``, the mean of raters who are not among those.
        disclosed: for the transparency table, beside what is measured here.
        title: of the report.
        shown: how many samples to show.

    Returns:
        Plain numbers and words by name.
    """
    (old, base), (new, final) = samples
    history = fitted.history
    result = _judged(held_out, truth, compared, others)
    result |= {
        f"{name}_gain_sd": float(final[name].mean() - base[name].mean())
        for name in ("proxy", "gold")
    }
    result |= {"sequence_kl_nats": float(final["kl"].mean())}
    for name in ("distinct_2", "length"):
        result[name] = float(final[name].mean())
        result[f"{name}_reference"] = float(base[name].mean())
    result |= {"iterations": int(history[-1]["step"]), "stopped": fitted.stopped or "as planned"}
    result["skipped_steps"] = sum(row["skipped"] > 0 for row in history)

    pairs, answers = compared
    predicted = _predicted(held_out["proxy"], pairs)
    figures = {
        Path("plots/overoptimisation.png"): "The proxy that is optimised and the judge that only "
        "watches, as the policy moves away from its reference.",
        Path("plots/reward_model.png"): "Judges on unseen sentences, and whether the proxy's "
        "confidence is warranted: one rater's answers by predicted preference.",
        Path("plots/diversity.png"): "Length and diversity of the samples in training.",
    }
    overview, judges, diversity = (folder / path for path in figures)
    plot_overoptimisation(history, overview, budget=budget)
    curve = measures.reliability(predicted, answers.preference)
    names = {"proxy": "reward", "gold": "gold", "one human": "one_human"}
    accuracies = {label: result[f"{name}_accuracy"] for label, name in names.items()}
    plot_reward_model(accuracies, curve, judges, error=result["calibration_error"])
    plot_diversity(history, diversity, reference=history[0])

    def texts(sequences: Sequences) -> list[str]:
        return [decode(row[prompt_length:]) for row in np.asarray(sequences.tokens)[:shown]]

    prompts = [decode(row[:prompt_length]) for row in np.asarray(old.tokens)[:shown]]
    scores = (np.asarray(measured["gold"])[:shown].tolist() for measured in (base, final))
    early, late = scores
    rows = list(zip(prompts, texts(old), early, texts(new), late, strict=True))
    (folder / "samples.md").write_text(samples_page(rows), encoding="utf-8")
    page = report_page(
        title,
        _summary(result),
        results=result,
        figures=figures,
        disclosed=_measured(result) | disclosed,
    )
    (folder / "report.md").write_text(page, encoding="utf-8")
    return result


def show(result: Mapping[str, float | int | str], folder: Path) -> None:
    """Prints a few samples and the closing table."""
    console = Console()
    lines = (folder / "samples.md").read_text(encoding="utf-8").splitlines()[4:8]
    for prompt, before, _, after, _ in (line.strip("| ").split(" | ") for line in lines):
        console.print(
            f"[bold]{prompt}[/] [dim]{before}[/]\n[bold]{prompt}[/] {after}\n", soft_wrap=True
        )
    table = Table("measure", "value")
    for name, value in result.items():
        table.add_row(name, f"{value:.4g}" if isinstance(value, float) else str(value))
    console.print(table)
    console.print(f"Report: {folder / 'report.md'}")


def _predicted(scores: jax.Array, pairs: Pairs) -> jax.Array:
    scores = np.asarray(scores)
    return jax.nn.sigmoid(scores[np.asarray(pairs.first)] - scores[np.asarray(pairs.second)])


def _judged(
    held_out: Mapping[str, jax.Array],
    truth: jax.Array,
    compared: tuple[Pairs, Comparison],
    others: jax.Array,
) -> dict[str, float | int | str]:
    """How right the judges and a human are about the raters' mean, and how sure the proxy is."""
    pairs, answers = compared
    predicted = _predicted(held_out["proxy"], pairs)
    others = np.asarray(others)
    first, second = others[np.asarray(pairs.first)], others[np.asarray(pairs.second)]
    human = measures.pair_accuracy(first, second, answers.preference)
    return {
        "reward_accuracy": float(measures.ranking_accuracy(held_out["proxy"], truth)),
        "gold_accuracy": float(measures.ranking_accuracy(held_out["gold"], truth)),
        "one_human_accuracy": float(human.mean()),
        "calibration_error": float(
            measures.expected_calibration_error(predicted, answers.preference)
        ),
    }


def _summary(result: Mapping[str, float | int | str]) -> str:
    return (
        f"The policy took {result['iterations']} steps ({result['stopped']}). Its answers score "
        f"{result['proxy_gain_sd']:+.2f} SD by the reward model it was trained on, and "
        f"{result['gold_gain_sd']:+.2f} SD by a judge fitted to other sentences and other ratings, "
        f"at a divergence of {result['sequence_kl_nats']:.1f} nats a sequence; "
        f"{result['distinct_2']:.0%} of its bigrams are distinct, "
        f"{result['distinct_2_reference']:.0%} before. A small model on one kind of text shows a "
        "mechanism, not how common it is in large ones."
    )


def _measured(result: Mapping[str, float | int | str]) -> dict[str, str]:
    return {
        "quality": f"One rater agrees with others' mean on {result['one_human_accuracy']:.1%} of "
        "unseen pairs, ties counted half.",
        "reward_evaluation": f"Accuracy on unseen pairs {result['reward_accuracy']:.1%}, "
        f"calibration error {result['calibration_error']:.3f}. No red team.",
        "policy_evaluation": f"KL {result['sequence_kl_nats']:.1f} nats, proxy "
        f"{result['proxy_gain_sd']:+.2f} SD, gold {result['gold_gain_sd']:+.2f} SD, distinct-2 "
        f"{result['distinct_2']:.2f} of {result['distinct_2_reference']:.2f}. No red team.",
        "risks": "Over-optimisation of the reward model; see the first figure.",
    }
