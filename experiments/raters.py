"""What real raters are like: how far they agree, who is careless, and the ceiling they set.

From the ratings of 23,507 sentences by 15 to 99 people each (Hutto & Gilbert 2014), with bootstrap
intervals. Under a minute on one core; writes runs/raters/.
"""

import dataclasses
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

import rlhf_jax as rj
from rlhf_jax.measures import Interval

NAMES = {"amazon": "products", "movies": "movies", "nyt": "editorials", "tweets": "tweets"}
SCALE = np.arange(-4.0, 5.0)
GAPS = np.array([0, 0.25, 0.5, 0.75, 1, 1.5, 2, 2.5, 3, 4, 5])
PANEL = 7  # raters whose mean stands for everybody's opinion; twice as many rated every sentence
MEASURES = {  # the first five are agreement
    "alpha_interval": "α, interval",
    "alpha_sign": "α, sign",
    "two_raters": "two raters, same preference",
    "rater_rest": "one rater, mean of the others",
    "rater_mean": "one rater, mean of all",
    "ties": "ties in one rater's answers",
    "polarised": "polarised sentences",
}
# Of rater_effects and suspect_raters: the field, what is said of it, and in which words.
PEOPLE = {
    "bias_sd": ("bias", jnp.std, "bias, standard deviation"),
    "slope_mean": ("slope", jnp.mean, "slope, mean"),
    "slope_sd": ("slope", jnp.std, "slope, standard deviation"),
    "correlation_median": ("correlation", jnp.median, "correlation, median"),
    "noise_median": ("noise", jnp.median, "noise, median"),
    "careless": ("careless", jnp.mean, "careless"),
    "inverted": ("inverted", jnp.mean, "inverted"),
}
PAGE = """# What real raters are like

{sentences:,} sentences, rated from -4 to 4 (Hutto & Gilbert 2014); {dropped} tweets whose ratings
contradict their published mean are left out. Brackets are 95% bootstrap intervals over sentences,
α is Krippendorff's. The raters were screened and trained: others agree less.

{agreement}

![Agreement](plots/agreement.png)

**The ceiling.** A model that does not know who answers can be right about one rater's preference
hardly more often than the others' mean is; the mean of all has that rater in it. Against means of
{panel} raters the ceiling is higher. Near ties are a toss-up (where means are equal, two raters
agree on less than half: the means are equal because they differ).

## Raters of movies, each within a batch of 30 sentences

{raters:,} columns of batches. That a column is one person there is inferred and not documented.
Bias: rating less the others' mean of the same sentences, in points; slope: of the rating on that
mean; noise: what it leaves unexplained. These are of 30 ratings each, and their spread is in part
the error of estimates from so few. Careless: a correlation with the others' mean below 0.2;
inverted: below 0. Intervals are over raters.

{people}

![Raters](plots/raters.png)

The few who are beyond an axis are in its last bars.
"""


@dataclasses.dataclass(frozen=True)
class Config:
    """What real raters are like. A run folder that exists needs --overwrite."""

    run_dir: Path = Path("runs/raters")
    seed: int = 0
    resamples: int = 1000  # of the bootstrap
    neighbours: int = 8  # each sentence is compared with so many others
    data: Path | None = None
    """A copy of the ratings at hand, folder or archive; by default they are fetched."""
    overwrite: bool = False


def agreement(ratings: rj.data.Ratings, config: Config, key: jax.Array):
    """One domain's measures with their intervals, and two raters' agreement by gap."""
    most = ratings.rating_mask.sum(axis=1).max()
    values, mask = (jnp.array(x[:, :most]) for x in (ratings.ratings, ratings.rating_mask))
    counts = jnp.stack([jnp.sum((values == v) & mask, axis=1) for v in SCALE], axis=1)
    signs = jnp.stack([counts[:, :4].sum(1), counts[:, 4], counts[:, 5:].sum(1)], axis=1)
    polarised = jnp.all(signs[:, ::2] >= 0.25 * signs.sum(1, keepdims=True), axis=1)
    order = np.random.default_rng(config.seed).permutation(len(ratings))
    first = np.tile(order, config.neighbours)
    second = np.concatenate([np.roll(order, 1 + n) for n in range(config.neighbours)])

    def preferences(weights: jax.Array) -> rj.measures.PreferenceAgreement:
        return rj.measures.preference_agreement(values, mask, first, second, weights=weights)

    def statistics(rows: jax.Array) -> jax.Array:
        """Of sentences drawn with replacement; a pair counts as often as both were drawn."""
        drawn = jnp.bincount(rows, length=len(ratings))
        of_pairs = preferences(drawn[first] * drawn[second])
        alphas = alpha(counts[rows], values=SCALE), alpha(signs[rows])
        return jnp.stack([*alphas, *of_pairs, jnp.mean(polarised[rows])])

    alpha, rows = rj.measures.krippendorff_alpha_of_counts, jnp.arange(len(ratings))
    found = rj.measures.bootstrap(rows, key=key, statistic=statistics, resamples=config.resamples)
    bins = np.digitize(np.abs(ratings.mean[first] - ratings.mean[second]), GAPS) - 1
    by_gap = jax.vmap(preferences)(bins == np.arange(len(GAPS) - 1)[:, None])
    return named(MEASURES, found), np.asarray(by_gap.two_raters)


def ceiling(ratings: rj.data.Ratings, config: Config, key: jax.Array) -> Interval:
    """How often the mean of 1 to PANEL raters orders a pair as the mean of PANEL others does."""
    rng = np.random.default_rng(config.seed)
    lottery = np.where(ratings.rating_mask, rng.random(ratings.ratings.shape), 2)
    drawn = np.argsort(lottery, axis=1)[:, : 2 * PANEL]
    values = rng.permutation(np.take_along_axis(ratings.ratings.astype(int), drawn, axis=1))

    def gaps(columns: np.ndarray) -> np.ndarray:
        totals = columns.sum(axis=1)
        return np.stack([totals - np.roll(totals, 1 + n) for n in range(config.neighbours)])

    many = gaps(values[:, PANEL:])
    same = np.array([gaps(values[:, :count]) * many for count in range(1, PANEL + 1)])
    agree, decided = (jnp.array(x, jnp.float32) for x in (same > 0, same != 0))

    def statistics(rows: jax.Array) -> jax.Array:
        """Of sentences drawn with replacement; a pair counts as often as both were drawn."""
        times = jnp.bincount(rows, length=len(ratings)).astype(jnp.float32)
        pairs = jnp.stack([times * jnp.roll(times, 1 + n) for n in range(config.neighbours)])
        return jnp.tensordot(agree, pairs, 2) / jnp.tensordot(decided, pairs, 2)

    rows = jnp.arange(len(ratings))
    return rj.measures.bootstrap(rows, key=key, statistic=statistics, resamples=config.resamples)


def movie_raters(movies: rj.data.Ratings, config: Config, key: jax.Array):
    """What the raters of movies are like, each within his batch."""
    effects = rj.measures.rater_effects(movies.ratings, movies.rating_mask, movies.batch)
    suspect = rj.measures.suspect_raters(effects)
    measured, there = effects._asdict() | suspect._asdict(), effects.count > 0
    table = jnp.stack([measured[field][there] for field, *_ in PEOPLE.values()], axis=1)

    def statistics(rows: jax.Array) -> jax.Array:
        return jnp.stack([says(x) for x, (_, says, _) in zip(rows.T, PEOPLE.values(), strict=True)])

    found = rj.measures.bootstrap(table, key=key, statistic=statistics, resamples=config.resamples)
    return named(PEOPLE, found), effects, suspect


def named(names: dict, found: Interval) -> dict[str, Interval]:
    """Intervals of one number each, by name."""
    return dict(zip(names, map(Interval._make, np.stack(found, axis=1).tolist()), strict=True))


def main(config: Config) -> None:
    """Measure, write, show."""
    began, key = time.perf_counter(), jax.random.key(config.seed)
    ratings, console = rj.data.load_ratings(config.data), Console()
    run = rj.runs.start(config.run_dir, config, overwrite=config.overwrite)
    domains, by_gap, ceilings, counts = {}, {}, {}, {}
    for n, domain in enumerate(NAMES):
        part = ratings.only(domain)
        console.print(f"[dim]{domain}[/]")
        domains[domain], by_gap[domain] = agreement(part, config, jax.random.fold_in(key, n))
        ceilings[domain] = ceiling(part, config, jax.random.fold_in(key, len(NAMES) + n))
        counts[domain] = f"{len(part):,} by {min(raters := part.rating_mask.sum(1))}-{max(raters)}"
    people, *effects = movie_raters(ratings.only("movies"), config, jax.random.fold_in(key, 9))

    shares = {d: {MEASURES[m]: x for m, x in list(domains[d].items())[:5]} for d in NAMES}
    drawn = [{NAMES[d]: x for d, x in y.items()} for y in (shares, by_gap, ceilings)]
    for form in ("png", "pdf"):
        rj.report.plot_agreement(*drawn, run.folder / f"plots/agreement.{form}", gaps=GAPS)
        rj.report.plot_rater_effects(*effects, run.folder / f"plots/raters.{form}")

    def shown(found: Interval) -> str:
        return "{:.3f} [{:.3f}, {:.3f}]".format(*found)

    header = ["measure", *NAMES.values()]
    body = [["sentences by raters", *counts.values()]]
    body += [[label, *(shown(d[m]) for d in domains.values())] for m, label in MEASURES.items()]
    last = (shown(Interval(*(float(x[-1]) for x in c))) for c in ceilings.values())
    body.append([f"mean of {PANEL}, mean of {PANEL} others", *last])
    result = {
        "domains": {name: {m: x._asdict() for m, x in d.items()} for name, d in domains.items()},
        "by_gap": {"edges": GAPS, **by_gap},
        "ceiling_by_raters": {domain: x._asdict() for domain, x in ceilings.items()},
        "movie_raters": {name: x._asdict() for name, x in people.items()},
        "movie_rater_count": int((effects[0].count > 0).sum()),
        "dropped_items": ratings.dropped,
        "seconds": time.perf_counter() - began,
    }
    run.write_json("result.json", result)
    people = {PEOPLE[name][-1]: shown(x) for name, x in people.items()}
    words = {"sentences": len(ratings), "dropped": ratings.dropped, "panel": PANEL}
    words["raters"] = result["movie_rater_count"]
    words["agreement"] = rj.report.table(body, header)
    words["people"] = rj.report.table(list(people.items()), ["measure", "value"])
    (run.folder / "report.md").write_text(PAGE.format(**words), encoding="utf-8")
    for columns, lines in ((header, body), (["movie raters", "value"], people.items())):
        closing = Table(*columns)
        for line in lines:
            closing.add_row(*(cell.replace(" [", "\n[") for cell in line))
        console.print(closing)
    console.print(f"Report: {run.folder / 'report.md'}")


if __name__ == "__main__":
    try:
        main(tyro.cli(Config))
    except (ValueError, RuntimeError, OSError) as error:
        sys.exit(f"error: {error}")
