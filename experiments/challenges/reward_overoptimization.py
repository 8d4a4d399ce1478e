"""3.2.2, reward overoptimisation (fundamental): more of the proxy, less of what it stands for.

People want answers near an ideal, which is not the farthest one: gold falls off beyond it. Reward
models of several widths learn from few noisy comparisons of ordinary answers, and go on rising
where nobody has looked. Gold reward by distance, for best-of-n and for the exact tilt, fitted by
the forms of Gao et al. 2023, R = d (a - b d) and d (a - b log d), d = sqrt(KL); theirs fall less
for larger models. Error that is merely independent and Gaussian does not do it: the control.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from protocol import Challenge, at_least, at_most, interval, main, nothing, slope

import rlhf_jax as rj

PROXIES = ((24, 128), (24, 256), (24, 512), (18, 512), (14, 512))  # widths and labels
ANSWERS, DIMENSIONS, CURVATURE, RATIONALITY = 16384, 8, 0.7, 2.0
DRAWS = 2.0 ** np.arange(13)
DISTANCES = np.sqrt(np.asarray(rj.measures.best_of_n_kl(DRAWS)))
BETAS = np.geomspace(10, 0.22, 14)


def standard(values: jax.Array) -> jax.Array:
    """In SDs of the initial policy, about its mean."""
    return (values - jnp.mean(values)) / jnp.std(values)


def optimised(gold: jax.Array, proxy: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Gold and proxy of best-of-n ``[2, draws]``; distance, gold and proxy of tilts."""
    both = jnp.stack([gold, proxy])
    estimate = jax.vmap(rj.measures.best_of_n_estimate, (0, None, None))
    over_draws = jax.vmap(estimate, (None, None, 0))
    reference = jnp.zeros(ANSWERS)

    def tilted(beta: jax.Array) -> jax.Array:
        policy = rj.worlds.tilt(reference, proxy, beta=beta)
        distance = jnp.sqrt(jnp.maximum(rj.divergences.exact_kl(policy, reference), 1e-9))
        return jnp.append(distance, both @ jnp.exp(policy))

    return over_draws(both, proxy, DRAWS).T, jax.lax.map(tilted, BETAS).T


def world_of(key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Answers, and how much people like them."""
    keys = jax.random.split(key)
    answers = jax.random.normal(keys[0], (ANSWERS, DIMENSIONS))
    towards = jax.random.normal(keys[1], (DIMENSIONS,))
    good = answers @ towards / jnp.linalg.norm(towards)
    return answers, standard(good - CURVATURE / 2 * jnp.sum(jnp.square(answers), axis=1))


def learnt(key: jax.Array, width: int, labels: int) -> tuple[jax.Array, jax.Array]:
    """The curves of a trained reward model: of random features, as many as it is wide."""
    keys = jax.random.split(key, 5)
    answers, gold = world_of(keys[0])
    directions = jax.random.normal(keys[1], (DIMENSIONS, width))
    directions /= jnp.linalg.norm(directions, axis=0)
    seen = jax.nn.relu(answers @ directions + jax.random.normal(keys[2], (width,)))
    world = rj.worlds.bandit(gold, features=seen * np.sqrt(2 / width))
    pairs = world.pairs(labels)(keys[3], world.reference, ())
    human = rj.humans.boltzmann(world.utility, rationality=RATIONALITY)
    batch = rj.feedback.to_batch(pairs, human(keys[4], pairs))
    fit = world.newton(1 / labels)
    state = fit.init(jnp.zeros(width), key)
    state, _ = jax.lax.scan(lambda s, _: fit.step(s, batch), state, length=8)
    return optimised(gold, standard(world.rewards(state.params)))


def noisy(key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The curves of a proxy whose error is Gaussian and independent of all else."""
    _, gold = world_of(jax.random.split(key, 5)[0])
    return optimised(gold, standard(gold + jax.random.normal(key, gold.shape)))


def measure(keys: jax.Array, fast: bool) -> dict[str, jax.Array]:
    """``best`` is ``[seeds, proxies, 2, draws]``, ``tilts`` ``[.., 3, betas]``; noise is last."""
    made = [partial(learnt, width=w, labels=n) for w, n in PROXIES] + [noisy]

    def seed(key: jax.Array) -> dict[str, jax.Array]:
        best, tilts = zip(*(one(key) for one in made), strict=True)
        return {"best": jnp.stack(best), "tilts": jnp.stack(tilts)}

    return jax.jit(lambda keys: jax.lax.map(seed, keys))(keys)


def judge(found: dict[str, np.ndarray]) -> list:
    """What must come out."""
    trained, count = found["best"][:, :-1], len(PROXIES)

    def fit_best(rows: jax.Array) -> jax.Array:
        gold = rows.mean(axis=0)[:, 0]
        return jnp.stack(
            rj.measures.fit_best_of_n_gold(jnp.broadcast_to(DISTANCES, gold.shape), gold)
        )

    def fit_tilts(rows: jax.Array) -> jax.Array:
        mean = rows.mean(axis=0)
        return jnp.min(rj.measures.fit_rl_gold(mean[:, 0], mean[:, 1]).r_squared)

    def fall(rows: jax.Array) -> jax.Array:
        gold = rows.mean(axis=0)[:, 0]
        return jnp.min(gold.max(axis=1) - gold[:, -1])

    def beta_falls(columns: list[int], sizes: list[int]):
        return lambda rows: -slope(jnp.log(jnp.array(sizes)), fit_best(rows)[1, jnp.array(columns)])

    rising = jnp.min(jnp.diff(trained[:, :, 1], axis=-1), axis=(1, 2))
    by_labels, by_width = [0, 1, 2], [4, 3, 2]
    return [
        at_least(
            "best-of-n: Gao's form has R2 >= .95 (worst)",
            interval(trained, lambda x: fit_best(x)[2].min()),
            0.95,
        ),
        at_least("gold falls after its peak (least of all proxies)", interval(trained, fall), 0.0),
        at_most(
            "which is inside: fitted peak / farthest distance <= 1 (worst)",
            interval(
                trained, lambda x: jnp.max(fit_best(x)[0] / 2 / fit_best(x)[1] / DISTANCES[-1])
            ),
            1.0,
        ),
        at_least("while the proxy rises at every step", interval(rising), 0.0),
        at_least(
            "tilt: Gao's form has R2 >= .9 (worst)",
            interval(found["tilts"][:, :count], fit_tilts),
            0.9,
        ),
        at_least(
            "beta falls with labels (minus its slope in log n)",
            interval(trained, beta_falls(by_labels, [PROXIES[i][1] for i in by_labels])),
            0.0,
        ),
        at_least(
            "beta falls with size (minus its slope in log width)",
            interval(trained, beta_falls(by_width, [PROXIES[i][0] for i in by_width])),
            0.0,
        ),
        nothing("independent Gaussian error: no fall", interval(found["best"][:, -1:], fall)),
    ]


def plot(axes, found: dict[str, np.ndarray]) -> None:
    """Gold (lines) and proxy (dotted) by distance: best-of-n, and the tilt."""
    names = [f"{w} wide, {n} labels" for w, n in PROXIES] + ["gold + independent noise"]
    for i, (colour, name) in enumerate(zip(rj.report.COLOURS, names, strict=False)):
        gold, proxy = found["best"][:, i].mean(axis=0)
        axes[0].plot(DISTANCES, gold, color=colour, label=name)
        axes[0].plot(DISTANCES, proxy, color=colour, ls=":", lw=1)
        distance, gold, proxy = found["tilts"][:, i].mean(axis=0)
        axes[1].plot(distance, gold, color=colour)
        axes[1].plot(distance, proxy, color=colour, ls=":", lw=1)
    for axis, title in zip(axes, ("best-of-n", "exact tilt"), strict=True):
        axis.set(xlabel="distance, sqrt(KL)", ylabel="gold; dotted: proxy (SD)", title=title)
    axes[0].legend(frameon=False, fontsize=7)


CHALLENGE = Challenge(
    slug="reward-overoptimization",
    section="3.2.2",
    fundamental=True,
    claim="Optimising for an imperfect reward proxy leads to reward hacking.",
    measure=measure,
    judge=judge,
    plot=plot,
)

if __name__ == "__main__":
    main(CHALLENGE)
