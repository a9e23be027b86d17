from collections.abc import Callable
from typing import Any, TypeVar

from numpy.typing import NDArray

Result = TypeVar("Result")

def undisturbed(function: Callable[..., Result], *arguments: Any) -> Result: ...
def turn(
    x: NDArray[Any],
    table: NDArray[Any],
    interleaved: bool = False,
    weight: NDArray[Any] | None = None,
    eps: float = 0,
    source: NDArray[Any] | None = None,
    num_threads: int | None = None,
) -> None: ...
