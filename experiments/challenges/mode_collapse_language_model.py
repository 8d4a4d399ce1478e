"""Mode collapse of SmolLM2-135M, an arm of `mode_collapse`: in which month was somebody born?

The answer is one token, the next; any of the twelve months is worth giving, half of them (which is
drawn) a little more, and anything else nothing. The model does not give them alike, so what is
measured is compared with the initial model, and with its exact tilt, known from its probabilities
of the next token. RLOO trains the last layer; of what the frozen ones make of the questions there
is a table, made once. All is measured on people whom no step has asked about. A text is a sheet of
answers, one for each of them. Births are taken to be as many in every month: so much is right.

What would come behind the answer is not looked at. No penalty holds it, and sentences that went on
became less varied in every arm (distinct-2 of twelve tokens, in pilots with two seeds: .58 at
first, .36 at beta 0, .41 at 2 delta).
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from mode_collapse_measures import DELTA, QUESTIONS, TEXT, calibration, claims, of_modes, of_text
from protocol import Claim

import rlhf_jax as rj
from rlhf_jax.types import Params, Prompts, Sequences

MODEL, TOP, SEEDS = "smollm2-135m-instruct", 1, 3
QUESTION = "{} was born in the month of"
NAMES = (  # Each a token. The last eight are asked about only to measure.
    *["Anna", "Ben", "Carl", "David", "Frank", "George", "James", "Jane"],
    *["Sarah", "Thomas", "Tom", "William", "Alice", "Daniel", "Henry", "Jack"],
)
ASKED = 8
MONTHS = (
    *("January", "February", "March", "April", "May", "June", "July"),
    *("August", "September", "October", "November", "December"),
)
TIMES = (0, 2, 4)  # beta in units of delta
SAMPLES, RATE, STEPS, TEXTS = 8, 4e-4, 50, 32


def next_answer(logits: Callable, hidden: jax.Array) -> tuple[Callable, Callable, Callable]:
    """A policy whose answer is the next token, on top of layers that have read the questions.

    Args:
        logits: the upper layers, ``(params, hidden[B, T, D], mask) -> FactoredLogits``.
        hidden: what the lower ones make of the questions and a column for the answer,
            ``[questions, T + 1, D]``. A question's tokens are its number, ``T`` times.

    Returns:
        ``log_probs_fn(params, which[B]) -> [B, V]``, and for an algorithm ``sample_fn`` and
        ``trunk_fn``.
    """

    def log_probs_fn(params: Params, which: jax.Array) -> jax.Array:
        read = hidden[which, :-1]
        found = logits(params, read, jnp.ones(read.shape[:2], bool))
        return jax.nn.log_softmax(found.hidden[:, -1] @ found.unembedding)

    def sample_fn(params: Params, prompts: Prompts, keys: jax.Array) -> Sequences:
        samples, width = len(keys) // len(prompts.tokens), prompts.tokens.shape[1]
        known = jnp.repeat(log_probs_fn(params, prompts.tokens[:, 0]), samples, axis=0)
        drawn = jax.vmap(jax.random.categorical)(keys, known)
        tokens = jnp.repeat(prompts.tokens, samples, axis=0)
        tokens = jnp.concatenate([tokens, drawn[:, None]], axis=1)
        answer = jnp.broadcast_to(jnp.arange(width + 1) == width, tokens.shape)
        log_probs = jnp.take_along_axis(known, drawn[:, None], axis=1)
        return Sequences(tokens, jnp.ones_like(answer), answer, jnp.where(answer, log_probs, 0))

    def trunk_fn(_: Params, tokens: jax.Array, mask: jax.Array) -> jax.Array:
        return hidden[tokens[:, 0]]

    return log_probs_fn, sample_fn, trunk_fn


def measure(keys: jax.Array) -> dict[str, np.ndarray]:
    """Each ``[seeds, 1 + betas]``, of the initial model first; of the tilts the betas above 0."""
    loaded = rj.pretrained.load(MODEL)
    model = rj.models.language_model(dataclasses.replace(loaded.config, num_top_layers=TOP))
    first = rj.models.split_layers(loaded.params, TOP)
    upper = {name: value for name, value in first.items() if name != "layers"}

    def encode(text: str) -> list[int]:
        return loaded.tokenizer.encode(text, add_special_tokens=False).ids

    rows = np.array([encode(QUESTION.format(name)) for name in NAMES])
    (months,) = np.array([encode(f" {month}") for month in MONTHS]).T
    wide = np.pad(rows, ((0, 0), (0, 1)))
    hidden = jax.jit(model.trunk_fn)(first, wide, np.ones(wide.shape, bool))
    log_probs_fn, sample_fn, trunk_fn = next_answer(model.top_fn, hidden)
    months = jnp.asarray(months)
    asked, others = np.arange(ASKED), np.arange(ASKED, len(NAMES))
    prompts = Prompts(
        np.repeat(asked[:, None], rows.shape[1], axis=1), np.ones_like(rows[asked], bool)
    )

    @jax.jit
    def trained(upper: Params, key: jax.Array, beta: jax.Array, rewards: jax.Array) -> Params:
        rate = optax.adam(optax.cosine_decay_schedule(RATE, STEPS))
        policy = rj.algorithms.rloo(
            model.top_fn,
            sample_fn,
            lambda rewards, answers: rewards[answers.tokens[:, -1]],
            optax.chain(optax.clip_by_global_norm(1.0), rate),
            samples_per_prompt=SAMPLES,
            kl_coefficient=beta,
            trunk_fn=trunk_fn,
            trainable=("top_layers/*",),
        )
        state = policy.init(upper, key, reward=rewards)
        state, _ = jax.lax.scan(lambda s, _: policy.step(s, prompts), state, length=STEPS)
        return state.params["top_layers"]

    @jax.jit
    def judged(key: jax.Array, policy: jax.Array, liked: jax.Array) -> dict[str, jax.Array]:
        def answers(key: jax.Array, policy: jax.Array) -> jax.Array:
            heaped = jnp.cumsum(jnp.exp(policy))
            chance = jax.random.uniform(key, (QUESTIONS,), maxval=heaped[-1])
            return jnp.searchsorted(heaped, chance, side="right")

        keys = jax.random.split(key, (2, len(policy)))
        given = jax.vmap(answers)(keys[0], policy)
        found = of_modes(policy[:, months], liked)
        found["ECE"] = jax.vmap(lambda *x: calibration(*x, months))(keys[1], policy, given)
        sheets = given[:, :TEXTS].T
        text = of_text(sheets, jnp.ones(sheets.shape, bool), policy.shape[1], n=1)
        return jax.tree.map(jnp.mean, found) | text

    log_probs, arms = jax.jit(log_probs_fn), []
    for key in keys:
        draws = jax.random.split(key, 3)
        liked = jax.random.permutation(draws[0], jnp.arange(len(MONTHS))) < len(MONTHS) // 2
        worth = jnp.where(liked, 1, 1 - DELTA)
        rewards = jnp.zeros(loaded.config.vocab_size).at[months].set(worth)
        start = log_probs(upper, others)
        rows_of = [judged(draws[1], start, liked)]
        for times in TIMES:
            top = {"top_layers": trained(upper, draws[2], times * DELTA, rewards)}
            rows_of.append(judged(draws[1], log_probs(upper | top, others), liked))
        table = {name: [row[name] for row in rows_of] for name in rows_of[0]}
        everywhere = jnp.broadcast_to(rewards, start.shape)
        tilts = [
            judged(draws[1], rj.worlds.tilt(start, everywhere, beta=times * DELTA), liked)
            for times in TIMES[1:]
        ]
        table |= {f"tilt {name}": [row[name] for row in tilts] for name in ("modes", "ECE")}
        arms.append(jax.tree.map(float, table))
    return {name: np.array([arm[name] for arm in arms]) for name in arms[0]}


def attempt(keys: jax.Array, fast: bool) -> tuple[dict[str, np.ndarray], str]:
    """What was measured with the first three seeds; or nothing, and why not."""
    if fast:
        return {}, "SmolLM2-135M: not with --fast"
    try:
        return measure(keys[:SEEDS]), ""
    except (ImportError, OSError, rj.assets.AssetError) as error:
        return {}, f"SmolLM2-135M: {error}"


def judge(found: dict[str, np.ndarray]) -> list[Claim]:
    """What must come out, as of the bandit: against the initial model, and against its tilt."""
    arms = {
        name: {what: found[what][:, i] for what in ("modes", "log ratio", "ECE", *TEXT)}
        for i, name in enumerate(("first", *map(str, TIMES)))
    }
    arms["0"]["modes"] = arms["0"]["modes"] / arms["first"]["modes"]
    for i, name in enumerate(("2", "4")):
        arms[name]["modes"] = arms[name]["modes"] / found["tilt modes"][:, i]
    asked = claims(arms, of="the initial", kept=" of the tilt's", ece=found["tilt ECE"][:, 0])
    return [claim._replace(text=f"SmolLM2-135M, {claim.text}") for claim in asked]
