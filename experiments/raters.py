"""What real raters are like: how far they agree, who is careless, and the ceiling they set.

All from 516,000 ratings of 23,507 sentences (Hutto & Gilbert 2014), with bootstrap intervals over
sentences. Under a minute on two cores; writes runs/raters/.
"""

import dataclasses
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

import rlhf_jax as rj
from rlhf_jax.measures import Interval

NAMES = {"amazon": "products", "movies": "movies", "nyt": "editorials", "tweets": "tweets"}
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")  # Okabe and Ito 2008
SCALE = np.arange(-4.0, 5.0)
# Ratings -4 to 4 in steps of a ninth at most: few pairs lie further apart than 5.
GAPS = np.array([0, 0.25, 0.5, 0.75, 1, 1.5, 2, 2.5, 3, 4, 5])
PANEL = 7  # raters whose mean stands for everybody's opinion; twice as many rated every sentence
MEASURES = {
    "alpha_interval": "Krippendorff's α, interval",
    "alpha_sign": "Krippendorff's α of the sign",
    "two_raters": "two raters, same preference",
    "rater_rest": "one rater, mean of the others",
    "rater_mean": "one rater, mean of all",
    "ties": "ties in one rater's answers",
    "polarised": "polarised sentences",
}


@dataclasses.dataclass(frozen=True)
class Config:
    """What real raters are like. A run folder that exists needs --overwrite."""

    run_dir: Path = Path("runs/raters")
    seed: int = 0
    resamples: int = 1000
    """Of the bootstrap."""
    neighbours: int = 8
    """Each sentence is compared with so many others."""
    data: Path | None = None
    """A copy of the ratings at hand, folder or archive; by default they are fetched."""
    overwrite: bool = False


def agreement(ratings: rj.data.Ratings, config: Config, key: jax.Array):
    """One domain's measures with their intervals, and two raters' agreement by gap."""
    values, mask = jnp.array(ratings.ratings), jnp.array(ratings.rating_mask)
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
        alphas = (
            rj.measures.krippendorff_alpha_of_counts(counts[rows], values=SCALE),
            rj.measures.krippendorff_alpha_of_counts(signs[rows]),
        )
        of_pairs = preferences(drawn[first] * drawn[second])
        return jnp.stack([*alphas, *of_pairs, jnp.mean(polarised[rows])])

    settings = {"key": key, "statistic": statistics, "resamples": config.resamples}
    found = jax.jit(lambda rows: rj.measures.bootstrap(rows, **settings))(jnp.arange(len(ratings)))
    gap = np.abs(ratings.mean[first] - ratings.mean[second])
    bins = jnp.stack([(gap >= low) & (gap < high) for low, high in zip(GAPS, GAPS[1:])])
    by_gap = jax.jit(jax.lax.map, static_argnums=0)(preferences, bins)
    intervals = [Interval(*map(float, x)) for x in zip(*found, strict=True)]
    return dict(zip(MEASURES, intervals, strict=True)), np.asarray(by_gap.two_raters)


def ceiling(ratings: rj.data.Ratings, config: Config) -> list[float]:
    """How often the mean of 1 to PANEL raters orders a pair as the mean of PANEL others does."""
    rng = np.random.default_rng(config.seed)
    lottery = np.where(ratings.rating_mask, rng.random(ratings.ratings.shape), 2)
    drawn = np.argsort(lottery, axis=1)[:, : 2 * PANEL]
    values = np.take_along_axis(ratings.ratings, drawn, axis=1).astype(int)
    order, shares = rng.permutation(len(ratings)), []
    for count in range(1, PANEL + 1):
        few, many = values[order, :count].sum(axis=1), values[order, PANEL:].sum(axis=1)
        products = np.concatenate(
            [
                np.sign(few - np.roll(few, n)) * np.sign(many - np.roll(many, n))
                for n in range(1, config.neighbours + 1)
            ]
        )
        shares.append(float((products > 0).sum() / (products != 0).sum()))
    return shares


def movie_raters(movies: rj.data.Ratings, config: Config, key: jax.Array):
    """What the raters of movies are like, each within his batch, and the effects themselves."""
    effects = rj.measures.rater_effects(movies.ratings, movies.rating_mask, movies.batch)
    suspect = rj.measures.suspect_raters(effects)
    there = np.asarray(effects.count) > 0
    table = jnp.stack(
        [x[there] for x in (*effects[:5], *suspect)], axis=1
    )  # a row a person: resampled as such

    def statistics(rows: jax.Array) -> jax.Array:
        bias, _, slope, correlation, noise, careless, inverted = rows.T
        return jnp.stack(
            [
                jnp.std(bias),
                jnp.mean(slope),
                jnp.std(slope),
                jnp.median(correlation),
                jnp.median(noise),
                jnp.mean(careless),
                jnp.mean(inverted),
            ]
        )

    settings = {"key": key, "statistic": statistics, "resamples": config.resamples}
    found = jax.jit(lambda rows: rj.measures.bootstrap(rows, **settings))(table)
    names = "bias_sd slope_mean slope_sd correlation_median noise_median careless inverted".split()
    intervals = [Interval(*map(float, x)) for x in zip(*found, strict=True)]
    return dict(zip(names, intervals, strict=True)), np.asarray(table)


def figure(path: Path, titles: list[str]) -> tuple[Figure, list[Axes]]:
    """As many panels as titles in a row, of the house's look."""
    drawn = Figure(figsize=(4.4 * len(titles), 3.8), layout="constrained", dpi=120)
    axes = list(drawn.subplots(1, len(titles)))
    for axis, title in zip(axes, titles, strict=True):
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_title(title, fontsize=10, loc="left")
    path.parent.mkdir(parents=True, exist_ok=True)
    return drawn, axes


def plot_agreement(domains: dict, by_gap: dict, ceilings: dict, path: Path) -> None:
    """Agreement with intervals, by how far apart two sentences are, and by how many raters."""
    titles = ["Agreement, 95% intervals", "Two raters, by distance", "More raters than one"]
    drawn, (left, middle, right) = figure(path, titles)
    shown = [name for name in MEASURES if name not in ("ties", "polarised")]
    for n, (domain, measured) in enumerate(domains.items()):
        settings = {"color": COLOURS[n], "label": NAMES[domain], "ms": 4}
        estimate, low, high = np.array([measured[name] for name in shown]).T
        height = np.arange(len(shown)) + 0.16 * (n - 1.5)
        left.errorbar(estimate, height, xerr=[estimate - low, high - estimate], fmt="o", **settings)
        middle.plot((GAPS[1:] + GAPS[:-1]) / 2, by_gap[domain], "o-", **settings)
        right.plot(range(1, PANEL + 1), ceilings[domain], "o-", **settings)
    labels = [
        MEASURES[name].replace(", ", ",\n").replace(" of the", "\nof the", 1) for name in shown
    ]
    left.set_yticks(range(len(shown)), labels, fontsize=8)
    left.invert_yaxis()
    left.set(xlim=(0.3, 1), xlabel="α, or share of pairs without a tie")
    middle.set(ylim=(0.5, 1.01), xlabel="difference of the two mean ratings")
    middle.set_ylabel("two raters prefer the same")
    right.set(ylim=(0.8, 1), xlabel="raters whose mean is taken")
    right.set_ylabel(f"same preference as {PANEL} others' mean")
    right.legend(frameon=False, fontsize=8, loc="lower right")
    drawn.savefig(path)


def plot_raters(table: np.ndarray, path: Path) -> None:
    """Distributions of the movie raters' bias, slope and correlation with others."""
    drawn, axes = figure(path, ["Bias", "Slope", "Correlation"])
    labels = "mean rating less others'", "per point of others' mean", "with others' mean"
    columns, ranges = (0, 2, 3), ((-2.5, 2.5), (-1, 3), (-0.5, 1))
    for axis, column, limits, label in zip(axes, columns, ranges, labels, strict=True):
        values = np.clip(table[:, column], *limits)  # the few beyond are in the last bars
        bins = np.histogram_bin_edges(values, bins=50, range=limits)
        careless = table[:, 5] > 0
        parts, names = [values[~careless], values[careless]], ["others", "careless (r < 0.2)"]
        axis.hist(parts, bins, stacked=True, color=COLOURS[:2], label=names)
        axis.set(xlabel=label, ylabel="raters, each in a batch of 30")
    axes[0].axvline(0, color="#666666", ls=":")
    axes[1].axvline(1, color="#666666", ls=":")
    axes[2].legend(frameon=False, fontsize=8, loc="upper left")
    drawn.savefig(path)


def main(config: Config) -> None:
    """Measure, write, show."""
    began, key = time.perf_counter(), jax.random.key(config.seed)
    ratings, console = rj.data.load_ratings(config.data), Console()
    run = rj.runs.start(config.run_dir, config, overwrite=config.overwrite)
    domains, by_gap, ceilings, rows = {}, {}, {}, []
    for n, domain in enumerate(NAMES):
        part = ratings.only(domain)
        console.print(f"[dim]{domain}: {len(part):,} sentences[/]")
        domains[domain], by_gap[domain] = agreement(part, config, jax.random.fold_in(key, n))
        ceilings[domain] = ceiling(part, config)
        raters = part.rating_mask.sum(axis=1)
        rows.append([NAMES[domain], f"{len(part):,}", f"{raters.min()} to {raters.max()}"])
    people, table = movie_raters(ratings.only("movies"), config, jax.random.fold_in(key, 9))

    plots = run.folder / "plots"
    plot_agreement(domains, by_gap, ceilings, plots / "agreement.png")
    plot_raters(table, plots / "raters.png")

    def shown(found: Interval) -> str:
        return f"{found.estimate:.3f} [{found.low:.3f}, {found.high:.3f}]"

    header = ["measure", *NAMES.values()]
    body = [["sentences", *(row[1] for row in rows)], ["raters of each", *(row[2] for row in rows)]]
    body += [[label, *(shown(d[m]) for d in domains.values())] for m, label in MEASURES.items()]
    panel = f"{PANEL} raters, {PANEL} others"
    body.append([panel, *(f"{ceilings[domain][-1]:.3f}" for domain in NAMES)])
    result = {
        "domains": {name: {m: x._asdict() for m, x in d.items()} for name, d in domains.items()},
        "by_gap": {"edges": GAPS, **by_gap},
        "ceiling_by_raters": ceilings,
        "movie_raters": {name: x._asdict() for name, x in people.items()} | {"count": len(table)},
        "dropped_items": ratings.dropped,
        "seconds": time.perf_counter() - began,
    }
    run.write_json("result.json", result)
    page = f"""# What real raters are like

{len(ratings):,} sentences, each rated from -4 to 4 by 15 to 99 people (Hutto & Gilbert 2014);
{ratings.dropped} tweets whose ratings contradict their published mean are left out. Brackets are 95%
bootstrap intervals over sentences. The raters were screened and trained: others agree less.

{rj.report.table(body, header)}

![Agreement](plots/agreement.png)

**The ceiling.** A model that does not know who answers can be right about one rater's preference
hardly more often than others' mean is (*one rater, mean of the others*), and surely not much more
than the mean of all, that rater's own rating included (*mean of all*). Against labels that are
means of {PANEL} raters the ceiling is higher. It depends on the pairs: near ties are a toss-up.

## Raters of movies, each within a batch of 30 sentences

That a column is one person there is inferred from the data and not documented. Careless: a
correlation with the mean of the others below 0.2; inverted: below 0.

{rj.report.table([[name, shown(x)] for name, x in people.items()], ["measure", "value"])}

![Raters](plots/raters.png)
"""
    (run.folder / "report.md").write_text(page, encoding="utf-8")
    for title, columns, lines in (
        ("Agreement", header, body),
        (f"{len(table):,} raters of movies", ["measure", "value"], list(people.items())),
    ):
        closing = Table(*columns, title=title)
        for line in lines:
            cells = (shown(x) if isinstance(x, Interval) else x.split(" [")[0] for x in line)
            closing.add_row(*cells)
        console.print(closing)
    console.print(f"Report: {run.folder / 'report.md'}")


if __name__ == "__main__":
    try:
        main(tyro.cli(Config))
    except (ValueError, RuntimeError, OSError) as error:
        sys.exit(f"error: {error}")
