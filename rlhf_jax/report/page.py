"""A run's report: one Markdown page with what was measured, the figures and the disclosure."""

from collections.abc import Mapping
from pathlib import Path

from rlhf_jax.report.transparency import table, transparency_table

__all__ = ["report_page"]


def report_page(
    title: str,
    summary: str,
    *,
    results: Mapping[str, object],
    figures: Mapping[Path, str],
    disclosed: Mapping[str, str],
) -> str:
    """The page as Markdown.

    Args:
        title: its heading.
        summary: a paragraph on what was done and what came of it.
        results: measured values by name.
        figures: captions by path, relative to the page.
        disclosed: as for ``transparency_table``.

    Returns:
        Markdown.

    Raises:
        ValueError: if an item to disclose is unknown.

    >>> page = report_page("A run", "Done.", results={"kl": 1.0}, figures={}, disclosed={})
    >>> page.splitlines()[:5]
    ['# A run', '', 'Done.', '', '## Measured']
    """
    shown = "\n\n".join(f"![{caption}]({path})\\\n*{caption}*" for path, caption in figures.items())
    return "\n\n".join(
        [
            f"# {title}",
            summary,
            "## Measured",
            table(list(results.items()), ["measure", "value"]),
            "## Figures",
            shown,
            "## Transparency",
            "After section 5 of Casper et al. 2023 (arXiv 2307.15217). The gold judge is a model "
            "too, fitted to other ratings: it stands in for humans and is none.",
            transparency_table(disclosed) + "\n",
        ]
    )
