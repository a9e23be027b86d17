"""What is measured: the shapes, their inputs, their useful work and what each must reach."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import cached_property
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

ALIGNMENTS = ("top-left", "bottom-right")
WINDOW = 128  # keys on either side of a query in the "window" mask


@dataclass(frozen=True)
class Goal:
    """What a case must reach on two threads; None where nothing is promised beyond "never slower than the best rival"."""

    ratio: float | None = None  # median time of the best rival over ours, at least
    peak: float | None = None  # share of the measured FMA peak, at least
    torch_time: float | None = None  # our time over torch's, at most


@dataclass(frozen=True)
class Case:
    """One attention problem, float32."""

    batch: int
    heads: int
    queries: int
    dim: int
    kv_heads: int = 0  # 0: as many as query heads
    keys: int = 0  # 0: as many as queries
    v_dim: int = 0  # 0: as wide as the keys
    causal: str = ""  # "", "top-left" or "bottom-right"
    mask: str = ""  # "", "padding", "window" or "bias"
    layout: str = "bhld"
    kind: str = "given"
    goal: Goal = field(default_factory=Goal)

    def __post_init__(self) -> None:
        for name, default in (("kv_heads", self.heads), ("keys", self.queries), ("v_dim", self.dim)):
            object.__setattr__(self, name, getattr(self, name) or default)
        if min(self.batch, self.heads, self.queries, self.dim, self.kv_heads, self.keys, self.v_dim) < 1:
            raise ValueError("every size of a case must be at least 1")
        if self.heads % self.kv_heads:
            raise ValueError(f"{self.heads} query heads cannot be shared out over {self.kv_heads} key heads")
        if self.causal and self.causal not in ALIGNMENTS:
            raise ValueError(f"causal must be one of {', '.join(ALIGNMENTS)}, got {self.causal!r}")
        if self.causal == "bottom-right" and self.queries > self.keys:
            raise ValueError("bottom-right needs at least as many keys as queries, else the first queries see nothing")

    @property
    def name(self) -> str:
        """B x H x L x D, each as query/key (or key/value width) where the two differ, then the options."""
        heads, length, width = (
            f"{query}" if query == key else f"{query}/{key}"
            for query, key in ((self.heads, self.kv_heads), (self.queries, self.keys), (self.dim, self.v_dim))
        )
        causal = "causal" if self.causal and self.queries == self.keys else self.causal
        options = (causal, self.mask, self.layout if self.layout != "bhld" else "")
        return " ".join([f"{self.batch}x{heads}x{length}x{width}", *filter(None, options)])

    @property
    def group(self) -> int:
        """Query heads per key head."""
        return self.heads // self.kv_heads

    @property
    def sees_all(self) -> bool:
        """Whether every query may attend to every key, so that query heads can be stacked into the query length."""
        last_row_only = self.queries == 1 and self.causal == "bottom-right"
        return not self.mask and (not self.causal or last_row_only)

    @property
    def diagonal(self) -> int:
        """Offset of the causal diagonal: query i sees keys up to i + diagonal."""
        return self.keys - self.queries if self.causal == "bottom-right" else 0

    @property
    def bytes(self) -> int:
        """Least memory traffic: query, key and value read once, the output written once."""
        rows = self.heads * self.queries + self.kv_heads * self.keys
        return 4 * self.batch * rows * (self.dim + self.v_dim)

    @property
    def unit(self) -> str:
        """The unit that says most: a small call's latency, the rate at which one query reads the cache, or arithmetic."""
        if self.batch * self.heads * self.queries * self.keys * (self.dim + self.v_dim) < 2_000_000:
            return "µs"
        return "GB/s" if self.queries == 1 else "GFLOP/s"


class Problem:
    """The arrays of a case, `(B, H, L, D)` whatever lies in memory, and its float64 result."""

    def __init__(self, case: Case) -> None:
        self.case = case
        rng = np.random.default_rng(crc32(case.name.encode()))
        c = case
        self.query = self._normal(rng, c.heads, c.queries, c.dim)
        self.key = self._normal(rng, c.kv_heads, c.keys, c.dim)
        self.value = self._normal(rng, c.kv_heads, c.keys, c.v_dim)
        self.mask: NDArray[np.bool_] | None = None
        self.bias: Floats | None = None
        if c.mask == "padding":  # sentences of half to full length, as a tokenizer pads them
            lengths = rng.integers(c.keys // 2 + 1, c.keys + 1, size=(c.batch, 1, 1, 1))
            self.mask = np.arange(c.keys) < lengths
        elif c.mask == "window":
            self.mask = (np.abs(np.arange(c.keys) - np.arange(c.queries)[:, None]) <= WINDOW)[None, None]
        elif c.mask == "bias":  # one table per head, as T5's relative positions
            self.bias = rng.standard_normal((1, c.heads, c.queries, c.keys), dtype=np.float32)
        elif c.mask:
            raise ValueError(f"mask must be padding, window or bias, got {c.mask!r}")

    def _normal(self, rng: np.random.Generator, heads: int, length: int, dim: int) -> Floats:
        shape = (self.case.batch, heads, length, dim)
        if self.case.layout == "bhld":
            return rng.standard_normal(shape, dtype=np.float32)
        b, h, n, d = shape
        return rng.standard_normal((b, n, h, d), dtype=np.float32).swapaxes(1, 2)

    @cached_property
    def allowed(self) -> NDArray[np.bool_]:
        """Who may attend to whom; broadcasts to (B, H, L_q, L_k)."""
        c = self.case
        allowed: NDArray[np.bool_] = np.ones((1, 1, c.queries, c.keys), bool) if self.mask is None else self.mask
        if c.causal:
            allowed = allowed & (np.arange(c.keys) <= np.arange(c.queries)[:, None] + c.diagonal)
        return allowed

    @cached_property
    def flops(self) -> int:
        """Useful work: a multiplication and an addition per allowed pair and element of key and value."""
        c = self.case
        pairs = np.count_nonzero(np.broadcast_to(self.allowed, (c.batch, 1, c.queries, c.keys)))
        return 2 * (c.dim + c.v_dim) * c.heads * int(pairs)

    @cached_property
    def reference(self) -> NDArray[np.float64]:
        """softmax(QKᵀ/√D + bias)V in float64, in blocks of rows so that 8192² scores fit anywhere."""
        c = self.case
        out = np.empty((c.batch, c.heads, c.queries, c.v_dim))
        allowed = np.broadcast_to(self.allowed, (c.batch, c.heads, c.queries, c.keys))
        for b, h in np.ndindex(c.batch, c.heads):
            key, value = (x[b, h // c.group].astype(np.float64) for x in (self.key, self.value))
            for rows in row_blocks(c.queries, 512):
                scores = self.query[b, h, rows] @ key.T / np.sqrt(c.dim)
                if self.bias is not None:
                    scores += self.bias[0, h, rows]
                scores = np.where(allowed[b, h, rows], scores, -np.inf)
                weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
                out[b, h, rows] = weights @ value / weights.sum(axis=-1, keepdims=True)
        return out


def row_blocks(length: int, size: int) -> Iterator[slice]:
    """Slices of at most `size` rows that cover `length`."""
    return (slice(i, min(i + size, length)) for i in range(0, length, size))


CASES: tuple[Case, ...] = (
    # The shapes with a promise.
    Case(1, 8, 8192, 64, goal=Goal(ratio=1.2, peak=0.85), kind="long"),
    Case(1, 32, 2048, 128, goal=Goal(peak=0.90), kind="long"),
    Case(1, 32, 2048, 128, goal=Goal(ratio=1.3), causal="top-left", kind="long"),
    Case(1, 12, 1024, 64, goal=Goal(ratio=1.5, peak=0.78), causal="top-left", kind="prompt"),
    Case(8, 12, 128, 64, goal=Goal(ratio=1.2, peak=0.66), kind="encoder"),  # BERT base
    Case(8, 12, 197, 64, goal=Goal(ratio=1.1), kind="encoder"),  # ViT base, 14×14 patches and one more
    Case(1, 32, 1024, 128, goal=Goal(ratio=1.4), kv_heads=8, causal="top-left", kind="grouped"),  # Llama 3 8B
    Case(4, 8, 64, 64, goal=Goal(ratio=1.3), keys=1500, kind="cross"),  # Whisper base, decoder on 30 s of sound
    Case(1, 1, 3, 4, goal=Goal(torch_time=0.6), kind="small"),
    Case(4, 4, 16, 128, goal=Goal(torch_time=0.6), kind="small"),
    # Lengths that fill neither a vector nor a tile.
    Case(4, 12, 1, 64, kind="odd"),
    Case(8, 12, 17, 64, kind="odd"),
    Case(1, 12, 77, 64, causal="top-left", kind="odd"),  # CLIP's text tower
    Case(1, 16, 577, 64, kind="odd"),  # ViT large at 384 pixels
    Case(1, 8, 1500, 64, kind="odd"),  # Whisper base, encoder
    # Head widths.
    Case(8, 12, 128, 32, kind="width"),  # MiniLM
    Case(2, 8, 1024, 40, kind="width"),  # Stable Diffusion 1.5
    Case(1, 16, 729, 72, kind="width"),  # SigLIP so400m
    Case(1, 32, 512, 80, causal="top-left", kind="width"),  # Phi-2
    Case(1, 32, 512, 96, causal="top-left", kind="width"),  # Phi-3 mini
    Case(1, 8, 512, 256, kv_heads=1, causal="top-left", kind="width"),  # Gemma 2B
    Case(1, 16, 512, 192, v_dim=128, causal="top-left", kind="width"),  # multi-head latent attention, decompressed
    # Groups.
    Case(1, 28, 512, 128, kv_heads=4, causal="top-left", kind="grouped"),  # Qwen2 7B
    Case(1, 64, 256, 128, kv_heads=8, causal="top-left", kind="grouped"),  # Llama 3 70B
    # Few queries against many keys.
    Case(1, 12, 16, 64, keys=4096, kind="few"),
    Case(1, 32, 4, 128, kv_heads=8, keys=4096, causal="bottom-right", kind="few"),  # speculative decoding
    Case(2, 8, 1024, 40, keys=77, kind="few"),  # the other way round: Stable Diffusion on a prompt
    Case(8, 12, 1, 64, keys=1024, kind="decode"),
    Case(1, 32, 1, 128, kv_heads=8, keys=4096, kind="decode"),
    # Options.
    Case(8, 12, 384, 64, mask="padding", kind="option"),
    Case(1, 12, 1024, 64, mask="window", kind="option"),
    Case(1, 12, 1024, 64, mask="bias", kind="option"),
    Case(2, 12, 512, 64, layout="blhd", kind="option"),
    Case(2, 12, 512, 64, layout="blhd", causal="top-left", kind="option"),
)

QUICK: tuple[str, ...] = ("1x1x3x4", "8x12x128x64", "1x12x1024x64 causal", "8x12x1/1024x64")


def select(patterns: Sequence[str] | None = None, quick: bool = False) -> tuple[Case, ...]:
    """Cases whose name or kind matches one of the shell patterns; without a wildcard a name has to contain it."""
    chosen = tuple(case for case in CASES if case.name in QUICK) if quick else CASES
    if patterns is None:
        return chosen
    return tuple(case for case in chosen if any(_matches(case, pattern) for pattern in patterns))


def _matches(case: Case, pattern: str) -> bool:
    if any(mark in pattern for mark in "*?["):
        return fnmatch(case.name, pattern)
    return pattern == case.kind or pattern in case.name
