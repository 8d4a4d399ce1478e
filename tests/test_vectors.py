"""Word vectors: words used alike come out alike."""

import numpy as np
import pytest

from rlhf_jax.data import word_vectors


def test_words_in_the_same_places_have_the_same_vectors():
    """4 and 5 stand before 8, 6 and 7 before 9; every context is otherwise the same."""
    rng = np.random.default_rng(0)
    first = rng.integers(4, 8, 4000)
    tokens = np.stack([first, np.where(first < 6, 8, 9), rng.integers(10, 14, 4000)], axis=1)
    mask = np.ones(tokens.shape, bool)
    vectors = word_vectors(tokens, mask, vocab_size=16, width=3)
    alike = vectors @ vectors.T
    assert alike[4, 5] > 0.95
    assert alike[6, 7] > 0.95
    assert abs(alike[4, 6]) < 0.5
    np.testing.assert_array_equal(vectors[[0, 1, 2, 3, 14, 15]], 0)
    np.testing.assert_allclose(np.linalg.norm(vectors[4:14], axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(vectors, word_vectors(tokens, mask, vocab_size=16, width=3))


def test_what_is_masked_does_not_count():
    tokens = np.array([[4, 5, 6, 9, 9], [4, 5, 7, 9, 9], [8, 5, 6, 9, 9]])
    mask = np.arange(5) < 3 * np.ones([3, 1])
    padded = word_vectors(tokens, mask, vocab_size=10, width=2)
    np.testing.assert_allclose(
        padded, word_vectors(tokens[:, :3], mask[:, :3], vocab_size=10, width=2), atol=1e-6
    )


def test_bad_arguments_are_named():
    tokens = np.ones([2, 3], np.int32)
    with pytest.raises(ValueError, match="tokens and mask must be"):
        word_vectors(tokens, tokens[:1] > 0, vocab_size=9)
    with pytest.raises(ValueError, match="width must be between 1 and 8, not 64"):
        word_vectors(tokens, tokens > 0, vocab_size=9)
