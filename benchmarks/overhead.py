"""What one run() costs beyond its arithmetic: a one-operator model against ONNX Runtime.

    python benchmarks/overhead.py
    python benchmarks/overhead.py --elements 256 --rounds 30 --json

Both engines are in one process and take turns; neither spins outside its turn. The figure is the
median of the rounds' ratios, with their quartiles. Exit status 1 if the median is above 1 or an
output is wrong.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper

import graphopt


def one_operator(elements: int) -> onnx.ModelProto:
    """y = Relu(x), float32 [1, elements]."""
    shape = [1, elements]
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "one_operator",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def peer(model: onnx.ModelProto, threads: int) -> Callable[[dict[str, Any]], Any]:
    """ONNX Runtime's run() for `model`."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return lambda inputs: session.run(None, inputs)


def microseconds(run: Callable[[dict[str, Any]], Any], inputs: dict[str, Any], runs: int) -> float:
    """Mean time of one call."""
    begin = time.perf_counter_ns()
    for _ in range(runs):
        run(inputs)
    return (time.perf_counter_ns() - begin) / runs / 1e3


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--elements", type=int, default=64, help="size of the input (%(default)s)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--runs", type=int, default=1000, help="calls in a round (%(default)s)")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()

    model = one_operator(options.elements)
    ours = graphopt.compile(model, threads=options.threads).run
    theirs = peer(model, options.threads)
    x = np.linspace(-1, 1, options.elements, dtype=np.float32)[None]
    inputs = {"x": x}
    if not np.array_equal(ours(inputs)["y"], theirs(inputs)[0]):
        print("the outputs differ", file=sys.stderr)
        return 1

    pairs = [
        (microseconds(ours, inputs, options.runs), microseconds(theirs, inputs, options.runs))
        for _ in range(options.rounds + 1)
    ][1:]
    low, ratio, high = statistics.quantiles([mine / other for mine, other in pairs], n=4)
    result = {
        "graphopt_us": statistics.median(mine for mine, _ in pairs),
        "onnxruntime_us": statistics.median(other for _, other in pairs),
        "ratio": ratio,
        "ratio_quartiles": [low, high],
    }
    if options.json:
        print(json.dumps(result))
    else:
        print(
            f"run() of a one-operator model: graphopt {result['graphopt_us']:.1f} µs, "
            f"ONNX Runtime {result['onnxruntime_us']:.1f} µs, "
            f"ratio {ratio:.2f} ({low:.2f} … {high:.2f})"
        )
    return int(ratio > 1)


if __name__ == "__main__":
    sys.exit(main())
