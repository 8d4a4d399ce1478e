"""Real people's ratings of film reviews, and linear reward models of what some of them say."""

import jax
import jax.numpy as jnp
import numpy as np

import rlhf_jax as rj

FIFTHS, LEARNT = 5, 8000  # groups of raters; sentences learnt from, the rest being unseen


def load(width: int) -> tuple[jax.Array, jax.Array, jax.Array, rj.data.Ratings]:
    """Sentences of film reviews: features, ratings ``[texts, 29]``, which there are; and the rest.

    No more than 29 rated one.
    """
    found = rj.data.load_ratings().only("movies")
    features = rj.worlds.text_features(found.texts, width=width)
    return features, found.ratings[:, :29], found.rating_mask[:, :29], found


def taught(features: jax.Array, ratings: jax.Array, asked: jax.Array) -> jax.Array:
    """A linear reward model of what those asked say of each text, ``[texts, raters]``."""
    count = asked.sum(axis=1)
    said = jnp.sum(ratings * asked, axis=1) / jnp.maximum(count, 1)
    return rj.worlds.ridge(features, said, weight=count, l2=10.0)


def fifths(values: jax.Array, there: jax.Array) -> jax.Array:
    """Of those who are there in a row, from the lowest on; -1 for the others."""
    place = jnp.argsort(jnp.argsort(jnp.where(there, values, jnp.inf), axis=1), axis=1)
    return jnp.where(there, FIFTHS * place // there.sum(axis=1, keepdims=True), -1)


def shifts(key: jax.Array, features: jax.Array, films: tuple) -> jax.Array:
    """The model's shift and the bias of those kept: by fifths of a sentence's raters, of all."""
    ratings, mask, batch = films
    keys, batches = jax.random.split(key, 3), len(features) // 30 + 1
    learnt = (jax.random.uniform(keys[0], (batches,)) < 0.7)[batch]
    shown = jax.random.bernoulli(keys[1], 0.5, batch.shape)  # where it is seen who rates high

    def effects(rows: jax.Array) -> rj.measures.RaterEffects:
        return rj.measures.rater_effects(ratings, mask, jnp.where(rows, batch, -1), batches=batches)

    known, later = effects(learnt & shown), effects(learnt & ~shown)
    there = (known.count > 2) & (later.count > 2)
    of_theirs = fifths(known.bias, there)
    of_all = fifths(known.bias.reshape(1, -1), there.reshape(1, -1)).reshape(there.shape)
    chance = fifths(jax.random.uniform(keys[2], there.shape), there) == 0
    kept = [there, *(who == n for who in (of_theirs, of_all) for n in range(FIFTHS)), chance]

    def model(who: jax.Array) -> tuple[jax.Array, jax.Array]:
        """What it says of unseen sentences in the mean, and the bias of who taught it."""
        theirs = mask & (learnt & ~shown)[:, None] & who[batch]
        scores = features @ taught(features, ratings, theirs)
        bias = jnp.sum(jnp.where(who, later.bias * later.count, 0)) / theirs.sum()
        return jnp.sum(scores * ~learnt) / jnp.sum(~learnt), bias

    found = jnp.stack(jax.lax.map(model, jnp.stack(kept)), axis=1)
    return found[1:] - found[0]


def by_raters(
    key: jax.Array,
    features: jax.Array,
    ratings: jax.Array,
    mask: jax.Array,
    means: jax.Array,
    *,
    raters: np.ndarray,
    budget: int,
) -> jax.Array:
    """Of pairs of unseen sentences in the raters' order, by raters a sentence: N k = B."""
    order = jax.random.permutation(key, len(features))
    learnt, unseen = order[:LEARNT], order[LEARNT:]
    mask = mask[learnt]
    # Each sentence's raters in an order of chance; those who are not there come last.
    lottery = jnp.where(mask, jax.random.uniform(jax.random.fold_in(key, 1), mask.shape), 2.0)
    turn = jnp.argsort(jnp.argsort(lottery, axis=1), axis=1)

    def accuracy(each: jax.Array) -> jax.Array:
        asked = (turn < each) & mask & (jnp.arange(LEARNT) < budget // each)[:, None]
        reward = taught(features[learnt], ratings[learnt], asked)
        return rj.measures.ranking_accuracy(features[unseen] @ reward, means[unseen])

    return jax.lax.map(accuracy, raters)
