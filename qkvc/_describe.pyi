from typing import Any

def describe(
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
    starts: Any,
) -> dict[str, Any]: ...
