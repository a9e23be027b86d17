"""Forks, signals and limits: children that work, Ctrl-C that is heard, settings that are kept.

Whatever could hang or crash runs in a child process under a watchdog.
"""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import time

import numpy as np
import pytest

import qkvc

from .support import run_child

# Enough work for every thread of a call (a pool is not woken for less), and what all children compute.
WORK = """
    import os, signal, sys, threading, time, warnings
    import numpy as np, qkvc
    q, k, v = (np.random.default_rng(n).standard_normal((4, 200, 64), dtype=np.float32) for n in range(3))
    def compute(threads=2):
        out, vjp = qkvc.attention_vjp(q, k, v, dropout_p=0.5, rng=3, num_threads=threads)
        return qkvc.attention(q, k, v, num_threads=threads).tobytes() + b"".join(x.tobytes() for x in vjp(out)[:3])
"""


# --- fork ------------------------------------------------------------------------------------------------------------------------------


FORK = (
    WORK
    + """
    def fork_and_compare(expected):
        pid = os.fork()
        if pid == 0:
            signal.alarm(20)  # a hang in the child is death, not a wait
            good = all(compute(threads) == expected for threads in (1, 2, 3))
            os._exit(0 if good else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
"""
)


@pytest.mark.parametrize(
    "code",
    [
        pytest.param(
            """
    fork_and_compare(compute(1))
    """,
            id="pool never used",
        ),
        pytest.param(
            """
    expected = compute()
    for _ in range(20):
        fork_and_compare(expected)
    assert compute() == expected
    """,
            id="after use",
        ),
        pytest.param(
            """
    expected = compute()
    stop = threading.Event()
    def busy():
        while not stop.is_set():
            compute()
    threads = [threading.Thread(target=busy) for _ in range(2)]
    for t in threads: t.start()
    for _ in range(20):
        fork_and_compare(expected)
    stop.set()
    for t in threads: t.join()
    assert compute() == expected
    """,
            id="in the middle of a call of another thread",
        ),
        pytest.param(
            """
    expected = compute()
    pid = os.fork()
    if pid == 0:
        signal.alarm(40)
        fork_and_compare(expected)
        os._exit(0 if compute() == expected else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    """,
            id="a child's child",
        ),
        pytest.param(
            """
    expected = compute()
    try:
        qkvc.attention(q, k, v[:, :3])
    except ValueError:
        pass
    fork_and_compare(expected)
    """,
            id="after an error",
        ),
        pytest.param(
            """
    expected = compute()
    thread = threading.Thread(target=fork_and_compare, args=(expected,))
    thread.start(); thread.join()
    assert compute() == expected
    """,
            id="from a thread",
        ),
    ],
)
def test_fork(code: str) -> None:
    run_child(FORK + code, timeout=90)


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_multiprocessing(method: str, tmp_path: object) -> None:
    """A pool of processes after the parent has used its own threads."""
    script = os.path.join(str(tmp_path), "work.py")
    with open(script, "w") as file:
        file.write(f"""
import multiprocessing, numpy as np, qkvc

def work(n):
    x = np.random.default_rng(n).standard_normal((4, 200, 64), dtype=np.float32)
    return qkvc.attention(x, x, x, num_threads=2).tobytes()

if __name__ == "__main__":
    expected = [work(n) for n in range(6)]
    with multiprocessing.get_context({method!r}).Pool(3) as pool:
        assert pool.map(work, range(6)) == expected
    print("equal")
""")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.strip() == "equal", done.stderr


# --- Ctrl-C ----------------------------------------------------------------------------------------------------------------------------

LONG_CALLS = {
    "many tiles": "q, k = np.ones((8, 65536, 64), np.float32), np.ones((1, 65536, 64), np.float32)",
    "causal": "q, k = np.ones((8, 65536, 64), np.float32), np.ones((1, 65536, 64), np.float32); options = dict(causal=True)",
    "one tile, one query, endless keys": "q, k = np.ones((1, 1, 64), np.float32), np.broadcast_to(np.float32(1), (1, 2**31, 64))",
    "wholly masked": "q, k = np.ones((1, 1, 1), np.float32), np.broadcast_to(np.float32(1), (1, 2**36, 1)); "
    "options = dict(mask=np.broadcast_to(np.bool_(False), (1, 2**36)))",
    "one thread": "q, k = np.ones((8, 65536, 64), np.float32), np.ones((1, 65536, 64), np.float32); options = dict(num_threads=1)",
    "ragged": "q = k = np.ones((65536, 8, 64), np.float32); call = lambda: qkvc.attention_varlen(q, k, k, [0, 9, 65536], [0, 9, 65536])",
    "parts": "q, k = np.broadcast_to(np.ones(256, np.float32), (16, 8192, 256)), np.ones((1, 16384, 256), np.float32); "
    "call = lambda: qkvc.attention_parts(q, k, k[..., :1])",
    "cache": "cache = qkvc.KVCache(1, 1, 70000, 64, dtype='int8'); k = np.ones((1, 1, 65536, 64), np.float32); cache.append(k, k); "
    "q, k = np.ones((1, 8, 4096, 64), np.float32), k[:, :, :4096]; call = lambda: cache.attend(q, k, k); "
    "left = lambda: cache.lengths == 65536",
    "gradients": "q = k = np.ones((8, 20000, 64), np.float32); lse = np.zeros((8, 20000), np.float32); "
    "call = lambda: qkvc.attention_backward(q, q, k, k, q, lse, dropout_p=0.1, rng=1)",
    "sums over columns": "q = np.broadcast_to(np.float32(1), (64, 100000, 256)); k, lse = q[:, :2], np.zeros((64, 100000), np.float32); "
    "call = lambda: qkvc.attention_backward(q, q, k, k, q, lse, needs=['head_importance'])",
    "gradient of a weight": "x = np.ones((8192, 4096), np.float32); call = lambda: project(x.T, x.T)",
    "projection": "x = np.broadcast_to(np.float32(1), (1, 2**36)); call = lambda: project(x, x)",
}


@pytest.mark.parametrize("call", LONG_CALLS)
def test_ctrl_c(call: str) -> None:
    """KeyboardInterrupt within 200 ms (the middle one of three), and the next call is right."""
    code = f"""
import signal, time
import numpy as np, qkvc
from qkvc._linear import project
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs begin without
options, left = {{}}, lambda: True
call = lambda: qkvc.attention(q, k, k, **options)
{LONG_CALLS[call]}
small = np.random.default_rng(0).standard_normal((4, 200, 64), dtype=np.float32)
expected = qkvc.attention(small, small, small, num_threads=2).tobytes()
print("ready", flush=True)
try:
    call()
    print("finished", flush=True)
except KeyboardInterrupt:
    print(time.monotonic(), flush=True)
assert left()
assert qkvc.attention(small, small, small, num_threads=2).tobytes() == expected
print("right", flush=True)
"""
    late = []
    for _ in range(3):
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
            try:
                assert child.stdout is not None
                assert child.stdout.readline() == "ready\n"
                time.sleep(0.4)
                sent = time.monotonic()
                child.send_signal(signal.SIGINT)
                printed, errors = child.communicate(timeout=20)
            finally:
                child.kill()
        assert child.returncode == 0, errors
        answer, *rest = printed.split("\n")
        assert answer != "finished", "the call was too short for this test"
        assert rest[0] == "right", printed
        late.append(float(answer) - sent)
    assert statistics.median(late) < 0.2, f"answered after {late} s"


def test_signal_handlers_of_python_run_and_may_carry_on() -> None:
    """A handler that raises nothing does not end the call."""
    run_child(
        WORK
        + """
    seen = []
    signal.signal(signal.SIGALRM, lambda *_: seen.append(time.monotonic()))
    signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
    x = np.ones((1, 1, 20000, 64), np.float32)
    start = time.monotonic()
    out = qkvc.attention(x, x, x, num_threads=1)
    end = time.monotonic()
    signal.setitimer(signal.ITIMER_REAL, 0)
    assert (out == 1).all()
    during = [t for t in seen if start < t < end - 0.01]
    assert len(during) >= (end - start) / 0.3, (len(during), end - start)
    """
    )


def test_exit_while_a_daemon_thread_computes() -> None:
    run_child(
        WORK
        + """
    x = np.ones((8, 65536, 64), np.float32)
    threading.Thread(target=lambda: qkvc.attention(x, x[:1], x[:1]), daemon=True).start()
    time.sleep(0.3)
    """,
        timeout=30,
    )


# --- what an import does, and how many threads there are -------------------------------------------------------------------------------


def test_import_changes_nothing() -> None:
    """No thread, no signal handler, no affinity, no environment variable, no warning."""
    run_child("""
        import os, signal, sys, warnings
        import numpy, importlib.metadata, json, platform
        def state():
            handlers = {n: signal.getsignal(n) for n in signal.valid_signals()}
            return len(os.listdir("/proc/self/task")), os.sched_getaffinity(0), dict(os.environ), handlers, os.getcwd()
        before = state()
        warnings.simplefilter("error")
        import qkvc
        assert state() == before
        heavy = {"torch", "scipy", "matplotlib", "rich", "threadpoolctl", "safetensors", "tokenizers"} & set(sys.modules)
        assert not heavy, heavy
    """)


def test_small_calls_start_no_thread_and_large_ones_keep_to_their_number() -> None:
    run_child(
        WORK
        + """
    def threads():
        return len(os.listdir("/proc/self/task"))
    before = threads()
    tiny = np.ones((2, 4, 8), np.float32)
    qkvc.attention(tiny, tiny, tiny)
    assert threads() == before
    compute(1)
    assert threads() == before, "num_threads=1 means the caller alone"
    compute(2)
    assert threads() <= before + 1
    compute(3)
    assert threads() <= before + 2
    for _ in range(5):
        compute(10**6)
    assert threads() < before + 2 * os.cpu_count() + 64, "a huge num_threads is clamped"
    """
    )


@pytest.mark.parametrize("value", ["1", "2", "3"])
def test_qkvc_num_threads(value: str) -> None:
    printed = run_child(WORK + "    print(qkvc.get_num_threads()); compute(None)", QKVC_NUM_THREADS=value)
    assert printed.strip() == value


@pytest.mark.parametrize("value", ["0", "-1", "two", "1.5", "", " ", "99999999999999999999"])
def test_a_wrong_qkvc_num_threads_is_named_or_ignored(value: str) -> None:
    """It neither crashes nor starts a million threads."""
    printed = run_child(
        """
        try:
            import qkvc
        except (ImportError, ValueError) as error:
            assert "QKVC_NUM_THREADS" in str(error), error
            print(0)
        else:
            import os
            assert 1 <= qkvc.get_num_threads() <= 4096
            print(qkvc.get_num_threads())
    """,
        QKVC_NUM_THREADS=value,
    )
    if not value:
        assert int(printed) >= 1, "an empty variable is no setting"


def test_affinity_is_respected_and_kept() -> None:
    run_child("""
        import os
        one = {min(os.sched_getaffinity(0))}
        os.sched_setaffinity(0, one)
        import numpy as np, qkvc
        assert qkvc.get_num_threads() == 1, qkvc.get_num_threads()
        x = np.ones((4, 200, 64), np.float32)
        assert (qkvc.attention(x, x, x, num_threads=2) == 1).all()
        assert os.sched_getaffinity(0) == one
        assert all(os.sched_getaffinity(int(t)) == one for t in os.listdir("/proc/self/task"))
    """)


def test_set_num_threads() -> None:
    before = qkvc.get_num_threads()
    assert 1 <= before <= len(os.sched_getaffinity(0))
    try:
        for n in (1, 3, np.int64(2)):
            qkvc.set_num_threads(n)
            assert qkvc.get_num_threads() == n
    finally:
        qkvc.set_num_threads(before)


def test_workers_block_signals() -> None:
    """A signal must reach a thread of Python, or Ctrl-C could land where nobody looks."""
    run_child(
        WORK
        + """
    compute(3)
    workers = [t for t in os.listdir("/proc/self/task") if int(t) != os.getpid()]
    started = qkvc.show_config("dicts")["threads"]["started"]
    assert started >= 1
    blocked = 0
    for t in workers:
        status = open(f"/proc/self/task/{t}/status").read()
        mask = int(next(line.split()[1] for line in status.splitlines() if line.startswith("SigBlk")), 16)
        blocked += bool(mask >> (signal.SIGINT - 1) & 1) and bool(mask >> (signal.SIGTERM - 1) & 1)
    assert blocked >= started, (blocked, started)
    """
    )


@pytest.mark.parametrize("order", ["import threadpoolctl, qkvc", "import qkvc, threadpoolctl, qkvc.integrations.threadpools"])
def test_threadpoolctl(order: str) -> None:
    """It sees the threads and limits them, whichever of the two was imported first."""
    pytest.importorskip("threadpoolctl", reason="threadpoolctl is not installed")
    run_child(f"""
        {order}
        qkvc.set_num_threads(2)
        mine = [pool for pool in threadpoolctl.threadpool_info() if pool["internal_api"] == "qkvc"]
        assert len(mine) == 1, threadpoolctl.threadpool_info()
        assert mine[0]["num_threads"] == 2
        for limits in (dict(limits=1), dict(limits=1, user_api="qkvc"), dict(limits={{"qkvc": 1}})):
            with threadpoolctl.threadpool_limits(**limits):
                assert qkvc.get_num_threads() == 1
            assert qkvc.get_num_threads() == 2
    """)
