from typing import Any

import numpy as np
from numpy.typing import NDArray

def backward_arrays(
    grad_out: Any,
    query: Any,
    key: Any,
    value: Any,
    out: Any,
    lse: Any,
    mask: Any,
    bias: Any,
    causal: Any,
    q_offset: Any,
    window: Any,
    key_lengths: Any,
    alibi_slopes: Any,
    sinks: Any,
    softcap: Any,
    scale: Any,
    head_scale: Any,
    dropout_p: Any,
    rng: Any,
    layout: Any,
    precision: Any,
    grad_lse: Any,
    needs: frozenset[str],
    num_threads: Any,
    starts: Any = None,
) -> tuple[
    NDArray[Any] | None,
    NDArray[Any] | None,
    NDArray[Any] | None,
    NDArray[Any] | None,
    NDArray[Any],
    NDArray[Any],
    NDArray[Any] | None,
    NDArray[Any] | None,
]: ...
def folded(x: NDArray[Any], shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]: ...
