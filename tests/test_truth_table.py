"""The meaning of every option as a table: each row is a test with its exact outcome, or its exception and what the message must name.

The inputs make the outcome readable.  With all scores equal and value = identity, row i of the output is what query i may attend to,
divided by how many that are; so a row of the table writes the allowed keys as a picture, and 1/n is exact to the last bit.
The functions named after frameworks have their table in test_doors.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import qkvc

from .options import DTYPES
from .pictures import bias_of, bool_mask, picture, uniform, weights_of
from .reference import unit_of
from .support import assert_refused, assert_same_bits

INF, NAN, FLOAT32 = np.inf, np.nan, np.finfo(np.float32)


# --- who may attend to whom ------------------------------------------------------------------------------------------------------------

#  question                                          (L_q, L_k), options                                                 allowed keys
ALLOWED: list[tuple[str, tuple[int, int], dict[str, Any], str]] = [
    ("nothing said: everything", (2, 3), {}, "111 111"),
    ("bool mask: True may attend", (2, 3), {"mask": bool_mask("101 010")}, "101 010"),
    ("mask of one row broadcasts", (2, 3), {"mask": bool_mask("110")}, "110 110"),
    ("mask of one column broadcasts", (2, 3), {"mask": bool_mask("1 0")}, "111 000"),
    ("mask without axes", (2, 3), {"mask": np.bool_(False)}, "000 000"),
    ("mask as a list", (2, 3), {"mask": [[True, False, True], [False, True, True]]}, "101 011"),
    ("mask that allows everything", (2, 3), {"mask": np.ones((2, 3), bool)}, "111 111"),
    ("bias of exactly -inf masks", (2, 3), {"bias": bias_of([0, -INF, 0], [-INF, -INF, 0])}, "101 001"),
    ("bias of -inf everywhere masks the row", (2, 3), {"bias": bias_of([-INF], [0])}, "000 111"),
    ("a finite bias far below the others weighs 0", (1, 3), {"bias": bias_of([0, -1e30, 0])}, "101"),
    ("mask and bias intersect", (1, 4), {"mask": bool_mask("1101"), "bias": bias_of([-INF, 0, 0, 0])}, "0101"),
    ("causal=True with L_q = L_k", (3, 3), {"causal": True}, "100 110 111"),
    ("causal=np.True_", (3, 3), {"causal": np.True_}, "100 110 111"),
    ("causal=True for one query", (1, 1), {"causal": True}, "1"),
    ("top-left, more keys", (2, 4), {"causal": "top-left"}, "1000 1100"),
    ("top-left, fewer keys", (4, 2), {"causal": "top-left"}, "10 11 11 11"),
    ("bottom-right, more keys", (2, 4), {"causal": "bottom-right"}, "1110 1111"),
    ("bottom-right, fewer keys: the first rows are empty", (4, 2), {"causal": "bottom-right"}, "00 00 10 11"),
    ("both alignments are the same when L_q = L_k", (2, 2), {"causal": "bottom-right"}, "10 11"),
    ("q_offset 0", (2, 4), {"causal": True, "q_offset": 0}, "1000 1100"),
    ("q_offset 1", (2, 4), {"causal": True, "q_offset": 1}, "1100 1110"),
    ("q_offset L_k - L_q", (2, 4), {"causal": True, "q_offset": 2}, "1110 1111"),
    ("q_offset beyond the keys", (2, 4), {"causal": True, "q_offset": 9}, "1111 1111"),
    ("q_offset of 2**62", (2, 4), {"causal": True, "q_offset": 2**62}, "1111 1111"),
    ("q_offset -1: the first row is empty", (2, 4), {"causal": True, "q_offset": -1}, "0000 1000"),
    ("q_offset far before the keys", (2, 4), {"causal": True, "q_offset": -(2**62)}, "0000 0000"),
    ("q_offset as np.int16", (2, 4), {"causal": True, "q_offset": np.int16(1)}, "1100 1110"),
    ("q_offset with L_q = L_k", (3, 3), {"causal": True, "q_offset": 1}, "110 111 111"),
    ("key_lengths", (2, 4), {"key_lengths": 3}, "1110 1110"),
    ("key_lengths 0", (2, 4), {"key_lengths": 0}, "0000 0000"),
    ("key_lengths L_k", (2, 4), {"key_lengths": 4}, "1111 1111"),
    ("key_lengths and a mask intersect", (2, 4), {"key_lengths": 3, "mask": bool_mask("0111 1001")}, "0110 1000"),
    ("key_lengths with causal=True: p = i", (4, 4), {"key_lengths": 2, "causal": True}, "1000 1100 1100 1100"),
    ("key_lengths with top-left: p = i", (3, 5), {"key_lengths": 2, "causal": "top-left"}, "10000 11000 11000"),
    ("key_lengths with bottom-right: p = i + length - L_q", (2, 5), {"key_lengths": 3, "causal": "bottom-right"}, "11000 11100"),
    ("key_lengths below L_q with bottom-right", (3, 5), {"key_lengths": 2, "causal": "bottom-right"}, "00000 10000 11000"),
    ("key_lengths 0 with bottom-right", (2, 3), {"key_lengths": 0, "causal": "bottom-right"}, "000 000"),
    ("key_lengths with q_offset", (2, 5), {"key_lengths": 3, "causal": True, "q_offset": 1}, "11000 11100"),
    ("causal, mask, bias and key_lengths intersect", (3, 4),
     {"causal": "bottom-right", "key_lengths": 3, "mask": bool_mask("1111 0111 1011"), "bias": bias_of([0, 0, -INF, 0])}, "1000 0100 1000"),
    ("a window on both sides", (4, 4), {"window": (1, 1)}, "1100 1110 0111 0011"),
    ("a window of (0, 0): the key at the query's position", (3, 3), {"window": (0, 0)}, "100 010 001"),
    ("-1 is open to the left", (3, 3), {"window": (-1, 0)}, "100 110 111"),
    ("-1 is open to the right", (3, 3), {"window": (0, -1)}, "111 011 001"),
    ("open on both sides limits nothing and asks for no positions", (2, 4), {"window": (-1, -1)}, "1111 1111"),
    ("a window wider than the keys", (3, 3), {"window": (9, 2**62)}, "111 111 111"),
    ("a window of np.int8", (3, 3), {"window": (np.int8(1), np.int8(0))}, "100 110 011"),
    ("window and causal=True intersect", (4, 4), {"window": (1, 2), "causal": True}, "1000 1100 0110 0011"),
    ("window around top-left", (2, 4), {"window": (0, 9), "causal": "top-left"}, "1000 0100"),
    ("window around bottom-right", (2, 4), {"window": (1, 0), "causal": "bottom-right"}, "0110 0011"),
    ("window around bottom-right, fewer keys", (4, 2), {"window": (0, 5), "causal": "bottom-right"}, "00 00 10 01"),
    ("window around q_offset, not causal", (2, 4), {"window": (1, 1), "q_offset": 1}, "1110 0111"),
    ("window around q_offset, causal", (2, 4), {"window": (1, 1), "q_offset": 1, "causal": True}, "1100 0110"),
    ("window beyond the keys", (2, 4), {"window": (1, 1), "q_offset": 4}, "0001 0000"),
    ("window far beyond the keys", (2, 4), {"window": (3, 3), "q_offset": 2**62}, "0000 0000"),
    ("window far before the keys", (2, 4), {"window": (3, 3), "q_offset": -(2**62)}, "0000 0000"),
    ("an endless side reaches from anywhere", (2, 4), {"window": (-1, 0), "q_offset": 2**62}, "1111 1111"),
    ("window and key_lengths intersect", (3, 3), {"window": (1, 1), "key_lengths": 2}, "110 110 010"),
    ("key_lengths move a bottom-right window", (2, 5), {"window": (1, 0), "causal": "bottom-right", "key_lengths": 3}, "11000 01100"),
    ("window, mask and bias intersect", (3, 3), {"window": (1, 1), "mask": bool_mask("011 111 101"), "bias": bias_of([0, 0, -INF])},
     "010 110 000"),
    ("softcap of equal scores", (2, 3), {"softcap": 2.0}, "111 111"),
    ("slopes of 0 are no slopes", (2, 4), {"alibi_slopes": 0.0, "q_offset": 1}, "1111 1111"),
    ("a sink of -inf is no sink", (2, 3), {"sinks": -INF, "mask": bool_mask("101 000")}, "101 000"),
    ("a head scaled by 1", (2, 3), {"head_scale": 1}, "111 111"),
    ("a scale of 0 makes all scores equal", (2, 3), {"scale": 0.0}, "111 111"),
    ("a negative scale", (2, 3), {"scale": -1.0, "mask": bool_mask("011 110")}, "011 110"),
]  # fmt: skip


def check_picture(got: qkvc.AttentionOutput, allowed: np.ndarray) -> None:
    assert_same_bits(got.out, weights_of(allowed), "out")
    with np.errstate(divide="ignore"):
        lse = np.log(allowed.sum(-1, dtype=np.float64))
    assert got.lse.dtype == allowed.dtype
    assert got.lse.shape == lse.shape
    np.testing.assert_allclose(got.lse, lse, rtol=0, atol=2.5 * np.finfo(allowed.dtype).eps)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("lengths", "options", "allowed"), [pytest.param(*row[1:], id=row[0]) for row in ALLOWED])
def test_who_attends(isa: str, lengths: tuple[int, int], options: dict[str, Any], allowed: str, dtype: str) -> None:
    query, key, value = (x.astype(dtype) for x in uniform(*lengths))
    expected = picture(allowed).astype(dtype)
    check_picture(qkvc.attention_with_lse(query, key, value, **options), expected)
    flat = qkvc.attention_with_lse(query[0], key[0], value[0], **options)  # (L, D) is one head
    check_picture(flat, expected[0])
    by_length = [x.swapaxes(-2, -3) for x in (query, key, value)]
    got = qkvc.attention_with_lse(*by_length, layout="blhd", **options)
    check_picture(qkvc.AttentionOutput(got.out.swapaxes(-2, -3), got.lse), expected)


# --- batches and heads -----------------------------------------------------------------------------------------------------------------

#  question                              batch, (H_q, H_kv), (L_q, L_k), options                                          per item or head
BATCHED: list[tuple[str, tuple[int, ...], tuple[int, int], tuple[int, int], dict[str, Any], str]] = [
    ("one q_offset per item", (3,), (2, 2), (1, 3), {"causal": True, "q_offset": [-1, 0, 2]}, "000 | 100 | 111"),
    ("one q_offset for a batch", (2,), (1, 1), (1, 3), {"causal": True, "q_offset": 1}, "110 | 110"),
    ("one length per item", (3,), (2, 1), (1, 3), {"key_lengths": [0, 1, 3]}, "000 | 100 | 111"),
    ("lengths as np.uint8", (2,), (2, 1), (1, 3), {"key_lengths": np.array([2, 1], np.uint8)}, "110 | 100"),
    ("lengths broadcast over the batch", (2, 2), (1, 1), (1, 3), {"key_lengths": np.array([[1], [2]])}, "100 | 100 | 110 | 110"),
    ("lengths move the bottom-right corner", (2,), (1, 1), (2, 4), {"key_lengths": [4, 3], "causal": "bottom-right"},
     "1110 1111 | 1100 1110"),
    ("windows around one q_offset per item", (3,), (2, 2), (1, 3), {"window": (0, 1), "q_offset": [0, 1, 2]}, "110 | 011 | 001"),
    ("lengths move a bottom-right window", (2,), (1, 1), (2, 4), {"window": (0, 0), "key_lengths": [4, 2], "causal": "bottom-right"},
     "0010 0001 | 1000 0100"),
    ("one mask per item", (2,), (4, 2), (1, 3), {"mask": np.array([[[[1, 0, 1]]], [[[0, 1, 0]]]], bool)}, "101 | 010"),
    ("no batch: one group of rows per head", (), (2, 2), (1, 3), {"mask": np.array([[[1, 0, 1]], [[0, 1, 0]]], bool)}, "101 | 010"),
    ("a mask over query heads of one group", (), (4, 1), (1, 2), {"mask": np.array([[[1, 0]], [[0, 1]], [[1, 1]], [[0, 0]]], bool)},
     "10 | 01 | 11 | 00"),
    ("a bias over query heads of one group", (), (2, 1), (2, 2), {"bias": np.array([[[0, -INF]], [[-INF, 0]]], np.float32)},
     "10 10 | 01 01"),
]  # fmt: skip


@pytest.mark.parametrize(("batch", "heads", "lengths", "options", "allowed"), [pytest.param(*row[1:], id=row[0]) for row in BATCHED])
def test_batches_and_heads(
    isa: str, batch: tuple[int, ...], heads: tuple[int, int], lengths: tuple[int, int], options: dict[str, Any], allowed: str
) -> None:
    query, key, value = uniform(*lengths, heads, batch)
    expected = picture(allowed, batch, heads[0])
    check_picture(qkvc.attention_with_lse(query, key, value, **options), expected)
    by_length = [x.swapaxes(-2, -3) for x in (query, key, value)]
    got = qkvc.attention_with_lse(*by_length, layout="blhd", **options)  # mask, bias and lse keep (batch, H, L_q, L_k)
    check_picture(qkvc.AttentionOutput(got.out.swapaxes(-2, -3), got.lse), expected)


def test_query_head_h_reads_key_head_h_over_group(isa: str) -> None:
    """Groups are consecutive (repeat, not interleave): heads 0 and 1 of four read key head 0."""
    query, key = np.zeros((4, 1, 2), np.float32), np.zeros((2, 1, 2), np.float32)
    value = np.array([[[10]], [[20]]], np.float32)
    assert qkvc.attention(query, key, value).ravel().tolist() == [10, 10, 20, 20]


def test_leading_axes_broadcast_as_in_numpy(isa: str) -> None:
    query, key = np.zeros((3, 1, 2, 4, 5), np.float32), np.zeros((4, 1, 6, 5), np.float32)
    value = np.arange(12, dtype=np.float32).reshape(3, 4, 1, 1, 1) * np.ones((1, 6, 2), np.float32)
    got = qkvc.attention(query, key, value)
    assert got.shape == (3, 4, 2, 4, 2)
    np.testing.assert_array_equal(got[..., 0, 0, 0], np.arange(12).reshape(3, 4))


# --- numbers ---------------------------------------------------------------------------------------------------------------------------

#  question                                   scores (q = 1, k = score), options, weights in float64                     lse
NUMBERS: list[tuple[str, list[float], dict[str, Any], list[float], float]] = [
    ("the tutorial: scores 0 1 1, unscaled", [0, 1, 1], {"scale": 1.0}, [0.15536240349696362, 0.4223187982515182, 0.4223187982515182],
     1.8619948040582511),
    ("default scale for D = 1 is 1", [0, 1, 1], {}, [0.15536240349696362, 0.4223187982515182, 0.4223187982515182], 1.8619948040582511),
    ("scale multiplies the score", [0, 1, 2], {"scale": 0.5}, [0.1863237232258476, 0.3071958857184984, 0.506480391055654],
     1.6802696706417346),
    ("bias is added after scale", [0, 1, 2], {"scale": 0.5, "bias": bias_of([1, 0.5, 0])}, [1 / 3, 1 / 3, 1 / 3], 2.09861228866811),
    ("a negative scale turns the order around", [0, 1, 2], {"scale": -0.5}, [0.506480391055654, 0.3071958857184984, 0.1863237232258476],
     0.6802696706417346),
    ("masks come last: a huge masked bias is nothing", [0, 1, 1], {"bias": bias_of([0, 0, 1e30]), "mask": bool_mask("110")},
     [0.2689414213699951, 0.7310585786300049, 0.0], 1.3132616875182228),
    ("softcap: cap tanh(score / cap)", [0, 1, 2], {"softcap": 2.0}, [0.12335377935414549, 0.31084388115895434, 0.5658023394869003],
     2.092698797204596),
    ("softcap is after scale", [0, 1, 2], {"softcap": 2.0, "scale": 0.5}, [0.19409980288342688, 0.3167807199803846, 0.48911947713618853],
     1.639382804349023),
    ("softcap is before bias", [0, 1, 2], {"softcap": 2.0, "bias": bias_of([1, 0.5, 0])},
     [0.23720185011021042, 0.36254397649412134, 0.40025417339566827], 2.4388438120988902),
    ("ALiBi: - slope |p - j| with p = 0", [0, 1, 2], {"alibi_slopes": 0.5, "q_offset": 0},
     [0.18632372322584756, 0.3071958857184984, 0.506480391055654], 1.6802696706417346),
    ("ALiBi falls on both sides of the query", [0, 1, 2], {"alibi_slopes": 0.5, "q_offset": 1},
     [0.07769557914857059, 0.3482074278837348, 0.5740969929676946], 2.054956919641991),
    ("ALiBi is after softcap", [0, 1, 2], {"softcap": 2.0, "alibi_slopes": [0.5], "q_offset": 2},
     [0.056744151354718525, 0.23575353255826137, 0.7075023160870201], 1.8692026877604024),
    ("ALiBi is not scaled", [0, 0, 0], {"scale": 0.0, "alibi_slopes": 0.5, "q_offset": 2},
     [0.1863237232258476, 0.3071958857184984, 0.506480391055654], 0.6802696706417346),
    ("a sink is one more logit, which gets no value", [0, 1, 1], {"sinks": 1.0},
     [0.10923177257303593, 0.2969227424756547, 0.2969227424756547], 2.2142833003627604),
    ("a sink is not scaled, capped or biased", [0, 2, 2], {"sinks": [-2.0], "scale": 0.5},
     [0.15216302154160333, 0.4136219764199625, 0.4136219764199625], 1.8828028227218383),
    ("a sink is not masked", [0, 5], {"sinks": 0.0, "mask": bool_mask("10")}, [0.5, 0], 0.6931471805599453),
    ("large scores stay stable", [1000, 1001], {}, [0.2689414213699951, 0.7310585786300049], 1001.3132616875182),
    ("very negative scores stay stable", [-1000, -1001], {}, [0.7310585786300049, 0.2689414213699951], -999.6867383124818),
]  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("scores", "options", "weights", "lse"), [pytest.param(*row[1:], id=row[0]) for row in NUMBERS])
def test_numbers(isa: str, scores: list[float], options: dict[str, Any], weights: list[float], lse: float, dtype: str) -> None:
    query, key = np.ones((1, 1), dtype), np.array(scores, dtype)[:, np.newaxis]
    got = qkvc.attention_with_lse(query, key, np.eye(len(scores), dtype=dtype), **options)
    unit = unit_of(dtype)
    # A score carries the rounding of the query that was scaled to base-2 units, and the softmax the difference of two such scores.
    np.testing.assert_allclose(got.out[0], weights, rtol=unit * (8 + 4 * np.abs(scores).max()), atol=0)
    np.testing.assert_allclose(got.lse, [lse], rtol=4 * unit, atol=0)


def test_head_scale_multiplies_the_output_alone(isa: str) -> None:
    query, key, value = uniform(1, 2, (3, 1))
    plain = qkvc.attention_with_lse(query, key, value)
    got = qkvc.attention_with_lse(query, key, value, head_scale=[2, -0.5, 0])
    assert got.out.tolist() == [[[1, 1]], [[-0.25, -0.25]], [[0, 0]]]
    assert_same_bits(got.lse, plain.lse)


@pytest.mark.parametrize(
    ("bias", "weights"),
    [
        (np.full((1, 3), FLOAT32.min), [1 / 3, 1 / 3, 1 / 3]),
        (np.full((1, 3), FLOAT32.max), [1 / 3, 1 / 3, 1 / 3]),
        (bias_of([FLOAT32.min, -2e38, -INF]), [0, 1, 0]),
        (bias_of([-2e38, FLOAT32.min, 2e38]), [0, 0, 1]),
        (np.full((1, 3), -1e300), [1 / 3, 1 / 3, 1 / 3]),
        (np.array([[1e300, 0, -INF]]), [1, 0, 0]),
    ],
    ids=["all finfo.min", "all finfo.max", "finfo.min beside -inf", "three sizes", "float64 below float32", "float64 above float32"],
)
def test_a_finite_bias_of_any_size_is_an_addend(isa: str, bias: np.ndarray, weights: list[float]) -> None:
    """Never -inf (masked), never NaN, also where base-2 units or float32 would overflow."""
    query, key, value = uniform(1, 3)
    got = qkvc.attention_with_lse(query, key, value, bias=bias)
    assert_same_bits(got.out[0], np.array([weights], np.float32))
    assert np.isfinite(got.lse).all()
    assert np.abs(got.lse) >= 2e38


@pytest.mark.parametrize("size", [1e300, float(np.finfo(np.float64).max)])
def test_a_bias_of_float64_may_be_as_large_as_float64(isa: str, size: float) -> None:
    """The clamp belongs to the dtype of the result, not to float32."""
    query, key, value = (x.astype(np.float64) for x in uniform(1, 3))
    for bias, weights in (([-size, -size, -INF], [0.5, 0.5, 0]), ([size, 0, size], [0.5, 0, 0.5]), ([-1e39, -1e38, -1e39], [0, 1, 0])):
        got = qkvc.attention_with_lse(query, key, value, bias=np.array([bias]))
        assert_same_bits(got.out[0], np.array([weights], float))
        assert np.isfinite(got.lse).all()


def test_default_scale_is_one_over_sqrt_d(isa: str) -> None:
    """D = 16 is exact in binary, so the default must be the same bits as 0.25."""
    query, key = np.full((1, 16), 0.5, np.float32), np.full((2, 16), [[0.5], [-0.25]], np.float32)
    default = qkvc.attention(query, key, np.eye(2, dtype=np.float32))
    assert_same_bits(default, qkvc.attention(query, key, np.eye(2, dtype=np.float32), scale=0.25))
    np.testing.assert_allclose(default[0, 0], 1 / (1 + np.exp(-1.5)), rtol=5e-7)


#  what is where                                             scores, value column, options, out, lse
SPECIAL: list[tuple[str, list[float], list[float], dict[str, Any], float, float | None]] = [
    ("a NaN score is attended", [0, NAN], [1, 2], {}, NAN, NAN),
    ("a NaN value is attended", [0, 0], [1, NAN], {}, NAN, np.log(2)),
    ("a NaN bias is attended", [0, 0], [1, 2], {"bias": bias_of([0, NAN])}, NAN, NAN),
    ("a NaN key is masked out", [0, NAN], [1, 2], {"mask": bool_mask("10")}, 1, 0),
    ("a NaN value is masked out", [0, 0], [1, NAN], {"mask": bool_mask("10")}, 1, 0),
    ("a NaN bias is masked out", [0, 0], [1, 2], {"bias": bias_of([0, NAN]), "mask": bool_mask("10")}, 1, 0),
    ("NaN behind a bias of -inf", [0, NAN], [1, NAN], {"bias": bias_of([0, -INF])}, 1, 0),
    ("NaN behind key_lengths", [0, NAN], [1, NAN], {"key_lengths": 1}, 1, 0),
    ("NaN behind the causal limit", [0, NAN], [1, NAN], {"causal": "top-left"}, 1, 0),
    ("everything is NaN and masked", [NAN, NAN], [NAN, NAN], {"mask": np.bool_(False)}, 0, -INF),
    ("a score of +inf gives NaN, as in NumPy", [0, INF], [1, 2], {}, NAN, None),
    ("a computed score of -inf weighs 0", [0, -INF], [1, 2], {}, 1, 0),
    ("a value of +inf is attended", [0, 0], [1, INF], {}, INF, np.log(2)),
    ("all computed scores are -inf: that is not a masked row", [-INF, -INF], [1, 2], {}, NAN, None),
    ("the only allowed score is a computed -inf", [-INF, 0], [1, 2], {"mask": bool_mask("10")}, NAN, None),
    ("the only allowed score is a computed -inf, blocks away", [-INF] + [0] * 300, [1] * 301, {"mask": np.arange(301) < 1}, NAN, None),
    ("NaN outside the window", [0, NAN, 0], [1, NAN, 1], {"window": (0, 0), "q_offset": 0}, 1, 0),
    ("NaN under a softcap is attended", [0, NAN], [1, 2], {"softcap": 2.0}, NAN, NAN),
    ("NaN under a softcap is masked out", [0, NAN], [1, NAN], {"softcap": 2.0, "mask": bool_mask("10")}, 1, 0),
    ("NaN under ALiBi is masked out", [0, NAN], [1, NAN], {"alibi_slopes": 1.0, "causal": "top-left"}, 1, 0),
    ("computed scores of +inf are capped", [INF, INF], [1, 3], {"softcap": 2.0}, 2, 2 + np.log(2)),
    ("all computed scores are -inf, and a sink", [-INF, -INF], [1, 2], {"sinks": 1.5}, 0, 1.5),
    ("a row without keys, and a sink", [0, 0], [1, 2], {"sinks": 1.5, "key_lengths": 0}, 0, 1.5),
    ("a row of NaN without keys, and a sink", [NAN, NAN], [NAN, NAN], {"sinks": -0.5, "key_lengths": 0}, 0, -0.5),
    ("a sink far above the scores takes everything", [0, 0], [1, 2], {"sinks": 1e4}, 0, 1e4),
    ("a NaN is attended beside a sink", [0, NAN], [1, 2], {"sinks": 1e4}, NAN, NAN),
    ("an empty row of a head scaled", [0, 0], [1, 2], {"head_scale": -3.0, "key_lengths": 0}, 0, -INF),
    ("values of +inf and -inf are attended", [0, 0], [-INF, INF], {}, NAN, np.log(2)),
]  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("scores", "values", "options", "out", "lse"), [pytest.param(*row[1:], id=row[0]) for row in SPECIAL])
def test_special_numbers(
    isa: str, scores: list[float], values: list[float], options: dict[str, Any], out: float, lse: float | None, dtype: str
) -> None:
    query, key = np.ones((1, 1), dtype), np.array(scores, dtype)[:, np.newaxis]
    got = qkvc.attention_with_lse(query, key, np.array(values, dtype)[:, np.newaxis], **options)
    np.testing.assert_array_equal(got.out, [[out]])
    if lse is not None:
        np.testing.assert_allclose(got.lse, [lse], rtol=0, atol=2.5 * np.finfo(dtype).eps)


def test_a_query_of_nan_with_no_key_gives_zero(isa: str) -> None:
    got = qkvc.attention_with_lse(np.full((1, 2), NAN, np.float32), np.ones((3, 2), np.float32), np.ones((3, 4), np.float32), key_lengths=0)
    assert_same_bits(got.out, np.zeros((1, 4), np.float32))
    assert got.lse.tolist() == [-INF]


# --- zero-size axes --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["bhld", "blhd"])
@pytest.mark.parametrize(
    ("batch", "heads", "lengths", "dims"),
    [
        ((2,), (2, 1), (0, 3), (4, 5)),
        ((2,), (2, 1), (3, 0), (4, 5)),
        ((2,), (2, 1), (0, 0), (4, 5)),
        ((0,), (2, 1), (3, 4), (4, 5)),
        ((2, 0), (2, 2), (3, 4), (4, 5)),
        ((2,), (0, 0), (3, 4), (4, 5)),
        ((2,), (0, 2), (3, 4), (4, 5)),
        ((2,), (2, 1), (3, 4), (0, 5)),
        ((2,), (2, 1), (3, 4), (4, 0)),
        ((2,), (2, 1), (3, 0), (0, 0)),
        ((), (1, 1), (3, 0), (0, 5)),
    ],
)
def test_zero_size_axes(
    isa: str, batch: tuple[int, ...], heads: tuple[int, int], lengths: tuple[int, int], dims: tuple[int, int], layout: str
) -> None:
    """L_q = 0 is an empty result, L_k = 0 zeros and -inf, D = 0 the mean (with scale 1), Dv = 0 an empty result with a real lse."""
    query = np.ones((*batch, heads[0], lengths[0], dims[0]), np.float32)
    key = np.ones((*batch, heads[1], lengths[1], dims[0]), np.float32)
    value = np.full((*batch, heads[1], lengths[1], dims[1]), 7, np.float32)
    if layout == "blhd":
        query, key, value = (np.ascontiguousarray(x.swapaxes(-2, -3)) for x in (query, key, value))
    got = qkvc.attention_with_lse(query, key, value, layout=layout)
    out = got.out.swapaxes(-2, -3) if layout == "blhd" else got.out
    assert out.shape == (*batch, heads[0], lengths[0], dims[1])
    assert got.lse.shape == (*batch, heads[0], lengths[0])
    np.testing.assert_array_equal(out, 7 if lengths[1] else 0)
    expected = np.sqrt(dims[0]) + np.log(lengths[1]) if lengths[1] else -INF
    np.testing.assert_allclose(got.lse, np.full(got.lse.shape, expected), rtol=5e-7)


@pytest.mark.parametrize("options", [{"mask": np.ones((3, 0), bool)}, {"bias": np.ones((3, 0), np.float32)}, {"key_lengths": 0},
                                     {"causal": "bottom-right"}, {"causal": "top-left"}, {"causal": True, "q_offset": 5}],
                         ids=lambda o: ",".join(o))  # fmt: skip
def test_no_keys_with_any_option(isa: str, options: dict[str, Any]) -> None:
    got = qkvc.attention_with_lse(np.ones((3, 2), np.float32), np.ones((0, 2), np.float32), np.ones((0, 4), np.float32), **options)
    assert_same_bits(got.out, np.zeros((3, 4), np.float32))
    assert got.lse.tolist() == [-INF] * 3


# --- what is refused, by the meaning of the options (misuse of the rest: test_bad_input.py) --------------------------------------------

#  question                                   lengths, options, exception, what the message names
REFUSED: list[tuple[str, tuple[int, int], dict[str, Any], type[Exception], tuple[str, ...]]] = [
    ("causal=True with more keys", (2, 4), {"causal": True}, ValueError, ("causal", "top-left", "bottom-right", "q_offset", "2", "4")),
    ("causal=True with fewer keys", (4, 2), {"causal": True}, ValueError, ("causal", "top-left", "bottom-right")),
    ("causal=True with lengths", (2, 4), {"causal": True, "key_lengths": 2}, ValueError, ("causal", "top-left", "bottom-right")),
    ("q_offset beside top-left", (2, 4), {"causal": "top-left", "q_offset": 1}, ValueError, ("q_offset", "top-left")),
    ("q_offset beside bottom-right", (2, 4), {"causal": "bottom-right", "q_offset": 1}, ValueError, ("q_offset", "bottom-right")),
    ("q_offset that nothing uses", (2, 4), {"q_offset": 1}, ValueError, ("q_offset", "causal")),
    ("q_offset 0 that nothing uses", (2, 4), {"q_offset": 0}, ValueError, ("q_offset", "causal")),
    ("q_offset beside a window that is open", (2, 4), {"window": (-1, -1), "q_offset": 1}, ValueError, ("q_offset", "window")),
    ("q_offset beside top-left and a window", (2, 4), {"causal": "top-left", "window": (1, 1), "q_offset": 1}, ValueError,
     ("q_offset", "top-left")),
    ("a window with more keys", (2, 4), {"window": (1, 1)}, ValueError, ("window", "top-left", "bottom-right", "q_offset", "2", "4")),
    ("a window with fewer keys", (4, 2), {"window": (1, -1)}, ValueError, ("window", "top-left", "bottom-right", "q_offset", "2", "4")),
    ("ALiBi with more keys", (2, 4), {"alibi_slopes": 0.5}, ValueError, ("alibi_slopes", "top-left", "bottom-right", "q_offset")),
    ("a window and causal=True with more keys", (2, 4), {"window": (1, 1), "causal": True}, ValueError, ("top-left", "bottom-right")),
    ("a window below -1", (3, 3), {"window": (-2, 0)}, ValueError, ("window", "-1", "-2")),
    ("a softcap of 0", (2, 4), {"softcap": 0.0}, ValueError, ("softcap", "0")),
    ("an unknown alignment", (2, 4), {"causal": "lower-right"}, ValueError, ("causal", "top-left", "bottom-right", "lower-right")),
    ("a float mask", (2, 4), {"mask": np.zeros((2, 4), np.float32)}, TypeError, ("mask", "bool", "bias", "float32")),
    ("an int mask", (2, 4), {"mask": np.ones((2, 4), np.int64)}, TypeError, ("mask", "bool", "int64")),
    ("a bool bias", (2, 4), {"bias": np.ones((2, 4), bool)}, TypeError, ("bias", "mask", "bool")),
    ("a mask that would enlarge the batch", (2, 4), {"mask": np.ones((3, 1, 2, 4), bool)}, ValueError,
     ("mask", "(3, 1, 2, 4)", "(1, 2, 4)")),
    ("a bias that would enlarge the heads", (2, 4), {"bias": np.ones((2, 2, 4), np.float32)}, ValueError,
     ("bias", "(2, 2, 4)", "(1, 2, 4)")),
    ("a length above L_k", (2, 4), {"key_lengths": 5}, ValueError, ("key_lengths", "0", "4", "5")),
    ("a negative length", (2, 4), {"key_lengths": -1}, ValueError, ("key_lengths", "-1")),
    ("a length of True", (2, 4), {"key_lengths": True}, TypeError, ("key_lengths", "bool")),
    ("a float length", (2, 4), {"key_lengths": 2.0}, TypeError, ("key_lengths", "float")),
    ("scale nan", (2, 4), {"scale": NAN}, ValueError, ("scale", "finite", "nan")),
    ("scale inf", (2, 4), {"scale": INF}, ValueError, ("scale", "finite", "inf")),
]  # fmt: skip


@pytest.mark.parametrize(("lengths", "options", "exception", "words"), [pytest.param(*row[1:], id=row[0]) for row in REFUSED])
def test_refused(lengths: tuple[int, int], options: dict[str, Any], exception: type[Exception], words: tuple[str, ...]) -> None:
    for function in (qkvc.attention, qkvc.attention_with_lse):
        assert_refused(lambda function=function: function(*uniform(*lengths), **options), exception, *words)
