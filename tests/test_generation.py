"""A layer with a cache, token by token, against the same layer over all tokens at once; a model that generates."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import qkvc
from qkvc import KVCache

from .support import assert_refused, assert_same_bits, normal

Layer = qkvc.MultiHeadAttention
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "grouped": {"num_kv_heads": 2},
    "LLaMA's": {"num_kv_heads": 2, "rope": qkvc.RopeConfig(100.0), "qkv_bias": False, "out_bias": False},
    "Qwen3's": {"num_kv_heads": 1, "rope": qkvc.RopeConfig(100.0), "qk_norm": 1e-6, "head_dim": 10},
    "interleaved, in part": {"rope": qkvc.RopeConfig(dim=4, interleaved=True)},
    "float64": {"rope": qkvc.RopeConfig(100.0), "dtype": "float64"},
}


def layer_of(kind: str, rng: np.random.Generator) -> Layer:
    return Layer(24, 4, rng=rng, **KINDS[kind])


def tokens(rng: np.random.Generator, layer: Layer, *shape: int) -> NDArray[Any]:
    return normal(rng, *shape, layer.embed_dim).astype(layer.dtype)


def cache_for(layer: Layer, batch: int, capacity: int, **options: Any) -> KVCache:
    return KVCache(batch, layer.num_kv_heads, capacity, layer.head_dim, **{"dtype": layer.dtype} | options)


@pytest.mark.parametrize("kind", KINDS)
def test_prefill_then_decode_is_the_whole(isa: str, kind: str, rng: np.random.Generator) -> None:
    layer = layer_of(kind, rng)
    x = tokens(rng, layer, 2, 150)
    whole, heads = layer(x, causal=True), layer.heads(x, causal=True)
    for portions in ((150,), (100, *(1,) * 10, 40), (1, 3, 6, 130, 10)):
        cache, at = cache_for(layer, 2, 160), 0
        for n in portions:
            got = layer(x[:, at : at + n], cache=cache)
            assert_same_bits(got, whole[:, at : at + n], (portions, at))
            at += n
    cache.trim(7)
    assert_same_bits(layer.heads(x[:, 143:], cache=cache), heads[:, :, 143:])
    cache.trim(7)
    assert_same_bits(layer.contributions(x[:, 143:], cache=cache), layer.contributions(x, causal=True)[:, :, 143:])


@pytest.mark.parametrize("kind", KINDS)
def test_sequences_of_unlike_length(isa: str, kind: str, rng: np.random.Generator) -> None:
    """Prompts of 20 and 9 tokens go in together, padded; then each goes on where it stands."""
    layer = layer_of(kind, rng)
    x = tokens(rng, layer, 2, 40)
    lengths = np.array([20, 9])
    whole, cache = layer(x, causal=True), cache_for(layer, 2, 64)
    got = layer(x[:, :20], cache=cache, counts=lengths)
    for i, n in enumerate(lengths):
        assert_same_bits(got[i, :n], whole[i, :n])
    for _ in range(5):
        got = layer(x[[0, 1], lengths][:, np.newaxis], cache=cache)
        assert_same_bits(got[:, 0], whole[[0, 1], lengths])
        lengths += 1
    cache.reorder([1, 1])
    got = layer(x[[1, 1], lengths[[1, 1]]][:, np.newaxis], cache=cache)
    assert_same_bits(got[:, 0], whole[[1, 1], lengths[[1, 1]]])


def test_options_go_through(rng: np.random.Generator) -> None:
    layer = layer_of("grouped", rng)
    x, options = tokens(rng, layer, 1, 30), {"softcap": 2.0, "sinks": np.ones(4), "head_scale": np.arange(4.0), "scale": 0.5}
    cache = cache_for(layer, 1, 30)
    layer(x[:, :29], cache=cache, **options)
    slopes, mask = np.array([0.5, 0.1, 0.2, 0.3]), rng.random((4, 30, 30)) < 0.6
    got = layer(x[:, 29:], cache=cache, alibi_slopes=slopes, mask=mask[:, 29:], **options)
    assert_same_bits(got, layer(x, causal=True, alibi_slopes=slopes, mask=mask, **options)[:, 29:])
    apart = cache_for(layer_of("LLaMA's", rng), 1, 30)
    turned = layer_of("LLaMA's", rng)
    turned(x[:, :10], cache=apart, positions=100)
    assert_same_bits(turned(x[:, 10:], cache=apart, positions=110), turned(x, causal=True, positions=100)[:, 10:])


def test_a_layer_refuses_what_its_cache_cannot_hold(rng: np.random.Generator) -> None:
    layer = layer_of("LLaMA's", rng)
    x, cache = tokens(rng, layer, 2, 5), cache_for(layer, 2, 8)
    extra = Layer(24, 4, extra_kv=True, rng=0)
    for call, exception, words in (
        (lambda: layer(x, cache=3), TypeError, ("cache", "KVCache", "int")),
        (lambda: extra(x, cache=KVCache(2, 4, 8, 6)), TypeError, ("cache", "extra key")),
        (lambda: layer(x, x.copy(), cache=cache), TypeError, ("key", "cache")),
        (lambda: layer(x, key_positions=3, cache=cache), TypeError, ("key_positions", "cache")),
        (lambda: layer(x, cache=KVCache(2, 4, 8, 6)), ValueError, ("cache", "2 heads of 6", "4 of 6")),
        (lambda: layer(x[:1], cache=cache), ValueError, ("query", "(2, length, 24)", "(1, 5, 24)")),
        (lambda: layer(x[0], cache=cache), ValueError, ("query", "(5, 24)")),
        (lambda: layer(x, cache=cache, causal=True), TypeError, ("options", "causal")),
        (lambda: layer(x, cache=cache, speed=1), TypeError, ("options", "speed")),
        (lambda: layer(x, cache=cache, counts=6), ValueError, ("counts", "6")),
        (lambda: layer(x, cache=cache, softcap=-1), ValueError, ("softcap", "-1")),
        (lambda: layer(np.tile(x, (1, 2, 1)), cache=cache), ValueError, ("at most 8", "10")),
        (lambda: layer(x, counts=3), TypeError, ("options", "counts")),
    ):
        assert_refused(call, exception, *words)
    assert cache.lengths.tolist() == [0, 0]
