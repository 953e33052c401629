"""The command line's grammar and its help."""

from __future__ import annotations

import argparse
from typing import Any

from graphopt import __version__
from graphopt.cli import key_parser, log_parser, options, quantize_parser

_SHAPE_HELP = (
    "shape of an input whose dimensions the model leaves open, such as --shape x=1,3,224,224; "
    "once per input"
)
_TARGET_HELP = (
    "processor to compile for: cpu (this machine), cpu:NAME, x86_64:NAME or aarch64:NAME with "
    "LLVM's name of a processor, such as aarch64:cortex-a76; x86-64, x86-64-v2 … v4, riscv64"
)
_EXIT_CODES = "exit codes: 0 ok, 1 the check failed, 2 wrong usage or input, 3 a defect of graphopt"


def make_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line; args.verb is the name of the chosen verb."""
    parser = argparse.ArgumentParser(
        prog="graphopt",
        description="Compile ONNX models to small, fast, verified programs.",
        epilog="graphopt VERB --help explains a verb.  " + _EXIT_CODES,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"graphopt {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    _inspect(verbs)
    _compile(verbs)
    _quantize(verbs)
    _tune(verbs)
    _rpc_server(verbs)
    _logs(verbs)
    _run(verbs)
    _verify(verbs)
    _profile(verbs)
    _bench(verbs)
    _devices(verbs)
    key_parser.add_verbs(verbs, _verb)
    _cache(verbs)
    _cxx_header(verbs)
    return parser


def _verb(verbs: Any, name: str, summary: str, description: str, *examples: str) -> Any:
    parser = verbs.add_parser(
        name,
        help=summary,
        description=description,
        epilog="examples:\n" + "\n".join(f"  graphopt {name} {e}" for e in examples),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--verbose", action="store_true", help="show what the library logs")
    parser.add_argument("--debug", action="store_true", help="show tracebacks and debug messages")
    return parser


def _target_flags(parser: Any) -> None:
    parser.add_argument("--target", default="cpu", help=_TARGET_HELP)
    _shape_flag(parser)
    _constant_flag(parser)


def _shape_flag(parser: Any, text: str = _SHAPE_HELP) -> None:
    parser.add_argument(
        "--shape", action="append", type=options.shape, metavar="NAME=DIMS", help=text
    )


def _constant_flag(parser: Any, more: str = "") -> None:
    parser.add_argument(
        "--constant",
        action="append",
        type=options.constant,
        metavar="NAME=VALUE",
        help="value of an input that is compiled in because it acts as a shape, an axis, a count "
        "or a mode, such as --constant rate=16000 or axes=0,1" + more,
    )


def _threads_flag(parser: Any, default: str) -> None:
    parser.add_argument(
        "--threads", type=options.positive, metavar="N", help=f"threads ({default})"
    )


def _numerics_flag(parser: Any) -> None:
    parser.add_argument(
        "--numerics",
        choices=("default", "strict", "relaxed"),
        default="default",
        help="strict: no Winograd and nothing else that spreads non-finite values; "
        "relaxed: also Winograd's F(6x6), with some times the rounding error",
    )


def _inspect(verbs: Any) -> None:
    parser = _verb(
        verbs,
        "inspect",
        "say what a model contains and whether it compiles",
        "Say what a model takes, gives and contains, and every node that would not import.\n"
        "Exits with 1 if some would not.",
        "model.onnx",
        "model.onnx --shape x=1,3,224,224 --json",
    )
    parser.add_argument("model", metavar="MODEL.onnx")
    _target_flags(parser)


def _compile(verbs: Any) -> None:
    parser = _verb(
        verbs,
        "compile",
        "compile a model to a .gopt file or a C library",
        "Compile an ONNX model to one .gopt file, which needs no compiler to run.\n"
        "Programs are kept in a cache and found again (see graphopt cache).\n"
        "With --emit c-library: to a header, an archive, a shared library and a CMake config,\n"
        "which need neither graphopt nor Python.",
        "model.onnx -o model.gopt",
        "model.onnx -o model.gopt --shape x=1,3,224,224 --threads 2",
        "model.onnx -o model.gopt --shape x=1,128 --shape x=8,128   (two specialisations)",
        "model.onnx -o model.gopt --shape x=1,512 --constant rate=16000",
        "model.onnx -o model.gopt --target aarch64:cortex-a76",
        "model.onnx -o folder --emit c-library",
        "model.onnx -o folder --emit c-library --name detector --weights file --threads 2",
    )
    parser.add_argument("model", metavar="MODEL.onnx")
    parser.add_argument(
        "-o", "--output", required=True, metavar="FILE.gopt", help="or the folder of a C library"
    )
    parser.add_argument(
        "--emit", choices=("gopt", "c-library"), default="gopt", help="what to make (default: gopt)"
    )
    parser.add_argument(
        "--name", help="of the C library and its functions (default: the model file's name)"
    )
    parser.add_argument(
        "--weights",
        choices=("embedded", "file"),
        help="the C library's weights: in it, or in a file that it maps (default: embedded)",
    )
    parser.add_argument("--target", default="cpu", help=_TARGET_HELP)
    _shape_flag(
        parser, _SHAPE_HELP + "; given k times for one input, it makes k programs in one file"
    )
    _constant_flag(parser, "; the k-th goes with the k-th shapes")
    _threads_flag(parser, "default: physical cores")
    _numerics_flag(parser)
    records = parser.add_mutually_exclusive_group()
    records.add_argument(
        "--tuning-log", metavar="DIR", help="records of graphopt tune, before the shipped ones"
    )
    records.add_argument("--no-records", action="store_true", help="use no tuning records")
    parser.add_argument(
        "--quantize",
        choices=quantize_parser.PRESETS,
        help="quantize the model first, see graphopt quantize; needs --calibration",
    )
    parser.add_argument(
        "--calibration", metavar="DATA", help="typical inputs, see graphopt quantize"
    )
    parser.add_argument("--dump-ir", metavar="DIR", help="write the IR after each pass there")
    parser.add_argument(
        "--max-weight-growth",
        type=float,
        metavar="X",
        help="packed weights may take X times the model's weights, which count for a megabyte at "
        "least (default: 2)",
    )
    parser.add_argument("--no-cache", action="store_true", help="neither use nor fill the cache")


def _quantize(verbs: Any) -> None:
    parser = _verb(
        verbs,
        "quantize",
        "turn a float model into one that computes in integers",
        "Quantize a float32 ONNX model after training, and say what that costs, layer by layer.\n"
        "The result is an ordinary ONNX file with QuantizeLinear and DequantizeLinear.",
        *quantize_parser.EXAMPLES,
    )
    parser.add_argument("model", metavar="MODEL.onnx")
    parser.add_argument("-o", "--output", required=True, metavar="FILE.onnx")
    quantize_parser.add_flags(parser)
    _shape_flag(parser, _SHAPE_HELP + "; bound in the result too")
    _constant_flag(parser, "; bound in the result too")
    _threads_flag(parser, "default: physical cores")


def _tune(verbs: Any) -> None:
    parser = _verb(
        verbs,
        "tune",
        "measure kernels for a model and keep the best in a log",
        "Measure kernels for a model on this machine. Every result is in the log at once: a run\n"
        "that is interrupted, or killed, loses nothing, and the next one goes on from there.",
        "model.onnx --log tuning_logs",
        "model.onnx --log tuning_logs --shape x=1,3,224,224 --trials 300 --time-limit 240",
    )
    parser.add_argument("model", metavar="MODEL.onnx")
    parser.add_argument("--log", required=True, metavar="DIR", help="where records are kept")
    parser.add_argument("--target", default="cpu", help=_TARGET_HELP)
    _shape_flag(parser, _SHAPE_HELP + "; given k times for one input, all k are tuned together")
    _constant_flag(parser, "; the k-th goes with the k-th shapes")
    _threads_flag(parser, "default: physical cores")
    _numerics_flag(parser)
    parser.add_argument(
        "--trials", type=options.positive, default=1000, metavar="N",
        help="distinct kernels to measure at most (default: 1000)",
    )  # fmt: skip
    parser.add_argument("--time-limit", type=float, metavar="S", help="seconds, all included")
    parser.add_argument(
        "--target-latency", type=float, metavar="MS", help="stop at this expected latency"
    )
    parser.add_argument(
        "--fresh", action="store_true", help="use no earlier records and no shipped cost model"
    )
    parser.add_argument(
        "--rpc",
        metavar="HOST:PORT/KEY",
        help="run the kernels on the servers that a tracker of TVM's knows by this key",
    )
    parser.add_argument(
        "--max-weight-growth",
        type=float,
        metavar="X",
        help="packed weights may take X times the model's weights, which count for a megabyte at "
        "least (default: 2)",
    )
    parser.add_argument("--plot", metavar="FILE.png", help="draw the latency over time")


def _rpc_server(verbs: Any) -> None:
    parser = _verb(
        verbs,
        "rpc-server",
        "run kernels on this machine for graphopt tune --rpc elsewhere",
        "Run TVM's RPC server, registered with a tracker (python -m tvm.exec.rpc_tracker), until\n"
        "interrupted. Whoever reaches its port can have this machine execute anything.",
        "--tracker 10.0.0.5:9190 --key pi4 --host 0.0.0.0",
    )
    parser.add_argument("--tracker", required=True, metavar="HOST:PORT")
    parser.add_argument("--key", required=True, help="what tuning runs ask the tracker for")
    parser.add_argument(
        "--host", default="127.0.0.1", help="the address to listen at (default: this machine only)"
    )
    parser.add_argument(
        "--port", type=options.positive, default=9090,
        help="to listen at, or one of the hundred after it (default: 9090)",
    )  # fmt: skip


def _logs(verbs: Any) -> None:
    parser = _verb(
        verbs,
        "logs",
        "list, merge, prune, export or import tuning logs",
        "Look after the logs that graphopt tune makes. graphopt logs ACTION --help explains more.",
        *log_parser.EXAMPLES,
    )
    log_parser.add_actions(parser)


def _run(verbs: Any) -> None:
    parser = _verb(
        verbs,
        "run",
        "run a .gopt file",
        "Run a .gopt file on the arrays of an .npz file.",
        "model.gopt --input in.npz --output out.npz",
    )
    parser.add_argument("program", metavar="FILE.gopt")
    parser.add_argument("--input", required=True, metavar="IN.npz", help="arrays by input name")
    parser.add_argument("--output", metavar="OUT.npz", help="where to write the outputs")
    _threads_flag(parser, "default: as compiled")
    key_parser.add_loading_flags(parser)


def _verify(verbs: Any) -> None:
    parser = _verb(
        verbs,
        "verify",
        "compare with ONNX Runtime",
        "Compare every output with ONNX Runtime's, optimisations off.\n"
        "Without --input the inputs are seeded: floats standard normal, integers small and not\n"
        "negative, masks ones. Exits with 1 if an output is further off than the tolerance.",
        "model.onnx",
        "model.gopt --against model.onnx --input in.npz",
    )
    parser.add_argument("model", metavar="MODEL.onnx|FILE.gopt")
    parser.add_argument("--against", metavar="MODEL.onnx", help="the reference; needed for a .gopt")
    parser.add_argument("--input", metavar="IN.npz", help="arrays by input name")
    parser.add_argument("--seed", type=int, default=0, help="of the random inputs (default: 0)")
    parser.add_argument(
        "--tolerance",
        type=float,
        help="max|y-ref| / max|ref| (default: 1e-4; 2e-2 if the model quantizes)",
    )
    _target_flags(parser)
    _threads_flag(parser, "default: physical cores")
    _numerics_flag(parser)
    key_parser.add_loading_flags(parser)


def _profile(verbs: Any) -> None:
    parser = _verb(
        verbs,
        "profile",
        "show where the time of a .gopt file goes",
        "Show the time of each kernel call, the ONNX nodes it computes, and the time outside.",
        "model.gopt",
        "model.gopt --input in.npz --repeats 100 --all",
    )
    parser.add_argument("program", metavar="FILE.gopt")
    parser.add_argument("--input", metavar="IN.npz", help="arrays by input name (default: random)")
    parser.add_argument("--repeats", type=options.positive, default=20, help="runs (default: 20)")
    parser.add_argument("--all", action="store_true", help="show every call, not the 20 slowest")
    _shape_flag(parser, "which specialisation to profile")
    _constant_flag(parser)
    _threads_flag(parser, "default: as compiled")
    key_parser.add_loading_flags(parser)


def _bench(verbs: Any) -> None:
    parser = _verb(
        verbs,
        "bench",
        "compare latencies with other engines",
        "Compare latencies with other engines: each in a process of its own, taking turns on the\n"
        "same inputs, outputs compared. Exits with 1 if an engine fails or an output is wrong.",
        "model.onnx --vs onnxruntime,openvino --threads 2",
        "model.gopt --against model.onnx",
    )
    parser.add_argument("model", metavar="MODEL.onnx|FILE.gopt")
    parser.add_argument("--against", metavar="MODEL.onnx", help="what the peers run, for a .gopt")
    parser.add_argument(
        "--vs", default="onnxruntime", metavar="ENGINES", help="onnxruntime,openvino (either, both)"
    )
    parser.add_argument("--rounds", type=options.positive, default=10, help="turns (default: 10)")
    parser.add_argument("--no-records", action="store_true", help="use no tuning records")
    _target_flags(parser)
    _threads_flag(parser, "default: physical cores")


def _cxx_header(verbs: Any) -> None:
    parser = _verb(
        verbs,
        "cxx-header",
        "write graphopt.hpp, which runs .gopt files in C++",
        "Write the header with which C++ programs run .gopt files of this version of graphopt.",
        "-o graphopt.hpp",
    )
    parser.add_argument("-o", "--output", required=True, metavar="graphopt.hpp")


def _devices(verbs: Any) -> None:
    _verb(
        verbs,
        "devices",
        "list what this machine can run programs on",
        "List what this machine can run programs on: its processor, OpenCL devices and NVIDIA\n"
        "GPUs, with their limits, and why there are none where there are none.",
        "",
        "--json",
    )


def _cache(verbs: Any) -> None:
    parser = _verb(
        verbs,
        "cache",
        "show or clear the compile cache",
        "Show or clear the compile cache. It lies in $GRAPHOPT_CACHE, else in\n"
        "$XDG_CACHE_HOME/graphopt, else in ~/.cache/graphopt, and keeps to\n"
        "$GRAPHOPT_CACHE_LIMIT (default 4G), dropping what was not used for longest.",
        "",
        "clear",
    )
    parser.add_argument("action", nargs="?", choices=("show", "clear"), default="show")
