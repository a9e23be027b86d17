"""What is measured: the shapes and what each must reach."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from itertools import product
from math import isqrt

from qkvc._console import ALIGNMENTS

MASKS = ("padding", "window", "random", "bias")
OPTIONS = ("softcap", "alibi", "sinks", "bf16")  # the last: `precision`
BYTES = {"float32": 4, "float64": 8, "float16": 2, "bfloat16": 2, "int8": 1}  # of a number
DTYPES = tuple(BYTES)[:-1]  # of arrays; int8 is how a cache keeps them


@dataclass(frozen=True)
class Goal:
    """What a case must reach on two threads; None where nothing is promised beyond "never slower than the best rival"."""

    ratio: float | None = None  # median time of the best rival over ours, at least
    peak: float | None = None  # share of the roof that applies (`Case.roof`), at least
    torch_time: float | None = None  # our time over torch's, at most
    plain: float | None = None  # our time for the useful work over that of plain attention doing as much, at most


@dataclass(frozen=True)
class Case:
    """One problem of attention, or of what is built on it.

    `work` "stats" asks for `attention_stats` instead, "module" for a multi-head layer of width heads x dim on `batch` texts, "qwen3" for
    one that norms and turns its queries and keys, "varlen" for sequences of up to `keys` keys without padding, "step" for the next token
    of a cache that keeps `dtype`, "model" for the vectors of `batch` sentences of about `queries` tokens, "backward" for
    the gradients of query, key and value, "dropout" for attention and these where weights are dropped, "training" for a step of a language
    model of six layers on `batch` texts.
    """

    batch: int
    heads: int
    queries: int
    dim: int
    kv_heads: int = 0  # 0: as many as query heads
    keys: int = 0  # 0: as many as queries
    v_dim: int = 0  # 0: as wide as the keys
    causal: str = ""  # "", "top-left" or "bottom-right"
    mask: str = ""  # "" or one of MASKS: an array, whatever its pattern
    layout: str = "bhld"
    dtype: str = "float32"
    window: int = 0  # a query sees its own key and so many before it; 0: no window
    option: str = ""  # "" or one of OPTIONS
    work: str = "attention"
    alone: bool = False  # beside the machine only, unless rivals are named
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

        if self.window and self.queries != self.keys:
            raise ValueError("a window needs as many keys as queries")
        dtypes = tuple(BYTES) if self.work == "step" else DTYPES
        for what, value, known in (("mask", self.mask, MASKS), ("option", self.option, OPTIONS), ("dtype", self.dtype, dtypes)):
            if value and value not in known:
                raise ValueError(f"{what} must be one of {', '.join(known)}, got {value!r}")

    @property
    def name(self) -> str:
        """B x H x L x D, each as query/key (or key/value width) where the two differ, then the options."""
        if self.work == "module":
            return f"module {self.batch}x{self.queries}x{self.width}/{self.heads}"
        if self.work == "qwen3":
            return f"qwen3 {self.batch}x{self.queries}x{self.width}/{self.heads}/{self.kv_heads}"
        if self.work == "training":
            return f"training {self.batch}x{self.queries}x{self.width}/{self.heads}"
        if self.work == "model":
            return f"MiniLM {self.batch} sentence{'s' * (self.batch > 1)}"
        heads, length, width = (
            f"{query}" if query == key else f"{query}/{key}"
            for query, key in ((self.heads, self.kv_heads), (self.queries, self.keys), (self.dim, self.v_dim))
        )
        causal = "causal" if self.causal and self.queries == self.keys else self.causal
        window = f"window {self.window}" if self.window else ""
        spoken = (x if x != usual else "" for x, usual in ((self.layout, "bhld"), (self.dtype, "float32"), (self.work, "attention")))
        option = "precision bf16" if self.option == "bf16" else self.option
        options = (causal, self.mask, window, option, *spoken)
        return " ".join([f"{self.batch}x{heads}x{length}x{width}", *filter(None, options)])

    @property
    def lengths(self) -> tuple[int, ...]:
        """Keys of the sequences of a ragged batch, evenly from a share to all, the heaviest last."""
        return tuple(-(-self.keys * (i + 1) // self.batch) for i in range(self.batch))

    @property
    def width(self) -> int:
        """Of a token: all heads side by side."""
        return self.heads * self.dim

    @property
    def group(self) -> int:
        """Query heads per key head."""
        return self.heads // self.kv_heads

    @property
    def sees_all(self) -> bool:
        """Whether every query may attend to every key, so that query heads can be stacked into the query length."""
        last_row_only = self.queries == 1 and self.causal == "bottom-right"
        alike = self.option not in ("alibi", "sinks")  # other numbers for each head
        return alike and not self.mask and not self.window and (not self.causal or last_row_only)

    @property
    def diagonal(self) -> int:
        """Offset of the causal diagonal: query i sees keys up to i + diagonal."""
        return self.keys - self.queries if self.causal == "bottom-right" else 0

    @property
    def bytes(self) -> int:
        """Least memory traffic: inputs (of a module, weights too) read once, the output written once."""
        if self.work in ("module", "qwen3"):
            return BYTES[self.dtype] * self.width * (2 * self.batch * self.queries + 2 * self.dim * (self.heads + self.kv_heads))
        queries, keys = self.batch * self.queries, self.batch * self.keys
        if self.work == "varlen":
            queries, keys = sum(self.lengths) if self.queries == self.keys else queries, sum(self.lengths)
        units = 8 if self.dtype == "int8" else 0  # behind a row of keys and one of values
        return BYTES[self.dtype] * (self.heads * queries + self.kv_heads * keys) * (self.dim + self.v_dim + units)

    @property
    def bias_bytes(self) -> int:
        """A dense bias, which plain attention does not read."""
        return BYTES[self.dtype] * self.heads * self.queries * self.keys if self.mask == "bias" else 0

    @property
    def unit(self) -> str:
        """The unit that says most: a small call's latency, the rate at which one query reads the cache, arithmetic, sentences or tokens."""
        if unit := {"model": "sentences/s", "step": "tokens/s", "training": "tokens/s"}.get(self.work):
            return unit
        if self.batch * self.heads * self.queries * self.keys * (self.dim + self.v_dim) < 2_000_000:
            return "µs"
        return "GB/s" if self.queries == 1 else "GFLOP/s"

    @property
    def pairs(self) -> bool:
        """Whether pairs of bfloat16 may be multiplied."""
        return self.dtype == "bfloat16" or self.option == "bf16"

    @property
    def roof(self) -> str:
        """What bounds it."""
        if self.unit == "GB/s" or self.work == "step":
            return "read bandwidth"
        return "peak in pairs of bfloat16" if self.pairs else "FMA peak"

    @property
    def part(self) -> str:
        """Which table it stands in: one of PARTS."""
        if self.work in ("module", "qwen3", "model"):
            return "Layers and models"
        if self.work in ("backward", "dropout", "training"):
            return "Learning"
        if self.roof == "read bandwidth" or self.kind == "decode":
            return "One query and a cache"
        if self.dtype == "float64" or self.work != "attention":
            return "Ragged batches, float64, statistics"
        if self.dtype != "float32" or self.pairs:
            return "16 bits"
        return "Options" if self.mask or self.window or self.option or self.layout != "bhld" else "Attention"

    def plain(self, flops: int) -> Case:
        """Attention without options, as many queries as keys, that does `flops` of useful work."""
        side = isqrt(flops // (2 * self.batch * self.heads * (self.dim + self.v_dim)))
        return Case(self.batch, self.heads, side, self.dim, self.kv_heads, v_dim=self.v_dim, layout=self.layout, dtype=self.dtype)


PARTS = ("Attention", "Options", "16 bits", "One query and a cache", "Ragged batches, float64, statistics", "Layers and models", "Learning")


def _from_memory() -> Iterator[Case]:
    """One query a head, and 151 MB of keys and values: more than four times the last cache of the machine they were chosen on."""
    for dtype, dim, group in product(("float32", "bfloat16"), (64, 80, 128), (1, 4, 7, 8)):
        keys = -(-(9 << 24) // (8 * 2 * dim * BYTES[dtype]))
        yield Case(1, 8 * group, 1, dim, kv_heads=8, keys=keys, dtype=dtype, goal=Goal(peak=0.75), alone=True, kind="memory")


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
    Case(4, 16, 257, 80, kind="odd"),  # ViT huge
    Case(1, 16, 577, 64, kind="odd"),  # ViT large at 384 pixels
    Case(1, 8, 1500, 64, kind="odd"),  # Whisper base, encoder
    # Head widths.
    Case(8, 12, 128, 32, kind="width"),  # MiniLM
    Case(2, 8, 1024, 40, kind="width"),  # Stable Diffusion 1.5
    Case(1, 16, 729, 72, kind="width"),  # SigLIP so400m
    Case(1, 32, 512, 80, causal="top-left", kind="width"),  # Phi-2
    Case(1, 32, 512, 96, causal="top-left", kind="width"),  # Phi-3 mini
    Case(1, 8, 512, 256, kv_heads=1, causal="top-left", kind="width"),  # Gemma 2B
    Case(1, 8, 512, 256, kind="width"),
    Case(1, 16, 512, 192, v_dim=128, causal="top-left", kind="width"),  # multi-head latent attention, decompressed
    # Groups.
    Case(1, 28, 512, 128, kv_heads=4, causal="top-left", kind="grouped"),  # Qwen2 7B
    Case(1, 64, 256, 128, kv_heads=8, causal="top-left", kind="grouped"),  # Llama 3 70B
    Case(1, 32, 512, 96, kv_heads=8, kind="grouped"),
    # Few queries against many keys.
    Case(1, 12, 16, 64, keys=4096, kind="few"),
    Case(1, 32, 4, 128, kv_heads=8, keys=4096, causal="bottom-right", kind="few"),  # speculative decoding
    Case(2, 8, 1024, 40, keys=77, kind="few"),  # the other way round: Stable Diffusion on a prompt
    Case(8, 12, 1, 64, keys=1024, kind="decode"),
    Case(1, 12, 1, 64, goal=Goal(torch_time=0.5), keys=1024, kind="decode"),  # GPT-2
    Case(1, 32, 1, 128, goal=Goal(ratio=2.5), kv_heads=8, keys=4096, kind="decode"),
    Case(1, 32, 1, 128, goal=Goal(ratio=2.5), kv_heads=8, keys=4096, dtype="bfloat16", kind="decode"),
    Case(1, 32, 1, 128, goal=Goal(ratio=2.7, peak=0.75), kv_heads=8, keys=32768, kind="decode"),
    Case(1, 32, 1, 128, goal=Goal(ratio=2.7, peak=0.75), kv_heads=8, keys=32768, dtype="bfloat16", kind="decode"),
    *_from_memory(),
    # The next token of a cache: GPT-2, and Llama 3 8B with a long past in three storages.  int8 competes with bfloat16.
    Case(1, 12, 1, 64, keys=1024, work="step", kind="cache"),
    Case(1, 32, 1, 128, kv_heads=8, keys=32768, work="step", kind="cache"),
    Case(1, 32, 1, 128, kv_heads=8, keys=32768, dtype="bfloat16", work="step", kind="cache"),
    Case(1, 32, 1, 128, goal=Goal(ratio=1.5), kv_heads=8, keys=32768, dtype="int8", work="step", kind="cache"),
    # 16 bits.
    Case(1, 8, 8192, 64, goal=Goal(ratio=1.25, peak=0.80, torch_time=1 / 2.2), dtype="bfloat16", kind="half"),
    Case(1, 32, 2048, 128, goal=Goal(ratio=1.25, peak=0.85, torch_time=1 / 2.2), dtype="bfloat16", kind="half"),
    Case(1, 12, 1024, 64, goal=Goal(ratio=1.25, peak=0.70, torch_time=1 / 2.2), causal="top-left", dtype="bfloat16", kind="half"),
    Case(8, 12, 128, 64, goal=Goal(ratio=1.25, peak=0.60, torch_time=1 / 2.2), dtype="bfloat16", kind="half"),
    Case(1, 32, 1024, 128, kv_heads=8, causal="top-left", goal=Goal(torch_time=1 / 1.5), dtype="float16", kind="half"),
    Case(8, 12, 128, 64, goal=Goal(torch_time=1 / 1.5), dtype="float16", kind="half"),
    Case(1, 32, 1024, 128, option="bf16", kind="half"),
    # Options.
    Case(8, 12, 384, 64, mask="padding", kind="option"),
    Case(1, 12, 1024, 64, mask="window", kind="option"),
    Case(1, 12, 1024, 64, mask="bias", goal=Goal(plain=1.3), kind="option"),
    Case(1, 12, 1024, 64, mask="random", goal=Goal(plain=1.3), kind="option"),
    Case(1, 12, 1024, 64, option="softcap", goal=Goal(plain=1.3), kind="option"),  # Gemma 2
    Case(1, 12, 1024, 64, option="alibi", goal=Goal(plain=1.3), kind="option"),  # BLOOM, MPT
    Case(1, 12, 1024, 64, option="sinks", goal=Goal(plain=1.3), kind="option"),  # gpt-oss
    Case(1, 12, 2048, 64, window=256, goal=Goal(plain=1.3), kind="option"),
    Case(1, 4, 16384, 64, window=256, goal=Goal(plain=1.3), kind="option"),
    Case(2, 12, 512, 64, layout="blhd", kind="option"),
    Case(2, 12, 512, 64, layout="blhd", causal="top-left", kind="option"),
    # Ragged batches, up to these lengths: an encoder's sentences, prompts, steps of decoding.
    Case(64, 12, 512, 64, work="varlen", kind="ragged"),
    Case(16, 32, 1024, 64, kv_heads=8, causal="top-left", work="varlen", kind="ragged"),
    Case(64, 12, 1, 64, keys=1024, work="varlen", kind="ragged"),
    # float64.
    Case(1, 8, 2048, 64, goal=Goal(torch_time=1 / 1.5), dtype="float64", kind="float64"),
    Case(1, 12, 1024, 64, goal=Goal(torch_time=1 / 1.5), causal="top-left", dtype="float64", kind="float64"),
    Case(8, 12, 128, 64, goal=Goal(torch_time=1 / 1.5), dtype="float64", kind="float64"),
    # A look inside.
    Case(1, 12, 4096, 64, goal=Goal(plain=1.5), work="stats", kind="stats"),
    # The layer around attention: BERT base, MiniLM, ViT large at 384 pixels, LLaMA 7B.
    Case(8, 12, 128, 64, goal=Goal(torch_time=1 / 1.15), work="module", kind="module"),
    Case(32, 12, 40, 32, goal=Goal(torch_time=1 / 1.15), work="module", kind="module"),
    Case(1, 16, 577, 64, goal=Goal(torch_time=1 / 1.15, peak=0.85), work="module", kind="module"),
    Case(1, 32, 256, 128, goal=Goal(torch_time=1 / 1.15, peak=0.85), work="module", kind="module"),
    # Rotary embeddings and the norm of queries and keys in it: Qwen3 8B, and 0.6B where heads together are as wide as its tokens.
    Case(1, 32, 256, 128, kv_heads=8, causal="top-left", goal=Goal(torch_time=1 / 1.15), work="qwen3", kind="qwen3"),
    Case(8, 8, 128, 128, kv_heads=4, causal="top-left", goal=Goal(torch_time=1 / 1.15), work="qwen3", kind="qwen3"),
    # A model: text to vectors.
    Case(1, 12, 40, 32, goal=Goal(torch_time=1 / 1.5), work="model", kind="model"),
    Case(8, 12, 40, 32, goal=Goal(torch_time=1 / 1.5), work="model", kind="model"),
    Case(32, 12, 40, 32, goal=Goal(torch_time=1 / 1.5), work="model", kind="model"),
    # The way back through attention, with dropout there and back; and six layers, forward and backward and AdamW.
    Case(2, 12, 512, 64, goal=Goal(torch_time=1 / 1.5, peak=0.70), work="backward", kind="backward"),
    Case(1, 32, 1024, 128, causal="top-left", goal=Goal(torch_time=1 / 1.5, peak=0.70), work="backward", kind="backward"),
    Case(4, 6, 256, 64, causal="top-left", goal=Goal(torch_time=1 / 1.5, peak=0.70), work="backward", kind="backward"),
    Case(1, 2, 4096, 64, goal=Goal(torch_time=1 / 1.2, peak=0.70), work="backward", kind="backward"),
    Case(2, 8, 577, 80, kv_heads=2, causal="top-left", work="backward", kind="backward"),
    Case(2, 12, 512, 64, work="dropout", kind="dropout"),
    Case(8, 6, 256, 64, causal="top-left", goal=Goal(torch_time=1 / 1.2), work="training", kind="training"),
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
