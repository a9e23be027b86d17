"""What a head's weights do before any token comes: the circuit of queries and keys, which matches, and that of values, which moves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from qkvc._coerce import as_count, bad
from qkvc.analysis._given import check_layer
from qkvc.analysis.rank import rank_of_spectrum
from qkvc.rotary import rope

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from qkvc.multihead import MultiHeadAttention

    Reals = NDArray[np.float64]


class Circuits(NamedTuple):
    """What `circuits` returns, in float64; r is the least of D and the widths."""

    qk: Reals  # (H, r): singular values of W_Q^T W_K, falling
    ov: Reals  # (H, r): of W_O W_V
    qk_rank: Reals  # (H,): effective rank, 1 to r
    ov_rank: Reals
    qk_positive: Reals | None  # (H,): -1 to 1, sum of eigenvalues over sum of their sizes; None where the widths differ
    ov_positive: Reals | None
    key_bias: Reals | None  # (H, kdim): W_K^T b_Q, added to every query's score of x_j as its product with x_j
    query_bias: Reals | None  # (H, E): W_Q^T b_K, likewise of x_i: the same for all keys, so softmax drops it
    value_bias: Reals | None  # (H, E): W_O b_V, brought to a query whatever it attends to, as weights sum to 1


def _singular(left: Reals, right: Reals) -> Reals:
    """Singular values of left^T right, (D, E) and (D, F): with left^T = Q1 R1 and right^T = Q2 R2 they are those of R1 R2^T."""
    r1, r2 = (np.asarray(np.linalg.qr(x.swapaxes(-1, -2), mode="r")) for x in (left, right))
    return np.asarray(np.linalg.svd(r1 @ r2.swapaxes(-1, -2), compute_uv=False))


def _positive(left: Reals, right: Reals) -> Reals | None:
    """Of left^T right, E x E: its eigenvalues that are not 0 are those of right left^T, D x D."""
    if left.shape[-1] != right.shape[-1]:
        return None
    values = np.linalg.eigvals(right @ left.swapaxes(-1, -2))
    size = np.abs(values).sum(-1)
    return np.asarray(np.divide(values.real.sum(-1), size, out=np.zeros(len(size)), where=size > 0))


def circuits(attention: MultiHeadAttention, *, offset: int = 0) -> Circuits:
    """The two circuits of every head, W_Q^T W_K and W_O W_V, by their singular and eigenvalues.

    Both are E x E matrices of rank D at most and are never formed: QR of the factors leaves products of D x D.

    Parameters
    ----------
    attention : MultiHeadAttention
        Heads of a group share W_K and W_V.
    offset : int, default 0
        With `rope`, how many positions the key stands before the query: the circuit is W_Q^T R W_K, R the rotation between them.

    Returns
    -------
    Circuits
        Singular values (H, r) of `qk` and `ov`, falling; effective ranks `qk_rank` and `ov_rank`, exp of the entropy of normalised singular
        values, 0 (a zero matrix) or 1 to r; `qk_positive` and `ov_positive`, sum of eigenvalues over sum of their sizes, -1 to 1, None
        where the matrix is not square: near 1 a head whose OV circuit copies (what it reads raises itself), or whose QK circuit looks for
        what is like the query.  And what the biases add: `key_bias`, `query_bias` and `value_bias`, None where there are none.

    Raises
    ------
    ValueError, TypeError
        An offset that is no integer of 0 or more; one that is not 0 where there is no `rope`.

    Notes
    -----
    A score is ``(x_i^T W_Q^T W_K x_j + key_bias . x_j + query_bias . x_i + b_Q . b_K) / sqrt(D)``: the division is not in the values.
    With `rope` the biases' terms are those at offset 0.  Norms of queries and keys count with their learned weights; that they divide by
    a token's own length, only its input tells; then a bias adds no such term, and the first two are None.

    References
    ----------
    Elhage et al., "A Mathematical Framework for Transformer Circuits" (2021), sections "Splitting attention head terms into circuits" and
    "Summarizing OV/QK matrices".  Roy & Vetterli, "The effective rank" (2007).

    Examples
    --------
    >>> import qkvc
    >>> from qkvc.analysis import circuits
    >>> found = circuits(qkvc.MultiHeadAttention(64, 4, rng=0))
    >>> found.qk.shape, found.ov_rank.shape
    ((4, 16), (4,))
    """
    check_layer(attention, "circuits")
    if as_count("offset", offset, "circuits", 0) and attention.rope is None:
        raise ValueError(bad("offset", "0, as there is no rope to turn by it", str(offset), "circuits"))

    def of_heads(x: Any) -> Reals:
        return np.repeat(x.astype(np.float64), attention.num_heads // len(x), axis=0)

    query, key, value = (of_heads(x) for x in (attention.W_Q, attention.W_K, attention.W_V))
    out = attention.W_O.astype(np.float64).swapaxes(-1, -2)
    biases: list[Reals | None] = [None] * 3
    if attention.q_bias is not None:
        split = [of_heads(x.reshape(-1, attention.head_dim)) for x in (attention.q_bias, attention.k_bias, attention.v_bias)]
        biases = [np.einsum("hde,hd->he", weight, bias) for weight, bias in zip((key, query, out), split, strict=True)]
    if attention.q_norm is not None and attention.k_norm is not None:
        query, key = query * attention.q_norm[:, np.newaxis], key * attention.k_norm[:, np.newaxis]
        biases[:2] = None, None
    turned = key
    if attention.rope is not None and offset:
        turned = rope(key.swapaxes(-1, -2), np.full(attention.kdim, -offset), **vars(attention.rope)).swapaxes(-1, -2)
    qk, ov = _singular(query, turned), _singular(out, value)
    positive = _positive(query, turned), _positive(out, value)
    return Circuits(qk, ov, rank_of_spectrum(qk), rank_of_spectrum(ov), *positive, *biases)


__all__ = ["Circuits", "circuits"]
