"""Any algorithm many times over, as one vmapped program: ensembles, seeds, sweeps."""

import jax
import jax.numpy as jnp

from rlhf_jax import trees
from rlhf_jax.algorithms.common import check_stacked
from rlhf_jax.types import Algorithm, Batch, Key, Metrics, Params, PyTree, TrainState

__all__ = ["ensemble"]


def ensemble(
    algorithm: Algorithm,
    members: int,
    *,
    own_batches: bool = False,
    own_frozen: bool = False,
    same_draws: bool = False,
    trainable: trees.Patterns | None = None,
) -> Algorithm:
    r"""Trains ``M`` copies side by side, which share nothing but the program.

    .. math:: s_m^{t+1} = f(s_m^t, x_m^t) \quad \text{for } m = 1 \dots M

    The members of an ensemble of reward models differ in where they start, in what is drawn in a
    step (dropout, samples), and, with ``own_batches``, in the order or the choice of their data.
    With ``own_frozen`` they differ in what they are trained on: policies for several weights of
    several rewards (a Pareto front) are one program.

    Args:
        algorithm: any; built without an ``axis_name`` or with one, as for a single member.
        members: ``M``.
        own_batches: whether a batch is ``[M, B, ...]``, one for each member, as ``data.stacked``
            makes it; by default all see the same. On a mesh ``parallel.shard_step`` then needs
            ``batch_axis=1``.
        own_frozen: whether frozen networks are ``[M, ...]`` too; by default they are shared and
            stored once.
        same_draws: whether all members draw with one key, so that only what they are made of and
            trained on tells them apart.
        trainable: the ``trainable`` that ``algorithm`` was built with, if the rest of the
            parameters is to be shared and stored once: only what matches is then ``[M, ...]``.

    Returns:
        An ``Algorithm``. ``init(params, key, **frozen)``: the parameters are ``[M, ...]``, as from
        ``jax.vmap(model.init)(jax.random.split(key, M))``; a keyword of ``init`` is ``[M, ...]``
        only if ``own_frozen``. Each metric is the members' mean, and ``skipped`` the most of any:
        a member whose step is not finite keeps its own state, alone. A member's parameters are
        ``jax.tree.map(lambda x: x[m], state.params)``.

    Raises:
        ValueError: if ``members`` is not positive, the parameters (or the batch, the frozen
            networks) are not of ``M`` members, a frozen network would be each member's own although
            ``own_frozen`` is false, or the algorithm trains what is to be shared.

    Reference: as a guard against overoptimisation, Coste et al. 2023,
    https://arxiv.org/abs/2310.02743

    >>> import optax
    >>> from rlhf_jax.algorithms import reward_model
    >>> score_fn = lambda params, tokens, mask: params * jnp.sum(tokens * mask, axis=-1)
    >>> five = ensemble(reward_model(score_fn, optax.sgd(0.1)), 5)
    >>> five.init(jnp.arange(5.0), jax.random.key(0)).params.shape
    (5,)
    """
    if members < 1:
        raise ValueError(f"members must be at least 1, not {members}")

    def of_members(**trees: PyTree) -> None:
        check_stacked(members, "one a member", **trees)

    def keys(key: Key) -> Key:
        if same_draws:
            return jnp.broadcast_to(key, (members,))
        return jax.vmap(lambda m: jax.random.fold_in(key, m))(jnp.arange(members))

    def axes_of(params: Params) -> TrainState:
        """How the fields of a state are laid out: what is None is shared by all."""
        return TrainState(
            step=None,
            key=0,
            params=trees.axes(params, trainable, name="trainable"),
            opt_state=0,
            frozen=0 if own_frozen else None,
            extra=0,
            skipped=0,
        )

    def init(params: Params, key: Key, **frozen: PyTree) -> TrainState:
        of_members(params=trees.split(params, trainable, name="trainable")[0])
        if own_frozen:
            of_members(**frozen)

        axes = axes_of(params)
        layout = (axes.params, 0, 0 if own_frozen else None)
        start = jax.vmap(lambda p, k, f: algorithm.init(p, k, **f), layout, axes)
        try:
            state = start(params, keys(key), frozen)
        except ValueError as error:
            if "out_axes" not in str(error):
                raise
            raise ValueError(
                "a frozen network is made of each member's own parameters (a reference that was "
                "not given): give it by keyword, or say own_frozen=True"
            ) from None
        return state.replace(key=key)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        if own_batches:
            of_members(batch=batch)
        inner = state.replace(key=keys(state.key))
        axes = axes_of(state.params)
        one = jax.vmap(algorithm.step, (axes, 0 if own_batches else None), (axes, 0))
        try:
            after, metrics = one(inner, batch)
        except ValueError as error:
            if "out_axes" not in str(error):
                raise
            raise ValueError(
                "the algorithm trains parameters that its members are to share: build it with "
                "the same trainable as the ensemble"
            ) from None
        metrics = {name: jnp.mean(values, axis=0) for name, values in metrics.items()}
        metrics["skipped"] = jnp.max(after.skipped).astype(jnp.float32)
        return after.replace(key=state.key), metrics

    return Algorithm(init, step)
