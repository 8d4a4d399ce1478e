"""Attention over several blocks of keys, some of them shared, by each implementation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.models import attention
from rlhf_jax.models.attention import KeyBlock, attend

RNG = np.random.default_rng(0)
QUERIES = RNG.normal(size=[4, 2, 6, 8]).astype(np.float32)  # B, S, H, D


def block(rows, columns):
    keys, values = RNG.normal(size=[2, rows, 3, columns, 8]).astype(np.float32)
    seen = RNG.random([4, 2, columns]) < 0.7
    seen[..., 0] = True
    return KeyBlock(keys, values, seen)


def by_hand(blocks, scale, softcap):
    """One query at a time."""
    out = np.zeros(QUERIES.shape)
    for row, step, head in np.ndindex(QUERIES.shape[:3]):
        scores, values = [], []
        for keys, what, seen in blocks:
            own = row // (len(QUERIES) // len(keys)), head // 2
            scores.append(np.where(seen[row, step], keys[own] @ QUERIES[row, step, head], -np.inf))
            values.append(what[own])
        raw = np.concatenate(scores) * scale
        raw = raw if softcap is None else softcap * np.tanh(raw / softcap)
        raw = np.where(np.isinf(np.concatenate(scores)), -np.inf, raw)
        weights = np.exp(raw - raw.max())
        out[row, step, head] = (weights / weights.sum()) @ np.concatenate(values)
    return out.reshape(4, 2, 48)


def test_blocks_shared_by_several_rows_are_normalised_together():
    blocks = [block(2, 5), block(4, 3)]
    for softcap in (None, 1.5):
        out = attend(QUERIES, blocks, scale=0.4, softcap=softcap)
        np.testing.assert_allclose(out, by_hand(blocks, 0.4, softcap), atol=1e-5)


def test_the_implementation_of_jax_is_the_same_mathematics():
    one = [block(4, 6)]
    plain, theirs = (attend(QUERIES, one, scale=0.4, implementation=i) for i in ("einsum", "xla"))
    np.testing.assert_allclose(theirs, plain, atol=1e-5)


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ({}, "cudnn"),
        ({"backend": "cpu"}, None),
        ({"dtype": jnp.float32}, None),
        ({"columns": 5}, None),
        ({"softcap": 2.0}, None),
        ({"blocks": 2, "columns": 3}, "cudnn"),  # put together
        ({"blocks": 2, "columns": 3, "new": 1}, None),  # one more token
    ],
)
def test_cudnn_is_used_where_it_can_be(case, expected, monkeypatch):
    case = {"backend": "gpu", "dtype": jnp.bfloat16, "columns": 6, "blocks": 1, "new": 2} | case
    asked = []

    def instead(queries, keys, values, **settings):
        asked.append(settings["implementation"])
        assert keys.shape == values.shape == (4, 6, 3, 8)
        return queries

    monkeypatch.setattr(jax.nn, "dot_product_attention", instead)
    monkeypatch.setattr(attention.jax, "default_backend", lambda: case["backend"])
    queries = jnp.asarray(QUERIES, case["dtype"])[:, : case["new"]]
    blocks = [block(4, case["columns"]) for _ in range(case["blocks"])]
    blocks = [x._replace(seen=x.seen[:, : case["new"]]) for x in blocks]
    out = attend(queries, blocks, scale=1.0, softcap=case.get("softcap"))
    assert out.shape == (4, case["new"], 48)
    assert asked == ([] if expected is None else [expected])
