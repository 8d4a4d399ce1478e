"""How an open problem is put to the test: the same for all of them.

A challenge builds a sound pipeline and the same one with a defect, runs both over the seeds in one
program, and says what must come out. What is asked for was fixed before anything was measured
(scored seeds start at 1000; pilots used others).
"""

import dataclasses
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from problems import PROBLEMS
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import rlhf_jax as rj
from rlhf_jax.measures import Interval

Found = Any  # whatever a challenge measures: arrays [seeds, ...] by name


class Claim(NamedTuple):
    """Something that must come out.

    Attributes:
        text: the claim, with its threshold.
        measured: with its interval over seeds.
        verdict: what that says.
    """

    text: str
    measured: Interval
    verdict: str


@dataclasses.dataclass(frozen=True)
class Challenge:
    """One of the survey's open problems.

    Attributes:
        slug: its name, that of the file.
        section: of the survey.
        fundamental: whether the survey calls it so, or else tractable.
        claim: what the literature says, in a sentence.
        seeds: how many are scored; ``fast_seeds`` with ``--fast``.
        measure: ``(keys[S], fast) -> found``, all seeds in one program.
        judge: ``found -> claims``.
        plot: ``(two axes, found)`` draws the figure that a lecturer would show; axes with
            labels get their legends.
        left_out: ``found -> what was not run, and why``; nothing if all was.
    """

    slug: str
    section: str
    fundamental: bool
    claim: str
    measure: Callable[[jax.Array, bool], Found]
    judge: Callable[[Found], Sequence[Claim]]
    plot: Callable[[Any, Found], None]
    seeds: int = 20
    fast_seeds: int = 8
    left_out: Callable[[Found], str] = lambda _: ""


def challenge(
    slug: str, measure: Callable, judge: Callable, plot: Callable, **settings: Any
) -> Challenge:
    """One of ``PROBLEMS``, with its section and claim as they are there."""
    return Challenge(slug, *PROBLEMS[slug], measure, judge, plot, **settings)


@dataclasses.dataclass(frozen=True)
class Config:
    """One open problem, measured. A run folder that exists needs --overwrite."""

    run_dir: Path | None = None
    """By default runs/challenges/ and the problem's name."""
    seeds: int | None = None
    """How many; by default as many as the problem is scored with."""
    first_seed: int = 1000
    fast: bool = False
    """Fewer seeds and smaller sizes, for a first look."""
    overwrite: bool = False


def interval(values: jax.Array, statistic: Callable = jnp.mean) -> Interval:
    """Of one number a seed, or of what the statistic makes of rows ``[seeds, ...]``; 95%."""
    found = rj.measures.bootstrap(jnp.asarray(values), key=jax.random.key(0), statistic=statistic)
    return Interval(*map(float, found))


def at_least(text: str, measured: Interval, threshold: float, *, null: float = 0.0) -> Claim:
    """Reaches a threshold, and the interval lies above what it would be without any effect."""
    verdict = rj.measures.verdict(measured, null=min(null, threshold), threshold=threshold)
    return Claim(text, measured, verdict)


def at_most(text: str, measured: Interval, threshold: float, *, null: float | None = None) -> Claim:
    """Stays below a threshold; with ``null``, and the interval below what no effect would give."""
    if null is None:
        passed, failed = measured.estimate <= threshold, measured.low > threshold
        return Claim(text, measured, "PASS" if passed else "FAIL" if failed else "INCONCLUSIVE")
    opposite = Interval(-measured.estimate, -measured.high, -measured.low)
    return Claim(text, measured, rj.measures.verdict(opposite, null=-null, threshold=-threshold))


def near(
    text: str, measured: Interval, expected: float, tolerance: float, *, null: float | None = None
) -> Claim:
    """Is what is expected, within a tolerance; with ``null``, and the interval leaves that out."""
    inside = abs(measured.estimate - expected) <= tolerance
    leaves = null is None or not measured.low <= null <= measured.high
    beyond = measured.low > expected + tolerance or measured.high < expected - tolerance
    verdict = "PASS" if inside and leaves else "FAIL" if beyond else "INCONCLUSIVE"
    return Claim(text, measured, verdict)


def nothing(text: str, measured: Interval, *, tolerance: float = 0.0) -> Claim:
    """A control without the defect: the interval holds 0, or lies within a tolerance of it."""
    null = measured.low <= 0 <= measured.high
    small = max(abs(measured.low), abs(measured.high)) <= tolerance
    return Claim(text, measured, "PASS" if null or small else "FAIL")


def overall(claims: Sequence[Claim]) -> str:
    """PASS if all claims do, FAIL if one does."""
    verdicts = {claim.verdict for claim in claims}
    return "FAIL" if "FAIL" in verdicts else "PASS" if verdicts == {"PASS"} else "INCONCLUSIVE"


def slope(x: jax.Array, y: jax.Array) -> jax.Array:
    """Of the least-squares line through points ``[..., N]``."""
    lead = x - x.mean(axis=-1, keepdims=True)
    return (lead * y).sum(axis=-1) / (lead * lead).sum(axis=-1)


def r_squared(y: jax.Array, fitted: jax.Array) -> jax.Array:
    """The share of the variance that a fit explains, of ``[..., N]``."""
    left, lead = y - fitted, y - y.mean(axis=-1, keepdims=True)
    return 1 - (left * left).sum(axis=-1) / (lead * lead).sum(axis=-1)


def line(x: jax.Array, y: jax.Array) -> jax.Array:
    """Slope and R2 of the least-squares line through points ``[N]``."""
    rise = slope(x, y)
    return jnp.stack([rise, r_squared(y, jnp.mean(y) + rise * (x - jnp.mean(x)))])


def spearman(x: jax.Array, y: jax.Array) -> jax.Array:
    """The correlation of the ranks of points ``[..., N]``, in which nothing is tied."""
    one, other = (standard(rows.argsort(axis=-1).argsort(axis=-1)) for rows in (x, y))
    return (one * other).mean(axis=-1)


def standard(values: jax.Array) -> jax.Array:
    """In standard deviations about the mean, of each row ``[..., N]``."""
    lead = values - values.mean(axis=-1, keepdims=True)
    return lead / lead.std(axis=-1, keepdims=True)


def run(challenge: Challenge, config: Config) -> dict[str, Any]:
    """Measures, judges, plots and writes ``result.json``; returns what is in it."""
    began, worked = time.perf_counter(), time.process_time()
    folder = config.run_dir or Path("runs/challenges") / challenge.slug
    opened = rj.runs.start(folder, config, overwrite=config.overwrite)
    rj.training.compilation_cache()
    count = config.seeds or (challenge.fast_seeds if config.fast else challenge.seeds)
    seeds = range(config.first_seed, config.first_seed + count)
    keys = jax.vmap(jax.random.key)(np.array(seeds))
    found = jax.tree.map(np.asarray, challenge.measure(keys, config.fast))
    claims = challenge.judge(found)
    figure, axes = rj.report.new_figure(2)
    challenge.plot(axes, found)
    for axis in axes:
        if axis.get_legend() is None and axis.get_legend_handles_labels()[0]:
            axis.legend(frameon=False, fontsize=8)
    rj.report.save_figure(figure, opened.folder / "figure.png")
    result = {
        "slug": challenge.slug,
        "section": challenge.section,
        "kind": "fundamental" if challenge.fundamental else "tractable",
        "claim": challenge.claim,
        "verdict": overall(claims),
        "claims": [claim._asdict() for claim in claims],
        "left_out": challenge.left_out(found),
        "seeds": count,
        "first_seed": config.first_seed,
        "fast": config.fast,
        "seconds": time.perf_counter() - began,
        "cpu_seconds": time.process_time() - worked,
    }
    opened.write_json("result.json", result)
    return result


def numbers(claim: dict[str, Any]) -> Interval:
    """The interval of a claim as it is in ``result.json``."""
    found = claim["measured"]
    return Interval(**found) if isinstance(found, dict) else Interval(*found)


def table(result: dict[str, Any]) -> Table:
    """The claims of a result, for the terminal."""
    title = f"{result['section']} {result['slug']}: {result['verdict']}"
    caption = result["claim"] + (f"\nLeft out: {out}" if (out := result["left_out"]) else "")
    shown = Table("claim", "measured", "verdict", title=title, caption=escape(caption))
    for claim in result["claims"]:
        words = "{:.3g} [{:.3g}, {:.3g}]".format(*numbers(claim))
        shown.add_row(claim["text"], escape(words), claim["verdict"])
    return shown


def intervals(values: Found, statistic: Callable | None = None) -> list[Interval]:
    """Of several numbers at once: what the statistic, by default the mean, makes of the rows.

    Of several arrays, all with a row a seed, the same rows are drawn.
    """
    values = jax.tree.map(jnp.asarray, values)
    if isinstance(values, jax.Array):
        seeds, of_seeds = values, statistic or _means
    else:
        seeds = jnp.arange(len(jax.tree.leaves(values)[0]))

        def of_seeds(drawn: jax.Array) -> jax.Array:
            return statistic(jax.tree.map(lambda x: x[drawn], values))

    found = rj.measures.bootstrap(seeds, key=jax.random.key(0), statistic=of_seeds)
    return [Interval(*map(float, row)) for row in np.stack(found, axis=1)]


def _means(rows: jax.Array) -> jax.Array:
    return jnp.mean(rows, axis=0)


def over_seeds(one: Callable[..., Found], keys: jax.Array, *given: Any, worlds: int = 1) -> Found:
    """``one(key, *given)`` of each seed, one after the other, in one program.

    Of several worlds a seed's is the mean: less hangs on the luck of a few.
    """

    def of_seed(key: jax.Array, *given: Any) -> Found:
        if worlds == 1:
            return one(key, *given)
        found = jax.lax.map(lambda key: one(key, *given), jax.random.split(key, worlds))
        return jax.tree.map(lambda x: x.mean(axis=0), found)

    program = jax.jit(lambda keys, *given: jax.lax.map(lambda key: of_seed(key, *given), keys))
    return program(keys, *given)


def band(
    axis: Any, x: Any, rows: np.ndarray, style: str = "o-", *, every: bool = False, **drawn: Any
) -> None:
    """The mean over seeds of ``rows[seeds, N]``, and where four in five of them lie, or all."""
    (mean,) = axis.plot(x, rows.mean(axis=0), style, **drawn)
    low, high = np.quantile(rows, (0, 1) if every else (0.1, 0.9), axis=0)
    axis.fill_between(x, low, high, color=mean.get_color(), alpha=0.15, lw=0)


def main(challenge: Challenge) -> None:
    """The command line of one challenge."""
    try:
        result = run(challenge, tyro.cli(Config, description=challenge.claim))
    except (ValueError, RuntimeError, OSError) as error:
        sys.exit(f"error: {error}")
    Console().print(table(result))
