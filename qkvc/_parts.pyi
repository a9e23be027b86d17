from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

def part_arrays(
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
    softcap: Any,
    scale: Any,
    layout: Any,
    precision: Any,
    num_threads: Any,
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]: ...
def merge_arrays(
    parts: Sequence[Sequence[NDArray[Any]]],
    shape: tuple[int, ...],
    batch: tuple[int, ...],
    heads: int,
    length: int,
    heads_inside: bool,
    sinks: NDArray[Any] | None,
    head_scale: NDArray[Any] | None,
    num_threads: Any,
) -> tuple[NDArray[Any], NDArray[Any]]: ...
