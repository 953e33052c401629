"""Products with weights of 4 and 8 bits beside ONNX Runtime and OpenVINO.

python benchmarks/weight_only.py [--shapes 1x4096x4096 …] [--formats 4x32 …] [--json FILE]

A model is one product of float32 rows (M×K) with a matrix (K×N) of integers, in blocks of K with a
scale each. ONNX Runtime gets it as its own MatMulNBits, OpenVINO as DequantizeLinear in front of
MatMul, which it keeps compressed, graphopt the former. Beside: bytes of packed weights per second,
and the artifact's bits per weight. A row fails as in compare.py.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console
from rich.table import Table

import graphopt
from graphopt.bench import CompileOptions, bench
from graphopt.runtime.host import physical_cores

SHAPES = ("1x4096x4096", "1x4096x11008", "1x384x1536", "8x4096x4096", "128x384x1536")
FORMATS = ("4x32", "4x128", "8x128")
PEERS = ("onnxruntime", "openvino")

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Weights:
    """Unsigned integers (K, N) of `bits`, less half their range, with scales (K/block, N)."""

    codes: Array
    scales: Array
    bits: int

    @property
    def block(self) -> int:
        """Terms that share a scale."""
        return int(self.codes.shape[0] // self.scales.shape[0])

    @property
    def nbytes(self) -> float:
        """Integers and scales."""
        return self.codes.size * self.bits / 8 + self.scales.nbytes


@dataclass(frozen=True)
class Result:
    """One product: latency, bytes of weights per second, the artifact's bits per weight, and the
    latency divided by each peer's."""

    shape: str
    format: str
    milliseconds: float
    gigabytes: float
    bits: float
    ratios: dict[str, float]
    failures: tuple[str, ...]


def weights(depth: int, columns: int, bits: int, block: int) -> Weights:
    """Seeded weights."""
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 1 << bits, (depth, columns)).astype(np.uint8)
    scales = (rng.random((depth // block, columns)) + 0.5) / (math.sqrt(depth) * (1 << (bits - 1)))
    return Weights(codes, scales.astype(np.float32), bits)


def _model(rows: int, made: Weights, node: Sequence[onnx.NodeProto], constants: Any) -> Any:
    depth, columns = made.codes.shape
    graph = helper.make_graph(
        node,
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (rows, depth))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (rows, columns))],
        constants,
    )
    domains = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=domains, ir_version=10)


def as_nbits(rows: int, made: Weights) -> onnx.ModelProto:
    """The product as com.microsoft's MatMulNBits."""
    depth, columns = made.codes.shape
    codes = made.codes.T.reshape(columns, depth // made.block, made.block)
    packed = codes if made.bits == 8 else codes[..., 0::2] | codes[..., 1::2] << 4
    constants = [
        numpy_helper.from_array(np.ascontiguousarray(packed), "b"),
        numpy_helper.from_array(np.ascontiguousarray(made.scales.T), "scales"),
    ]
    attrs = {"K": depth, "N": columns, "bits": made.bits, "block_size": made.block}
    node = helper.make_node(
        "MatMulNBits", ["x", "b", "scales"], ["y"], domain="com.microsoft", **attrs
    )
    return _model(rows, made, [node], constants)


def as_dequantized(rows: int, made: Weights) -> onnx.ModelProto:
    """The product as DequantizeLinear and MatMul."""
    kind = ml_dtypes.uint4 if made.bits == 4 else np.uint8
    zeros = np.full(made.scales.shape, 1 << (made.bits - 1), np.uint8)
    constants = [
        numpy_helper.from_array(made.codes.astype(kind), "b"),
        numpy_helper.from_array(made.scales, "scales"),
        numpy_helper.from_array(zeros.astype(kind), "zeros"),
    ]
    nodes = [
        helper.make_node(
            "DequantizeLinear", ["b", "scales", "zeros"], ["w"], axis=0, block_size=made.block
        ),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    return _model(rows, made, nodes, constants)


def measure(shape: str, form: str, folder: Path, threads: int, rounds: int) -> Result:
    """Measure one product."""
    rows, depth, columns = (int(size) for size in shape.split("x"))
    bits, block = (int(number) for number in form.split("x"))
    made = weights(depth, columns, bits, block)
    nbits, dequantized = folder / "nbits.onnx", folder / "dequantized.onnx"
    onnx.save(as_nbits(rows, made), nbits)
    onnx.save(as_dequantized(rows, made), dequantized)
    artifact = folder / "product.gopt"
    graphopt.compile(nbits, threads=threads, tuning_log=()).save(artifact)
    row = bench(
        nbits,
        vs=PEERS,
        files={"openvino": dequantized},
        threads=threads,
        rounds=rounds,
        options=CompileOptions(tuning_log=()),
        artifact=artifact,
        name=f"{shape}, {form}",
    )
    seconds = row.subject.latency
    return Result(
        shape,
        form,
        1e3 * seconds,
        made.nbytes / seconds / 1e9,
        8 * artifact.stat().st_size / made.codes.size,
        {name: spread.median for name, spread in row.ratios.items()},
        tuple(row.failures),
    )


def table(results: Sequence[Result]) -> Table:
    """All results."""
    title = "weights of few bits: latency of graphopt ÷ peer (below 1: graphopt is faster)"
    head = ("M×K×N", "bits×block", "ms", "GB/s", "bits per weight", "÷ ORT", "÷ OV")
    made = Table(*head, title=title)
    for result in results:
        ratios = [result.ratios.get(peer) for peer in PEERS]
        made.add_row(
            result.shape,
            result.format,
            f"{result.milliseconds:.3g}",
            f"{result.gigabytes:.1f}",
            f"{result.bits:.2f}",
            *("–" if ratio is None else f"{ratio:.2f}" for ratio in ratios),
        )
    return made


def main() -> int:
    """Measure; print the table and the failures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shapes", nargs="+", default=SHAPES, metavar="MxKxN")
    parser.add_argument("--formats", nargs="+", default=FORMATS, metavar="BITSxBLOCK")
    parser.add_argument("--threads", type=int, default=physical_cores())
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 160)
    results = []
    for shape in arguments.shapes:
        for form in arguments.formats:
            with tempfile.TemporaryDirectory(prefix="graphopt-weights-") as folder:
                found = measure(shape, form, Path(folder), arguments.threads, arguments.rounds)
            results.append(found)
            for failure in found.failures:
                console.print(f"[red]{shape}, {form}: {failure}", highlight=False)
    console.print(table(results))
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(r) for r in results], indent=1) + "\n")
    return int(any(result.failures for result in results))


if __name__ == "__main__":
    sys.exit(main())
