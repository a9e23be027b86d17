"""AdamW against its equations and torch's; checkpoints that are whole or not there."""

from __future__ import annotations

from math import cos, pi
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import qkvc
from qkvc.nn import AdamW, DamagedCheckpoint, Layer, Linear, Parameter, load_checkpoint, save_checkpoint, warmed_cosine

from .support import assert_refused, assert_same_bits

SHAPES = {"weight": (130, 301), "bias": (1000,), "one": (1, 1)}


def parameters(rng: np.random.Generator, dtype: Any) -> dict[str, Parameter]:
    return {name: Parameter(rng.standard_normal(shape).astype(dtype)) for name, shape in SHAPES.items()}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_equations(isa: str, rng: np.random.Generator, dtype: Any) -> None:
    learned = parameters(rng, dtype)
    exact = {name: p.value.astype(np.float64) for name, p in learned.items()}
    means = {name: (np.zeros(shape), np.zeros(shape)) for name, shape in SHAPES.items()}
    optimiser = AdamW(learned, lr=0.02, betas=(0.9, 0.97), eps=1e-6, weight_decay=0.3, clip=100.0)
    for step in range(1, 8):
        for parameter in learned.values():
            parameter.grad = rng.normal(0, step / 5, parameter.value.shape).astype(dtype)
        length = np.sqrt(sum((p.grad.astype(np.float64) ** 2).sum() for p in learned.values() if p.grad is not None))
        assert optimiser.step() == pytest.approx(length, rel=1e-6 if dtype is np.float32 else 1e-13)
        assert (length > 100) == (step > 2), "some are clipped, some are not"
        for name, parameter in learned.items():
            assert parameter.grad is not None
            g = parameter.grad * min(1, 100 / length)
            m, v = 0.9 * means[name][0] + 0.1 * g, 0.97 * means[name][1] + 0.03 * g * g
            means[name] = m, v
            w = exact[name] * (1 - 0.02 * (0.3 if exact[name].ndim > 1 else 0))
            exact[name] = w - 0.02 * (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.97**step)) + 1e-6)
            np.testing.assert_allclose(parameter.value, exact[name], rtol=0, atol=4e-6 if dtype is np.float32 else 1e-13)


def test_as_torch_does(rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    ours = Parameter(rng.standard_normal((30, 40)))
    theirs = torch.tensor(ours.value.copy(), requires_grad=True)
    optimiser = AdamW({"w": ours}, lr=0.01, betas=(0.8, 0.99), eps=1e-7, weight_decay=0.2)
    other = torch.optim.AdamW([theirs], lr=0.01, betas=(0.8, 0.99), eps=1e-7, weight_decay=0.2)
    for _ in range(10):
        ours.grad = rng.standard_normal((30, 40))
        theirs.grad = torch.tensor(ours.grad)
        optimiser.step()
        other.step()
    np.testing.assert_allclose(ours.value, theirs.detach().numpy(), rtol=1e-12)


def test_threads_change_no_bit(rng: np.random.Generator) -> None:
    before, results = qkvc.get_num_threads(), []
    try:
        for threads in (1, 2):
            qkvc.set_num_threads(threads)
            rng = np.random.default_rng(5)
            learned = {"w": Parameter(rng.standard_normal((700, 900)).astype(np.float32))}
            optimiser = AdamW(learned, clip=1.0)
            for _ in range(3):
                learned["w"].grad = rng.standard_normal((700, 900)).astype(np.float32)
                length = optimiser.step()
            results.append((length, learned["w"].value))
    finally:
        qkvc.set_num_threads(before)
    assert results[0][0] == results[1][0]
    assert_same_bits(results[0][1], results[1][1])


@pytest.mark.parametrize("poison", [np.nan, np.inf, 1e30])
def test_a_gradient_that_is_not_finite_moves_nothing(rng: np.random.Generator, poison: float) -> None:
    learned = parameters(rng, np.float32)
    optimiser = AdamW(learned)
    for parameter in learned.values():
        parameter.grad = np.ones_like(parameter.value)
    learned["bias"].grad[77] = poison  # type: ignore[index]
    before = {name: p.value.copy() for name, p in learned.items()} | optimiser.state()
    with pytest.raises(FloatingPointError, match="gradient of bias: expected finite"):
        optimiser.step()
    for name, array in ({name: p.value for name, p in learned.items()} | optimiser.state()).items():
        assert_same_bits(array, before[name], name)
    assert optimiser.steps == 0


def test_what_has_no_gradient_or_is_frozen_stays(rng: np.random.Generator) -> None:
    learned = parameters(rng, np.float32)
    before = {name: p.value.copy() for name, p in learned.items()}
    for name in ("weight", "bias"):
        learned[name].grad = np.ones_like(learned[name].value)
    learned["bias"].frozen = True
    AdamW(learned).step()
    assert {name for name, p in learned.items() if not np.array_equal(p.value, before[name])} == {"weight"}


class Pair(Layer):
    """Layers in a tuple that share a weight, and a parameter in a list."""

    def __init__(self) -> None:
        self.ends = Linear(4, 4, bias=False, rng=0), Linear(4, 4, rng=1)
        self.ends[1].weight = self.ends[0].weight
        self.more = [Parameter(np.ones(3))]


def test_what_is_shared_moves_once() -> None:
    pair = Pair()
    learned = pair.parameters()
    assert list(learned) == ["ends.0.weight", "ends.1.bias", "more.0"]
    assert pair.num_parameters() == 16 + 4 + 3
    alone = Parameter(pair.ends[0].weight.value.copy())
    for part in (pair.ends[0].weight, alone):
        part.grad = np.ones((4, 4), np.float32)
    AdamW(learned).step()
    AdamW({"w": alone}).step()
    assert_same_bits(pair.ends[1].weight.value, alone.value)


def test_state_goes_on(rng: np.random.Generator) -> None:
    grads = rng.standard_normal((6, 130, 301)).astype(np.float32)
    start = rng.standard_normal((130, 301)).astype(np.float32)

    def run(optimiser: AdamW, part: slice) -> None:
        for grad in grads[part]:
            optimiser.parameters["w"].grad = grad
            optimiser.step()

    whole, first = AdamW({"w": Parameter(start.copy())}), AdamW({"w": Parameter(start.copy())})
    run(whole, slice(6))
    run(first, slice(4))
    second = AdamW({"w": Parameter(first.parameters["w"].value.copy())})
    state = first.state()
    for wrong in ({}, {**state, "more": start}, {**state, "first.w": start[1:]}):
        assert_refused(lambda wrong=wrong: second.load(wrong, 4), ValueError, "AdamW: state,")
    wrong = {**state, "first.w": np.zeros_like(start), "second.w": start.astype(complex)}
    assert_refused(lambda: second.load(wrong, 4), TypeError, "AdamW: state, second.w:", "complex")
    assert not second.state()["first.w"].any()
    second.load(state, first.steps)
    run(second, slice(4, 6))
    assert_same_bits(second.parameters["w"].value, whole.parameters["w"].value)


def test_refused(rng: np.random.Generator) -> None:
    learned = parameters(rng, np.float32)
    for wrong, word in (
        ({"lr": 0}, "lr"),
        ({"lr": float("nan")}, "lr"),
        ({"betas": (0.9, 1.0)}, "betas"),
        ({"weight_decay": -1}, "weight_decay"),
        ({"clip": 0.0}, "clip"),
        ({"eps": 0}, "eps"),
    ):
        assert_refused(lambda wrong=wrong: AdamW(learned, **wrong), ValueError, f"AdamW: {word}:")
    for wrong in ((0.9,), 0.9, "ab"):
        assert_refused(lambda wrong=wrong: AdamW(learned, betas=wrong), TypeError, "AdamW: betas:")
    for wrong in (list(learned.values()), {"w": np.ones(3)}, Linear(2, 2)):
        assert_refused(lambda wrong=wrong: AdamW(wrong), TypeError, "AdamW: parameters:", "Parameter")


def test_schedule() -> None:
    rates = [warmed_cosine(step, 100, lr=2.0, warmup=10) for step in range(101)]
    assert rates[:11] == pytest.approx([0.2 * (n + 1) for n in range(10)] + [2.0])
    assert rates[55] == pytest.approx(2 * (0.1 + 0.9 * (1 + cos(pi / 2)) / 2))
    assert rates[100] == pytest.approx(0.2)
    assert warmed_cosine(0, 1, lr=1.0) == 1


# --------------------------------------------------------------------------------------------------------------------------- checkpoints

ABOUT = {"losses": [0.1, 1 / 3, 2.5e-300], "name": "é"}


def test_checkpoint(tmp_path: Path, rng: np.random.Generator) -> None:
    pytest.importorskip("safetensors", reason="safetensors is not installed")
    path = tmp_path / "a.safetensors"
    tensors = {"w": rng.standard_normal((5, 7)).T, "b": np.arange(3.0, dtype=np.float32), "none": np.zeros((0, 4)), "one": np.array(3.0)}
    tensors["turned"] = np.arange(4.0).astype(">f8")
    save_checkpoint(path, tensors, ABOUT)
    found, about = load_checkpoint(path)
    assert about == ABOUT
    assert found.keys() == tensors.keys()
    for name, array in tensors.items():
        assert_same_bits(found[name], np.array(array, array.dtype.newbyteorder("="), order="C"))
    written = {path.read_bytes()}
    for _ in range(9):
        save_checkpoint(path, tensors, ABOUT)
        written.add(path.read_bytes())
    assert len(written) == 1
    for wrong, error in (({"w": np.ones(2, complex)}, TypeError), ({"w": None}, TypeError), ({"__metadata__": np.ones(1)}, ValueError)):
        assert_refused(lambda wrong=wrong: save_checkpoint(path, wrong, ABOUT), error, "save_checkpoint: tensors")
    assert {path.read_bytes()} == written
    assert [file.name for file in tmp_path.iterdir()] == ["a.safetensors"]


def test_any_damage_is_noticed(tmp_path: Path, rng: np.random.Generator) -> None:
    pytest.importorskip("safetensors", reason="safetensors is not installed")
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, {"w": rng.standard_normal(50), "b": rng.standard_normal(3)}, ABOUT)
    whole = path.read_bytes()
    for at in range(len(whole)):
        changed = bytearray(whole)
        changed[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(changed)
        assert_damaged(path)
    for length in (0, 1, 7, 8, 100, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert_damaged(path)
    path.write_bytes(whole + b"x")
    assert_damaged(path)
    with pytest.raises(FileNotFoundError, match=r"b\.safetensors"):
        load_checkpoint(tmp_path / "b.safetensors")


def assert_damaged(path: Path) -> None:
    with pytest.raises(DamagedCheckpoint, match=r"a\.safetensors"):
        load_checkpoint(path)


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("safetensors", reason="safetensors is not installed")
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, {"w": np.ones(3)}, ABOUT)
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(path, {"w": np.zeros(3)}, ABOUT)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["a.safetensors"]
