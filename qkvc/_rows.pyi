from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Floats = NDArray[np.float64]
Ids = NDArray[np.int64]

def norm_grad(
    x: Array, grad: Array, weight: Array, eps: float, centred: bool, also: Array | None = None, num_threads: int | None = None
) -> tuple[Array, Array, Array | None]: ...
def cross_entropy(logits: Array, target: Ids, ignored: int, factor: float, num_threads: int | None = None) -> tuple[Floats, Array]: ...
def scatter_add(ids: Ids, x: Array, out: Array) -> None: ...
