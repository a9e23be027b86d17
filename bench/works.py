"""Who competes in what: for each kind of work its problem, qkvc's forms and the rivals."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

import qkvc

from . import compiled, gradients, inside, layers, qwen3, ragged, rivals, steps, training
from .cases import Case
from .forms import Form, Rival
from .problems import Problem, Stats, Task


def our_attention(problem: Problem, threads: int) -> Iterator[Form]:
    """The plain call, as the documentation writes it, and into an array that is kept, as rivals' bound outputs are."""
    c = problem.case
    options: dict[str, Any] = {}
    if c.causal:
        options["causal"] = True if c.queries == c.keys else c.causal
    if c.layout != "bhld":
        options["layout"] = c.layout
    if c.window:
        options["window"] = (c.window, 0)
    if problem.softcap:
        options["softcap"] = problem.softcap
    if c.option == "bf16":
        options["precision"] = "bf16"
    bias = problem.bias if problem.slopes is None else None
    arrays = {"mask": problem.mask, "bias": bias, "alibi_slopes": problem.slopes, "sinks": problem.sinks}
    options |= {name: x for name, x in arrays.items() if x is not None}
    inputs = [x if c.layout == "bhld" else x.swapaxes(1, 2) for x in (problem.query, problem.key, problem.value)]
    result = np.asarray if c.layout == "bhld" else partial(np.swapaxes, axis1=1, axis2=2)
    yield Form("attention", partial(qkvc.attention, *inputs, **options), result)
    kept = np.empty((*inputs[0].shape[:-1], c.v_dim), c.dtype)
    yield Form("attention into out", partial(qkvc.attention, *inputs, out=kept, **options), result)


@dataclass(frozen=True)
class Work:
    """One kind of work."""

    problem: Callable[[Case], Task]
    ours: Rival
    rivals: Mapping[str, Rival]


WORKS: dict[str, Work] = {
    "attention": Work(
        Problem,
        our_attention,
        {
            "torch": rivals.torch,
            "zentorch": rivals.zentorch,
            "onnxruntime": compiled.onnxruntime,
            "openvino": compiled.openvino,
            "jax": compiled.jax,
            "numpy": rivals.numpy,
        },
    ),
    "stats": Work(Stats, inside.ours, {"numpy": inside.numpy}),
    "varlen": Work(ragged.Ragged, ragged.ours, {"torch": ragged.torch, "numpy": ragged.numpy}),
    "step": Work(
        steps.Step,
        steps.ours,
        {
            "torch": steps.torch,
            "zentorch": partial(steps.torch, rival=rivals.zentorch),
            "onnxruntime": steps.onnxruntime,
            "numpy": steps.numpy,
        },
    ),
    "module": Work(layers.Layer, layers.our_layer, {"torch": layers.torch_layer, "numpy": layers.numpy}),
    "qwen3": Work(qwen3.Layer, qwen3.ours, {"torch": qwen3.torch, "numpy": qwen3.numpy}),
    "model": Work(layers.Sentences, layers.our_model, {"torch": layers.torch_model, "numpy": layers.numpy}),
    "backward": Work(gradients.Backward, gradients.ours, {"torch": gradients.torch}),
    "dropout": Work(gradients.Dropout, gradients.our_dropout, {"torch": gradients.torch_dropout}),
    "training": Work(training.Step, training.ours, {"torch": training.torch}),
}
OF_INT8 = {"bfloat16": steps.in_bfloat16}  # nobody else has such a cache
RIVALS = {**WORKS["attention"].rivals, **OF_INT8}


def rivals_of(case: Case) -> Mapping[str, Rival]:
    """Who competes in a case."""
    return OF_INT8 if case.dtype == "int8" else WORKS[case.work].rivals


def ours(problem: Task, threads: int, isa: str | None = None) -> Iterator[Form]:
    """qkvc's forms, run with so many threads and on this kernel set."""

    @contextmanager
    def setting() -> Iterator[None]:
        before = qkvc.get_num_threads()
        qkvc.set_num_threads(threads)  # as for the others: once, not by an argument of every call
        try:
            with nullcontext() if isa is None else qkvc.use_kernels(isa):
                yield
        finally:
            qkvc.set_num_threads(before)

    for form in WORKS[problem.case.work].ours(problem, threads):
        yield replace(form, setting=setting)
