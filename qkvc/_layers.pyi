from typing import Any

from numpy import float32
from numpy.typing import NDArray

def gelu(x: NDArray[float32], num_threads: int | None = None) -> NDArray[float32]: ...
def layer_norm(
    x: NDArray[Any],
    weight: NDArray[Any],
    bias: NDArray[Any],
    eps: float = 1e-5,
    residual: NDArray[Any] | None = None,
    num_threads: int | None = None,
) -> NDArray[Any]: ...
