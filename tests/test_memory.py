"""Scratch: under 1 MB per thread at any length, and nothing leaks.  Measured from outside, on the whole process."""

from __future__ import annotations

import os
import sys

import pytest

import qkvc

from .options import STORAGE
from .support import run_child

MB = 2**20

if not os.path.exists("/proc/self/status"):
    pytest.skip(f"peak memory is read from /proc, which {sys.platform} has not", allow_module_level=True)

# Growth of the address space: VmPeak is exact to the page, where resident memory is a counter that lags by hundreds of kilobytes.  The C
# library is told to map every block of 4 KB or more on its own, so that no free piece of the heap can hide one, and Python to ask it for
# every object, because its own arenas of 1 MB would be seen.  Results are given as `out`.
EXACT = {"MALLOC_MMAP_THRESHOLD_": "4096", "MALLOC_TOP_PAD_": "0", "PYTHONMALLOC": "malloc"}
METER = """
import mmap
import ml_dtypes, numpy as np, qkvc

def status(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(name + ":"))

def growth(call):
    status("VmPeak")
    gap = status("VmPeak") - status("VmSize")
    fill = mmap.mmap(-1, gap) if gap > 0 else None  # or an old peak would cover a new one; reading the size may itself be a peak
    before = status("VmSize")
    call()
    return status("VmPeak") - before

def arrays(heads, l_q, l_k, d):
    rng = np.random.default_rng(0)
    q = rng.standard_normal((heads, l_q, d), dtype=np.float32)
    k = rng.standard_normal((1, l_k, d), dtype=np.float32)
    return q, k, k.copy(), np.ones_like(q)
"""

CALLS = {
    "full": "q, k, v, out = arrays(1, 6000, 6000, 64); options = {}",
    "causal": "q, k, v, out = arrays(1, 6000, 6000, 64); options = dict(causal=True)",
    "wide": "q, k, v, out = arrays(1, 2000, 3000, 256); options = {}",
    "one query": "q, k, v, out = arrays(1, 1, 200_000, 64); options = {}",
    "group": "q, k, v, out = arrays(8, 1500, 1500, 64); options = {}",
    "mask": "q, k, v, out = arrays(1, 4000, 4000, 64); options = dict(mask=np.ones((4000, 4000), bool))",
    "broadcast mask": "q, k, v, out = arrays(4, 3000, 3000, 64); options = dict(mask=np.ones((1, 3000), bool))",
    "transposed mask": "q, k, v, out = arrays(1, 4000, 4000, 64); options = dict(mask=np.ones((4000, 4000), bool).T)",
    "bias": "q, k, v, out = arrays(1, 3000, 3000, 64); options = dict(bias=np.zeros((3000, 3000), np.float32))",
    "column bias": "q, k, v, out = arrays(4, 3000, 3000, 64); options = dict(bias=np.zeros((3000, 1), np.float32))",
    "lengths": "q, k, v, out = arrays(1, 6000, 6000, 64); options = dict(key_lengths=5000, causal='bottom-right')",
    "window": "q, k, v, out = arrays(1, 6000, 6000, 64); options = dict(window=(500, 500))",
    "softcap, ALiBi, sinks, head_scale": "q, k, v, out = arrays(8, 1500, 1500, 64); "
    "options = dict(softcap=2.0, alibi_slopes=0.1, sinks=0.5, head_scale=2.0)",
    "float64": "q, k, v, out = (x.astype(float) for x in arrays(1, 3000, 3000, 64)); options = dict(causal=True)",
    "element strides": "q, k, v, out = (np.repeat(x, 2, -1)[..., ::2] for x in arrays(1, 6000, 6000, 32)); options = {}",
    "transposed keys": "q, k, v, out = arrays(1, 6000, 6000, 64); "
    "k, v = (np.ascontiguousarray(x.swapaxes(1, 2)).swapaxes(1, 2) for x in (k, v)); options = {}",
    "bfloat16": "q, k, v, out = (x.astype('bfloat16') for x in arrays(8, 1500, 3000, 64)); options = {}",
    "one query of float32 beside float16": "q, k, v, out = arrays(1, 1, 100_000, 64); k, v = k.astype('e'), v.astype('e'); options = {}",
    "NaN in the values": "q, k, v, out = arrays(1, 3000, 3000, 64); v[0, 100] = np.nan; options = dict(causal=True)",
}


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("call", CALLS)
def test_scratch_is_under_a_megabyte_per_thread(call: str, threads: int) -> None:
    """A warm-up starts the threads and imports what NumPy loads when it is first used; what the real call then adds is scratch."""
    printed = run_child(
        METER
        + f"""
{CALLS[call]}
small = np.ones((40, 40, 8), np.float32)
qkvc.attention(small, small, small, out=small.copy(), num_threads={threads})
print(growth(lambda: qkvc.attention(q, k, v, out=out, num_threads={threads}, **options)))
""",
        **EXACT,
    )
    grown = int(printed)
    matrix = 4 * 3000 * 3000
    assert grown < threads * MB
    assert threads * MB < matrix / 10, "the limit must be far below an L x L matrix, or this shows nothing"


@pytest.mark.parametrize("threads", [1, 2])
def test_a_ragged_batch_is_not_padded(threads: int) -> None:
    """One sequence of 6,000 beside a thousand of 3, which padded would be 1.5 GB of queries, and a step of decoding beside both."""
    printed = run_child(
        METER
        + f"""
q, k, v, out = (x[0] for x in arrays(1, 9001, 15000, 64))
starts = np.concatenate([[0, 6000], np.arange(6003, 9001, 3), [9001]])
keys = np.append(starts[:-1], 15000)
small = np.ones((40, 8), np.float32)
qkvc.attention_varlen(small, small, small, [0, 40], [0, 40], num_threads={threads})
print(growth(lambda: qkvc.attention_varlen(q, k, v, starts, keys, out=out, num_threads={threads})))
""",
        **EXACT,
    )
    assert int(printed) < threads * MB


def test_a_cache_is_read_where_it_lies(figures: list[str]) -> None:
    """In every storage, by one query, by few and by many: the result and scratch, where a float32 copy would take 20 MB."""
    printed = run_child(
        METER
        + f"""
x = np.random.default_rng(0).standard_normal((1, 1, 40_000, 64), dtype=np.float32)
q = np.random.default_rng(1).standard_normal((1, 4, 100, 64), dtype=np.float32)
for dtype in {STORAGE}:
    cache = qkvc.KVCache(1, 1, 40_000, 64, dtype=dtype)
    cache.append(x, x)
    cache.attend(q[:, :, :40], num_threads=2)
    for n in (1, 3, 100):
        print(growth(lambda: cache.attend(q[:, :, :n].astype(x.dtype if dtype != "float64" else dtype), num_threads=2)))
""",
        **EXACT,
    )
    grown = list(map(int, printed.split()))
    figures.append(f"memory of 1, 3 and 100 queries of a cache: {', '.join(f'{n // 1024} KB' for n in grown)}")
    assert max(grown) < 2 * MB + 2 * 4 * 100 * 64 * 8


def test_statistics_make_no_matrix(figures: list[str]) -> None:
    """Results aside, a few rows: the weights of 2 heads of 4096 would be 134 MB."""
    printed = run_child(
        METER
        + """
q = np.random.default_rng(0).standard_normal((1, 2, 4096, 64), dtype=np.float32)
qkvc.attention_stats(q[:, :, :40], q[:, :, :40], top_k=4)
for threads in (1, 2):
    print(growth(lambda: qkvc.attention_stats(q, q, top_k=4, causal=True, num_threads=threads)))
""",
        **EXACT,
    )
    grown = list(map(int, printed.split()))
    figures.append(f"memory of attention_stats at 1x2x4096x64, results included: {', '.join(f'{n // 1024} KB' for n in grown)}")
    assert max(grown) < 4 * MB


@pytest.mark.parametrize("threads", [1, 2])
def test_parts_take_what_they_say(threads: int) -> None:
    """Results by the formula of the docstring, and scratch; merging them, out and lse."""
    printed = run_child(
        METER
        + f"""
q, k, v, _ = arrays(4, 1000, 3000, 64)
small = qkvc.attention_parts(q[:, :40], k[:, :40], v[:, :40], num_threads={threads})
qkvc.merge_attention(small, num_threads={threads})
held = []
print(growth(lambda: held.append(qkvc.attention_parts(q, k, v, num_threads={threads}))))
print(growth(lambda: held.append(qkvc.merge_attention(held[0], num_threads={threads}))))
""",
        **EXACT,
    )
    made, merged = map(int, printed.split())
    results = 4 * (64 + 2) * 24 * 4 * 1000, 4 * (64 + 1) * 4 * 1000
    assert 0 <= made - results[0] < threads * MB
    assert 0 <= merged - results[1] < threads * MB


def test_chosen_weights_make_no_matrix() -> None:
    """Two heads and three queries of 8 x 4096 are what is computed, not cut out of 512 MB; the chosen heads' keys are copied."""
    printed = run_child(
        METER
        + """
q = np.random.default_rng(0).standard_normal((1, 8, 4096, 64), dtype=np.float32)
qkvc.attention_weights(q[:, :, :40], q[:, :, :40], heads=[1], queries=[2])
print(growth(lambda: qkvc.attention_weights(q, q, heads=[7, 2], queries=[4000, 3, -1])))
""",
        **EXACT,
    )
    assert int(printed) < 8 * MB


def test_the_meter_sees_a_matrix() -> None:
    """The same meter on NumPy's way of doing it, so that a silent zero above is a measurement."""
    printed = run_child(METER + "q, k, v, out = arrays(1, 3000, 3000, 64)\nprint(growth(lambda: q @ k.swapaxes(1, 2)))", **EXACT)
    assert int(printed) > 30 * MB


def test_scratch_does_not_depend_on_the_length(figures: list[str]) -> None:
    """The first call of each process has one query and one key, so that nothing that is allocated once and kept is missed."""
    grown = []
    for length in (500, 2000, 8000):
        code = f"""
q, k, v, out = arrays(1, {length}, {length}, 32)
qkvc.attention(q[:, :1], k[:, :1], v[:, :1], out=out[:, :1].copy())
print(growth(lambda: qkvc.attention(q, k, v, out=out, num_threads=1)))
"""
        grown.append(int(run_child(METER + code, **EXACT)))
    figures.append(f"scratch of one thread, D = 32, lengths 500, 2000, 8000: {', '.join(f'{n // 1024} KB' for n in grown)}")
    assert max(grown) - min(grown) <= 65536, grown
    assert 0 < max(grown) < MB


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("weight", "piece"), [("w", 0), ("np.ascontiguousarray(w.T).T", 3.2), ("w[::-1, ::-1]", 0)], ids=str)
def test_projections_copy_neither_tokens_nor_weight(weight: str, piece: float, threads: int) -> None:
    """16 MB of each, under a megabyte of scratch for a thread, and of a weight of adjacent rows a piece."""
    printed = run_child(
        METER
        + f"""
from qkvc._linear import project
x, w = (np.random.default_rng(0).standard_normal((2048, 2048), dtype=np.float32) for _ in range(2))
w, out = {weight}, np.ones_like(x)
small = np.ones((40, 300), np.float32)
project(small, small, out=np.ones((40, 40), np.float32), num_threads={threads})
print(growth(lambda: project(x, w, out=out, num_threads={threads})))
""",
        **EXACT,
    )
    assert int(printed) < (threads + piece) * MB


def test_softmax_and_logsumexp_do_not_copy() -> None:
    """One row at a time, or a bounded number of them: no second array of the size of the first."""
    printed = run_child(
        METER
        + """
x = np.random.default_rng(0).standard_normal((2000, 4000), dtype=np.float32)
out = np.ones_like(x)
qkvc.softmax(x[:10]), qkvc.logsumexp(x[:10])
print(growth(lambda: qkvc.softmax(x, out=out)), growth(lambda: qkvc.logsumexp(x)))
""",
        **EXACT,
    )
    for grown in map(int, printed.split()):
        assert grown < 2 * MB


def test_nothing_leaks() -> None:
    """Ten thousand calls, also refused and empty ones, on several threads: the memory of the process stays where it was."""
    printed = run_child(
        METER
        + """
x = np.ones((2, 50, 16), np.float32)
long = np.ones((2, 300, 64), np.float32)

def work(turns):
    for n in range(turns):
        qkvc.attention_with_lse(x, x, x, causal=True, key_lengths=n % 50)
        qkvc.attention(x, x, x, mask=np.ones((50, 50), bool), bias=np.zeros((1, 50), np.float32))
        qkvc.attention(x[:, ::2], x.astype(">f4"), x[..., ::-1])
        qkvc.attention_varlen(x[0], x[0], x[0], [0, n % 50, 50], [0, 20, 50])
        qkvc.softmax(x), qkvc.logsumexp(x, None)
        for wrong in (dict(mask=x), dict(causal="up"), dict(key_lengths=99), dict(num_threads=0), dict(out=x), dict(bias=x[:1, :3])):
            try:
                qkvc.attention(x, x, x, **wrong)
            except (TypeError, ValueError):
                pass
            try:
                qkvc.attention_varlen(x[0], x[0], x[0], [0, 50], [0, 50], **wrong)
            except (TypeError, ValueError):
                pass
        if n % 50 == 0:
            qkvc.attention(long, long, long, num_threads=3)

work(300)
before = status("VmRSS")
work(1500)
print(status("VmRSS") - before)
"""
    )
    assert int(printed) < MB


@pytest.mark.parametrize("name", qkvc.kernels())
def test_no_reference_is_kept(name: str) -> None:
    run_child(f"""
        import sys, numpy as np, qkvc
        arrays = dict(query=np.ones((2, 5, 8), np.float32), key=np.ones((2, 7, 8), np.float32), value=np.ones((2, 7, 8), np.float32),
                      mask=np.ones((5, 7), bool), bias=np.ones((5, 7), np.float32), out=np.ones((2, 5, 8), np.float32))
        before = {{name: sys.getrefcount(x) for name, x in arrays.items()}}
        with qkvc.use_kernels({name!r}):
            for n in range(10):
                got = qkvc.attention(**arrays)
                assert got is arrays["out"]
                del got
                try:
                    qkvc.attention(**arrays, causal="up")
                except ValueError:
                    pass
        assert before == {{name: sys.getrefcount(x) for name, x in arrays.items()}}
        view = arrays["key"].view()
        qkvc.attention(arrays["query"], view, view)
        view.resize((2, 7, 8), refcheck=True)
    """)
