"""Models from files: their numbers against torch's own modules in float64, and what is said of files that are not as they should be."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

import qkvc
from qkvc.models import GPT2, Bert, LanguageModel, Llama, MiniLM, load, minilm

from . import checkpoints
from .checkpoints import Tensors, bert_tensors, gpt2_tensors, llama_tensors
from .support import run_child
from .test_watch import check_consistent

safetensors = pytest.importorskip("safetensors.numpy", reason="models are read by safetensors")
tokenizers = pytest.importorskip("tokenizers", reason="texts are cut by tokenizers")

IDS = [3, 41, 7, 7, 19, 2, 30, 11]
Oracle = tuple[list[NDArray[np.float64]], list[NDArray[np.float64]], NDArray[np.float64]]


def write(path: Path, config: dict[str, Any], tensors: Tensors, *, shards: int = 0) -> Path:
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    if not shards:
        safetensors.save_file(tensors, path / "model.safetensors")
        return path
    names = sorted(tensors)
    places = {name: f"model-{index % shards}.safetensors" for index, name in enumerate(names)}
    for file in set(places.values()):
        safetensors.save_file({name: tensors[name] for name in names if places[name] == file}, path / file)
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return path


def torch_model(torch: Any, config: dict[str, Any], tensors: Tensors, ids: list[int]) -> Oracle:
    """The states, the weights of every head and the output, by torch's attention, norms and GELU in float64."""
    f, t = torch.nn.functional, {name: torch.from_numpy(x.astype(np.float64)) for name, x in tensors.items() if x.dtype.kind == "f"}
    bert = config["model_type"] == "bert"
    names = ["hidden_size", "num_attention_heads", "num_hidden_layers"] if bert else ["n_embd", "n_head", "n_layer"]
    width, heads, layers = (config[name] for name in names)
    eps = config["layer_norm_eps" if bert else "layer_norm_epsilon"]

    def norm(x: Any, name: str) -> Any:
        return f.layer_norm(x, (width,), t[f"{name}.weight"], t[f"{name}.bias"], eps)

    def dense(x: Any, name: str) -> Any:
        return f.linear(x, t[f"{name}.weight"] if bert else t[f"{name}.weight"].T, t[f"{name}.bias"])

    def attend(x: Any, at: str) -> Any:
        module = torch.nn.MultiheadAttention(width, heads, batch_first=True, dtype=torch.float64)
        names = [f"{at}attention.self.{part}" for part in ("query", "key", "value")] if bert else [f"{at}attn.c_attn"]
        weight = torch.cat([t[f"{name}.weight"] for name in names])
        out = f"{at}attention.output.dense" if bert else f"{at}attn.c_proj"
        state = {"in_proj_weight": weight if bert else weight.T, "in_proj_bias": torch.cat([t[f"{name}.bias"] for name in names])}
        state |= {"out_proj.weight": t[f"{out}.weight"] if bert else t[f"{out}.weight"].T, "out_proj.bias": t[f"{out}.bias"]}
        module.load_state_dict(state)
        hidden = None if bert else ~torch.ones(len(ids), len(ids), dtype=torch.bool).tril()
        return module(x, x, x, attn_mask=hidden, need_weights=True, average_attn_weights=False)

    x = t["embeddings.word_embeddings.weight" if bert else "wte.weight"][ids]
    x = x + t["embeddings.position_embeddings.weight" if bert else "wpe.weight"][: len(ids)]
    x = norm(x + t["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm") if bert else x
    states, weights = [x], []
    for index in range(layers):
        at = f"encoder.layer.{index}." if bert else f"h.{index}."
        attended, shares = attend(x if bert else norm(x, f"{at}ln_1"), at)
        weights.append(shares)
        if bert:
            x = norm(x + attended, f"{at}attention.output.LayerNorm")
            x = norm(x + dense(f.gelu(dense(x, f"{at}intermediate.dense")), f"{at}output.dense"), f"{at}output.LayerNorm")
        else:
            x = x + attended
            x = x + dense(f.gelu(dense(norm(x, f"{at}ln_2"), f"{at}mlp.c_fc"), approximate="tanh"), f"{at}mlp.c_proj")
        states.append(x)
    return [x.detach().numpy() for x in states], [x.detach().numpy() for x in weights], (x if bert else norm(x, "ln_f")).detach().numpy()


def check_like_torch(model: Bert | GPT2, config: dict[str, Any], tensors: Tensors, ids: list[int]) -> None:
    torch = pytest.importorskip("torch", reason="torch is the oracle of this test")
    with torch.inference_mode():
        states, weights, output = torch_model(torch, config, tensors, ids)
    seen = model.watch(ids)
    check_consistent(model, seen)
    for index, expected in enumerate(states):
        np.testing.assert_allclose(seen.states[index], expected, rtol=2e-6, atol=1e-5, err_msg=f"states {index}")
    for index, expected in enumerate(weights):
        np.testing.assert_allclose(seen.weights(index), expected, rtol=0, atol=1e-5, err_msg=f"weights of layer {index}")
    np.testing.assert_allclose(seen.output, output, rtol=2e-6, atol=1e-5)


@pytest.mark.parametrize("prefix", ["", "bert."])
def test_bert(prefix: str, tmp_path: Path, rng: np.random.Generator) -> None:
    tensors = bert_tensors(rng)
    stored = {prefix + name: x for name, x in tensors.items()} | {"cls.predictions.bias": np.zeros(50, np.float32)}
    model = load(write(tmp_path, checkpoints.BERT, stored))
    assert type(model) is Bert
    check_like_torch(model, checkpoints.BERT, tensors, IDS)
    for old, new in (("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta")):  # as bert-base-uncased has them
        stored = {name.replace(old, new): x for name, x in stored.items()}
    np.testing.assert_array_equal(load(write(tmp_path, checkpoints.BERT, stored)).watch(IDS).output, model.watch(IDS).output)


@pytest.mark.parametrize("prefix", ["", "transformer."])
@pytest.mark.parametrize("shards", [0, 3])
def test_gpt2(prefix: str, shards: int, tmp_path: Path, rng: np.random.Generator) -> None:
    tensors = gpt2_tensors(rng)
    model = load(write(tmp_path, checkpoints.GPT2, {prefix + name: x for name, x in tensors.items()}, shards=shards))
    assert type(model) is GPT2
    check_like_torch(model, checkpoints.GPT2, tensors, IDS)
    states = model.states([IDS])
    np.testing.assert_array_equal(states[0], model.watch(IDS).output)
    np.testing.assert_allclose(model.logits(states), states @ tensors["wte.weight"].T, rtol=0, atol=1e-4)
    caches = model.caches(1, 20)
    parts = [model.states([part], caches) for part in (IDS[:5], IDS[5:6], IDS[6:])]
    np.testing.assert_allclose(np.concatenate(parts, axis=1), states, rtol=0, atol=1e-5)
    ids = list(IDS)
    for token in model.generate([IDS], 6)[0]:
        assert model.logits(model.states([ids])[:, -1]).argmax() == token
        ids.append(token)
    with pytest.raises(ValueError, match=r"GPT2: ids: expected 32 tokens at most, got 33 of them"):
        model.states([[1] * 25], caches)


def test_gpt2_with_a_head_of_its_own(tmp_path: Path, rng: np.random.Generator) -> None:
    tensors = {f"transformer.{name}": x for name, x in gpt2_tensors(rng).items()}
    config = checkpoints.GPT2 | {"tie_word_embeddings": False, "n_inner": 96}
    with pytest.raises(ValueError, match=r"lm_head\.weight"):
        load(write(tmp_path, config, tensors))
    tensors["lm_head.weight"] = 2 * tensors["transformer.wte.weight"]
    model = load(write(tmp_path, config, tensors))
    assert isinstance(model, GPT2)
    np.testing.assert_array_equal(model.head, tensors["lm_head.weight"])


@pytest.mark.parametrize("form", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
def test_llama(form: str, dtype: str, tmp_path: Path, rng: np.random.Generator) -> None:
    """Its numbers are test_generation's business."""
    tensors = {name: x.astype(getattr(ml_dtypes, dtype, dtype)) for name, x in llama_tensors(rng, form).items()}
    model = load(write(tmp_path, checkpoints.LLAMA | {"model_type": form}, tensors))
    assert isinstance(model, Llama)
    seen = model.watch(IDS)
    check_consistent(model, seen)
    assert (seen.causal, seen.key[0].shape) == (True, (2, len(IDS), 8))
    widened = Llama(checkpoints.LLAMA, {name: x.astype(np.float32) for name, x in tensors.items()})
    np.testing.assert_array_equal(seen.output, widened.states([IDS])[0])
    assert seen.output.dtype == np.float32


def test_bfloat16_needs_no_import_of_the_callers(tmp_path: Path, rng: np.random.Generator) -> None:
    tensors = {name: x.astype(ml_dtypes.bfloat16) for name, x in llama_tensors(rng).items()}
    write(tmp_path, checkpoints.LLAMA | {"model_type": "llama"}, tensors)
    code = f"import qkvc.models; print(qkvc.models.load({str(tmp_path)!r}).watch({IDS}).output.sum())"
    assert float(run_child(code)) == pytest.approx(load(tmp_path).watch(IDS).output.sum(), rel=1e-4)


def test_llama_without_a_head(tmp_path: Path, rng: np.random.Generator) -> None:
    """The names of a model that was saved without one; positions twice as far, divided by two."""
    tensors = {name.removeprefix("model."): x for name, x in llama_tensors(rng).items() if not name.startswith("lm_head")}
    config = checkpoints.LLAMA | {"model_type": "llama", "rope_scaling": {"type": "linear", "factor": 2.0}}
    model = load(write(tmp_path, config, tensors))
    assert isinstance(model, Llama)
    assert model.head is model.words
    plain = Llama(checkpoints.LLAMA, {f"model.{name}": x for name, x in tensors.items()})
    x, (layer, unscaled) = plain.watch(IDS).inputs[0], (of.layers[0].attention for of in (model, plain))
    twice = layer.heads(x, causal=True, positions=2 * np.arange(len(IDS)))
    np.testing.assert_allclose(twice, unscaled.heads(x, causal=True), rtol=0, atol=1e-5)
    assert np.abs(layer.heads(x, causal=True) - twice).max() > 1e-3


def test_a_model_that_learned_can_be_watched() -> None:
    learned = LanguageModel(50, 24, layers=2, heads=3, rng=0)
    model = learned.llama()
    seen = model.watch(IDS)
    check_consistent(model, seen)
    np.testing.assert_allclose(model.logits(seen.output), learned([IDS])[0], rtol=0, atol=2e-5)


def test_the_real_model_has_torchs_weights() -> None:
    try:
        directory = minilm.installed(minilm.PACKAGE) / "model"
    except ModuleNotFoundError as error:
        pytest.skip(str(error))
    config, tensors = json.loads((directory / "config.json").read_text()), safetensors.load_file(directory / "model.safetensors")
    model = load(directory)
    names, ids = model.tokens("The animal didn't cross the street because it was too tired.")
    assert names == MiniLM.from_package().tokens(ids.tolist())[0]
    assert len(model.tokens("word " * 300)[1]) == 302, "not cut at the 128 tokens of the file"
    assert isinstance(model, Bert)
    check_like_torch(model, config, tensors, ids.tolist())


# --- tokenizers ------------------------------------------------------------------------------------------------------------------------


def byte_level(path: Path) -> None:
    """GPT-2's kind: pieces of bytes."""
    tokenizer = tokenizers.ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(["the cat the cat sat"], vocab_size=270, show_progress=False)
    tokenizer.save(str(path / "tokenizer.json"))


def test_bytes_are_shown_as_text(tmp_path: Path, rng: np.random.Generator) -> None:
    tensors = gpt2_tensors(rng) | {"wte.weight": np.zeros((270, 24), np.float32)}
    byte_level(write(tmp_path, checkpoints.GPT2 | {"vocab_size": 270}, tensors))
    model = load(tmp_path)
    tokens, ids = model.tokens("the cat é")
    assert "".join(tokens[:-2]) == "the cat "
    assert len(tokens) == len(ids)
    assert tokens[-2:] == ["�", "�"], "half a letter each"
    assert model.watch("the cat").tokens == tokens[: len(model.watch("the cat").ids)]
    with pytest.raises(ValueError, match="1 to 32 tokens, got 0 of them"):
        model.watch("")


def test_words_of_another_vocabulary(tmp_path: Path, rng: np.random.Generator) -> None:
    byte_level(write(tmp_path, checkpoints.GPT2, gpt2_tensors(rng)))
    with pytest.raises(ValueError, match=r"tokens: text: expected integers from 0 to 52, got \d+"):
        load(tmp_path).watch("the cat")


@pytest.mark.parametrize("cased", [False, True])
def test_a_list_of_words_is_enough_for_bert(cased: bool, tmp_path: Path, rng: np.random.Generator) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "The", "cat", "##s", "注", "意"]
    write(tmp_path, checkpoints.BERT, bert_tensors(rng))
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": not cased}))
    tokens, ids = load(tmp_path).tokens("The cats 注意")
    assert tokens == ["[CLS]", "The" if cased else "the", "cat", "##s", "注", "意", "[SEP]"]
    assert ids.tolist() == [words.index(word) for word in tokens]


# --- files that are not as they should be ----------------------------------------------------------------------------------------------


def drop(file: str) -> Callable[[Path], None]:
    return lambda path: (path / file).unlink()


def put(file: str, text: str) -> Callable[[Path], None]:
    return lambda path: (path / file).write_text(text) and None


def configured(**values: Any) -> Callable[[Path], None]:
    return lambda path: put("config.json", json.dumps(json.loads((path / "config.json").read_text()) | values))(path)


def tensor(name: str, change: Callable[[NDArray[Any]], NDArray[Any]] | None) -> Callable[[Path], None]:
    def changed(path: Path) -> None:
        tensors = safetensors.load_file(path / "model.safetensors")
        x = tensors.pop(name)
        safetensors.save_file(tensors if change is None else tensors | {name: change(x)}, path / "model.safetensors")

    return changed


WRONG = [
    ("bert", drop("config.json"), FileNotFoundError, ("config.json",)),
    ("bert", put("config.json", "{"), ValueError, ("config.json", "JSON")),
    ("bert", put("config.json", "[1]"), ValueError, ("config.json", "object", "list")),
    ("bert", put("config.json", "[" * 100000), ValueError, ("config.json", "JSON")),
    ("bert", configured(model_type="roberta"), ValueError, ("config.json", "model_type", "bert, gpt2, llama, qwen2, qwen3", "'roberta'")),
    ("bert", configured(model_type=None), ValueError, ("model_type", "None")),
    ("bert", configured(model_type=["bert"]), ValueError, ("model_type", "['bert']")),
    ("bert", configured(hidden_act="relu"), ValueError, ("hidden_act", "'gelu'", "'relu'")),
    ("bert", configured(position_embedding_type="relative_key"), ValueError, ("position_embedding_type", "'absolute'", "'relative_key'")),
    ("bert", configured(hidden_size=None), ValueError, ("hidden_size", "none")),
    ("bert", configured(num_hidden_layers="3"), ValueError, ("num_hidden_layers", "str")),
    ("bert", configured(num_hidden_layers=4), ValueError, ("encoder.layer.3.",)),
    ("bert", configured(num_attention_heads=5), ValueError, ("num_heads", "24", "5")),
    ("bert", configured(vocab_size=51), ValueError, ("embeddings.word_embeddings.weight", "(51, 24)", "(50, 24)")),
    ("bert", configured(layer_norm_eps=-1), ValueError, ("layer_norm_eps", "-1")),
    ("bert", drop("model.safetensors"), FileNotFoundError, ("model.safetensors", "model.safetensors.index.json", "neither")),
    ("bert", put("model.safetensors", "no tensors"), ValueError, ("model.safetensors", "expected a safetensors file")),
    ("bert", put("tokenizer.json", "{}"), ValueError, ("tokenizer.json", "expected a tokenizer")),
    ("bert", put("vocab.txt", "word"), ValueError, ("vocab.txt", "expected a tokenizer")),
    ("bert", tensor("encoder.layer.1.output.dense.bias", None), ValueError, ("encoder.layer.1.output.dense.bias", "none")),
    ("bert", tensor("encoder.layer.1.attention.self.key.weight", None), ValueError, ("attention.self.key.weight", "'encoder.layer.1.'")),
    ("bert", tensor("encoder.layer.1.output.dense.bias", lambda x: x[1:]), ValueError, ("output.dense.bias", "(24,)", "(23,)")),
    ("bert", tensor("encoder.layer.1.output.dense.bias", lambda x: x.astype(int)), ValueError, ("output.dense.bias", "int64")),
    ("gpt2", configured(activation_function="relu"), ValueError, ("activation_function", "'gelu_new'", "'relu'")),
    ("gpt2", configured(scale_attn_by_inverse_layer_idx=True), ValueError, ("scale_attn_by_inverse_layer_idx", "True")),
    ("gpt2", configured(n_embd=32), ValueError, ("wte.weight", "(53, 32)", "(53, 24)")),
    ("gpt2", tensor("h.2.mlp.c_fc.weight", lambda x: x.T.copy()), ValueError, ("h.2.mlp.c_fc.weight", "(24, 96)", "(96, 24)")),
    ("gpt2", tensor("h.2.attn.c_attn.bias", None), ValueError, ("c_attn.bias", "'h.2.attn.'")),
    ("llama", configured(hidden_act="gelu"), ValueError, ("hidden_act", "'silu'", "'gelu'")),
    ("llama", configured(use_sliding_window=True), ValueError, ("use_sliding_window", "False", "True")),
    ("llama", configured(rope_scaling={"type": "dynamic", "factor": 2.0}), ValueError, ("rope_type", "'dynamic'")),
    ("llama", configured(rope_scaling={"type": "linear", "factor": 0}), ValueError, ("scaling", "above 0", "0")),
    (
        "llama",
        configured(rope_parameters={"rope_theta": 1e4, "partial_rotary_factor": 0.25}),
        ValueError,
        ("partial_rotary_factor", "0.25"),
    ),
    ("llama", configured(rope_scaling={"rope_type": "llama3", "factor": 2.0}), ValueError, ("low_freq_factor", "none")),
    ("llama", configured(partial_rotary_factor=0.5), ValueError, ("partial_rotary_factor", "0.5")),
    ("llama", configured(rope_parameters={"full_attention": {"rope_theta": 1e4}}), ValueError, ("rope_theta", "none")),
    ("llama", configured(rope_scaling="linear"), ValueError, ("rope_scaling", "object", "str")),
    ("llama", configured(rope_theta="high"), ValueError, ("base", "str")),
    ("llama", configured(tie_word_embeddings="false"), ValueError, ("tie_word_embeddings", "True or False", "str")),
    ("llama", configured(num_key_value_heads=4), ValueError, ("model.layers.0.self_attn.", "key heads", "4", "2")),
    ("llama", configured(model_type="qwen3"), ValueError, ("q_norm.weight", "form qwen3")),
    ("llama", tensor("lm_head.weight", lambda x: x[:-1].copy()), ValueError, ("lm_head.weight", "(97, 32)", "(96, 32)")),
]


@pytest.mark.parametrize(("kind", "spoil", "error", "parts"), WRONG, ids=[f"{x[0]}-{'-'.join(x[3])}" for x in WRONG])
def test_what_is_wrong_is_named(
    kind: str, spoil: Callable[[Path], None], error: type[Exception], parts: tuple[str, ...], tmp_path: Path, rng: np.random.Generator
) -> None:
    config = {"bert": checkpoints.BERT, "gpt2": checkpoints.GPT2, "llama": checkpoints.LLAMA | {"model_type": "llama"}}[kind]
    tensors = {"bert": bert_tensors, "gpt2": gpt2_tensors, "llama": llama_tensors}[kind](rng)
    spoil(write(tmp_path, config, tensors))
    with pytest.raises(error) as caught:
        load(tmp_path)
    assert all(part in str(caught.value) for part in (str(tmp_path), *parts)), caught.value


def test_numbers_that_numpy_does_not_have(tmp_path: Path, rng: np.random.Generator) -> None:
    """8 bits, in a file written by hand."""
    write(tmp_path, checkpoints.GPT2, gpt2_tensors(rng))
    header = json.dumps({"wte.weight": {"dtype": "F8_E4M3", "shape": [53, 24], "data_offsets": [0, 53 * 24]}}).encode()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(53 * 24))
    with pytest.raises(ValueError, match=r"^\S+model\.safetensors: wte\.weight: expected a dtype that NumPy has"):
        load(tmp_path)


def test_a_shard_that_is_missing(tmp_path: Path, rng: np.random.Generator) -> None:
    write(tmp_path, checkpoints.GPT2, gpt2_tensors(rng), shards=2)
    index = tmp_path / "model.safetensors.index.json"
    places = json.loads(index.read_text())
    index.write_text(json.dumps({"weight_map": places["weight_map"] | {"wte.bias": "model-1.safetensors"}}))
    with pytest.raises(ValueError, match=r"model-1\.safetensors: expected the tensor wte\.bias, as model.*json says"):
        load(tmp_path)
    index.write_text(json.dumps({"weight_map": places["weight_map"] | {"wte.bias": "../model-1.safetensors"}}))
    with pytest.raises(ValueError, match=r"index\.json: weight_map"):
        load(tmp_path)
    index.write_text(json.dumps(places))
    (tmp_path / "model-1.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"model-1\.safetensors"):
        load(tmp_path)


def test_another_kind_than_was_asked_for(tmp_path: Path, rng: np.random.Generator) -> None:
    write(tmp_path, checkpoints.GPT2, gpt2_tensors(rng))
    assert type(GPT2.from_directory(tmp_path)) is GPT2
    with pytest.raises(ValueError, match="model_type: expected one of llama, qwen2, qwen3, got 'gpt2'"):
        Llama.from_directory(tmp_path)


def test_what_is_not_installed_is_named(tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    byte_level(write(tmp_path, checkpoints.GPT2 | {"vocab_size": 270}, gpt2_tensors(rng)))
    for name in ("tokenizers", "safetensors"):
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(ModuleNotFoundError, match=f"load: {name} is not installed; get it with: pip install"):
            load(tmp_path)


def test_every_kernel_set_sees_the_same(isa: str, rng: np.random.Generator) -> None:
    model = GPT2(checkpoints.GPT2, gpt2_tensors(rng))
    with qkvc.use_kernels("portable"):
        expected = model.watch(IDS).output
    np.testing.assert_allclose(model.watch(IDS).output, expected, rtol=0, atol=1e-5, err_msg=isa)
