"""Statistics of the weights: `attention_stats`, and NumPy with the weights written out."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np

import qkvc

from .forms import Form, room_for_scores
from .problems import CannotExpress, Floats, Stats
from .rivals import limited


def ours(problem: Stats, threads: int) -> Iterator[Form]:
    def result(y: qkvc.AttentionStats) -> Floats:
        return problem.result((y.lse, y.entropy, y.distance, y.key_mass))

    causal = bool(problem.case.causal)
    yield Form("attention_stats", partial(qkvc.attention_stats, problem.query, problem.key, causal=causal), result)


def numpy(problem: Stats, threads: int) -> Iterator[Form]:
    """All weights at once, and head by head in threads."""
    c = problem.case
    if c.causal or c.group > 1:
        raise CannotExpress("it is written for full attention without groups")
    scale, i = np.float32(c.dim**-0.5), np.arange(c.queries, dtype=np.float32)
    distances = np.abs(i - i[:, None])

    def statistics(index: tuple[int, ...]) -> tuple[Floats, Floats, Floats, Floats]:
        scores = (problem.query[index] * scale) @ problem.key[index].swapaxes(-1, -2)
        top = scores.max(axis=-1, keepdims=True)
        scores -= top
        weights = np.exp(scores)
        total = weights.sum(axis=-1, keepdims=True)
        weights /= total
        lse = np.log(total[..., 0])
        entropy = lse - np.einsum("...ij,...ij->...i", weights, scores)
        distance = np.einsum("...ij,ij->...i", weights, distances)
        return lse + top[..., 0], entropy, distance, weights.sum(axis=-2)

    if room_for_scores(problem):
        yield Form("whole", partial(statistics, ()), problem.result, limited(threads))
    if threads > 1:
        pool, heads = ThreadPoolExecutor(threads), list(np.ndindex(c.batch, c.heads))

        def result(parts: list[tuple[Floats, ...]]) -> Floats:
            lse, entropy, distance, mass = (np.reshape(x, (c.batch, c.heads, -1)) for x in zip(*parts, strict=True))
            return problem.result((lse, entropy, distance, mass))

        yield Form("head by head, in threads", lambda: list(pool.map(statistics, heads)), result, limited(1))
