"""Feedback from other feedback: rows by hand, padded on either side, compiled (doctests: not)."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys

from rlhf_jax import data, losses
from rlhf_jax.types import Preferences, Rated, Sequences

ROWS, LENGTH = 4, 8  # one shape, so that little is compiled


def text(*rows):
    """A dot is padding, which holds junk; what follows the bar is the response."""
    rows += ("|",) * (ROWS - len(rows))
    starts = np.array([row.index("|") for row in rows])[:, None]
    letters = np.array([list(row.replace("|", "").ljust(LENGTH, ".")) for row in rows])
    codes, mask = letters.view(np.int32), letters != "."
    junk = 99_000 + np.arange(LENGTH)
    response = mask & (np.arange(LENGTH) >= starts)
    return Sequences(np.where(mask, codes, junk).astype(np.int32), mask, response)


def read(sequences):
    """As ``text``, but with each token of the response in brackets, up to the last row of text."""
    rows = []
    for row in zip(sequences.tokens, sequences.mask, sequences.response_mask, strict=True):
        letters = [(chr(t) if m else ".", r) for t, m, r in zip(*map(np.asarray, row), strict=True)]
        assert all(x != "." for x, r in letters if r)
        rows.append("".join(f"[{x}]" if r else x for x, r in letters).rstrip("."))
    while not rows[-1]:
        rows.pop()
    return rows


LEFT = text("..ab|CDE", "...c|FG", "....|....", "xyzw|H")
mismatched = jax.jit(data.mismatched)


@pytest.mark.parametrize(
    ("sequences", "expected"),
    [
        # the row of padding lends nothing: the second gets what the fourth has
        (LEFT, ["..ab[F][G]", "...c[H]", "", "xyzw[C][D][E]"]),
        (text("ab|CDE", "c|FG", "|", "xyzw|H"), ["ab[F][G]", "c[H]", "", "xyzw[C][D][E]"]),
        (text("ab|CDEFGH", "cdefgh|IJ"), ["ab[I][J]", "cdefgh[C][D]"]),  # cut
        (text("|", "..ab|C"), ["", "..ab[C]"]),  # its own partner
        # a gap before the response is closed, as nothing that counts would predict its first token
        (text(".a..|BC", "b.d.|E"), [".a[E]", "b.d[B][C]"]),
        (text("|AB", "|C"), ["[C]", "[A][B]"]),  # no prompts
        (text("ab|C", "cd|", "ef|G"), ["ab[G]", "cd", "ef[C]"]),  # a prompt alone
        (text("|"), []),
    ],
)
def test_each_prompt_with_the_next_response(sequences, expected):
    mixed = mismatched(sequences)
    assert (mixed.tokens.dtype, mixed.mask.dtype) == (jnp.int32, bool)
    if not expected:
        chex.assert_trees_all_equal(mixed, sequences)
    else:
        assert read(mixed) == expected
    assert mixed.log_probs is None


def test_a_response_is_moved_with_the_words_of_others_in_it():
    sequences = text("a|BcD", "xy|Z")
    sequences.response_mask[0, 2] = False
    assert read(mismatched(sequences)) == ["a[Z]", "xy[B]c[D]"]


def test_the_responses_are_those_of_the_batch():
    """Where none is cut: the same tokens, in other rows, and prompts as they were."""
    mixed = mismatched(LEFT)
    for kind in (lambda x: x.response_mask, lambda x: x.mask & ~x.response_mask):
        before, after = LEFT.tokens[kind(LEFT)], np.asarray(mixed.tokens)[kind(mixed)]
        np.testing.assert_array_equal(np.sort(before), np.sort(after))


def pairs(**settings):
    return Preferences(text("ab|C", "c|DE"), text("ab|F", "c|G"), **settings)


unpaired = jax.jit(data.unpaired, static_argnames="unrelated")


def test_unpaired_pairs():
    rated = unpaired(pairs())
    assert read(rated.sequences) == ["ab[C]", "c[D][E]", "", "", "ab[F]", "c[G]"]
    np.testing.assert_array_equal(rated.ratings, [True] * 4 + [False] * 4)
    assert rated.unrelated is None


def test_unrelated_rows_are_the_mismatched():
    rated = unpaired(pairs(), unrelated=True)
    assert read(rated.unrelated) == ["ab[D][E]", "c[F]", "", "", "ab[G]", "c[C]"]
    assert read(rated.sequences) == ["ab[C]", "c[D][E]", "", "", "ab[F]", "c[G]"]


def test_of_a_tie_neither_side_is_good_or_bad():
    tied = np.array([True, False, False, False])
    rated = unpaired(pairs(tied=tied), unrelated=True)
    assert read(rated.sequences) == ["abC", "c[D][E]", "", "", "abF", "c[G]"]
    # nor is it what another prompt is answered with
    assert read(rated.unrelated) == ["abC", "c[G]", "", "", "abF", "c[D][E]"]


def test_log_probs_stay_with_the_text_they_were_sampled_with():
    chosen, rejected = pairs().chosen, pairs().rejected
    sampled = chosen.replace(log_probs=np.ones([ROWS, LENGTH], np.float32))
    assert data.unpaired(Preferences(sampled, rejected)).sequences.log_probs is None
    rated = unpaired(Preferences(sampled, sampled), unrelated=True)
    assert rated.sequences.log_probs.shape == (2 * ROWS, LENGTH)
    assert rated.unrelated.log_probs is None
    told = told_of(Rated(sampled, np.ones(ROWS, bool)))
    np.testing.assert_array_equal(told.log_probs, [[0] + [1] * LENGTH] * ROWS)


@jax.jit
def told_of(rated, threshold=0.0):
    return data.with_control_tokens(rated, good_id=ord("+"), bad_id=ord("-"), threshold=threshold)


@pytest.mark.parametrize(
    ("ratings", "threshold"),
    [
        ([True, False, True, True], 0.0),  # False is not good, although 0 is not below 0
        ([0.5, 0.4, 0.9, 0.5], 0.5),
        ([3, 2, 4, 3], 3),
        ([0.0, -0.1, np.nan, 1.0], 0.0),
    ],
)
@pytest.mark.parametrize(
    ("sequences", "expected"),
    [
        (text("..ab|CD", "...c|E", "|", "ab|"), ["..+ab[C][D]", "...-c[E]", "", "+ab"]),
        (text("ab|CDEFGH", "c|E", "|", "|"), ["+ab[C][D][E][F][G][H]", "-c[E]"]),
        (text("|ABC", "...|A", "|", "|"), ["+[A][B][C]", "...-[A]"]),
    ],
)
def test_control_tokens_stand_before_the_text(sequences, expected, ratings, threshold):
    told = told_of(Rated(sequences, np.array(ratings)), threshold)
    assert read(told) == expected
    assert (told.tokens.dtype, told.tokens.shape) == (jnp.int32, (ROWS, LENGTH + 1))
    control = np.isin(told.tokens, [ord("+"), ord("-")]) & told.mask
    np.testing.assert_array_equal(data.control_positions(told), control)
    np.testing.assert_array_equal(control.sum(axis=-1), sequences.mask.any(axis=-1))


def test_rankings_from_ratings():
    batch = jax.tree.map(lambda x: x.reshape(2, 3, -1), toys.sequences(6))
    ratings = jnp.array([[0.1, 0.9, 0.5], [2.0, 2.0, 3.0]])
    order = data.ranked(batch, ratings)
    np.testing.assert_array_equal(order.rankings, [[1, 2, 0], [2, 0, 1]])  # the first of equals
    chex.assert_trees_all_equal(order.sequences, batch)
    np.testing.assert_array_equal(losses.rrhf(ratings, order.rankings), [0, 0])
    whole = data.ranked(batch, jnp.array([[1, 9, 5], [2, 2, 3]]))
    np.testing.assert_array_equal(whole.rankings, order.rankings)


def test_what_does_not_fit_is_refused():
    batch = jax.tree.map(lambda x: x.reshape(2, 2, LENGTH), LEFT)
    one, shorter = (jax.tree.map(cut, LEFT) for cut in (lambda x: x[:1], lambda x: x[:, 1:]))
    rated, codes = Rated(LEFT, np.zeros(ROWS)), {"good_id": 1, "bad_id": 2}
    for refused, message in [
        (lambda: data.mismatched(one), r"at least 2 rows to mix, not \[1, 8\]"),
        (lambda: data.mismatched(LEFT.replace(mask=shorter.mask)), "tokens and mask and .* shape"),
        (lambda: data.mismatched(batch), r"tokens must be of rank 2, not \[2, 2, 8\]"),
        (lambda: data.unpaired(Preferences(LEFT, shorter)), "chosen and rejected must have one"),
        (lambda: data.unpaired(pairs(tied=np.zeros(4, int))), "tied must be boolean, not int"),
        (
            lambda: data.unpaired(pairs(tied=np.zeros(3, bool))),
            r"tied must have the shape \(4,\), not \(3,\)",
        ),
        (
            lambda: data.with_control_tokens(rated.replace(ratings=np.zeros([4, 8])), **codes),
            r"ratings must have the shape \(4,\), not \(4, 8\)",
        ),
        (
            lambda: data.with_control_tokens(rated, good_id=3, bad_id=3),
            "good_id and bad_id must differ, not both be 3",
        ),
        (lambda: data.ranked(LEFT, np.zeros([4, 8])), r"tokens must be of rank 3, not \[4, 8\]"),
        (
            lambda: data.ranked(batch, np.zeros([4, 2])),
            r"ratings must have the shape \(2, 2\), not \(4, 2\)",
        ),
        (lambda: data.control_positions(batch), "tokens must be of rank 2"),
    ]:
        with pytest.raises(ValueError, match=message):
            refused()
