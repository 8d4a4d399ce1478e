"""Reward models beyond one scalar from one crowd, on real people's ratings of film reviews.

One model, an ensemble, distributions and a model of each rater, all judged by the raters of unseen
sentences: accuracy, calibration, transfer between four domains, and whether they see what people
disagree about. About 6 CPU minutes. Writes runs/reward_models/.
"""

import dataclasses
import sys
import tarfile
import time
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table
from rich.text import Text

import rlhf_jax as rj
from rating_study import (
    DOMAINS,
    FILMS,
    PRESETS,
    Study,
    compared,
    comparisons,
    prepared,
    rated,
)
from rlhf_jax import losses
from rlhf_jax.distributions import Distribution, categorical, normal
from rlhf_jax.measures import Interval, bootstrap, bootstrap_pairs, verdict
from rlhf_jax.types import Preferences, Sequences

SCALE = np.linspace(-4, 4, 9)  # of the ratings
BINS = 10  # of the calibration error
# Found best on the validation sentences, each for its kind; "weak", for an ensemble's members.
L2 = {"comparisons": 3e-6, "weak": 1e-6, "means": 3e-5, "normal": 3e-5, "raters": 1e-5}
# Measured before there was this script, on other splits of the same data.
ANCHORS = {"lexicon": 0.644, "bag of n-grams": 0.755, "one human, ties left out": 0.888}


@dataclasses.dataclass(frozen=True)
class Config:
    """Reward models on real ratings. A run folder that exists needs --resume or --overwrite."""

    run_dir: Path = Path("runs/reward_models")
    seed: int = 0
    """Of draws and of training; the split by sentence is the same for all seeds."""
    judged_on: Literal["test", "validation"] = "test"
    """All settings were chosen on the validation sentences; the tests' models learn from these."""
    preset: Literal["default", "tiny"] = "default"
    data: Path | None = None
    """A copy of the ratings at hand, folder or archive; by default they are fetched."""
    resume: bool = False
    overwrite: bool = False


class Said(NamedTuple):
    """What a model says of the ``N`` sentences judged.

    ``prefers[N, N]`` is how probably one rater prefers the first, ``two_sides[N]`` how probably two
    raters stand on different sides of neutral.
    """

    scores: jax.Array
    prefers: jax.Array | None = None
    two_sides: jax.Array | None = None


def of_comparisons(
    study: Study, name: str, beliefs: Distribution | None = None, *, l2: float
) -> Said:
    """A score of each sentence, or a distribution of rewards, from single raters' comparisons."""
    model, settings = study.model(None if beliefs is None else beliefs.size), {"l2": l2}
    if beliefs is not None:
        loss = partial(losses.distributional, distribution=beliefs)
        settings |= {"loss": loss, "reward": beliefs.mean}
    start, batches = study.start(model, study.train), compared(study, study.train)
    steps = study.sizes.answer_steps
    params = study.fit(name, model.score_fn, start, batches, steps=steps, **settings)
    outputs = study.read(model.score_fn, params, study.judged)
    if beliefs is None:
        return Said(outputs, jax.nn.sigmoid(outputs[:, None] - outputs))
    means = beliefs.mean(outputs)
    # Comparisons fix no zero: the average sentence stands for what is neutral.
    return Said(means, told_apart(beliefs, outputs), two_sides(beliefs, outputs, means.mean()))


def of_ensemble(study: Study) -> Said:
    """Models of comparisons, each of a resample of the sentences; preferences are averaged."""
    sizes, model, train = study.sizes, study.model(), study.train
    rng, members = np.random.default_rng(study.seed), study.sizes.members
    drawn = [rng.choice(train, len(train)) for _ in range(members)]
    batches = rj.data.stacked([compared(study, rows, 1 + n) for n, rows in enumerate(drawn)])
    start = jax.tree.map(lambda x: jnp.stack([x] * members), study.start(model, train))
    how = {"steps": sizes.answer_steps, "members": members, "l2": L2["weak"]}
    params = study.fit("ensemble", model.score_fn, start, batches, **how)
    scores = study.read(jax.vmap(model.score_fn, (0, None, None)), params, study.judged)
    prefers = jnp.mean(jax.nn.sigmoid(scores[:, :, None] - scores[:, None]), axis=0)
    return Said(rj.aggregates.mean(scores), prefers)


def of_means(study: Study) -> Said:
    """A score of each sentence, from the raters' means."""
    model, targets = study.model(), study.ratings.mean - study.centre
    batches = rated(study, study.train, targets[study.train])
    how = {"steps": study.sizes.steps, "loss": losses.squared_error, "l2": L2["means"]}
    start = study.start(model, study.train)
    params = study.fit("means", model.score_fn, start, batches, **how)
    return Said(study.read(model.score_fn, params, study.judged))


def of_raters(study: Study) -> tuple[Said, jax.Array]:
    """A score of each sentence and what each rater makes of it, from all single ratings.

    Also how much likelier it makes the ratings of unseen sentences to know who rates, ``[N]``.
    """
    ratings, model, beliefs = study.ratings, study.model(), normal()
    # Whoever rated films is known by batch and column; of others nobody is.
    people = ratings.batch[:, None] * ratings.ratings.shape[1] + np.arange(ratings.ratings.shape[1])
    people = np.where(ratings.batch[:, None] >= 0, people, -1).astype(np.int32)
    of, column = np.nonzero(ratings.rating_mask[study.train])
    of = study.train[of]
    values = ratings.ratings[of, column] - study.centre[of]
    scale = rj.models.rater_scale(
        model.score_fn, int(people.max()) + 1, answers=len(of), noise_spread=0.2
    )
    how = {"loss": partial(losses.likelihood, distribution=beliefs), "personal": scale.personal}
    how |= {
        "l2": L2["raters"],
        "raters": scale.regulariser,
        "reward": beliefs.mean,
        "steps": study.sizes.answer_steps,
    }
    batches = rated(study, of, values, rater=people[of, column])
    start = scale.init(study.start(model, study.train))
    params = study.fit("raters", scale.score_fn, start, batches, **how)
    scores = study.read(scale.score_fn, params, study.judged)

    @jax.jit
    def heard(who: jax.Array) -> jax.Array:
        """How ``who[N]`` would rate the sentences judged, ``[N, 2]``."""
        return scale.personal(params, scores[None], who)[0]

    nobody = heard(jnp.full(len(scores), -1))
    neutral = -study.centre[study.judged]
    said = Said(scores, told_apart(beliefs, nobody), two_sides(beliefs, nobody, neutral))
    given = (ratings.ratings - study.centre[:, None])[study.judged]
    known = jax.vmap(heard, 1, 1)(jnp.asarray(people[study.judged]))
    gain = beliefs.log_density(known, given) - beliefs.log_density(nobody[:, None], given)
    there = ratings.rating_mask[study.judged]
    return said, jnp.sum(jnp.where(there, gain, 0), axis=1) / there.sum(axis=1)


def of_the_judged(study: Study) -> list[tuple[str, jax.Array, np.ndarray]]:
    """DPL of the sentences judged, each with a mean and a spread of its own and no text at all.

    It learns from comparisons of the even columns. Returns what it says of where people disagree,
    and where the raters of the odd columns do.
    """
    even, beliefs = np.arange(study.ratings.ratings.shape[1]) % 2 == 0, normal()
    place = np.zeros(len(study.ratings), np.int32)
    place[study.judged] = np.arange(len(study.judged))
    numbers = comparisons(study, study.judged, 99, even)

    def one_token(rows: np.ndarray) -> Sequences:
        there = np.ones((len(rows), 1), bool)
        return Sequences(place[rows][:, None], there, there)

    how = {"loss": partial(losses.distributional, distribution=beliefs), "reward": beliefs.mean}
    outputs = study.fit(
        "judged",
        lambda params, tokens, mask: params["weight"][tokens[:, 0]],
        {"weight": jnp.zeros((len(study.judged), beliefs.size))},
        lambda step: Preferences(*map(one_token, numbers(step))),
        steps=study.sizes.answer_steps,
        l2=1e-4,
        token_dropout=0.0,
        **how,
    )["weight"]
    means, odd = beliefs.mean(outputs), polarised(study, ~even)
    return [
        ("two sides, others' comparisons", two_sides(beliefs, outputs, means.mean()), odd),
        ("variance, others' comparisons", beliefs.variance(outputs), odd),
        ("nearness, others' comparisons", -jnp.abs(means - means.mean()), odd),
    ]


def told_apart(beliefs: Distribution, outputs: jax.Array) -> jax.Array:
    """The probability of preferring each of ``N`` to each other, ``[N, N]``."""

    def row(first: jax.Array) -> jax.Array:
        return jnp.exp(beliefs.log_prefers(jnp.broadcast_to(first, outputs.shape), outputs))

    return jax.jit(lambda x: jax.lax.map(row, x, batch_size=50))(outputs)


def two_sides(beliefs: Distribution, outputs: jax.Array, neutral: jax.Array | float) -> jax.Array:
    """The probability that two raters stand on different sides of neutral, ``[N]``."""
    above = beliefs.above(outputs, neutral)
    return 2 * above * (1 - above)


def polarised(study: Study, columns: np.ndarray | bool = True) -> np.ndarray:
    """Whether at least a quarter of raters are above 0 and a quarter below, ``[N]``."""
    values = study.ratings.ratings[study.judged]
    there = study.ratings.rating_mask[study.judged] & columns
    shares = [((values * sign > 0) & there).sum(1) / there.sum(1) for sign in (1, -1)]
    return np.minimum(*shares) >= 0.25


def transfer(study: Study) -> tuple[np.ndarray, Interval]:
    """Pair accuracy of a model of each domain in each domain, and how much better its own is."""
    sizes, ratings = study.sizes, study.ratings
    rng, model, learnt, tests = np.random.default_rng(6), study.model(), [], []
    for domain in range(len(DOMAINS)):
        rows = rng.permutation(study.train[ratings.domain[study.train] == domain])
        learnt.append(rows[: sizes.domain_train])
        # Of films, some of those that all others are judged by.
        rest = study.judged if domain == FILMS else rows[sizes.domain_train :]
        tests.append(rest[: sizes.domain_test])
    starts = [study.start(model, rows) for rows in learnt]
    targets = ratings.mean - study.centre
    params = study.fit(
        "domains",
        model.score_fn,
        jax.tree.map(lambda *x: jnp.stack(x), *starts),
        rj.data.stacked([rated(study, rows, targets[rows]) for rows in learnt]),
        steps=sizes.steps,
        members=len(DOMAINS),
        loss=losses.squared_error,
        l2=L2["means"],
    )
    rows = np.concatenate(tests)
    scores = study.read(jax.vmap(model.score_fn, (0, None, None)), params, rows)
    order, domain = signs(ratings.mean[rows]), ratings.domain[rows]
    correct = jnp.stack([right(each, order) for each in scores])  # [trained in, N, N]
    within = domain[:, None] == domain
    cells = [
        [float(bootstrap_pairs(each[np.ix_(here, here)], key=study.key, resamples=1).estimate)]
        for each in np.asarray(correct)
        for here in (domain == n for n in range(len(DOMAINS)))
    ]
    own = correct[domain, np.arange(len(rows))]
    gap = own - (correct.sum(axis=0) - own) / (len(DOMAINS) - 1)
    better = bootstrap_pairs(gap, key=study.key, where=within, resamples=sizes.resamples)
    return np.reshape(cells, (len(DOMAINS), -1)), better


def lexicon(study: Study, data: Path | None) -> Said | None:
    """Sums of the words' valences by the lexicon that comes with the data, if it is there."""
    source = data or rj.assets.fetch(rj.assets.VADER_RATINGS)
    if not source.is_file() or not tarfile.is_tarfile(source):
        return None
    with tarfile.open(source) as archive:
        found = [m for m in archive.getmembers() if m.name.endswith("/vader_lexicon.txt")]
        if not found:
            return None
        lines = archive.extractfile(found[0]).read().decode().splitlines()
    valence = {word: float(mean) for word, mean, *_ in (line.split("\t") for line in lines)}
    table = np.array([valence.get(word, 0.0) for word in study.words], np.float32)
    text = study.sequences(study.judged)
    return Said(jnp.sum(jnp.where(text.mask, table[text.tokens], 0), axis=1))


def signs(values: jax.Array) -> jax.Array:
    """1 where the first of two is higher, 0 where the second is, 1/2 where none is; ``[N, N]``."""
    values = jnp.asarray(values)
    return 0.5 + 0.5 * jnp.sign(values[:, None] - values)


def right(scores: jax.Array, outcomes: jax.Array) -> jax.Array:
    """How right the scores' order of each pair is, ties as half; ``outcomes[N, N]`` from 0 to 1."""
    return 0.5 + (2 * signs(scores) - 1) * (outcomes - 0.5)


def by_bins(prefers: jax.Array, outcomes: jax.Array) -> jax.Array:
    """Predicted less observed preference, apart by what was predicted; ``[BINS, N, N]``."""
    bins = jnp.clip(jnp.floor(prefers * BINS), 0, BINS - 1)
    return jnp.where(bins == jnp.arange(BINS)[:, None, None], prefers - outcomes, 0)


def main(config: Config) -> None:
    """Fit, judge, write, show."""
    began, run = time.process_time(), rj.runs.begin(config, free=("data",))
    rj.training.compilation_cache()
    loaded = rj.data.load_ratings(config.data)
    how = {"judged_on": config.judged_on, "seed": config.seed}
    study = prepared(loaded, PRESETS[config.preset], run, **how)
    ratings, judged, sizes = study.ratings, study.judged, study.sizes
    said = {"lexicon": lexicon(study, config.data)}
    said["comparisons"] = of_comparisons(study, "comparisons", l2=L2["comparisons"])
    said["comparisons, weak L2"] = of_comparisons(study, "comparisons_weak_l2", l2=L2["weak"])
    said["comparisons, weak L2, ensemble"] = of_ensemble(study)
    said["means"] = of_means(study)
    said["DPL, mean and variance"] = of_comparisons(study, "dpl_normal", normal(), l2=L2["normal"])
    said["DPL, categorical"] = of_comparisons(
        study, "dpl_categorical", categorical(SCALE), l2=L2["comparisons"]
    )
    said["raters"], gain = of_raters(study)
    said = {name: x for name, x in said.items() if x is not None}
    cells, gap = transfer(study)

    # What people say of the sentences judged: all in the mean, and one by one.
    truth, values = ratings.mean[judged], ratings.ratings[judged].astype(np.float32)
    count = ratings.rating_mask[judged].sum(axis=1)
    columns = range(int(count.min()))  # all of them have these
    one_rater = sum(signs(values[:, k]) for k in columns) / len(columns)
    human = sum(
        right(values[:, k], signs((truth * count - values[:, k]) / (count - 1))) for k in columns
    ) / len(columns)
    drawn = {"key": jax.random.fold_in(study.key, 2), "resamples": sizes.resamples}
    of_pairs = partial(bootstrap_pairs, **drawn)
    apart = {n: by_bins(x.prefers, one_rater) for n, x in said.items() if x.prefers is not None}
    measured = {}
    for name, x in said.items():
        found = {"mean": signs(truth), "one_rater": one_rater}
        found = {f"accuracy_{by}": of_pairs(right(x.scores, y)) for by, y in found.items()}
        if name in apart:
            found["ece"] = of_pairs(apart[name], statistic=lambda bins: jnp.abs(bins).sum())
        measured[name] = found
    measured["one human, others' mean"] = {"accuracy_mean": of_pairs(human)}

    def auroc(found: jax.Array, disputed: np.ndarray) -> Interval:
        def statistic(rows: jax.Array) -> jax.Array:
            return rj.measures.auroc(found[rows], jnp.asarray(disputed)[rows])

        return bootstrap(jnp.arange(len(judged)), statistic=statistic, **drawn)

    disputed = polarised(study)
    aurocs = {
        f"two sides, text: {name}": auroc(x.two_sides, disputed)
        for name, x in said.items()
        if x.two_sides is not None
    }
    nearness = -jnp.abs(said["means"].scores + study.centre[judged])
    aurocs["nearness, text: means"] = auroc(nearness, disputed)
    aurocs |= {name: auroc(x, odd) for name, x, odd in of_the_judged(study)}

    # The claims, whose thresholds were there before the figures.
    own, best = np.diagonal(cells), measured["means"]["accuracy_mean"]
    better = int((own > cells).sum())

    def less(first: str, second: str) -> Interval:
        """By how much the first's calibration error is higher than the second's."""
        both = jnp.stack([apart[first], apart[second]])
        return of_pairs(both, statistic=lambda bins: jnp.subtract(*jnp.abs(bins).sum(axis=1)))

    ensemble = "comparisons, weak L2, ensemble"
    found = {
        "best": ("the means' model is right about 0.77 of pairs", best, 0.755, 0.77),
        "ensemble": (
            "an ensemble is better calibrated than one like its members",
            less("comparisons, weak L2", ensemble),
            0,
            0,
        ),
        "ensemble_tuned": (
            "and than one with the L2 that is best for one",
            less("comparisons", ensemble),
            0,
            0,
        ),
        "transfer": (f"the own domain's model is better ({better} of 12; 10 asked)", gap, 0, 0),
        "polarised": (
            "two sides, DPL of others' comparisons: AUROC 0.7",
            aurocs["two sides, others' comparisons"],
            0.5,
            0.7,
        ),
        "polarised_text": (
            "two sides, DPL of the text alone: AUROC 0.7",
            aurocs["two sides, text: DPL, mean and variance"],
            0.5,
            0.7,
        ),
    }
    claims = {
        name: {"claim": text, "measured": x, "verdict": verdict(x, null=null, threshold=least)}
        for name, (text, x, null, least) in found.items()
    }
    if better < 10:
        claims["transfer"]["verdict"] = "FAIL"

    curves = {}
    for name in ("comparisons", "comparisons, weak L2", ensemble, "DPL, mean and variance"):
        pairs = np.triu_indices(len(judged), 1)
        curves[name] = rj.measures.reliability(said[name].prefers[pairs], one_rater[pairs], BINS)
    errors = {name: float(measured[name]["ece"].estimate) for name in curves}
    rj.report.plot_reliability(curves, run.folder / "plots/calibration.png", errors=errors)
    rj.report.plot_reward_models(
        {name: x["accuracy_mean"] for name, x in measured.items()},
        cells,
        DOMAINS,
        run.folder / "plots/reward_models.png",
        marks={name: ANCHORS[name] for name in ("lexicon", "bag of n-grams")},
    )
    result = {
        "judged_on": config.judged_on,
        "sentences": {"learnt_from": len(study.train), "judged": len(judged)},
        "domain_train": sizes.domain_train,
        "models": measured,
        "anchors": ANCHORS,
        "transfer": {"domains": DOMAINS, "accuracy": cells, "gap": gap, "better": better},
        "polarised": {"share": float(disputed.mean()), "auroc": aurocs},
        "known_raters_gain_nats": bootstrap(gain, **drawn),
        "claims": claims,
        "cpu_seconds": study.seconds | {"all": time.process_time() - began},
    }
    run.write_json("result.json", result)
    tables = rj.report.reward_model_tables(result)
    page = rj.report.reward_models_page(result, tables)
    (run.folder / "report.md").write_text(page, encoding="utf-8")
    console = Console()
    for header, *rows in tables.values():
        closing = Table(*header)
        for row in rows:
            closing.add_row(*(Text(cell.replace(" [", "\n[")) for cell in row))
        console.print(closing)
    console.print(f"Report: {run.folder / 'report.md'}")


if __name__ == "__main__":
    try:
        main(tyro.cli(Config))
    except (ValueError, RuntimeError, FloatingPointError, OSError) as error:
        sys.exit(f"error: {error}")
