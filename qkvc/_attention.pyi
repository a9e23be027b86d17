from typing import Any, Literal, overload

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
    window: Any,
    key_lengths: Any,
    alibi_slopes: Any,
    sinks: Any,
    softcap: Any,
    scale: Any,
    head_scale: Any,
    layout: Any,
    precision: Any,
    out: Any,
    num_threads: Any,
    want_lse: Literal[False],
    starts: Any = None,
    in_bytes: bool = False,
) -> NDArray[Any]: ...
@overload
def attend_arrays(
    query: Any,
    key: Any,
    value: Any,
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
    layout: Any,
    precision: Any,
    out: Any,
    num_threads: Any,
    want_lse: Literal[True],
    starts: Any = None,
    in_bytes: bool = False,
) -> tuple[NDArray[Any], NDArray[Any]]: ...
