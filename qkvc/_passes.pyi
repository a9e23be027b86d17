from typing import Any

from numpy.typing import NDArray

Array = NDArray[Any]

def gelu(x: Array, num_threads: int | None = None) -> Array: ...
def gelu_grad(x: Array, grad: Array, num_threads: int | None = None) -> Array: ...
def swiglu(gate: Array, x: Array, num_threads: int | None = None) -> Array: ...
def swiglu_grad(gate: Array, x: Array, grad: Array, num_threads: int | None = None) -> tuple[Array, Array]: ...
def adamw(
    grad: Array,
    weight: Array,
    first: Array,
    second: Array,
    clip: float,
    beta1: float,
    beta2: float,
    step: float,
    root: float,
    eps: float,
    keep: float,
    num_threads: int | None = None,
) -> None: ...
def square_sum(x: Array, num_threads: int | None = None) -> float: ...
