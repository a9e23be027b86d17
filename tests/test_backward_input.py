"""What gradients are given beside the operands: results of other dtypes, names, starts of sequences; and everything that is refused."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

import qkvc

from .options import operands_in
from .support import assert_refused, assert_same_bits


def test_needs_may_be_read_once(rng: np.random.Generator) -> None:
    arrays = operands_in("float32", rng, (), (2, 1), (5, 6), (4, 4))
    out, vjp = qkvc.attention_vjp(*arrays, needs=(name for name in ("key", "value")))
    for _ in range(2):
        assert [x is not None for x in vjp(out)] == [False, True, True, False, False, False]


def test_results_of_other_dtypes(rng: np.random.Generator) -> None:
    """grad_out, out and both of lse may be float64, and are rounded to the operands' dtype once, whatever overflows."""
    arrays = operands_in("float32", rng, (2,), (4, 2), (9, 20), (8, 8))
    out, lse = qkvc.attention_with_lse(*arrays)
    given = [rng.standard_normal(x.shape) for x in (out, lse)]
    got = qkvc.attention_backward(given[0], *arrays, out.astype(float), lse.astype(float), grad_lse=given[1])
    narrow = [x.astype("float32") for x in given]
    for x, y in zip(got[:3], qkvc.attention_backward(narrow[0], *arrays, out, lse, grad_lse=narrow[1])[:3], strict=True):
        assert_same_bits(x, y)
    assert np.isnan(qkvc.attention_backward(given[0] * 1e300, *arrays, out, lse).query).any()


@pytest.mark.parametrize("dtype", ["uint8", "uint64", "list"])
def test_starts_of_any_integers(dtype: str, rng: np.random.Generator) -> None:
    q, k, v = operands_in("float32", rng, (), (4, 2), (9, 20), (8, 8))
    plain: Any = ([0, 2, 9], [0, 12, 20])
    starts = plain if dtype == "list" else [np.array(x, dtype) for x in plain]
    options: dict[str, Any] = {"sinks": rng.standard_normal((2, 4)), "layout": "bhld"}
    forward = qkvc.attention_varlen_with_lse(q, k, v, *starts, **options)
    got = qkvc.attention_varlen_backward(forward.out, q, k, v, *forward, *starts, **options, needs=("sinks", "head_importance"))
    for i, ((a, b), (c, d)) in enumerate(zip(*map(itertools.pairwise, plain), strict=True)):
        mine, one = slice(a, b), (q[:, a:b], k[:, c:d], v[:, c:d])
        args = (forward.out[:, mine], *one, forward.out[:, mine], forward.lse[:, mine])
        alone = qkvc.attention_backward(*args, sinks=options["sinks"][i], needs=("sinks", "head_importance"))
        assert_same_bits(got.sinks[i], alone.sinks)
        assert_same_bits(got.head_importance[i], alone.head_importance)


def test_bad_input(rng: np.random.Generator) -> None:
    q, k, v = operands_in("float32", rng, (2,), (4, 2), (5, 6), (8, 7))
    out, lse = qkvc.attention_with_lse(q, k, v)
    good = {"grad_out": out, "query": q, "key": k, "value": v, "out": out, "lse": lse}

    def refused(exception: type[Exception], *words: str, **changes: Any) -> None:
        assert_refused(lambda: qkvc.attention_backward(**{**good, **changes}), exception, *words)

    refused(ValueError, "attention_backward: grad_out: expected shape (2, 4, 5, 7), got shape (2, 4, 5, 8)", grad_out=q)
    refused(ValueError, "attention_backward: out: expected shape", out=out[0])
    refused(ValueError, "attention_backward: lse: expected shape (2, 4, 5)", lse=lse[..., :3])
    refused(ValueError, "attention_backward: grad_lse: expected shape", grad_lse=1.0)
    refused(TypeError, "attention_backward: grad_out", grad_out=out.astype(complex))
    refused(TypeError, "attention_backward: lse", lse=None)
    refused(TypeError, "attention_backward: value", value=None)
    refused(ValueError, "attention: key", key=k[..., :3])
    refused(ValueError, "attention_backward: needs", "values", needs=("query", "values"))
    refused(ValueError, "attention_backward: needs", "bias", needs=("bias",))
    refused(ValueError, "attention_backward: needs", "sinks", needs=("sinks",))
    refused(TypeError, "attention_backward: needs", needs="query")
    for needs in ((1,), 3, None, b"key", [["key"]]):
        refused(TypeError, "attention_backward: needs: expected a collection of names", needs=needs)
        assert_refused(lambda needs=needs: qkvc.attention_vjp(q, k, v, needs=needs), TypeError, "needs: expected a collection")  # type: ignore[misc]
    assert_refused(lambda: qkvc.attention_vjp(q, k, v, needs=["keys"]), ValueError, "needs", "keys")
    refused(ValueError, "attention_backward: grad_out: expected shape (2, 4, 5, 7), got shape ()", grad_out=1.0)
    refused(ValueError, "attention_backward: grad_lse: expected shape (2, 4, 5), got shape (4, 5)", grad_lse=lse[0])
    refused(ValueError, "attention_backward: lse: expected shape (2, 4, 5), got shape (2, 5, 4)", lse=lse.swapaxes(1, 2))
    refused(TypeError, "attention_backward: grad_out: expected an array, got None", grad_out=None)
    refused(TypeError, "attention_backward: out", "object", out=out.astype(object))
    for rate in (1.0, np.nan, -0.1):
        refused(ValueError, "dropout_p: expected a", str(rate), dropout_p=rate, rng=3)
    for seed in (None, np.random.default_rng(0)):
        refused(TypeError, "attention_backward: rng: expected the integer that the forward was given", dropout_p=0.1, rng=seed)
    starts = [0, 5]
    flat = [x[0] for x in (q, k, v)]
    assert_refused(
        lambda: qkvc.attention_varlen_backward(out[0], *flat, out[0], lse[0], starts, [0, 7], layout="bhld"), ValueError, "cu_seqlens_k"
    )
