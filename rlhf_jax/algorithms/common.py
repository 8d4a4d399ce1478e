"""What all algorithms share: a state, a global mean's gradient, and an update that may be skipped.

A loss is a sum of terms, each a weight times an undivided ``Mean``. Its gradient divides the sum
by the *global* count, so unequal masks on several devices, or in several minibatches, give the
numbers of one device: never a mean of means. Under ``jax.jit`` on a mesh nothing is needed for
that. Under ``jax.pmap`` the counts, and then the gradients, are summed over ``axis_name``.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from rlhf_jax import trees
from rlhf_jax.algorithms.partial import split_trainable
from rlhf_jax.sequences import Mean
from rlhf_jax.types import Key, Metrics, Params, PyTree, TrainState

__all__ = [
    "Objective",
    "Term",
    "advance",
    "all_finite",
    "check_stacked",
    "cut",
    "descended",
    "divided",
    "gradients",
    "new_state",
    "over_devices",
    "row_keys",
    "rows_mean",
    "updated",
    "updated_if_finite",
]


class Term(NamedTuple):
    """One term of a loss: ``weight * mean``."""

    weight: float | jax.Array
    mean: Mean


# params (and, if gradients are given one, a batch) -> the loss's terms by name, and further means
# to report
Objective = Callable[..., tuple[dict[str, Term], dict[str, Mean]]]


def over_devices(tree: PyTree, axis_name: str | None) -> PyTree:
    """Sums over the devices of a pmapped axis; the identity without one."""
    return tree if axis_name is None else jax.lax.psum(tree, axis_name)


def divided(means: dict[str, Mean], axis_name: str | None) -> Metrics:
    """Global means, 0 where nothing counts."""
    means = over_devices(means, axis_name)
    return {name: total / jnp.maximum(count, 1e-9) for name, (total, count) in means.items()}


def rows_mean(values: jax.Array, valid: jax.Array, weight: jax.Array | None = None) -> Mean:
    """Mean of ``values`` over the entries that count, each as much as its weight (of one shape)."""
    weight = jnp.float32(1) if weight is None else weight.astype(jnp.float32)
    return Mean(jnp.sum(jnp.where(valid, values * weight, 0)), jnp.sum(jnp.where(valid, weight, 0)))


def gradients(
    objective: Objective,
    params: Params,
    axis_name: str | None,
    *,
    batch: PyTree = None,
    accumulate: int = 1,
    has_aux: bool = False,
) -> tuple[PyTree, ...]:
    """Gradient of the global loss, and the metrics.

    Args:
        objective: the terms of the loss and further means, as functions of the parameters and, if
            there is one, of the batch.
        params: where to take the gradient.
        axis_name: the pmapped axis, if any.
        batch: arrays ``[B, ...]``, if the objective is to have them from here.
        accumulate: into how many parts the batch is cut, which are read one after the other: as
            much less memory for activations, and to rounding the same numbers, since all parts are
            divided by the count of the whole. What the objective says of a row must depend on no
            other row, and its counts not on the parameters, or they cost a forward pass.
        has_aux: whether the objective returns a third thing, which is handed on as it is (of parts,
            their sum).

    Returns:
        The gradient, and the metrics: ``loss``, its terms if there are several, ``grad_norm`` and
        the further means. With ``has_aux`` that third thing too.

    Raises:
        ValueError: if the batch cannot be cut so.
    """

    def share(params: Params, *batch: PyTree, counts=None) -> tuple[jax.Array, tuple[PyTree, ...]]:
        terms, further, *aux = objective(params, *batch)
        weights = {name: term.weight for name, term in terms.items()}
        means = {name: term.mean for name, term in terms.items()}
        if counts is None:
            counts = {name: jax.lax.stop_gradient(mean.count) for name, mean in means.items()}
            counts = over_devices(counts, axis_name)
        loss = sum(
            weights[name] * mean.total / jnp.maximum(counts[name], 1e-9)
            for name, mean in means.items()
        )
        return loss, (means, {"loss": loss}, further, aux)

    if accumulate == 1:
        found = jax.grad(share, has_aux=True)(params, *([] if batch is None else [batch]))
    else:
        found = _in_parts(share, params, cut(batch, accumulate), axis_name)
    gradient, (means, loss, further, aux) = found
    gradient, loss = over_devices((gradient, loss), axis_name)
    metrics = loss | divided(further, axis_name)
    if len(means) > 1:
        metrics |= divided({f"{name}_loss": mean for name, mean in means.items()}, axis_name)
    metrics |= {"grad_norm": optax.tree.norm(gradient)}
    return (gradient, metrics, *aux) if has_aux else (gradient, metrics)


def cut(batch: PyTree, parts: int) -> PyTree:
    """``[B, ...]`` to ``[parts, B / parts, ...]``, every ``parts``-th row to the same one.

    So each part takes as much from every device's share of the rows, and nothing travels.

    Raises:
        ValueError: if it does not come out even.
    """
    if parts < 1:
        raise ValueError(f"accumulate must be at least 1, not {parts}")
    if batch is None:
        raise ValueError("accumulate cuts a batch, but there is none")

    def cut_array(x):
        if x.shape[0] % parts:
            raise ValueError(f"accumulate={parts} must divide the batch's {x.shape[0]} rows")
        return jnp.moveaxis(jnp.reshape(x, (-1, parts, *x.shape[1:])), 1, 0)

    return jax.tree.map(cut_array, batch)


def _in_parts(share, params, parts, axis_name):
    """``jax.grad`` of the share, summed over the parts; and what else they report, likewise."""

    def summed(read):
        shapes = jax.eval_shape(read, jax.tree.map(lambda x: x[0], parts))
        zeros = jax.tree.map(
            lambda x: jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32)), shapes
        )
        return jax.lax.scan(
            lambda total, part: (jax.tree.map(jnp.add, total, read(part)), None), zeros, parts
        )[0]

    def counted(part):
        # Nothing but the counts is used, so the compiler leaves the model out.
        means = share(params, part)[1][0]
        return {name: mean.count for name, mean in means.items()}

    counts = over_devices(summed(counted), axis_name)
    found = jax.grad(partial(share, counts=counts), has_aux=True)
    gradient, reported = summed(partial(found, params))
    return jax.tree.map(lambda x, like: x.astype(like.dtype), gradient, params), reported


def check_stacked(count: int, why: str, **trees: PyTree) -> None:
    """Every array of these trees is ``[count, ...]``; else a ``ValueError`` that says which not."""
    for name, tree in trees.items():
        for path, leaf in jax.tree.leaves_with_path(tree):
            if jnp.shape(leaf)[:1] != (count,):
                where = f"{name}{jax.tree_util.keystr(path)}"
                found = f"{list(jnp.shape(leaf))}"
                raise ValueError(f"{where} must be [{count}, ...], {why}, not {found}")


def row_keys(key: Key, rows: int, axis_name: str | None) -> Key:
    """One key for each row of the global batch, the same on one device as on several.

    Args:
        key: the step's.
        rows: how many rows this device holds.
        axis_name: the pmapped axis, if any.

    Returns:
        ``key[rows]``.
    """
    start = 0 if axis_name is None else jax.lax.axis_index(axis_name) * rows
    return jax.vmap(lambda row: jax.random.fold_in(key, row))(start + jnp.arange(rows))


def new_state(
    params: Params,
    optimizer: optax.GradientTransformation,
    key: Key,
    *,
    frozen: PyTree = (),
    extra: PyTree = (),
    trainable: trees.Patterns | None = None,
) -> TrainState:
    """A state before its first step.

    Args:
        params: the parameters.
        optimizer: its ``init`` makes the optimiser state, of what trains.
        key: a typed key, as from ``jax.random.key``.
        frozen: parameters that are used and never trained.
        extra: the algorithm's own state.
        trainable: what trains; ``None`` for all.

    Returns:
        A ``TrainState``.

    Raises:
        ValueError: if ``key`` is an old-style ``uint32[2]`` key, or ``trainable`` matches nothing.
    """
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        raise ValueError("key must be a typed key: jax.random.key(seed), not jax.random.PRNGKey")
    return TrainState(
        step=jnp.int32(0),
        key=key,
        params=params,
        opt_state=optimizer.init(split_trainable(params, trainable)[0]),
        frozen=frozen,
        extra=extra,
        skipped=jnp.int32(0),
    )


def updated(
    optimizer: optax.GradientTransformation, gradient: PyTree, params: Params, opt_state: PyTree
) -> tuple[Params, PyTree]:
    """One optimiser step."""
    updates, opt_state = optimizer.update(gradient, opt_state, params)
    return optax.apply_updates(params, updates), opt_state


def all_finite(metrics: Metrics) -> jax.Array:
    """Whether a step with these metrics counts: ``bool[]``."""
    return jnp.all(jnp.stack([jnp.isfinite(value) for value in metrics.values()]))


@partial(jax.jit, static_argnums=0)  # For those who take a step op by op: traced only once.
def updated_if_finite(
    optimizer: optax.GradientTransformation,
    gradient: PyTree,
    params: Params,
    opt_state: PyTree,
    metrics: Metrics,
) -> tuple[Params, PyTree]:
    """``updated``, or what there was if a metric is not finite.

    To choose between two results element by element would take as long again as the optimiser, and
    copies of its moments: both old and new must be there at once.
    """
    return jax.lax.cond(
        all_finite(metrics),
        lambda: updated(optimizer, gradient, params, opt_state),
        lambda: (params, opt_state),
    )


def advance(
    state: TrainState,
    metrics: Metrics,
    *,
    params: Params,
    opt_state: PyTree,
    extra: PyTree = (),
    watched: Metrics | None = None,
    checked: bool = False,
) -> tuple[TrainState, Metrics]:
    """The next state; if a metric is not finite, the old one with the step counted as skipped.

    Args:
        state: before the step.
        metrics: the step's; ``skipped``, how many in a row were skipped, is added.
        params: after the step; what does not train must be the very arrays of ``state``.
        opt_state: after the step.
        extra: after the step.
        watched: further metrics, which may be what they like.
        checked: whether ``params`` and ``opt_state`` are of ``updated_if_finite``, by the same
            metrics.

    Returns:
        The state after the step and the metrics, as ``float32[]``.
    """
    finite = all_finite(metrics)

    def kept(after: PyTree, before: PyTree) -> PyTree:
        return jax.tree.map(lambda a, b: b if a is b else jnp.where(finite, a, b), after, before)

    if not checked:
        params, opt_state = kept((params, opt_state), (state.params, state.opt_state))
    skipped = jnp.where(finite, 0, state.skipped + 1)
    state = state.replace(
        step=state.step + 1,
        params=params,
        opt_state=opt_state,
        extra=kept(extra, state.extra),
        skipped=skipped,
    )
    metrics = metrics | (watched or {}) | {"skipped": skipped}
    return state, {name: value.astype(jnp.float32) for name, value in metrics.items()}


def descended(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    *,
    axis_name: str | None,
    trainable: trees.Patterns | None = None,
    batch: PyTree = None,
    accumulate: int = 1,
) -> tuple[TrainState, Metrics]:
    """The state after one update of what trains; the gradient is of nothing else.

    Args:
        objective: of all parameters, and of the batch if there is one.
        optimizer: as of ``new_state``.
        state: before the step.
        axis_name: the pmapped axis, if any.
        trainable: as of ``new_state``.
        batch: as of ``gradients``.
        accumulate: as of ``gradients``.

    Returns:
        As ``advance``.
    """
    trained, rest = split_trainable(state.params, trainable)
    gradient, metrics = gradients(
        lambda t, *b: objective(trees.join(t, rest), *b),
        trained,
        axis_name,
        batch=batch,
        accumulate=accumulate,
    )
    trained, opt_state = updated_if_finite(optimizer, gradient, trained, state.opt_state, metrics)
    params = trees.join(trained, rest)
    return advance(state, metrics, params=params, opt_state=opt_state, checked=True)
