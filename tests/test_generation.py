"""A layer with a cache, token by token, against the same layer over all tokens at once; a model that generates."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import qkvc
from qkvc import KVCache
from qkvc.models import Llama

from .checkpoints import LLAMA, llama_tensors
from .reference import reference
from .rotation import angles, rms_normed, turned
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


def test_a_cache_that_is_finer_than_its_layer(rng: np.random.Generator) -> None:
    """It computes in float64, and the layer goes on in its own dtype."""
    layer = layer_of("grouped", rng)
    x = tokens(rng, layer, 2, 5)
    for call in (layer, layer.heads, layer.contributions):
        got = call(x, cache=cache_for(layer, 2, 5, dtype="float64"))
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, call(x, causal=True), atol=1e-6)


# --- a whole model ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int8"])
def test_the_cache_generates_what_the_model_generates(isa: str, dtype: str, rng: np.random.Generator) -> None:
    """256 tokens: in float32 those of the model without a cache, which sees all tokens anew at every step; else nearly the same scores."""
    model, prompt = Llama(LLAMA, llama_tensors(rng)), rng.integers(0, 97, (2, 11))
    ids = prompt
    for _ in range(256 if dtype == "float32" else 16):
        scores = model.logits(model.states(ids)[:, -1])
        ids = np.concatenate([ids, scores.argmax(axis=-1)[:, np.newaxis]], axis=1)
    caches = model.caches(2, 11 + 256, dtype=dtype)
    if dtype == "float32":
        got = model.generate(prompt, 256, caches)
        np.testing.assert_array_equal(got, ids[:, 11:])
        np.testing.assert_array_equal(model.generate(prompt, 20), got[:, :20])
        assert [len(set(row)) for row in got.tolist()] > [15, 15], "it says more than a word or two"
        assert caches[0].lengths.tolist() == [11 + 255] * 2
    else:
        model.states(ids[:, :-2], caches)
        got = model.logits(model.states(ids[:, -2:-1], caches)[:, -1])
        off = (got - scores).std() / scores.std()
        assert 0 < off < 0.15, "rounded, and no more than that"


def exact(tensors: dict[str, NDArray[np.float32]], ids: NDArray[np.int64], form: str) -> NDArray[np.float64]:
    """Scores of every next token, in float64, by the equations of the papers."""
    t = {name: x.astype(np.float64) for name, x in tensors.items()}
    eps, rope = LLAMA["rms_norm_eps"], qkvc.RopeConfig(LLAMA["rope_theta"])
    x = t["model.embed_tokens.weight"][ids]
    for index in range(LLAMA["num_hidden_layers"]):
        own = {name.removeprefix(prefix): w for name, w in t.items() if name.startswith(prefix := f"model.layers.{index}.")}
        hidden = rms_normed(x, own["input_layernorm.weight"], eps).astype(float)
        parts = ((f"self_attn.{name}_proj.weight", f"self_attn.{name}_proj.bias") for name in ("q", "k", "v"))
        q, k, v = ((hidden @ own[w].T + own.get(b, 0)).reshape(*ids.shape, -1, 8).swapaxes(1, 2) for w, b in parts)
        if form == "qwen3":
            q, k = (rms_normed(part, own[f"self_attn.{name}_norm.weight"], eps) for name, part in (("q", q), ("k", k)))
        q, k = (turned(part, angles(rope, 8, np.arange(ids.shape[1])), False).astype(float) for part in (q, k))
        heads = reference(q, k, v, causal=True).out.swapaxes(1, 2).reshape(x.shape)
        x = x + heads @ own["self_attn.o_proj.weight"].T
        hidden = rms_normed(x, own["post_attention_layernorm.weight"], eps).astype(float)
        gate, up = (hidden @ own[f"mlp.{name}_proj.weight"].T for name in ("gate", "up"))
        x = x + gate / (1 + np.exp(-gate)) * up @ own["mlp.down_proj.weight"].T
    return rms_normed(x, t["model.norm.weight"], eps).astype(float) @ t["lm_head.weight"].T


@pytest.mark.parametrize("form", ["llama", "qwen2", "qwen3"])
def test_scores_of_the_model(isa: str, form: str, rng: np.random.Generator) -> None:
    """The same weights gave the scores of transformers 5.23's LlamaForCausalLM and Qwen3ForCausalLM, within 2e-4 (qwen2 was not tried)."""
    tensors, ids = llama_tensors(rng, form), rng.integers(0, 97, (2, 40))
    model, expected = Llama(LLAMA, tensors), exact(tensors, ids, form)
    np.testing.assert_allclose(model.logits(model.states(ids)), expected, rtol=0, atol=1e-4)
    caches = model.caches(2, 40)
    got = np.concatenate(
        [model.logits(model.states(ids[:, part], caches)) for part in (slice(0, 30), slice(30, 31), slice(31, 40))], axis=1
    )
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-4)


def test_an_unknown_rotation_is_refused(rng: np.random.Generator) -> None:
    tensors = llama_tensors(rng)
    with pytest.raises(ValueError, match="rope_type"):
        Llama(LLAMA | {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, tensors)
    scaled = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
    ids = rng.integers(0, 97, (1, 30))
    plain, llama3 = (Llama(LLAMA | more, tensors).states(ids) for more in ({}, {"rope_scaling": scaled}))
    assert np.abs(plain - llama3).max() > 1e-3
