from typing import Any

from numpy.typing import NDArray

def score_matrix(
    query: Any,
    key: Any,
    stage: str,
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
    layout: Any,
    num_threads: Any,
    chosen: Any = None,
    rows_in_all: Any = None,
    dropout_p: Any = 0.0,
    rng: Any = None,
) -> NDArray[Any]: ...
def statistics(
    query: Any,
    key: Any,
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
    layout: Any,
    lse: Any,
    top_k: int,
    num_threads: Any,
) -> list[Any]: ...
