"""attention_parts and merging them: the bits of one call over all keys, wherever and in whatever order the blocks were computed."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

import qkvc

from .options import DTYPES, HALVES, OPTIONS, operands_in, option
from .reference import exact_for, reference_scores
from .support import FINER, MEMORY, assert_attention, assert_refused, assert_same_bits, normal

W = 128  # keys a block
WHOLE = ("sinks", "head_scale")  # options of the merge
INF, NAN = np.inf, np.nan

#         batch, (H_q, H_kv), (L_q, L_k), (D, Dv): several tiles and blocks, one query, a group, a single block
SHAPES = (
    ((2,), (4, 2), (50, 520), (32, 16)),
    ((), (1, 1), (1, 300), (40, 24)),
    ((2,), (7, 1), (33, 384), (17, 9)),
    ((1,), (2, 2), (140, 65), (8, 8)),
)


def of_keys(options: dict[str, Any], first: int, last: int, l_q: int, l_k: int) -> dict[str, Any]:
    """The options of a call over all keys, for those from first to last."""
    part = {name: x for name, x in options.items() if name not in WHOLE}
    for name in {"mask", "bias"} & part.keys():
        if part[name].ndim and part[name].shape[-1] == l_k:
            part[name] = part[name][..., first:last]
    lengths, causal = part.get("key_lengths", l_k), part.get("causal", False)
    if causal or "alibi_slopes" in part or part.get("window", (-1, -1)) != (-1, -1):
        part["causal"] = bool(causal)
        part["q_offset"] = part.get("q_offset", lengths - l_q if causal == "bottom-right" else 0) - first
    if "key_lengths" in part:
        part["key_lengths"] = np.clip(lengths - first, 0, last - first)
    return part


def parts_between(edges: list[int], arrays: Any, options: dict[str, Any], **more: Any) -> list[qkvc.AttentionParts]:
    """The last first, as if they came from elsewhere."""
    query, key, value = arrays
    l_q, l_k = query.shape[-2], key.shape[-2]
    return [
        qkvc.attention_parts(query, key[..., a:b, :], value[..., a:b, :], **of_keys(options, a, b, l_q, l_k), **more)
        for a, b in reversed(list(itertools.pairwise(edges)))
    ][::-1]


def of_whole(options: dict[str, Any]) -> dict[str, Any]:
    return {name: x for name, x in options.items() if name in WHOLE}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES + HALVES)
@pytest.mark.parametrize("kind", OPTIONS)
def test_merged_blocks_have_the_bits_of_the_whole(isa: str, kind: str, dtype: str, shape: Any, rng: np.random.Generator) -> None:
    """Cut at every boundary, at all of them, at none; parts of 16-bit operands are float32, rounded by whoever wants 16 bits."""
    batch, heads, lengths, _ = shape
    arrays = operands_in(dtype, rng, *shape)
    options = option(rng, kind, batch, heads[0], lengths)
    whole = qkvc.attention_with_lse(*arrays, **options)
    middle = list(range(W, lengths[1], W))
    for n, cuts in enumerate([[], middle, *([cut] for cut in middle)]):
        parts = parts_between([0, *cuts, lengths[1]], arrays, options, num_threads=(1, 2, 7)[n % 3])
        got = qkvc.merge_attention(parts, **of_whole(options), num_threads=(2, 7, 1)[n % 3])
        assert got.out.dtype == got.lse.dtype == whole.lse.dtype
        assert_same_bits(got.out.astype(dtype), whole.out, f"out, cut at {cuts}")
        assert_same_bits(got.lse, whole.lse, f"lse, cut at {cuts}")


@pytest.mark.parametrize("dtype", DTYPES)
def test_parts_do_not_depend_on_company(isa: str, dtype: str, rng: np.random.Generator) -> None:
    """A block alone, among others, on any number of threads, in any layout and memory, under a mask that says what positions say."""
    query, key, value = operands_in(dtype, rng, (2,), (4, 2), (70, 700), (24, 40))
    expected = qkvc.attention_parts(query, key, value, causal="bottom-right", num_threads=1)
    assert [x.shape for x in expected] == [(6, 2, 4, 70), (6, 2, 4, 70), (6, 2, 4, 70, 40)]
    mask = np.arange(700) <= np.arange(70)[:, np.newaxis] + 630
    alone = parts_between([*range(0, 700, W), 700], (query, key, value), {"mask": mask})
    ways = {
        "7 threads": qkvc.attention_parts(query, key, value, causal="bottom-right", num_threads=7),
        "a mask": qkvc.attention_parts(query, key, value, mask=mask),
        "blocks alone": map(np.concatenate, zip(*alone, strict=True)),
        **{name: qkvc.attention_parts(*map(place, (query, key, value)), causal="bottom-right") for name, place in MEMORY.items()},
    }
    for name, got in ways.items():
        for field, actual, wanted in zip(expected._fields, got, expected, strict=True):
            assert_same_bits(actual, wanted, f"{field}, {name}")
    swapped = [x.swapaxes(-2, -3) for x in (query, key, value)]
    blhd = qkvc.attention_parts(*swapped, causal="bottom-right", layout="blhd")
    assert_same_bits(blhd.sums.swapaxes(-2, -3), expected.sums)
    if dtype == "float32":
        rounded = qkvc.attention_parts(*(x.astype("bfloat16") for x in (query, key, value)), causal="bottom-right")
        for actual, wanted in zip(qkvc.attention_parts(query, key, value, causal="bottom-right", precision="bf16"), rounded, strict=True):
            assert_same_bits(actual, wanted, "precision")
    got, whole = qkvc.merge_attention(blhd, layout="blhd"), qkvc.attention_with_lse(*swapped, causal="bottom-right", layout="blhd")
    assert_same_bits(got.out, whole.out)
    assert_same_bits(got.lse, whole.lse)


@pytest.mark.parametrize("dtype", DTYPES + HALVES)
def test_parts_are_what_they_say(isa: str, dtype: str, rng: np.random.Generator) -> None:
    """Against the definition, in float64 or more: m, l and O of every block from its scores."""
    query, key, value = operands_in(dtype, rng, (2,), (4, 2), (20, 300), (24, 12))
    exact, options = exact_for(query, key, value), {"causal": "bottom-right", "softcap": 3.0}
    got = qkvc.attention_parts(query, key, value, **options)
    scores = reference_scores(query, key, "bias", dtype=exact, **options) * np.log2(np.e, dtype=exact)
    values = np.repeat(value.astype(exact), 2, axis=1)
    pairs = isa.endswith("bf16") and dtype == "bfloat16"
    tolerance = 2.0**-8 if pairs else 4e-6 * FINER["float64" if dtype == "float64" else "float32"]
    for b in range(3):
        s = scores[..., b * W : (b + 1) * W]
        m = s.max(-1)
        p = np.exp2(s - np.where(m == -INF, 0, m)[..., np.newaxis])
        for x, wanted in zip((x[b] for x in got), (m, p.sum(-1), p @ values[..., b * W : (b + 1) * W, :]), strict=True):
            np.testing.assert_allclose(x.astype(exact), wanted, rtol=tolerance, atol=20 * tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
def test_cut_elsewhere_agrees_to_rounding(isa: str, dtype: str, rng: np.random.Generator) -> None:
    arrays = operands_in(dtype, rng, (), (2, 1), (9, 333), (16, 8))
    whole = assert_attention(*arrays)
    got = qkvc.merge_attention(parts_between([0, 1, 100, 100, 290, 333], arrays, {}))
    np.testing.assert_allclose(got.out, whole.out.astype(float), atol=4e-6 * FINER[dtype])
    np.testing.assert_allclose(got.lse, whole.lse.astype(float), atol=4e-6 * FINER[dtype])


@pytest.mark.parametrize("dtype", DTYPES + HALVES)
def test_poison(isa: str, dtype: str, rng: np.random.Generator) -> None:
    """What is masked reaches no part; what is attended comes out, of its own rows alone; and all scores -inf is not no key."""
    query, key, value = operands_in(dtype, rng, (2,), (4, 2), (33, 300), (16, 12))
    mask = rng.random((2, 1, 1, 300)) < 0.6
    mask[1, ..., 128:256] = False
    clean = qkvc.attention_parts(query, key, value, mask=mask)
    hidden = np.broadcast_to(~mask[:, 0], (2, 2, 300))
    for bad in (NAN, INF, -INF):
        key[hidden], value[hidden] = bad, bad
        for x, wanted in zip(qkvc.attention_parts(query, key, value, mask=mask), clean, strict=True):
            assert_same_bits(x, wanted, bad)
    value[1, 1, np.argmax(mask[1])] = NAN
    query[:, 0], key[:, 0, :128] = 1, -INF  # head 0: scores of -inf throughout the first block, which its group's other head does not mind
    key[0, 0, 128:] = -INF
    whole = qkvc.attention_with_lse(query, key, value, mask=mask)
    got = qkvc.merge_attention(parts_between([0, 128, 256, 300], (query, key, value), {"mask": mask}))
    assert [[np.isnan(x).all() for x in item] for item in whole.out] == [[True, True, False, False], [False, True, True, True]]
    np.testing.assert_array_equal(got.out.astype(dtype).astype(float), whole.out.astype(float))
    np.testing.assert_array_equal(got.lse, whole.lse)


@pytest.mark.parametrize("bad", [NAN, INF])
def test_results_without_a_share_disturb_nothing(bad: float, rng: np.random.Generator) -> None:
    """A part that saw no key may hold anything: 0 * NaN is neither a result nor a warning."""
    query, key, value = operands_in("float32", rng, (2,), (2, 2), (5, 40), (8, 8))
    whole = qkvc.attention_with_lse(query, key, value)
    with np.errstate(all="raise"):
        got = qkvc.merge_attention([np.full_like(whole.out, bad), whole.out], [np.full_like(whole.lse, -INF), whole.lse])
    assert_same_bits(got.out, whole.out)
    assert_same_bits(got.lse, whole.lse)


def test_shapes(isa: str, rng: np.random.Generator) -> None:
    """One head without an axis for it, axes of length 0, no keys at all, one AttentionParts without a list, sinks for empty rows."""
    query, key, value = normal(rng, 5, 8), normal(rng, 300, 8), normal(rng, 300, 3)
    flat = qkvc.attention_parts(query, key, value)
    assert [x.shape for x in flat] == [(3, 5), (3, 5), (3, 5, 3)]
    whole = qkvc.attention_with_lse(query, key, value, sinks=0.5, head_scale=2)
    for parts in (flat, [flat], (qkvc.AttentionParts(*(x[:2] for x in flat)), qkvc.AttentionParts(*(x[2:] for x in flat)))):
        got = qkvc.merge_attention(parts, sinks=0.5, head_scale=2)
        assert_same_bits(got.out, whole.out)
        assert_same_bits(got.lse, whole.lse)
    for batch, l_q, l_k, dims in (
        ((2,), 4, 0, (8, 3)),
        ((2,), 0, 9, (8, 3)),
        ((2,), 4, 9, (8, 0)),
        ((0,), 4, 9, (8, 3)),
        ((), 4, 9, (0, 3)),
    ):
        query, key, value = (normal(rng, *batch, 2, *shape) for shape in ((l_q, dims[0]), (l_k, dims[0]), (l_k, dims[1])))
        for sinks in (None, [0.5, -INF]):
            whole = qkvc.attention_with_lse(query, key, value, sinks=sinks)
            got = qkvc.merge_attention(qkvc.attention_parts(query, key, value), sinks=sinks)
            assert_same_bits(got.out, whole.out, (batch, l_q, l_k, dims))
            assert_same_bits(got.lse, whole.lse, (batch, l_q, l_k, dims))


M = np.zeros((2, 4, 3), np.float32)
GOOD = qkvc.AttentionParts(M, M + 1, np.ones((2, 4, 3, 5), np.float32))

merge, changed = qkvc.merge_attention, GOOD._replace

REFUSED: list[tuple[str, Any, Any, tuple[str, ...]]] = [
    ("parts None", lambda: merge(None), TypeError, ("outs", "sequence", "NoneType")),
    ("lses a number", lambda: merge([M], 3), TypeError, ("lses", "sequence", "int")),
    ("an unhashable layout", lambda: merge([GOOD], layout=[]), TypeError, ("layout", "bhld", "list")),
    ("no parts", lambda: merge([]), ValueError, ("outs", "one")),
    ("arrays without lses", lambda: merge([M]), TypeError, ("outs[0]", "AttentionParts", "lses", "ndarray")),
    ("parts beside lses", lambda: merge([GOOD], [M], layout="blhd"), TypeError, ("outs[0]", "AttentionParts")),
    ("parts of two shapes", lambda: merge([GOOD, changed(sums=GOOD.sums[..., :4])]), ValueError,
     ("outs[1].sums", "(2, 4, 3, 5)", "(2, 4, 3, 4)")),
    ("totals of other blocks", lambda: merge([changed(total=M[:1])]), ValueError, ("outs[0].total", "(2, 4, 3)", "(1, 4, 3)")),
    ("maxima of other rows", lambda: merge([changed(maximum=M[..., :2])]), ValueError, ("outs[0].maximum", "(2, 4, 2)")),
    ("parts in the other layout", lambda: merge([GOOD], layout="blhd"), ValueError, ("outs[0].maximum", "(2, 3, 4)")),
    ("sums of one axis", lambda: merge([changed(sums=M[0])]), ValueError, ("outs[0].sums", "(4, 3)")),
    ("parts of complex numbers", lambda: merge([changed(total=M.astype(complex))]), TypeError, ("outs[0].total", "complex128")),
    ("parts in an unknown layout", lambda: merge([GOOD], layout="bshd"), ValueError, ("layout", "bshd")),
    ("sinks of other heads", lambda: merge([GOOD], sinks=[1, 2, 3]), ValueError, ("merge_attention: sinks", "(4,)", "(3,)")),
    ("head_scale of NaN", lambda: merge([GOOD], head_scale=NAN), ValueError, ("merge_attention: head_scale", "nan")),
    ("no threads", lambda: merge([GOOD], num_threads=0), ValueError, ("num_threads", "0")),
    *[(f"{name} beside lses", lambda name=name: merge([GOOD.sums[0]], [M[0]], **{name: 1}), ValueError, (name, "lses", "1"))
      for name in ("sinks", "head_scale", "num_threads")],
    ("value None", lambda: qkvc.attention_parts(M, M, None), TypeError, ("value", "None")),
    ("keys that do not fit", lambda: qkvc.attention_parts(M, M[..., :2], M), ValueError, ("key", "3", "(2, 4, 2)")),
]  # fmt: skip


@pytest.mark.parametrize(("call", "exception", "words"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_misuse(call: Any, exception: Any, words: tuple[str, ...]) -> None:
    assert_refused(call, exception, *words)
