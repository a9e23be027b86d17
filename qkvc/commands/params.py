"""`qkvc params`: how large a model is."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from qkvc._console import scaled, table

if TYPE_CHECKING:
    from qkvc.models.sizes import Size


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Put the command into the parser."""
    parser = commands.add_parser("params", help="how large a model is: parameters, operations, bytes of its cache")
    parser.add_argument("model", nargs="?", metavar="NAME|DIR|FILE", help="a known name, or where a config.json is (default: all names)")
    parser.add_argument("--tokens", type=int, default=1024, metavar="N", help="of a text, and of the cache (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.set_defaults(command=run, misuse=parser.error)


def run(options: argparse.Namespace) -> int:
    """Print what was asked for."""
    from qkvc.models.sizes import SIZES, size_of

    try:
        sizes = [size_of(options.model)] if options.model else list(SIZES.values())
        told = [as_dict(size, options.tokens) for size in sizes]
    except (TypeError, ValueError) as error:
        options.misuse(str(error))
    if options.json:
        print(json.dumps(told[0] if options.model else told, indent=2))
    elif options.model:
        show(sizes[0], told[0])
    else:
        columns = ["name", "parameters", "layers", "width", "heads / KV", "KV a token"]
        table("Models whose sizes are known; KV in 16 bits", columns, [_line(size) for size in sizes])
    return 0


def _line(size: Size) -> list[str]:
    heads = f"{size.heads}" if size.kv_heads == size.heads else f"{size.heads} / {size.kv_heads}"
    cache = scaled(size.kv_bytes(), "B") if size.causal else "none"
    return [size.name, f"{size.num_parameters:,}", f"{size.layers}", f"{size.width:,}", heads, cache]


def as_dict(size: Size, tokens: int) -> dict[str, Any]:
    """All figures of a model, as JSON has them."""
    from qkvc.models.sizes import KV_BYTES

    cache = {
        dtype: {"token_and_layer": size.kv_bytes_per_layer(dtype), "token": size.kv_bytes(1, dtype), "tokens": size.kv_bytes(tokens, dtype)}
        for dtype in KV_BYTES
    }
    return {
        "name": size.name,
        "num_parameters": size.num_parameters,
        "parameters": size.parameters(),
        "layers": size.layers,
        "block": size.block(cross=size.encoder_layers > 0),
        "tokens": tokens,
        "flops": {"layer": size.prefill_flops_per_layer(tokens), "prefill": size.prefill_flops(tokens), "step": size.step_flops(tokens)},
        "kv_bytes": cache,
    }


def show(size: Size, told: dict[str, Any]) -> None:
    """Two tables: what is learned, and what a text takes."""
    total, tokens = told["num_parameters"], told["tokens"]

    def row(name: str, count: int) -> list[str]:
        return [name, f"{count:,}", f"{count / total:.2%}"]

    rows = []
    for name, count in told["parameters"].items():
        blocks = {"blocks": size.layers, "encoder blocks": size.encoder_layers}.get(name, 0)
        rows.append(row(f"{blocks} {name}" if blocks else name, count))
        if blocks:
            parts = size.block(cross=name == "blocks" and size.encoder_layers > 0)
            rows += [row(f"  {part} of each", parts[part]) for part in parts]
    if size.causal and size.tied:
        rows.append(["head", "the words' own", ""])
    table(f"{size.name}: parameters", ["part", "number", "share"], [*rows, row("all", total)])

    rows = [["to read it", scaled(told["flops"]["prefill"], "FLOP")]]
    if not size.encoder_layers:
        rows.append(["  of it each block", scaled(told["flops"]["layer"], "FLOP")])
    if size.causal:
        rows.append(["the next token after it", scaled(told["flops"]["step"], "FLOP")])
    table(f"{size.name}: a text of {tokens:,} tokens", ["what", "operations"], rows)
    if size.causal:
        rows = [[dtype, *(scaled(bytes_, "B") for bytes_ in cache.values())] for dtype, cache in told["kv_bytes"].items()]
        table(f"{size.name}: keys and values in a cache", ["dtype", "of a token in a layer", "of a token", f"of {tokens:,}"], rows)
