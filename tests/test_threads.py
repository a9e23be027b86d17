"""Threads of Python: many callers at once, and others that change what a call was given."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import qkvc

from .options import STORAGE
from .support import assert_same_bits, operands, run_child


def test_eight_python_threads_at_once(isa: str, rng: np.random.Generator) -> None:
    """Different calls on shared inputs, each with as many threads as it likes: the bits of a quiet run."""
    q, k, v = operands(rng, (2,), (4, 2), (130, 200), (32, 32))
    calls = [
        {"causal": "bottom-right", "num_threads": 1 + n % 4, "key_lengths": 200 - n, "scale": 0.05 * n} if n % 2 else {"num_threads": n}
        for n in range(1, 17)
    ]
    expected = [qkvc.attention_with_lse(q, k, v, **options) for options in calls]

    def gradient() -> NDArray[Any]:
        grad = qkvc.attention_vjp(q, k, v, dropout_p=0.5, rng=3)[1](v[:, [0, 0, 1, 1], :130]).key
        assert grad is not None
        return grad

    of_key = gradient()
    start = threading.Barrier(8)

    def worker(number: int) -> int:
        start.wait()
        for turn in range(60):
            n = (number + turn) % len(calls)
            got = qkvc.attention_with_lse(q, k, v, **calls[n])
            assert_same_bits(got.out, expected[n].out)
            assert_same_bits(got.lse, expected[n].lse)
            assert_same_bits(qkvc.softmax(q[0, 0]), qkvc.softmax(q[0, 0]))
            if turn % 10 == number:
                assert_same_bits(gradient(), of_key)
        return turn + 1

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(worker, range(8))) == 8 * 60


def test_settings_change_while_others_compute(rng: np.random.Generator) -> None:
    """set_num_threads and use_kernels from one thread do not disturb a call of another (all sets with FMA agree to the bit)."""
    q, k, v = operands(rng, (), (4, 4), (200, 200), (16, 16))
    fused = [name for name in qkvc.kernels() if name != "portable"] or ["portable"]
    before = qkvc.get_num_threads()
    with qkvc.use_kernels(fused[0]):
        expected = qkvc.attention(q, k, v)
        done = threading.Event()

        def disturb() -> None:
            n = 0
            while not done.is_set():
                qkvc.set_num_threads(1 + n % 5)
                with qkvc.use_kernels(fused[n % len(fused)]):
                    n += 1

        thread = threading.Thread(target=disturb)
        thread.start()
        try:
            for _ in range(150):
                assert_same_bits(qkvc.attention(q, k, v), expected)
        finally:
            done.set()
            thread.join()
            qkvc.set_num_threads(before)


# The call with its index arrays, the words of a refusal, and what else the second number of them may be.
REWRITTEN = {
    "ragged batch": ("qkvc.attention_varlen(q, k, v, *x, num_threads=2)", "[0, 100, 300, 400], [0, 100, 300, 400]", "cu_seqlens", 200),
    "lengths and offsets": ("qkvc.attention(*many, key_lengths=x[0], causal=True, q_offset=x[1], num_threads=2)",
                            "[30, 100, 50, 7], [0, 100, 3, -9]", "key_lengths", 0),
    "counts of a cache": ("appended(x[0])", "[3, 5, 2, 1], [0]", "counts", 2),
    "positions": ("qkvc.rope(many[0], x[0][:, None] + np.zeros((1, 100), int), num_threads=2)", "[30, 100, 50, 7], [0]", "positions", 9),
}  # fmt: skip


@pytest.mark.parametrize("name", REWRITTEN)
def test_index_arrays_are_rewritten_meanwhile(name: str) -> None:
    """By another thread, to numbers far outside: a call is refused, or computes what the array said when it was copied."""
    call, arrays, word, other = REWRITTEN[name]
    run_child(f"""
        import itertools, sys, threading
        import numpy as np, qkvc
        sys.setswitchinterval(1e-5)
        q, k, v = (np.random.default_rng(n).standard_normal((400, 2, 32), dtype=np.float32) for n in range(3))
        many = [x.reshape(4, 2, 100, 32) for x in (q, k, v)]
        def appended(counts):
            cache = qkvc.KVCache(4, 2, 5, 32)
            cache.append(many[1][:, :, :5], many[2][:, :, :5], counts)
            return cache.attend(many[0][:, :, :1], num_threads=2)
        call, numbers = lambda x: {call}.tobytes(), [np.array(x) for x in ({arrays})]
        good = [x[1:2].copy() for x in numbers]
        possible = set()
        for second in itertools.product(*([*g.tolist(), {other}][: 1 + bool(g.size)] for g in good)):
            possible.add(call([np.array([*x[:1], *[n][: x.size - 1], *x[2:]]) for x, n in zip(numbers, second)]))
        done = threading.Event()
        def rewrite():
            while not done.is_set():
                for x, g in zip(numbers, good):
                    for number in (1 << 60, {other}, -(1 << 60), *g):
                        x[1:2] = number
        thread = threading.Thread(target=rewrite)
        thread.start()
        refused = computed = 0
        try:
            while min(refused, computed) < 100:
                try:
                    got = call(numbers)
                    assert got in possible
                    computed += 1
                except ValueError as error:
                    assert {word!r} in str(error), error
                    refused += 1
        finally:
            done.set()
            thread.join()
    """)


@pytest.mark.parametrize("sizes", [{}, {"window": 200, "keep_first": 4}], ids=["all tokens", "a window"])
@pytest.mark.parametrize("dtype", STORAGE)
def test_a_cache_in_several_threads(dtype: str, sizes: dict[str, int], rng: np.random.Generator) -> None:
    """Whoever only looks gets the bits of a quiet run; whoever appends beside others may lose tokens, and nothing else."""
    q, k, v = operands(rng, (2,), (4, 2), (60, 300), (32, 32))
    cache, refused = qkvc.KVCache(2, 2, 300, 32, dtype=dtype, **sizes), []

    def look(n: int) -> NDArray[Any]:
        return cache.attend(q[:, :, : n % 8 + 1])

    def change(n: int) -> None:
        try:
            cache.attend(q[:, :, :5], k[:, :, :5], v[:, :, :5])
            cache.append(k[:, :, :9], v[:, :, :9], counts=[n % 10, 9])
            cache.trim([n % 3, 1])
            cache.reorder([1, 0])
        except ValueError as error:
            refused.append(str(error))

    cache.append(k, v, counts=[300, 211])
    expected = [look(n) for n in range(8)]
    with ThreadPoolExecutor(8) as pool:
        for n, got in enumerate(pool.map(look, range(64))):
            assert_same_bits(got, expected[n % 8])
        cache.reset()
        list(pool.map(change, range(64)))
    assert all(message.startswith(("KVCache.", "attention: key_lengths")) for message in refused)
    assert all(0 <= n <= (64 * 14 if sizes else 300) for n in cache.lengths)
    assert np.isfinite(cache.values().astype(np.float32)).all()
    cache.reset()
    cache.append(k, v, counts=[300, 211])
    assert_same_bits(look(7), expected[7])


def test_the_gil_is_released() -> None:
    """Another Python thread counts on while a long call runs."""
    x = np.ones((1, 1, 12000, 64), np.float32)
    counted, running = 0, threading.Event()
    done = threading.Event()

    def long_call() -> None:
        running.set()
        qkvc.attention(x, x, x, num_threads=1)
        done.set()

    thread = threading.Thread(target=long_call)
    thread.start()
    running.wait()
    while not done.is_set():
        counted += 1
        time.sleep(0.001)
    thread.join()
    assert counted > 20, f"only {counted} steps beside a call of half a second"
