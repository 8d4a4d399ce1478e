r"""A whole RLHF run as one pure function.

.. math::
    x_i \sim \pi_\theta, \quad y_i = f(H, x_i, \epsilon_i), \qquad
    \phi = \arg\min_\phi \sum_i \ell(\hat r_\phi(x_i), y_i) + \lambda_r(\phi), \qquad
    \theta = \arg\max_\theta E_{x \sim \pi_\theta}[\hat r_\phi(x) + \lambda_p(\theta, x)]

A *round* does these three once. It is the step of an ``Algorithm``, so that all which takes one
takes a whole run: ``jax.jit`` and ``jax.vmap``, over keys or over any number that the pipeline is
built with, ``algorithms.ensemble``, ``parallel.shard_step``, ``training.fit`` and checkpoints.

Reference: Casper et al. 2023, section 2, https://arxiv.org/abs/2307.15217
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rlhf_jax import feedback
from rlhf_jax.humans import Human
from rlhf_jax.types import Algorithm, Batch, Key, Metrics, Params, Prompts, PyTree, TrainState

__all__ = ["Learners", "Pipeline", "Query", "algorithm", "run"]

# key, policy's parameters, reward model's parameters -> examples, whatever the human looks at
Query = Callable[[Key, Params, Params], PyTree]
# key, policy's parameters, reward model's parameters -> numbers
Measure = Callable[[Key, Params, Params], Metrics]


class Pipeline(NamedTuple):
    """The three steps; ``pipeline._replace(human=...)`` is another pipeline.

    Attributes:
        query: what is asked about, ``(key, policy, reward) -> examples`` of the two's parameters:
            the policy's own answers, or anything else.
        human: ``(key, examples) -> feedback``.
        reward: the ``Algorithm`` that fits a reward to batches of feedback; ``None`` for a method
            that learns from the feedback directly.
        policy: the ``Algorithm`` that improves the policy. With a ``reward`` its batches are
            ``Prompts``, and what it has of a reward is in ``frozen.reward`` or ``frozen.judge``;
            without one they are the feedback.
    """

    query: Query
    human: Human
    reward: Algorithm | None
    policy: Algorithm


class Learners(NamedTuple):
    """The policy and the reward model: their parameters to begin with, then their states.

    Attributes:
        policy: parameters or ``TrainState``.
        reward: parameters or ``TrainState``; ``()`` if there is no reward model.
    """

    policy: Params | TrainState
    reward: Params | TrainState = ()


def algorithm(
    pipeline: Pipeline,
    *,
    policy_steps: int,
    prompts: Callable[[Key], Prompts] | None = None,
    reward_steps: int = 0,
    batch_size: int | None = None,
    memory: int = 1,
    relearn: bool = False,
    to_batch: Callable[[PyTree, feedback.Feedback], Batch] = feedback.to_batch,
    measure: Measure | None = None,
) -> Algorithm:
    """RLHF as an algorithm whose step is a round: ask, fit the reward, improve the policy.

    Args:
        pipeline: the three steps.
        policy_steps: of the policy, in a round.
        prompts: ``key -> Prompts`` for each of these; not needed without a reward model.
        reward_steps: of the reward model, in a round.
        batch_size: feedback that one step learns from, drawn with replacement from what is
            remembered; by default all of it.
        memory: how many rounds feedback is remembered for. What a row has not been filled with yet
            is padding.
        relearn: whether the reward model begins anew in each round, instead of going on.
        to_batch: ``(examples, feedback) -> batch`` of the reward model, or of the policy if there
            is none. What was not answered must be padding.
        measure: ``(key, policy, reward) -> {name: float[]}`` of the parameters after the round.

    Returns:
        An ``Algorithm``. ``init(Learners(policy, reward), key, **frozen)`` takes the parameters;
        ``frozen`` is for the policy's ``init`` (a ``reference``, say). The state's ``params`` are
        ``Learners`` of states, its ``extra`` is the feedback remembered, ``[memory, ...]``.
        ``step(state, batch)`` looks at no batch: ``None`` will do, and ``np.int32`` as the
        ``batches`` of ``training.fit``. Metrics: the means over the round of the policy's and
        the reward model's, as ``policy_kl`` or ``reward_loss``; ``labels``, the answers had so far;
        and what ``measure`` returns.

    Raises:
        ValueError: if a number is impossible, ``prompts`` are missing, or the policy's ``frozen``
            has no place for a reward.
    """
    for name, number, least in (
        ("policy_steps", policy_steps, 0),
        ("reward_steps", reward_steps, 0),
        ("memory", memory, 1),
    ):
        if number < least:
            raise ValueError(f"{name} must be at least {least}, not {number}")
    direct = pipeline.reward is None
    if direct and reward_steps:
        raise ValueError("reward_steps must be 0 where there is no reward model")
    if not direct and prompts is None:
        raise ValueError("prompts must be given: the policy answers them to learn from the reward")

    def asked(key: Key, learners: Learners) -> Batch:
        query_key, human_key = jax.random.split(key)
        reward = () if direct else learners.reward.params
        examples = pipeline.query(query_key, learners.policy.params, reward)
        return to_batch(examples, pipeline.human(human_key, examples))

    def init(params: Learners, key: Key, **frozen: Params) -> TrainState:
        keys = jax.random.split(key)
        policy = pipeline.policy.init(params.policy, keys[0], **frozen)
        reward = () if direct else pipeline.reward.init(params.reward, keys[1])
        if not direct:
            policy = _told(policy, reward.params)
        learners = Learners(policy, reward)
        like = jax.eval_shape(asked, key, learners)
        nothing = jax.tree.map(lambda x: jnp.zeros((memory, *x.shape), x.dtype), like)
        # The initial reward parameters come along only if they are needed again.
        again = params.reward if relearn and not direct else ()
        return TrainState(
            step=jnp.int32(0),
            key=key,
            params=learners,
            opt_state=(),
            frozen=again,
            extra=nothing,
            skipped=jnp.int32(0),
        )

    def step(state: TrainState, batch: Batch = None) -> tuple[TrainState, Metrics]:
        keys = jax.random.split(jax.random.fold_in(state.key, state.step), 5)
        learners: Learners = state.params
        new, place = asked(keys[0], learners), state.step % memory
        data = jax.tree.map(lambda old, x: old.at[place].set(x), state.extra, new)
        rows = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), data)
        size = len(jax.tree.leaves(rows)[0])
        there = jnp.minimum(state.step + 1, memory) * (size // memory)

        def drawn(key: Key, count: int) -> tuple[PyTree, Callable[[PyTree], Batch]]:
            """Of so many batches what a scan goes through, and what makes a batch of it."""
            if batch_size is None:
                return None, lambda _: rows
            # All at once: what draws random numbers is slow to start.
            index = jax.random.randint(key, (count, batch_size), 0, there)
            return index, lambda index: jax.tree.map(lambda x: x[index], rows)

        def learnt(algorithm, state, batches, count):
            through, batch = batches
            state, metrics = jax.lax.scan(
                lambda s, x: algorithm.step(s, batch(x)), state, through, length=count
            )
            return state, jax.tree.map(jnp.mean, metrics)

        policy, reward, metrics = learners.policy, learners.reward, {}
        if not direct:
            if relearn:
                reward = pipeline.reward.init(state.frozen, reward.key).replace(step=reward.step)
            batches = drawn(keys[1], reward_steps)
            reward, found = learnt(pipeline.reward, reward, batches, reward_steps)
            policy = _told(policy, reward.params)
            metrics |= {f"reward_{name}": x for name, x in found.items()} if reward_steps else {}
        asks = jax.random.split(keys[2], policy_steps), prompts
        batches = drawn(keys[2], policy_steps) if direct else asks
        policy, found = learnt(pipeline.policy, policy, batches, policy_steps)
        metrics |= {f"policy_{name}": x for name, x in found.items()} if policy_steps else {}
        metrics["labels"] = ((state.step + 1) * (size // memory)).astype(jnp.float32)
        if measure is not None:
            known = () if direct else reward.params
            metrics |= measure(keys[3], policy.params, known)
        skipped = policy.skipped if direct else jnp.maximum(policy.skipped, reward.skipped)
        state = state.replace(
            step=state.step + 1, params=Learners(policy, reward), extra=data, skipped=skipped
        )
        return state, metrics | {"skipped": skipped.astype(jnp.float32)}

    return Algorithm(init, step)


def run(
    pipeline: Pipeline,
    key: Key,
    params: Learners,
    *,
    rounds: int,
    frozen: dict[str, Params] | None = None,
    **settings,
) -> tuple[TrainState, Metrics]:
    """A whole run: so many rounds, from given parameters.

    Args:
        pipeline: the three steps.
        key: the run's; with ``jax.vmap`` over keys there are as many runs in one program.
        params: to begin with, ``Learners`` of parameters.
        rounds: how many.
        frozen: for the policy's ``init``.
        **settings: as of ``algorithm``.

    Returns:
        The last state, whose ``params`` are ``Learners`` of states, and the metrics of all rounds,
        ``float32[rounds]`` each.

    >>> import optax
    >>> from functools import partial
    >>> from rlhf_jax import algorithms, humans, worlds
    >>> world = worlds.bandit(jnp.array([0.0, 1.0, 2.0]))
    >>> pipeline = Pipeline(
    ...     query=world.pairs(64),
    ...     human=humans.boltzmann(world.utility),
    ...     reward=algorithms.reward_model(world.score_fn, optax.adam(0.1)),
    ...     policy=world.exact(beta=0.5),
    ... )
    >>> start = Learners(world.reference, jnp.zeros(3))
    >>> settings = dict(rounds=2, reward_steps=50, policy_steps=1, prompts=world.prompts(1))
    >>> whole = partial(run, pipeline, params=start, **settings)
    >>> states, history = jax.jit(jax.vmap(whole))(jax.random.split(jax.random.key(0), 8))
    >>> states.params.policy.params.shape, history["labels"][0].tolist()
    ((8, 3), [64.0, 128.0])
    """
    init, step = algorithm(pipeline, **settings)
    return jax.lax.scan(lambda s, _: step(s), init(params, key, **(frozen or {})), length=rounds)


def _told(policy: TrainState, reward: Params) -> TrainState:
    """The policy's state with the reward model's newest parameters."""
    for field in ("reward", "judge"):
        if field in getattr(policy.frozen, "_fields", ()):
            return policy.replace(frozen=policy.frozen._replace(**{field: reward}))
    raise ValueError(
        "the policy's frozen must have a field reward or judge, not be "
        f"{type(policy.frozen).__name__}: a method that learns from feedback has no reward model"
    )
