from typing import Any, Literal, overload

from numpy import float32
from numpy.typing import NDArray

@overload
def attend_arrays(
    query: Any,
    key: Any,
    value: Any,
    mask: Any,
    bias: Any,
    causal: Any,
    q_offset: Any,
    key_lengths: Any,
    scale: Any,
    layout: Any,
    out: Any,
    num_threads: Any,
    want_lse: Literal[False],
) -> NDArray[float32]: ...
@overload
def attend_arrays(
    query: Any,
    key: Any,
    value: Any,
    mask: Any,
    bias: Any,
    causal: Any,
    q_offset: Any,
    key_lengths: Any,
    scale: Any,
    layout: Any,
    out: Any,
    num_threads: Any,
    want_lse: Literal[True],
) -> tuple[NDArray[float32], NDArray[float32]]: ...
