from typing import Any

from numpy.typing import NDArray

def layer_norm(
    x: NDArray[Any],
    weight: NDArray[Any],
    bias: NDArray[Any],
    eps: float = 1e-5,
    residual: NDArray[Any] | None = None,
    num_threads: int | None = None,
) -> NDArray[Any]: ...
