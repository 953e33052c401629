"""Memory of calibration: the same with 10,000 batches as with 100.

    python benchmarks/calibration_memory.py --methods mse entropy

For each method, and for accuracy tools that need activations, a process of its own quantizes a
small network with few and with many batches. Compared are its peak resident size, and its size when
it asks for the last batch: the peak may be that of a compilation. Batches come from an iterable, or
(row "file") from one .npz, which is larger than all else. Exit status 1 if a size grows by more
than the bar.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import psutil
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console
from rich.table import Table

CASES: Mapping[str, Mapping[str, Any]] = {
    "min-max": {"method": "min-max"},
    "moving-average": {"method": "moving-average"},
    "percentile": {"method": "percentile"},
    "entropy": {"method": "entropy"},
    "mse": {"method": "mse"},
    "gptq": {"rounding": "gptq"},
    "tools": {"rounding": "adaround", "equalize": True, "correct_bias": True},
    "file": {},
}
SHAPE = (1, 8, 24, 24)
BAR = 8 << 20
"""Bytes by which a peak may grow: less than a kilobyte per batch, which has 18."""


@dataclass(frozen=True)
class Figure:
    """Resident bytes of quantizing with few and with many batches: at the last batch, and peak."""

    case: str
    few: tuple[int, int]
    many: tuple[int, int]

    @property
    def grows(self) -> bool:
        """Whether memory follows the number of batches."""
        return any(many - few > BAR for few, many in zip(self.few, self.many, strict=True))


@dataclass(frozen=True)
class Batches:
    """Seeded random inputs, made when they are asked for; `sizes` gets that of the process then."""

    count: int
    sizes: list[int]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        rng = np.random.default_rng(0)
        for place in range(self.count):
            if place == self.count - 1:
                self.sizes.append(psutil.Process().memory_info().rss)
            yield {"x": rng.standard_normal(SHAPE, np.float32)}


def network() -> onnx.ModelProto:
    """Three convolutions and a residual."""
    rng, make = np.random.default_rng(1), helper.make_node
    weights = [
        numpy_helper.from_array(rng.standard_normal((8, 8, 3, 3)).astype(np.float32) / 8, f"w{k}")
        for k in range(3)
    ]
    nodes = [
        make("Conv", ["x", "w0"], ["a"], "first", pads=[1] * 4),
        make("Relu", ["a"], ["b"], "relu"),
        make("Conv", ["b", "w1"], ["c"], "second", pads=[1] * 4),
        make("Add", ["c", "b"], ["d"], "residual"),
        make("Conv", ["d", "w2"], ["y"], "third", pads=[1] * 4),
    ]
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, SHAPE) for n in ("x", "y")]
    graph = helper.make_graph(nodes, "small", values[:1], values[1:], weights)
    opsets = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def measured(case: str, count: int, folder: Path) -> tuple[int, int]:
    """Resident bytes of a child process that quantizes with `count` batches."""
    if case == "file":
        rows = np.zeros((count, *SHAPE[1:]), np.float32)
        rows[:] = next(iter(Batches(1, [])))["x"]
        np.savez(folder / f"{count}.npz", x=rows)
    command = [sys.executable, __file__, "--child", case, str(count), str(folder)]
    last, peak = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return int(last), int(peak)


def child(case: str, count: int, folder: Path) -> tuple[int, int]:
    """Quantize; this process' resident bytes at the last batch (0 for a file), and at most."""
    import graphopt

    sizes: list[int] = []
    data: Any = str(folder / f"{count}.npz") if case == "file" else Batches(count, sizes)
    report = graphopt.quantize(network(), data, threads=1, **CASES[case]).report
    if report.batches != count:
        raise SystemExit(f"{report.batches} batches were read, not {count}")
    return max(sizes, default=0), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def compare(cases: Sequence[str], few: int, many: int) -> Iterator[Figure]:
    """Measure each case with both numbers of batches."""
    with tempfile.TemporaryDirectory() as folder:
        for case in cases:
            yield Figure(case, *(measured(case, count, Path(folder)) for count in (few, many)))


def main() -> int:
    """Measure and print; 1 if memory grows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--methods", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--few", type=int, default=100, help="batches (default: 100)")
    parser.add_argument("--many", type=int, default=10_000, help="batches (default: 10000)")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        case, count, folder = arguments.child
        print(*child(case, int(count), Path(folder)))
        return 0
    figures = []
    table = Table(title="resident MB of quantize(), at the last batch and at most")
    for heading in ("", f"{arguments.few} batches", f"{arguments.many} batches"):
        table.add_column(heading, justify="right")
    for figure in compare(arguments.methods, arguments.few, arguments.many):
        figures.append(figure)
        sizes = (figure.few, figure.many)
        table.add_row(figure.case, *(f"{last / 1e6:.1f} {peak / 1e6:.1f}" for last, peak in sizes))
    console = Console()
    console.print(table)
    for figure in figures:
        if figure.grows:
            console.print(f"[red]{figure.case}: memory grows with the number of batches")
    if arguments.json:
        text = json.dumps([asdict(figure) for figure in figures], indent=1)
        arguments.json.write_text(text + "\n")
    return 1 if any(figure.grows for figure in figures) else 0


if __name__ == "__main__":
    sys.exit(main())
