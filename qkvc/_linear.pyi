from typing import Any

from numpy.typing import NDArray

def project(
    x: NDArray[Any],
    weight: NDArray[Any],
    bias: NDArray[Any] | None = None,
    out: NDArray[Any] | None = None,
    num_threads: int | None = None,
    gelu: bool = False,
    plus: NDArray[Any] | None = None,
) -> NDArray[Any]: ...
