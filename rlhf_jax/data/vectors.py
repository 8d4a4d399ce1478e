"""Word vectors from unlabelled text, by counting which words stand near each other."""

import numpy as np
import scipy.sparse
import scipy.sparse.linalg

__all__ = ["word_vectors"]


def word_vectors(
    tokens: np.ndarray,
    mask: np.ndarray,
    *,
    vocab_size: int,
    width: int = 64,
    window: int = 4,
    special_tokens: int = 4,
) -> np.ndarray:
    r"""Truncated singular vectors of the positive pointwise mutual information of words.

    .. math:: M_{ij} = \max\left(0, \log \frac{p(i, j)}{p(i)\, p(j)^{3/4}/Z}\right) \approx U S V^T,
              \qquad e_i \propto (U S^{1/2})_i

    Args:
        tokens: ``int[N, T]``.
        mask: ``bool[N, T]``.
        vocab_size: ``V``.
        width: ``F``, how many singular vectors.
        window: how far apart two words still count as near.
        special_tokens: token ids below this get zeros.

    Returns:
        ``float32[V, F]``, rows of length 1, or 0 for words not seen. The same on every call.

    Raises:
        ValueError: if the shapes differ or there are fewer words than ``width`` asks for.

    Reference: Levy and Goldberg 2014, "Neural word embedding as implicit matrix factorization",
    NeurIPS; the exponent, Levy, Goldberg and Dagan 2015, TACL 3

    >>> tokens = np.array([[4, 5, 6], [4, 5, 7], [8, 9, 6]])
    >>> word_vectors(tokens, np.ones([3, 3], bool), vocab_size=10, width=2).shape
    (10, 2)
    """
    if tokens.shape != mask.shape or tokens.ndim != 2:
        raise ValueError(f"tokens and mask must be [N, T] alike: {tokens.shape}, {mask.shape}")
    if not 0 < width < vocab_size:
        raise ValueError(f"width must be between 1 and {vocab_size - 1}, not {width}")
    counted = mask & (tokens >= special_tokens)
    shape = (vocab_size, vocab_size)
    near = scipy.sparse.csr_matrix(shape)
    for apart in range(1, min(window, tokens.shape[1] - 1) + 1):
        both = counted[:, :-apart] & counted[:, apart:]
        pair = (tokens[:, :-apart][both], tokens[:, apart:][both])
        near = near + scipy.sparse.csr_matrix((np.ones(len(pair[0])), pair), shape)
    near = (near + near.T).tocoo()
    often = np.asarray(near.sum(axis=1)).ravel()
    context = often**0.75 / max((often**0.75).sum(), 1e-9)
    information = np.log(near.data / (often[near.row] * context[near.col]))
    kept = information > 0
    entries = (information[kept], (near.row[kept], near.col[kept]))
    matrix = scipy.sparse.csr_matrix(entries, shape)
    # A singular vector is unique up to its sign: turned to the side of a fixed direction, which is
    # also where the iteration starts, it is the same every time. A symmetric direction such as
    # all ones would be orthogonal to some of them, and leave their sign to rounding.
    direction = np.random.default_rng(0).standard_normal(vocab_size)
    left, singular, _ = scipy.sparse.linalg.svds(matrix, width, v0=direction)
    vectors = left * np.sign(direction @ left) * np.sqrt(np.maximum(singular, 0))
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.maximum(length, 1e-6) * (length > 1e-6)).astype(np.float32)
