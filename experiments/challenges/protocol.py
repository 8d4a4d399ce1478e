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
from rich.console import Console
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
        plot: ``(two axes, found)`` draws the figure that a lecturer would show.
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
    x, y = jnp.broadcast_arrays(x, y)
    lead = x - x.mean(axis=-1, keepdims=True)
    return jnp.sum(lead * y, axis=-1) / jnp.sum(jnp.square(lead), axis=-1)


def r_squared(y: jax.Array, fitted: jax.Array) -> jax.Array:
    """The share of the variance that a fit explains, of ``[..., N]``."""
    left = jnp.sum(jnp.square(y - fitted), axis=-1)
    return 1 - left / jnp.sum(jnp.square(y - y.mean(axis=-1, keepdims=True)), axis=-1)


def run(challenge: Challenge, config: Config) -> dict[str, Any]:
    """Measures, judges, plots and writes ``result.json``; returns what is in it."""
    began = time.perf_counter()
    folder = config.run_dir or Path("runs/challenges") / challenge.slug
    opened = rj.runs.start(folder, config, overwrite=config.overwrite)
    rj.training.compilation_cache()
    count = config.seeds or (challenge.fast_seeds if config.fast else challenge.seeds)
    seeds = range(config.first_seed, config.first_seed + count)
    keys = jnp.stack([jax.random.key(seed) for seed in seeds])
    found = jax.tree.map(np.asarray, challenge.measure(keys, config.fast))
    claims = challenge.judge(found)
    figure, axes = rj.report.new_figure(2)
    challenge.plot(axes, found)
    rj.report.save_figure(figure, opened.folder / "figure.png")
    result = {
        "slug": challenge.slug,
        "section": challenge.section,
        "kind": "fundamental" if challenge.fundamental else "tractable",
        "claim": challenge.claim,
        "verdict": overall(claims),
        "claims": [claim._asdict() for claim in claims],
        "seeds": count,
        "first_seed": config.first_seed,
        "fast": config.fast,
        "seconds": time.perf_counter() - began,
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
    shown = Table("claim", "measured", "verdict", title=title, caption=result["claim"])
    for claim in result["claims"]:
        words = "{:.3g} [{:.3g}, {:.3g}]".format(*numbers(claim))
        shown.add_row(claim["text"], words, claim["verdict"])
    return shown


def intervals(values: jax.Array, statistic: Callable | None = None) -> list[Interval]:
    """Of several numbers at once: what the statistic, by default the mean, makes of the rows."""
    statistic = statistic or (lambda rows: jnp.mean(rows, axis=0))
    found = rj.measures.bootstrap(jnp.asarray(values), key=jax.random.key(0), statistic=statistic)
    return [Interval(*map(float, row)) for row in np.stack(found, axis=1)]


def learnt_reward(
    key: jax.Array,
    world: rj.worlds.Bandit,
    human: rj.humans.Human,
    start: jax.Array,
    *,
    labels: int,
    l2: float = 1e-6,
    steps: int = 8,
) -> jax.Array:
    """What a reward model learns, from its start on, of pairs of the reference's own answers."""
    keys = jax.random.split(key, 3)
    pairs = world.pairs(labels)(keys[0], world.reference, start)
    batch = rj.feedback.to_batch(pairs, human(keys[1], pairs))
    init, step = world.newton(l2)
    state, _ = jax.lax.scan(lambda s, _: step(s, batch), init(start, keys[2]), length=steps)
    return state.params


def main(challenge: Challenge) -> None:
    """The command line of one challenge."""
    try:
        result = run(challenge, tyro.cli(Config, description=challenge.claim))
    except (ValueError, RuntimeError, OSError) as error:
        sys.exit(f"error: {error}")
    Console().print(table(result))
