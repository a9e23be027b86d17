"""Random gradients over the whole option space, dropout among it: each element within its own bound, masked NaN nowhere, and zero there.

The calls are those of test_random.py; a failure prints the line that repeats it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import qkvc
from qkvc.gradients import NEEDS

from .reference import (
    PAIRS,
    Problem,
    _like,
    _of_operands,
    backward_certificate,
    exact_for,
    lse_type,
    problem,
    reference_backward,
    result_type,
    shortening,
    unit_of,
)
from .support import assert_same_bits, in_pairs, share_of_bound
from .test_random import Call, configuration

SMALL = 150_000  # scores times columns: what long double, the oracle of float64, computes in some milliseconds
OPERANDS = ("query", "key", "value")


def backward_configuration(number: int) -> tuple[Call, dict[str, Any]]:
    """A call, perhaps with dropout, and what only its gradient takes; grad_out is float64, whatever the operands are."""
    rng, call = np.random.default_rng(number), configuration(number)
    if rng.random() < 0.4:
        call.options.update(dropout_p=float(rng.choice((0.1, 0.5, 0.9))), rng=int(rng.integers(2**63)))
    out, lse = qkvc.attention_with_lse(*call.arrays, **call.options)
    grad_lse = rng.standard_normal(lse.shape) if rng.random() < 0.5 else None
    return call, {"grad_out": rng.standard_normal(out.shape), "grad_lse": grad_lse}


def poisoned(p: Problem, call: Call, back: dict[str, Any]) -> tuple[list[Any], dict[str, Any], dict[str, Any], dict[str, NDArray[Any]]]:
    """NaN in every row that sees nobody or that nobody sees, in biases that only belong to masked pairs; and which rows those are."""
    some = [p.allowed.any(axis)[..., np.newaxis] for axis in (-1, -2, -2)]
    widths = [x.shape[-1] for x in call.arrays]
    shown = [np.broadcast_to(x, (*x.shape[:-1], n)).astype(float) for x, n in zip(some, widths, strict=True)]
    seen = {n: x > 0 for n, x in zip(OPERANDS, _of_operands(p, tuple(shown), tuple(call.arrays)), strict=True)}
    dirty = [np.where(seen[n], x, x.dtype.type(np.nan)) if x.dtype.kind in "fV" else x for n, x in zip(OPERANDS, call.arrays, strict=True)]
    options = dict(call.options)
    if "bias" in options:
        seen["bias"] = _like(p.allowed.astype(float), p.bias.shape) > 0
        options["bias"] = np.where(seen["bias"] | np.isneginf(options["bias"]), options["bias"], np.nan)
    rows = some[0].swapaxes(-2, -3) if p.layout == "blhd" and back["grad_out"].ndim > 2 else some[0]
    after = {**back, "grad_out": np.where(rows.reshape(*back["grad_out"].shape[:-1], 1), back["grad_out"], np.nan)}
    return dirty, options, after, seen


def check(number: int) -> dict[str, float]:
    """The largest error of each gradient, in units of its bound."""
    call, back = backward_configuration(number)
    needs = [name for name in NEEDS if name not in ("bias", "sinks") or name in call.options]
    with qkvc.use_kernels(call.isa):

        def gradients(arrays: list[Any], options: dict[str, Any], back: dict[str, Any]) -> qkvc.AttentionGrads:
            forward = qkvc.attention_with_lse(*arrays, **options, num_threads=call.threads)
            given = {"out": forward.out, "lse": forward.lse, **back, "needs": needs, "num_threads": call.threads}
            return qkvc.attention_backward(query=arrays[0], key=arrays[1], value=arrays[2], **given, **options)

        got = gradients(call.arrays, call.options, back)
        dtype, exact = result_type(*call.arrays), exact_for(*call.arrays)
        arguments = {**back, **dict(zip(OPERANDS, call.arrays, strict=True)), **call.options, "dtype": exact}
        expected = reference_backward(**arguments)
        bounds = backward_certificate(**arguments, unit=unit_of(dtype), weights_lose=in_pairs(*call.arrays) * PAIRS)
        shares, own = {}, dict(zip(OPERANDS, map(result_type, call.arrays), strict=True))
        for name in needs:
            kept, wanted = own.get(name, lse_type(*call.arrays)), getattr(expected, name)
            rounded = shortening(kept, wanted) + (unit_of(kept) * np.abs(wanted) if kept == np.float32 else 0)
            shares[f"{name} {dtype}"] = share_of_bound(name, getattr(got, name), wanted, getattr(bounds, name) + rounded, kept)

        dirty, options, after, seen = poisoned(problem(*call.arrays, **call.options), call, back)
        again = gradients(dirty, options, after)
        for name in needs:
            assert_same_bits(getattr(again, name), getattr(got, name), f"{name} beside NaN")
        for name in set(needs) & set(seen):
            assert not getattr(again, name)[~seen[name]].any(), f"{name} where nobody sees it"
    return shares


def sweep(numbers: range, figures: list[str], most: float = np.inf) -> None:
    shares: dict[str, list[float]] = {}
    missed: list[str] = []
    for number in numbers:
        call = configuration(number)
        if call.arrays[0].size * call.arrays[1].size // max(1, call.arrays[0].shape[-1]) > most:
            continue
        try:
            for name, share in check(number).items():
                shares.setdefault(name, []).append(share)
        except Exception as error:
            line = f'python -c "from tests.test_backward_random import check; check({number})"'
            missed.append(f"{line}\n    {type(error).__name__}: {error}\n    {backward_configuration(number)[0]}"[:1500])
    for name, found in sorted(shares.items()):
        figures.append(f"error / bound, gradient of {name}, {len(found)} random calls: largest {max(found):.3f}")
    assert not missed, f"{len(missed)} of {len(numbers)} calls:\n" + "\n".join(missed[:8])


def test_five_hundred_random_gradients(figures: list[str]) -> None:
    """The small ones of them."""
    sweep(range(500), figures, SMALL)


@pytest.mark.full
def test_two_thousand_random_gradients(figures: list[str]) -> None:
    sweep(range(2000), figures)
