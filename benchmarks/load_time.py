"""Start a fresh interpreter, load a .gopt of ResNet-50 and run it once: seconds for all of it.

    python benchmarks/load_time.py
    python benchmarks/load_time.py --artifact resnet50.gopt

Warm: the file is in the page cache. Cold: its pages are dropped first (those of Python and of the
libraries stay). The bar is 0.5 s warm; exit status 1 if the median misses it. ONNX Runtime's
start from the ONNX file is measured in turn with ours, for comparison.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from catalogue import select
from rich.console import Console
from rich.table import Table

from graphopt.bench import Spread
from graphopt.runtime.host import physical_cores

BAR = 0.5  # seconds

_OURS = """
import sys, numpy, graphopt
program = graphopt.load(sys.argv[1], threads=int(sys.argv[2]))
y = program.run({"input": numpy.ones((1, 3, 224, 224), "float32")})
assert numpy.isfinite(y["output"]).all() and "tvm" not in sys.modules
"""
_ONNXRUNTIME = """
import sys, numpy, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = int(sys.argv[2])
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
y = session.run(None, {"input": numpy.ones((1, 3, 224, 224), "float32")})
assert numpy.isfinite(y[0]).all()
"""


def forget(path: Path) -> None:
    """Drop the file's pages from the page cache, as far as the system does so."""
    if not hasattr(os, "posix_fadvise"):
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)  # dirty pages are not dropped
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def start(script: str, path: Path, threads: int, *, cold: bool) -> float:
    """Seconds from starting an interpreter on `script` until it has ended."""
    if cold:
        forget(path)
    command = [sys.executable, "-c", script, str(path), str(threads)]
    begin = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begin


def main() -> int:
    """Compile ResNet-50 unless an artifact is given; print warm and cold starts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--artifact", type=Path, help="a .gopt of the catalogue's ResNet-50")
    parser.add_argument("--threads", type=int, default=None, help="default: physical cores")
    parser.add_argument("--rounds", type=int, default=10, help="starts of each kind (default: 10)")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 120)
    threads = arguments.threads or physical_cores()
    with tempfile.TemporaryDirectory() as folder:
        model = select(["resnet50"])[0].provide(Path(folder))
        assert model is not None
        artifact = arguments.artifact
        if artifact is None:
            import graphopt

            artifact = Path(folder) / "resnet50.gopt"
            graphopt.compile(model, threads=threads).save(artifact)
        kinds = {
            "graphopt, warm": (_OURS, artifact, False),
            "graphopt, cold": (_OURS, artifact, True),
            "onnxruntime, warm": (_ONNXRUNTIME, model, False),
            "onnxruntime, cold": (_ONNXRUNTIME, model, True),
        }
        for script, path, cold in kinds.values():  # Python writes its bytecode the first time
            start(script, path, threads, cold=cold)
        seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
        for _ in range(arguments.rounds):
            for kind, (script, path, cold) in kinds.items():
                # A cold start leaves the file in the cache, so every warm one is warm.
                seconds[kind].append(start(script, path, threads, cold=cold))
    view = Table(title=f"fresh interpreter to first result of ResNet-50, {threads} threads")
    for heading in ("", "median s", "quartiles", "extremes"):
        view.add_column(heading)
    spreads = {kind: Spread.of(values) for kind, values in seconds.items()}
    for kind, s in spreads.items():
        quartiles, extremes = f"{s.low:.2f}–{s.high:.2f}", f"{s.minimum:.2f}–{s.maximum:.2f}"
        view.add_row(kind, f"{s.median:.3f}", quartiles, extremes)
    console.print(view)
    warm = spreads["graphopt, warm"].median
    console.print(f"bar {BAR} s warm: {'met' if warm < BAR else 'MISSED'}")
    if arguments.json:
        arguments.json.write_text(json.dumps(seconds, indent=1) + "\n")
    return 0 if warm < BAR else 1


if __name__ == "__main__":
    sys.exit(main())
