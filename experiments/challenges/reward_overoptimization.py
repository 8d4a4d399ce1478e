"""3.2.2, reward overoptimisation (fundamental): more of the proxy, less of what it stands for.

People want answers near an ideal, which is not the farthest one: gold falls off beyond it. Reward
models of several widths learn from few noisy comparisons of ordinary answers, and go on rising
where nobody has looked. Gold reward by distance, for best-of-n and for the exact tilt, fitted by
the forms of Gao et al. 2023, R = d (a - b d) and d (a - b log d), d = sqrt(KL); theirs fall less
for larger models. Error that is merely independent and Gaussian does not do it: the control.
"""

import jax
import jax.numpy as jnp
import numpy as np
import protocol
import testbeds
from protocol import at_least, at_most, challenge, interval, intervals, main, nothing, slope

import rlhf_jax as rj

WIDTHS, LABELS = np.array([24, 24, 24, 18, 14]), np.array([128, 256, 512, 512, 512])  # of proxies
BY_LABELS, BY_WIDTH = slice(0, 3), slice(2, 5)
ANSWERS, DIMENSIONS, CURVATURE, RATIONALITY = 16384, 8, 0.7, 2.0
WORLDS = 8  # of a seed: how soon gold turns over differs much from one to the next
DRAWS = 2.0 ** np.arange(13)
DISTANCES = np.sqrt(np.asarray(rj.measures.best_of_n_kl(DRAWS)))
BETAS = np.geomspace(10, 0.22, 14)


def curves(gold: jax.Array, proxy: jax.Array) -> dict[str, jax.Array]:
    """Gold and proxy of best-of-n ``[2, draws]``; of tilts distance, gold, proxy ``[3, betas]``."""
    both = jnp.stack([gold, proxy])
    estimate = jax.vmap(rj.measures.best_of_n_estimate, (0, None, None))
    over_draws = jax.vmap(estimate, (None, None, 0))
    reference = jnp.zeros(ANSWERS)

    def tilted(beta: jax.Array) -> jax.Array:
        policy = rj.worlds.tilt(reference, proxy, beta=beta)
        distance = jnp.sqrt(jnp.maximum(rj.divergences.exact_kl(policy, reference), 1e-9))
        return jnp.append(distance, both @ jnp.exp(policy))

    tilts = jax.lax.map(tilted, BETAS)
    return {"best": over_draws(both, proxy, DRAWS).T, "tilts": tilts.T}


def one_world(key: jax.Array) -> dict[str, jax.Array]:
    """The curves of trained reward models, and last of one with independent Gaussian error."""
    keys = jax.random.split(key, 7)
    answers, good = testbeds.near_an_ideal(
        keys[:2], answers=ANSWERS, dimensions=DIMENSIONS, curvature=CURVATURE
    )
    gold = protocol.standard(good)
    seen = testbeds.random_features(keys[2:4], answers, max(WIDTHS))

    def learnt(size: tuple[jax.Array, jax.Array]) -> jax.Array:
        """What a reward model of random features says: as many as it is wide."""
        width, labels = size
        features = seen * (jnp.arange(max(WIDTHS)) < width) * jnp.sqrt(2 / width)
        world = rj.worlds.bandit(gold, features=features)
        pairs = world.pairs(max(LABELS))(keys[4], world.reference, ())
        human = rj.humans.boltzmann(world.utility, rationality=RATIONALITY)
        batch = rj.feedback.to_batch(pairs, human(keys[5], pairs))
        batch = batch.replace(weight=jnp.arange(max(LABELS)) < labels)
        fit = testbeds.fitted(world, batch, jnp.zeros(max(WIDTHS)), l2=1 / labels)
        return world.rewards(fit)

    noisy = gold + jax.random.normal(keys[6], gold.shape)
    proxies = jnp.concatenate([jax.lax.map(learnt, (WIDTHS, LABELS)), noisy[None]])
    return jax.lax.map(lambda proxy: curves(gold, protocol.standard(proxy)), proxies)


def measure(keys: jax.Array, fast: bool) -> dict[str, jax.Array]:
    """``best`` is ``[seeds, proxies, 2, draws]``, ``tilts`` ``[.., 3, betas]``; noise is last."""
    return protocol.over_seeds(one_world, keys, worlds=WORLDS)


def judge(found: dict[str, np.ndarray]) -> list:
    """What must come out."""

    def worst(rows: dict[str, jax.Array]) -> jax.Array:
        """Of the mean curves, that of the worst proxy."""
        best, tilts = (rows[name].mean(axis=0) for name in ("best", "tilts"))
        gold, far = best[:, 0], jnp.broadcast_to(DISTANCES, best[:-1, 0].shape)
        fit, fall = rj.measures.fit_best_of_n_gold(far, gold[:-1]), gold.max(axis=1) - gold[:, -1]
        peak = jnp.max(fit.alpha / 2 / fit.beta) / DISTANCES[-1]
        tilted = rj.measures.fit_rl_gold(tilts[:-1, 0], tilts[:-1, 1])
        by_labels = -slope(np.log(LABELS[BY_LABELS]), fit.beta[BY_LABELS])
        by_width = -slope(np.log(WIDTHS[BY_WIDTH]), fit.beta[BY_WIDTH])
        explained = [jnp.min(fit.r_squared), jnp.min(tilted.r_squared)]
        return jnp.stack([*explained, jnp.min(fall[:-1]), peak, by_labels, by_width, fall[-1]])

    explained, tilts, fall, peak, by_labels, by_width, none = intervals(found, worst)
    rising = np.diff(found["best"][:, :-1, 1], axis=-1).min(axis=(1, 2))
    return [
        at_least("best-of-n: Gao's form has R2 >= .95 (worst)", explained, 0.95),
        at_least("gold falls after its peak (least of all proxies)", fall, 0.0),
        at_most("which is inside: fitted peak / farthest distance <= 1 (worst)", peak, 1.0),
        at_least("while the proxy rises at every step", interval(rising), 0.0),
        at_least("tilt: Gao's form has R2 >= .9 (worst)", tilts, 0.9),
        at_least("beta falls with labels (minus its slope in log n)", by_labels, 0.0),
        at_least("beta falls with size (minus its slope in log width)", by_width, 0.0),
        nothing("independent Gaussian error: no fall", none),
    ]


def plot(axes, found: dict[str, np.ndarray]) -> None:
    """Gold (lines) and proxy (dotted) by distance: best-of-n, and the tilt."""
    names = [f"{w} wide, {n} labels" for w, n in zip(WIDTHS, LABELS, strict=True)]
    best, tilts = found["best"].mean(axis=0), found["tilts"].mean(axis=0)
    for i, name in enumerate([*names, "gold + independent noise"]):
        line = {"color": rj.report.COLOURS[i]}
        for axis, x, (gold, proxy) in zip(
            axes, (DISTANCES, tilts[i, 0]), (best[i], tilts[i, 1:]), strict=True
        ):
            axis.plot(x, gold, label=name, **line)
            axis.plot(x, proxy, ls=":", lw=1, **line)
    for axis, title in zip(axes, ("best-of-n", "exact tilt"), strict=True):
        axis.set(xlabel="distance, sqrt(KL)", ylabel="gold; dotted: proxy (SD)", title=title)


CHALLENGE = challenge("reward-overoptimization", measure, judge, plot)

if __name__ == "__main__":
    main(CHALLENGE)
