"""The console script `qkvc`."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from io import TextIOWrapper
from pathlib import Path
from typing import Any

import qkvc
from qkvc._console import add_sizes, complain, parse_integers, parse_sizes, table
from qkvc.commands import look, params
from qkvc.nn import DamagedCheckpoint
from qkvc.train import Settings, train


def _info(options: argparse.Namespace) -> int:
    config = qkvc.show_config("dicts") or {}
    if options.json:
        print(json.dumps(config, indent=2))
    else:
        table("qkvc runs with", ["what", "value"], list(_flat(config)), text_columns=2)
    return 0


def _flat(config: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, str]]:
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{path}{name}: ")
        else:
            yield f"{path}{name}", ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _demo(options: argparse.Namespace) -> int:
    from qkvc.demo import run

    return run(options.text, options.picture, run_bench if options.bench else None)


def run_bench(arguments: Sequence[str]) -> int:
    """Run the benchmark's own command line."""
    # By name and only now: the benchmarks live in bench/ beside this package, and importing them takes longer than `qkvc info`.
    return int(import_module("qkvc.bench.run").main(list(arguments)))


def _explain(options: argparse.Namespace) -> int:
    try:
        explanation = _explained(options)
    except (TypeError, ValueError) as error:
        options.misuse(str(error))
    if options.json:
        print(json.dumps(explanation.as_dict(), indent=2))
    else:
        table(f"qkvc.attention on {options.shape}", ["what", "value"], explanation.rows(), text_columns=2)
    return 0


def _explained(options: argparse.Namespace) -> qkvc.Explanation:
    batch, heads, queries, dim = parse_sizes(options.shape, "shape")
    keys, kv_heads, v_dim = options.keys or queries, options.kv_heads or heads, options.v_dim or dim
    causal: Any = options.causal or False
    if causal == "top-left" and options.q_offset:  # what --causal alone means, and an offset says otherwise
        causal = True

    def laid(heads: int, length: int, width: int) -> tuple[int, ...]:
        return (batch, heads, length, width) if options.layout == "bhld" else (batch, length, heads, width)

    def scores(name: str) -> tuple[int, ...] | None:
        text = getattr(options, name)
        return None if text is None else parse_integers(text, f"--{name}", "x") if text else (queries, keys)

    def integers(name: str) -> Any:
        text = getattr(options, name)
        return None if text is None else parse_integers(text, f"--{name.replace('_', '-')}", ",")

    return qkvc.explain(
        laid(heads, queries, dim),
        laid(kv_heads, keys, dim),
        laid(kv_heads, keys, v_dim),
        mask=scores("mask"),
        bias=scores("bias"),
        causal=causal,
        q_offset=integers("q_offset"),
        window=integers("window"),
        key_lengths=integers("key_lengths"),
        alibi_slopes=[1.0] if options.alibi else None,
        softcap=options.softcap,
        layout=options.layout,
        precision=options.precision,
        num_threads=options.threads,
        dtype=options.dtype,
        peak=options.peak,
        bandwidth=options.bandwidth,
    )


def _train(options: argparse.Namespace) -> int:
    try:
        code = train(
            Settings(**{name: getattr(options, name) for name in SETTINGS}), options.text, options.out, options.prompt, options.sample
        )
    except (FloatingPointError, DamagedCheckpoint, ModuleNotFoundError) as error:
        complain(str(error))
        return 1
    except (TypeError, ValueError) as error:
        options.misuse(str(error))
    return code


def _experiment(options: argparse.Namespace) -> int:
    for name in options.names:
        if name not in EXPERIMENTS:
            options.misuse(f"NAME: expected one of {', '.join(EXPERIMENTS)}, got {name!r}")
    if options.seed < 0:
        options.misuse(f"--seed: expected an integer of 0 or more, got {options.seed}")
    experiments = import_module("qkvc.experiments")
    for name in options.names or EXPERIMENTS:
        for shown in getattr(experiments, name)(seed=options.seed).tables():
            shown.show()
    return 0


EXPERIMENTS = "four_tokens", "meaning", "induction", "seats", "splitting", "freezing", "saturation"  # qkvc.experiments says what they ask

SETTINGS = {  # of qkvc.train.Settings, which has their defaults
    "steps": "how many",
    "batch": "sequences of a step",
    "length": "bytes of a sequence",
    "layers": "blocks of the model",
    "width": "of a token's vector",
    "heads": "in each block",
    "dropout": "share of attention's weights that a step drops",
    "lr": "the highest learning rate",
    "weight_decay": "of matrices, a unit of the learning rate",
    "clip": "the longest gradient",
    "seed": "of weights, batches and sample",
    "every": "steps from a validation and checkpoint to the next",
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="qkvc", description="Attention for NumPy.")
    parser.add_argument("--version", action="version", version=f"qkvc {qkvc.__version__}")
    commands = parser.add_subparsers(metavar="command", required=True)

    info = commands.add_parser("info", help="what runs: version, kernels, threads")
    info.add_argument("--json", action="store_true", help="as JSON")
    info.set_defaults(command=_info)

    demo = commands.add_parser("demo", help="the three steps of attention, a real model, a short benchmark")
    demo.add_argument("--text", nargs="+", action="extend", default=[], metavar="SENTENCE", help="sentences to compare (repeatable)")
    demo.add_argument("--picture", type=Path, default=Path("qkvc-demo.png"), help="where the heat map goes (default: %(default)s)")
    demo.add_argument("--no-bench", dest="bench", action="store_false", help="leave the benchmark out")
    demo.set_defaults(command=_demo)

    explain = commands.add_parser("explain", help="what a call would do, and how long it should take")
    explain.add_argument("shape", metavar="BxHxLxD", help="batch, heads, queries, width")
    add_sizes(explain, ("float32", "float64", "float16", "bfloat16"))
    explain.add_argument("--q-offset", metavar="N,...", help="position of the first query, per batch item")
    explain.add_argument("--window", metavar="L,R", help="keys to the left and right that a query sees; --window=-1,0 for no limit left")
    explain.add_argument("--key-lengths", metavar="N,...", help="keys that exist, per batch item")
    explain.add_argument("--mask", nargs="?", const="", metavar="SHAPE", help="a bool mask that hides nothing, of queries x keys")
    explain.add_argument("--bias", nargs="?", const="", metavar="SHAPE", help="numbers added to the scores, of queries x keys")
    explain.add_argument("--alibi", action="store_true", help="slopes per head")
    explain.add_argument("--softcap", type=float, metavar="CAP")
    explain.add_argument("--precision", choices=["bf16"], help="multiply pairs of bfloat16, whatever the dtype")
    explain.add_argument("--threads", type=int, metavar="N", help="that the call may use")
    explain.add_argument("--peak", type=float, metavar="GFLOP/S", help="of the machine (default: measured)")
    explain.add_argument("--bandwidth", type=float, metavar="GB/S", help="of the machine (default: measured)")
    explain.add_argument("--json", action="store_true", help="as JSON")
    explain.set_defaults(command=_explain, misuse=explain.error)

    learn = commands.add_parser("train", help="a small language model learns a text; run it again to go on where it stopped")
    learn.add_argument("text", nargs="?", type=Path, help="a file in UTF-8 (default: the reference of the language that Python brings)")
    learn.add_argument("--out", type=Path, default=Path("qkvc-train"), help="for checkpoints, model and picture (default: %(default)s)")
    learn.add_argument("--prompt", default="The ", help="what the sample begins with (default: %(default)r)")
    learn.add_argument("--sample", type=int, default=400, metavar="BYTES", help="how long it is (default: %(default)s)")
    for name, what in SETTINGS.items():
        default = getattr(Settings, name)
        option = f"--{name.replace('_', '-')}"
        learn.add_argument(option, type=type(default), default=default, metavar="X", help=f"{what} (default: %(default)s)")
    learn.set_defaults(command=_train, misuse=learn.error)

    tried = commands.add_parser("experiment", help="what training does to attention, measured on small models")
    tried.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(EXPERIMENTS)} (default: all, in a minute)")
    tried.add_argument("--seed", type=int, default=0, help="of the first model (default: %(default)s)")
    tried.set_defaults(command=_experiment, misuse=tried.error)

    look.add(commands)
    params.add(commands)

    # Only for the list of commands: main() hands it everything that follows, --help included.
    commands.add_parser("bench", help="speed and error against whatever else is installed", add_help=False)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Parameters
    ----------
    argv : sequence of str, optional
        The arguments, `sys.argv[1:]` by default.

    Returns
    -------
    int
        The exit code: 0 done, 1 failed, 2 misused (from argparse), 130 interrupted.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that cannot show "·" gets a "?", not a traceback
    try:
        if arguments[:1] == ["bench"]:
            return run_bench(arguments[1:])
        options = _parser().parse_args(arguments)
        code = int(options.command(options))
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # `qkvc info | head -1`: the reader has gone, and the interpreter's own flush at exit must not complain of it either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130
    except OSError as error:
        complain(str(error))
        return 1
