from typing import Any

from numpy.typing import NDArray

def turn(
    x: NDArray[Any],
    table: NDArray[Any],
    interleaved: bool = False,
    weight: NDArray[Any] | None = None,
    eps: float = 0,
    source: NDArray[Any] | None = None,
    num_threads: int | None = None,
) -> None: ...
