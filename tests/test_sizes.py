"""The sizes of models: published totals, arrays that are there, and products that are counted while models compute."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import qkvc
from qkvc import cli
from qkvc.models import GPT2, Bert, LanguageModel, Llama
from qkvc.models.sizes import SIZES, Size, from_config, size_of

from . import checkpoints
from .checkpoints import bert_tensors, gpt2_tensors, llama_tensors

# As the models' pages or papers have them; where those round, as the published files add up.
PUBLISHED = {
    "bert-base": 109_482_240,
    "bert-large": 335_141_888,
    "minilm": 22_713_216,
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
    "llama-7b": 6_738_415_616,
    "llama-13b": 13_015_864_320,
    "llama-33b": 32_528_943_616,
    "llama-65b": 65_285_660_672,
    "llama-2-70b": 68_976_648_192,
    "llama-3-8b": 8_030_261_248,
    "llama-3-70b": 70_553_706_496,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "qwen2-0.5b": 494_032_768,
    "qwen2-1.5b": 1_543_714_304,
    "qwen2-7b": 7_615_616_512,
    "qwen2-72b": 72_706_203_648,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-3b": 3_085_938_688,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-14b": 14_770_033_664,
    "qwen2.5-32b": 32_763_876_352,
    "qwen2.5-72b": 72_706_203_648,
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "qwen3-14b": 14_768_307_200,
    "qwen3-32b": 32_762_123_264,
}


def test_published_totals() -> None:
    assert {name: SIZES[name].num_parameters for name in PUBLISHED} == PUBLISHED
    assert SIZES.keys() - PUBLISHED.keys() == {"transformer-base"}


def test_the_original_transformer() -> None:
    """63 million with 37,000 words, where the paper's table says 65; and torch's own module, which has more biases and norms."""
    size = SIZES["transformer-base"]
    assert (size.layers, size.encoder_layers, size.num_parameters) == (6, 6, 63_045_632)
    torch = pytest.importorskip("torch", reason="torch is the oracle of this test")
    module = torch.nn.Transformer(batch_first=True, device="meta")
    theirs = replace(size, vocabulary=0, qkv_bias=True, out_bias=True, final_norm=True)
    assert theirs.num_parameters == sum(x.numel() for x in module.parameters()) == 44_140_544


MODELS: dict[str, tuple[Any, dict[str, Any], Callable[..., Any]]] = {
    "bert": (Bert, checkpoints.BERT, bert_tensors),
    "gpt2": (GPT2, checkpoints.GPT2, gpt2_tensors),
    **{
        form: (Llama, checkpoints.LLAMA | {"model_type": form}, lambda rng, form=form: llama_tensors(rng, form))
        for form in ("llama", "qwen2", "qwen3")
    },
}


@pytest.mark.parametrize("kind", MODELS)
def test_every_number_of_a_checkpoint_is_counted(kind: str, rng: np.random.Generator) -> None:
    _, config, tensors = MODELS[kind]
    size, width = from_config(config), config.get("hidden_size", 0)
    there = sum(x.size for name, x in tensors(rng).items() if not name.endswith(".attn.bias"))  # GPT-2's masks
    assert size.num_parameters == there + (width * (width + 1) if kind == "bert" else 0), "the pooler is not among these"
    assert sum(size.block().values()) * size.layers == size.parameters()["blocks"]
    tied = from_config(config | {"tie_word_embeddings": True})
    untied = from_config(config | {"tie_word_embeddings": False})
    assert untied.num_parameters - tied.num_parameters == (0 if kind == "bert" else size.vocabulary * size.width)


def test_attention_of_a_block(rng: np.random.Generator) -> None:
    for kind in MODELS:
        model_class, config, tensors = MODELS[kind]
        assert from_config(config).block()["attention"] == model_class(config, tensors(rng)).layers[0].attention.num_parameters()


def test_a_model_that_learns() -> None:
    model = LanguageModel(100, 64, layers=2, heads=4, rng=0)
    assert from_config(model.config()).num_parameters == sum(p.value.size for p in model.parameters().values())


@pytest.mark.parametrize("kind", MODELS)
def test_operations_are_those_of_the_products(kind: str, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every product that the model asks for, counted; of attention what `explain` counts over its plan."""
    model_class, config, tensors = MODELS[kind]
    model, size, counted = model_class(config, tensors(rng)), from_config(config), [0]

    def counting(project: Any) -> Any:
        def counted_project(x: Any, weight: Any, *rest: Any, **options: Any) -> Any:
            counted[0] += 2 * (x.size // x.shape[-1]) * weight.size
            return project(x, weight, *rest, **options)

        return counted_project

    import qkvc.models as models

    for module in (qkvc.multihead, models.bert, models.decoder, models.gpt2, models.llama):
        if hasattr(module, "project"):
            monkeypatch.setattr(module, "project", counting(module.project))

    def attended(queries: int, keys: int) -> int:
        q, k = (1, size.heads, queries, size.head_dim), (1, size.kv_heads, keys, size.head_dim)
        return size.layers * qkvc.explain(q, k, k, causal="bottom-right" if size.causal else False, peak=1, bandwidth=1).flops

    ids, length = [rng.integers(0, 50, 13)], 13
    if not size.causal:
        model.watch(ids[0])
        assert size.prefill_flops(length) == counted[0] + attended(length, length) + 2 * size.width**2
        assert size.step_flops(length) == size.kv_bytes(length) == 0
        return
    caches = model.caches(1, 20)
    model.logits(model.states(ids, caches)[:, -1])
    assert size.prefill_flops(length) == counted[0] + attended(length, length)
    counted[0] = 0
    model.logits(model.states([[5]], caches))
    assert size.step_flops(length) == counted[0] + attended(1, length + 1)
    for dtype in ("float32", "float16", "bfloat16"):
        kept = model.caches(1, 20, dtype=dtype)
        model.states(ids, kept)
        rows = [x for cache in kept for x in (cache.keys(), cache.values())]
        assert size.kv_bytes(length, dtype) == sum(x.nbytes for x in rows)
        assert size.kv_bytes_per_layer(dtype) * length == sum(x.nbytes for x in rows[:2])


def test_an_encoder_before_a_decoder() -> None:
    """By torch's counter, which counts whole squares of scores: those above the diagonal are taken off."""
    torch = pytest.importorskip("torch", reason="torch is the oracle of this test")
    from torch.utils.flop_counter import FlopCounterMode

    size, n = SIZES["transformer-base"], 24
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        module = torch.nn.Transformer(batch_first=True, device="meta").train()  # `eval` has kernels that are not counted
        x = torch.empty(1, n, size.width, device="meta")
        module(x, x)
    above = size.layers * 4 * size.width * n * (n - 1) // 2
    head = 2 * size.vocabulary * size.width
    assert size.prefill_flops(n) == counter.get_total_flops() - above + head
    # One more of both texts, less what grows with the encoder's: its own blocks, and the keys and values of the second attention.
    text = 6 * (2 * (4 * 512**2 + 2 * 512 * 2048) + 4 * 512 * (2 * n + 1)) + 6 * (4 * 512**2 + 4 * 512 * (n + 1))
    assert size.prefill_flops(n + 1) - size.prefill_flops(n) == size.step_flops(n) - head + text


def test_sizes_from_files(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(checkpoints.GPT2))
    assert size_of(tmp_path) == replace(size_of(tmp_path / "config.json"), name=str(tmp_path))
    assert size_of(tmp_path).num_parameters == from_config(checkpoints.GPT2).num_parameters
    assert size_of("GPT2-XL") is SIZES["gpt2-xl"]


@pytest.mark.parametrize(
    ("config", "parts"),
    [
        (checkpoints.GPT2 | {"model_type": "opt"}, ("model_type", "'gpt2'", "'opt'")),
        (checkpoints.LLAMA, ("model_type", "none")),
        (checkpoints.GPT2 | {"n_embd": None}, ("n_embd", "none")),
        (checkpoints.GPT2 | {"n_head": 0}, ("n_head", "1 or more", "0")),
        (checkpoints.GPT2 | {"n_head": 5}, ("width", "multiple of 5", "24")),
        (checkpoints.LLAMA | {"model_type": "llama", "num_key_value_heads": 3}, ("heads", "multiple of 3", "4")),
        (checkpoints.BERT | {"vocab_size": "many"}, ("vocab_size", "str")),
    ],
)
def test_configs_that_tell_no_size(config: dict[str, Any], parts: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"config\.json") as caught:
        size_of(tmp_path)
    assert all(part in str(caught.value) for part in parts), caught.value


@pytest.mark.parametrize("name", ["gpt2", "minilm", "llama-2-70b", "qwen2-0.5b"])
def test_a_block_more_takes_so_many_operations_more(name: str) -> None:
    size: Size = SIZES[name]
    more = replace(size, layers=size.layers + 1)
    assert size.prefill_flops_per_layer(40) == more.prefill_flops(40) - size.prefill_flops(40)
    # Of MiniLM by hand: 4 projections of 384 x 384 and two of 384 x 1536 for each token, and two products of 384 for each pair.
    if name == "minilm":
        assert size.prefill_flops_per_layer(40) == 2 * (40 * (4 * 384**2 + 2 * 384 * 1536) + 2 * 384 * 40**2)


def test_numbers_that_are_none() -> None:
    size: Size = SIZES["gpt2"]
    for call in (size.prefill_flops, size.prefill_flops_per_layer, size.step_flops, size.kv_bytes):
        with pytest.raises(ValueError, match=r"tokens: expected an integer of . or more, got -1"):
            call(-1)
    with pytest.raises(ValueError, match="dtype: expected one of float32, float16, bfloat16, got 'int4'"):
        size.kv_bytes(1, "int4")


# --- the command -----------------------------------------------------------------------------------------------------------------------


def test_the_command_lists_what_is_known(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["params"]) == 0
    out = capsys.readouterr().out
    assert all(name in out and f"{SIZES[name].num_parameters:,}" in out for name in SIZES)


def test_the_command_shows_the_parts(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["params", "llama-2-70b", "--tokens", "4096"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    for words in ("80 blocks", "attention of each 150,994,944", "head 262,144,000", "all 68,976,648,192 100.00%", "a text of 4,096 tokens"):
        assert words in out
    assert "bfloat16 4.1 kB 328 kB 1.34 GB" in out
    assert cli.main(["params", "gpt2"]) == 0
    assert "head the words' own" in " ".join(capsys.readouterr().out.split())
    assert cli.main(["params", "minilm"]) == 0
    out = capsys.readouterr().out
    assert "pooler" in out
    assert "next token" not in out
    assert "cache" not in out


def test_the_command_in_json(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(checkpoints.LLAMA | {"model_type": "qwen3"}))
    assert cli.main(["params", str(tmp_path), "--tokens", "7", "--json"]) == 0
    told, size = json.loads(capsys.readouterr().out), size_of(tmp_path)
    assert (told["num_parameters"], told["parameters"], told["block"]) == (size.num_parameters, size.parameters(), size.block())
    assert told["flops"] == {"layer": size.prefill_flops_per_layer(7), "prefill": size.prefill_flops(7), "step": size.step_flops(7)}
    layer = size.kv_bytes_per_layer("float32")
    assert told["kv_bytes"]["float32"] == {"token_and_layer": layer, "token": 3 * layer, "tokens": 21 * layer}
    assert cli.main(["params", "--json"]) == 0
    assert [size["name"] for size in json.loads(capsys.readouterr().out)] == list(SIZES)


@pytest.mark.parametrize(
    ("arguments", "words"), [(["gpt5"], "qwen3-32b, got 'gpt5'"), (["gpt2", "--tokens", "0"], "tokens: expected an integer of 1")]
)
def test_misuse_of_the_command(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["params", *arguments])
    assert caught.value.code == 2
    assert words in capsys.readouterr().err
