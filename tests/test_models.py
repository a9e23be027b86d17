"""qkvc.models against torch's own encoder with the same weights: a small random one, and the real one where it is installed."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

import qkvc
from qkvc.models import MiniLM, minilm

from .checkpoints import BERT, Tensors, bert_tensors


class Model(NamedTuple):
    model: MiniLM
    config: dict[str, Any]
    tensors: Tensors
    sentences: list[str]


class WordTokenizer:
    """Stands for `tokenizers.Tokenizer`: one token per letter, between a 1 and a 2."""

    def no_padding(self) -> None:
        pass

    def no_truncation(self) -> None:
        pass

    def enable_truncation(self, length: int) -> None:
        self.length = length

    def encode_batch(self, sentences: Sequence[str]) -> list[SimpleNamespace]:
        return [SimpleNamespace(ids=[1, *(ord(letter) % 40 + 3 for letter in sentence), 2][: self.length]) for sentence in sentences]

    def id_to_token(self, token: int) -> str:
        return str(token)


def random_model(rng: np.random.Generator) -> Model:
    tensors = bert_tensors(rng)
    sentences = ["one two three", "a", "", "four five", "ab", "six"]
    return Model(MiniLM(BERT, tensors, WordTokenizer()), BERT, tensors, sentences)


def real_model() -> Model:
    try:
        model, directory = MiniLM.from_package(), minilm.installed(minilm.PACKAGE) / "model"
    except ModuleNotFoundError as error:
        pytest.skip(str(error))
    from safetensors.numpy import load_file

    sentences = ["A man is eating food.", "A man is eating a piece of bread.", "A man is riding a horse.", "Hello", "¿Qué? 注意力 🙂", ""]
    config = json.loads((directory / "config.json").read_text())
    return Model(model, config, load_file(directory / "model.safetensors"), sentences)


@pytest.fixture(scope="module", params=["random", "all-MiniLM-L6-v2"])
def subject(request: pytest.FixtureRequest) -> Model:
    return random_model(np.random.default_rng(2)) if request.param == "random" else real_model()


@pytest.fixture(scope="module")
def real() -> Model:
    return real_model()


def torch_states(
    torch: Any, config: dict[str, Any], tensors: Tensors, ids: NDArray[np.int64], lengths: NDArray[np.int64]
) -> list[NDArray[Any]]:
    """The same encoder from torch's own layers: the embeddings, then the output of every layer."""
    width, inner, eps = config["hidden_size"], config["intermediate_size"], config["layer_norm_eps"]
    t = {name: torch.from_numpy(np.array(tensor)) for name, tensor in tensors.items()}
    x = t["embeddings.word_embeddings.weight"][torch.from_numpy(ids)] + t["embeddings.position_embeddings.weight"][: ids.shape[1]]
    x = x + t["embeddings.token_type_embeddings.weight"][0]
    x = torch.nn.functional.layer_norm(x, (width,), t["embeddings.LayerNorm.weight"], t["embeddings.LayerNorm.bias"], eps)
    padding = torch.from_numpy(np.arange(ids.shape[1]) >= lengths[:, None])
    states = [x]
    for index in range(config["num_hidden_layers"]):
        layer = torch.nn.TransformerEncoderLayer(
            width, config["num_attention_heads"], inner, dropout=0.0, activation="gelu", layer_norm_eps=eps, batch_first=True
        )
        names = {"self_attn.out_proj": "attention.output.dense", "linear1": "intermediate.dense", "linear2": "output.dense"}
        names |= {"norm1": "attention.output.LayerNorm", "norm2": "output.LayerNorm"}
        prefix = f"encoder.layer.{index}."
        state = {f"{theirs}.{kind}": t[f"{prefix}{ours}.{kind}"] for theirs, ours in names.items() for kind in ("weight", "bias")}
        for kind in ("weight", "bias"):
            state[f"self_attn.in_proj_{kind}"] = torch.cat(
                [t[f"{prefix}attention.self.{part}.{kind}"] for part in ("query", "key", "value")]
            )
        layer.load_state_dict(state)
        states.append(layer.eval()(states[-1], src_key_padding_mask=padding))
    return [state.numpy() for state in states]


def test_like_torch(subject: Model) -> None:
    torch = pytest.importorskip("torch", reason="torch is the oracle of this test")
    model, config, tensors, sentences = subject
    ids, lengths = model.tokenize(sentences)
    present = np.arange(ids.shape[1]) < lengths[:, None]
    assert not present.all()
    with torch.inference_mode():
        expected = torch_states(torch, config, tensors, ids, lengths)
    got = model.hidden_states(ids, lengths)
    assert got.dtype == np.float32
    assert got.shape == (len(expected), *expected[0].shape)
    for index, (ours, theirs) in enumerate(zip(got, expected, strict=True)):
        np.testing.assert_allclose(ours[present], theirs[present], rtol=0, atol=1e-5, err_msg=f"after layer {index}")

    mean = (expected[-1] * present[..., None]).sum(axis=1) / lengths[:, None]
    np.testing.assert_allclose(model.encode(sentences), mean / np.linalg.norm(mean, axis=-1, keepdims=True), rtol=0, atol=1e-5)


def test_every_kernel_set_gives_the_same_vectors(subject: Model, isa: str) -> None:
    with qkvc.use_kernels("portable"):
        expected = subject.model.encode(subject.sentences)
    np.testing.assert_allclose(subject.model.encode(subject.sentences), expected, rtol=0, atol=1e-6, err_msg=isa)


def test_neighbours_do_not_matter(subject: Model) -> None:
    together = subject.model.encode(subject.sentences)
    alone = np.concatenate([subject.model.encode([sentence]) for sentence in subject.sentences])
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-6)
    np.testing.assert_allclose(subject.model.encode(subject.sentences, batch_size=2), alone, rtol=0, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(together, axis=-1), 1, rtol=0, atol=1e-6)


def test_padding_cannot_be_seen(subject: Model) -> None:
    ids, lengths = subject.model.tokenize(subject.sentences)
    present = np.arange(ids.shape[1]) < lengths[:, None]
    before = subject.model.hidden_states(ids, lengths)
    after = subject.model.hidden_states(np.where(present, ids, 7), lengths)
    assert not before[:, ~present].any()
    np.testing.assert_array_equal(before, after)


def test_attention_maps(subject: Model) -> None:
    model, config, _, sentences = subject
    tokens, maps = model.attention_maps(sentences[0])
    ids, lengths = model.tokenize(sentences[:1])
    assert tokens == [model.tokenizer.id_to_token(token) for token in ids[0].tolist()]
    assert maps.shape == (config["num_hidden_layers"], config["num_attention_heads"], len(tokens), len(tokens))
    states = model.hidden_states(ids, lengths)
    for layer, x, weights in zip(model.layers, states, maps, strict=False):
        query, key, _ = (np.swapaxes(part, 1, 2).astype(np.float64) for part in layer.attention.project(x))
        scores = query @ np.swapaxes(key, -1, -2) / math.sqrt(query.shape[-1])
        exact = np.exp(scores - scores.max(axis=-1, keepdims=True))
        np.testing.assert_allclose(weights, (exact / exact.sum(axis=-1, keepdims=True))[0], rtol=0, atol=2e-6)


def test_split_heads_copies_nothing(subject: Model) -> None:
    layer, x = subject.model.layers[0], subject.model.hidden_states([[1, 5, 2]], [3])[0]
    query, key, value = layer.attention.project(x)
    assert query.shape == (1, 3, subject.config["num_attention_heads"], x.shape[-1] // subject.config["num_attention_heads"])
    assert query.base is key.base is value.base is not None


def test_no_sentence_and_not_a_sequence() -> None:
    model = random_model(np.random.default_rng(0)).model
    assert model.encode([]).shape == (0, 24)
    with pytest.raises(TypeError, match="sentences: expected a sequence of strings"):
        model.encode("one string")


def test_golden_cosines(real: Model) -> None:
    food, bread, horse = real.model.encode(real.sentences[:3])
    assert food @ bread == pytest.approx(0.7553, abs=1e-3)
    assert food @ horse == pytest.approx(0.2474, abs=1e-3)


def test_bfloat16_hardly_moves_a_cosine(real: Model, isa: str, figures: list[str]) -> None:
    """Weights that bfloat16 has, and queries, keys and values rounded to it."""
    narrow = {name: x.astype(ml_dtypes.bfloat16).astype(np.float32) for name, x in real.tensors.items() if x.dtype == np.float32}
    vectors = real.model.encode(real.sentences)
    rounded = MiniLM(real.config, narrow, real.model.tokenizer, precision="bf16").encode(real.sentences)
    off = np.abs(rounded @ rounded.T - vectors @ vectors.T).max()
    figures.append(f"MiniLM in bfloat16, {isa}: a cosine moves by {off:.1e} at most")
    assert 0 < off < 0.01


def test_long_sentences_are_cut(real: Model) -> None:
    ids, lengths = real.model.tokenize(["word " * 1000, "word"])
    assert lengths.tolist() == [256, 3]
    assert ids.shape == (2, 256)
    assert not ids[1, 3:].any()


@pytest.mark.parametrize("wrong", sorted(minilm.SHA256))
def test_a_changed_file_is_refused(wrong: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in minilm.SHA256:
        (tmp_path / name).write_text(name)
        if name != wrong:
            monkeypatch.setitem(minilm.SHA256, name, hashlib.sha256(name.encode()).hexdigest())
    with pytest.raises(ValueError, match=rf"{re.escape(wrong)}: expected sha256 {minilm.SHA256[wrong]}, got [0-9a-f]{{64}}"):
        MiniLM.from_directory(tmp_path)


@pytest.mark.parametrize("missing", sorted(minilm.SHA256))
def test_a_missing_file_is_named(missing: str, tmp_path: Any) -> None:
    for name in minilm.SHA256:
        if name != missing:
            (tmp_path / name).write_text(name)
    with pytest.raises(FileNotFoundError, match=re.escape(missing)):
        MiniLM.from_directory(tmp_path)


def test_one_flipped_bit_of_the_real_weights_is_refused(real: Model, tmp_path: Any) -> None:
    directory = minilm.installed(minilm.PACKAGE) / "model"
    for name in minilm.SHA256:
        (tmp_path / name).write_bytes((directory / name).read_bytes())
    with open(tmp_path / "model.safetensors", "r+b") as file:
        file.seek(50_000_000)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 1]))
    with pytest.raises(ValueError, match=r"model\.safetensors: expected sha256 53aa"):
        MiniLM.from_directory(tmp_path)
    assert MiniLM.from_directory(directory).encode(["Hello"]).shape == (1, 384)
