"""The page on which a run says how it was made: Markdown, from what was measured."""

from collections.abc import Mapping, Sequence

__all__ = ["NOT_DISCLOSED", "samples_page", "table", "transparency_table"]

NOT_DISCLOSED = "not disclosed"

# The survey's section 5: what a responsible run should disclose.
_ITEMS = {
    "pretraining": "Human feedback: pretraining",
    "evaluators": "Human feedback: selection and training of evaluators",
    "examples": "Human feedback: selection of examples",
    "feedback_type": "Human feedback: type of feedback",
    "quality": "Human feedback: quality assurance and agreement",
    "reward_loss": "Reward model: loss and how disagreement is modelled",
    "reward_evaluation": "Reward model: evaluation and red team",
    "policy_evaluation": "Policy: evaluation and red team",
    "audits": "Systemic: audits",
    "risks": "Systemic: expected risks and failure modes",
    "monitoring": "Systemic: monitoring and correction",
    "equity": "Equity: who bears cost and benefit",
}


def table(rows: Sequence[Sequence[object]], header: Sequence[str]) -> str:
    """A Markdown table; numbers with four significant digits.

    Args:
        rows: as many cells each as ``header``.
        header: the columns' names.

    Returns:
        Lines of Markdown.

    >>> print(table([["kl", 1.23456]], ["measure", "value"]))
    | measure | value |
    | --- | --- |
    | kl | 1.235 |
    """

    def cell(value: object) -> str:
        text = f"{value:.4g}" if isinstance(value, float) else str(value)
        return text.replace("|", "\\|").replace("\n", " ")

    lines = [list(map(cell, header)), ["---"] * len(header), *(map(cell, row) for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def transparency_table(disclosed: Mapping[str, str]) -> str:
    """What the survey asks a run to disclose; what is not given says so.

    Args:
        disclosed: text by item: ``pretraining``, ``evaluators``, ``examples``, ``feedback_type``,
            ``quality``, ``reward_loss``, ``reward_evaluation``, ``policy_evaluation``, ``audits``,
            ``risks``, ``monitoring``, ``equity``.

    Returns:
        A Markdown table of twelve rows.

    Raises:
        ValueError: if an item is not one of these.

    Reference: Casper et al. 2023, section 5, https://arxiv.org/abs/2307.15217

    >>> print(transparency_table({"feedback_type": "pairs"}).splitlines()[5])
    | Human feedback: type of feedback | pairs |
    """
    unknown = sorted(set(disclosed) - set(_ITEMS))
    if unknown:
        raise ValueError(f"no such item: {', '.join(unknown)}; there are {', '.join(_ITEMS)}")
    rows = [(title, disclosed.get(item) or NOT_DISCLOSED) for item, title in _ITEMS.items()]
    return table(rows, ["item", "this run"])


def samples_page(
    samples: Sequence[tuple[str, str, float, str, float]], *, title: str = "Samples"
) -> str:
    """The same prompts answered before and after training.

    Args:
        samples: ``(prompt, answer before, its score, answer after, its score)``.
        title: of the page.

    Returns:
        Markdown.

    >>> print(samples_page([("a film", "of note", 0.1, "to love", 1.25)]).splitlines()[4])
    | a film | of note | +0.10 | to love | +1.25 |
    """
    rows = [(p, before, f"{x:+.2f}", after, f"{y:+.2f}") for p, before, x, after, y in samples]
    header = ["prompt", "before", "gold", "after", "gold"]
    return f"# {title}\n\n{table(rows, header)}\n"
