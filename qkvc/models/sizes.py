"""How large models are, by formula: parameters, floating-point operations, bytes of keys and values; nothing is loaded for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from qkvc._coerce import as_count, bad
from qkvc.models.loading import KINDS, read_json
from qkvc.models.tensors import Config

KV_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True)
class Size:
    """The sizes of a transformer, from which everything else follows.

    Attributes
    ----------
    name : str
    width, layers, heads, inner, vocabulary : int
        E; blocks, of the decoder where there is an encoder before it; H; the feed-forward network's width; words.
    kv_heads, head_dim : int
        H_kv and D; 0 stands for H and E / H.
    positions, types : int
        Rows of learned vectors that are added to words; 0 for positions that are computed.
    encoder_layers : int
        Blocks of an encoder before the decoder, whose blocks then have a second attention, to the encoder's output.
    causal : bool
        A decoder, which goes on with a text; else an encoder, which has no next word, no head and no cache.
    tied : bool
        Is the head the words' own array?
    gated : bool
        Has the feed-forward network three matrices (SwiGLU) or two?
    qkv_bias, out_bias, inner_bias : bool
        Of the projections into and out of the heads, and of the feed-forward network.
    qk_norm : bool
        Norms of each head's queries and keys.
    norm_bias : bool
        Have norms a bias (layer norm) or a weight alone (RMS norm)?
    embedding_norm, final_norm, pooler : bool
        A norm behind the embeddings, or behind the last block; a square dense layer on an encoder's first token.

    Notes
    -----
    A multiplication and its addition are two operations; those of products are counted, as they are more than 99 % of all: not norms,
    softmax, activations, biases.
    """

    name: str
    width: int
    layers: int
    heads: int
    inner: int
    vocabulary: int
    kv_heads: int = 0
    head_dim: int = 0
    positions: int = 0
    types: int = 0
    encoder_layers: int = 0
    causal: bool = True
    tied: bool = True
    gated: bool = False
    qkv_bias: bool = False
    out_bias: bool = False
    inner_bias: bool = False
    qk_norm: bool = False
    norm_bias: bool = False
    embedding_norm: bool = False
    final_norm: bool = False
    pooler: bool = False

    def __post_init__(self) -> None:
        divided = [("heads", self.heads, self.kv_heads)] if self.kv_heads else []
        divided += [] if self.head_dim else [("width", self.width, self.heads)]
        for name, number, divisor in divided:
            if number % divisor:
                raise ValueError(bad(name, f"a multiple of {divisor}", str(number), "Size"))
        for name, default in (("kv_heads", self.heads), ("head_dim", self.width // self.heads)):
            object.__setattr__(self, name, getattr(self, name) or default)

    @property
    def _projected(self) -> tuple[int, int]:
        """H D and H_kv D."""
        return self.heads * self.head_dim, self.kv_heads * self.head_dim

    @property
    def _norm(self) -> int:
        return (1 + self.norm_bias) * self.width

    @property
    def _feed_forward(self) -> int:
        """The weights of one feed-forward network."""
        return (2 + self.gated) * self.width * self.inner

    def block(self, *, cross: bool = False) -> dict[str, int]:
        """The parameters of one block: attention, feed-forward and norms; with `cross` of one that also attends to an encoder."""
        q, kv = self._projected
        attention = self.width * (2 * q + 2 * kv) + self.qkv_bias * (q + 2 * kv) + self.out_bias * self.width
        attention += 2 * self.head_dim * self.qk_norm
        feed_forward = self._feed_forward + self.inner_bias * (self.inner + self.width)
        return {"attention": (1 + cross) * attention, "feed-forward": feed_forward, "norms": (2 + cross) * self._norm}

    def parameters(self) -> dict[str, int]:
        """How many numbers are learned, by part: their sum is the model's.

        Of "words", "positions", "types", "embedding norm", "encoder blocks", "blocks", "final norm", "pooler" and "head" those that
        it has; a tied head adds nothing and is left out.
        """
        crossed = self.encoder_layers > 0
        parts = {
            "words": self.vocabulary * self.width,
            "positions": self.positions * self.width,
            "types": self.types * self.width,
            "embedding norm": self.embedding_norm * self._norm,
            "encoder blocks": self.encoder_layers * sum(self.block().values()),
            "blocks": self.layers * sum(self.block(cross=crossed).values()),
            "final norm": (1 + crossed) * self.final_norm * self._norm,
            "pooler": self.pooler * (self.width + 1) * self.width,
            "head": (not self.tied) * self.vocabulary * self.width,
        }
        return {name: count for name, count in parts.items() if count}

    @property
    def num_parameters(self) -> int:
        """All of them: a tied head once."""
        return sum(self.parameters().values())

    def prefill_flops(self, tokens: int) -> int:
        """Operations of a text of so many tokens, and of the scores of one next word, or of the pooler.

        A decoder's query i is multiplied with i + 1 keys, not with all.  With an encoder, its text and the decoder's are so long each.
        """
        n, (q, kv) = as_count("tokens", tokens, "prefill_flops"), self._projected
        ahead, own = n * n, 0
        if self.encoder_layers:
            own += self.encoder_layers * (n * (self.width * (2 * q + 2 * kv) + self._feed_forward) + 2 * q * ahead)
            own += self.layers * (n * self.width * (2 * q + 2 * kv) + 2 * q * ahead)
        return self.layers * self.prefill_flops_per_layer(n) + 2 * (own + self._last())

    def prefill_flops_per_layer(self, tokens: int) -> int:
        """Of them those of a block: projections, attention among the text's own tokens, and the feed-forward layer."""
        n, (q, kv) = as_count("tokens", tokens, "prefill_flops_per_layer"), self._projected
        seen = n * (n + 1) // 2 if self.causal else n * n
        return 2 * (n * (self.width * (2 * q + 2 * kv) + self._feed_forward) + 2 * q * seen)

    def step_flops(self, tokens: int) -> int:
        """Operations of the next token, given the keys and values of so many before it, to the scores of the one that follows.

        0 for an encoder, which has none.  With an encoder before the decoder, its text is so long too, and its keys and values are kept.
        """
        n, (q, kv) = as_count("tokens", tokens, "step_flops", least=0), self._projected
        if not self.causal:
            return 0
        block = self.width * (2 * q + 2 * kv) + self._feed_forward + 2 * q * (n + 1)
        if self.encoder_layers:
            block += 2 * self.width * q + 2 * q * n
        return 2 * (self.layers * block + self._last())

    def _last(self) -> int:
        """Products of what one token goes through behind the blocks."""
        return self.vocabulary * self.width if self.causal else self.pooler * self.width**2

    def kv_bytes_per_layer(self, dtype: str = "bfloat16") -> int:
        """What a cache keeps of a token in a layer, its key and its value: 2 H_kv D numbers; 0 for an encoder."""
        if dtype not in KV_BYTES:
            raise ValueError(bad("dtype", f"one of {', '.join(KV_BYTES)}", repr(dtype), "kv_bytes"))
        return self.causal * 2 * self._projected[1] * KV_BYTES[dtype]

    def kv_bytes(self, tokens: int = 1, dtype: str = "bfloat16") -> int:
        """What a cache of all (decoder) layers keeps of so many tokens."""
        return self.layers * self.kv_bytes_per_layer(dtype) * as_count("tokens", tokens, "kv_bytes", least=0)


# What models of a family have in common.
_BERT: dict[str, Any] = {
    **dict.fromkeys(("qkv_bias", "out_bias", "inner_bias", "norm_bias", "embedding_norm", "pooler"), True),
    "causal": False,
}
_GPT2: dict[str, Any] = dict.fromkeys(("qkv_bias", "out_bias", "inner_bias", "norm_bias", "final_norm"), True)
_LLAMA: dict[str, Any] = {"gated": True, "final_norm": True}
_QWEN2: dict[str, Any] = {**_LLAMA, "qkv_bias": True}
_QWEN3: dict[str, Any] = {**_LLAMA, "qk_norm": True, "head_dim": 128, "kv_heads": 8, "vocabulary": 151936}


def _sizes() -> dict[str, Size]:
    sizes = [
        # The paper's base model: biases in the feed-forward network only, one array of words for all; "37000 tokens" and "65" million
        # parameters are its own roundings.
        Size("transformer-base", 512, 6, 8, 2048, 37000, encoder_layers=6, inner_bias=True, norm_bias=True),
        Size("bert-base", 768, 12, 12, 3072, 30522, positions=512, types=2, **_BERT),
        Size("bert-large", 1024, 24, 16, 4096, 30522, positions=512, types=2, **_BERT),
        Size("minilm", 384, 6, 12, 1536, 30522, positions=512, types=2, **_BERT),
    ]
    for name, width, layers, heads in (("", 768, 12, 12), ("-medium", 1024, 24, 16), ("-large", 1280, 36, 20), ("-xl", 1600, 48, 25)):
        sizes.append(Size(f"gpt2{name}", width, layers, heads, 4 * width, 50257, positions=1024, **_GPT2))
    for name, width, layers, heads, inner, words, kv_heads, tied in (
        ("7b", 4096, 32, 32, 11008, 32000, 32, False),
        ("13b", 5120, 40, 40, 13824, 32000, 40, False),
        ("33b", 6656, 60, 52, 17920, 32000, 52, False),
        ("65b", 8192, 80, 64, 22016, 32000, 64, False),
        ("2-70b", 8192, 80, 64, 28672, 32000, 8, False),
        ("3-8b", 4096, 32, 32, 14336, 128256, 8, False),
        ("3-70b", 8192, 80, 64, 28672, 128256, 8, False),
        ("3.2-1b", 2048, 16, 32, 8192, 128256, 8, True),
        ("3.2-3b", 3072, 28, 24, 8192, 128256, 8, True),
    ):
        sizes.append(Size(f"llama-{name}", width, layers, heads, inner, words, kv_heads, tied=tied, **_LLAMA))
    for names, width, layers, heads, inner, words, kv_heads, tied in (
        (("2-0.5b", "2.5-0.5b"), 896, 24, 14, 4864, 151936, 2, True),
        (("2-1.5b", "2.5-1.5b"), 1536, 28, 12, 8960, 151936, 2, True),
        (("2.5-3b",), 2048, 36, 16, 11008, 151936, 2, True),
        (("2-7b", "2.5-7b"), 3584, 28, 28, 18944, 152064, 4, False),
        (("2.5-14b",), 5120, 48, 40, 13824, 152064, 8, False),
        (("2.5-32b",), 5120, 64, 40, 27648, 152064, 8, False),
        (("2-72b", "2.5-72b"), 8192, 80, 64, 29568, 152064, 8, False),
    ):
        sizes += [Size(f"qwen{name}", width, layers, heads, inner, words, kv_heads, tied=tied, **_QWEN2) for name in names]
    for name, width, layers, heads, inner, tied in (
        ("0.6b", 1024, 28, 16, 3072, True),
        ("1.7b", 2048, 28, 16, 6144, True),
        ("4b", 2560, 36, 32, 9728, True),
        ("8b", 4096, 36, 32, 12288, False),
        ("14b", 5120, 40, 40, 17408, False),
        ("32b", 5120, 64, 64, 25600, False),
    ):
        sizes.append(Size(f"qwen3-{name}", width, layers, heads, inner, tied=tied, **_QWEN3))
    return {size.name: size for size in sizes}


SIZES = _sizes()


def from_config(config: Mapping[str, Any], name: str = "model") -> Size:
    """The sizes that a model's `config.json` tells; of BERT with its pooler.

    Raises
    ------
    ValueError, TypeError
        A model type other than bert, gpt2, llama, qwen2 and qwen3; a size that is missing.
    """
    told = Config(config, "from_config")
    told.get("model_type")  # there is no default for it
    kind = told.only("model_type", *KINDS)
    if kind == "gpt2":
        width, layers, heads, words, positions = (told.count(key) for key in ("n_embd", "n_layer", "n_head", "vocab_size", "n_positions"))
        tied = told.flag("tie_word_embeddings", True)
        return Size(name, width, layers, heads, told.count("n_inner", 4 * width), words, positions=positions, tied=tied, **_GPT2)
    keys = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size")
    width, layers, heads, inner, words = (told.count(key) for key in keys)
    if kind == "bert":
        positions, types = told.count("max_position_embeddings"), told.count("type_vocab_size", 2)
        return Size(name, width, layers, heads, inner, words, positions=positions, types=types, **_BERT)
    biased = kind != "qwen2" and told.flag("attention_bias", False)
    head_dim = told.count("head_dim") if told.get("head_dim", 0) else 0
    return Size(
        name, width, layers, heads, inner, words, told.count("num_key_value_heads", heads), head_dim,
        tied=told.flag("tie_word_embeddings", False), qkv_bias=biased or kind == "qwen2", out_bias=biased, qk_norm=kind == "qwen3",
        **_LLAMA,
    )  # fmt: skip


def size_of(model: str | PathLike[str]) -> Size:
    """Parameters, operations and cache bytes of a model, by formula.

    Parameters
    ----------
    model : str or path-like
        A known name, such as "gpt2", "llama-7b" or "minilm", in either case; a directory with a `config.json`; or such a file.

    Returns
    -------
    Size

    Raises
    ------
    ValueError
        No such name, directory or file: the message has the known names; a config that tells no size of a known kind.
    """
    if (known := SIZES.get(str(model).lower())) is not None:
        return known
    path = Path(model)
    file = path / "config.json" if path.is_dir() else path
    if not file.exists():
        raise ValueError(bad("model", f"a directory with a config.json, or one of {', '.join(SIZES)}", repr(str(model)), "size_of"))
    try:
        return from_config(read_json(file), str(model))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{file}: {error}") from None
