"""The process that holds one engine: reads a JSON command per line, answers with a JSON line.

Between commands it blocks on its pipe, so that only the engine whose turn it is uses the CPU.
Arrays travel in .npz files under the keys "0", "1", … because a tensor may have any name.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from graphopt.bench.engines import OPENERS, compile_graphopt
from graphopt.bench.opening import Engine, Opening

Array = np.ndarray[Any, Any]


def save_arrays(path: str | Path, arrays: Mapping[str, Array]) -> list[str]:
    """Write `arrays` to an .npz file; return their names in the order of its keys."""
    indexed: dict[str, Any] = {str(i): array for i, array in enumerate(arrays.values())}
    np.savez(path, **indexed)
    return list(arrays)


def load_arrays(path: str | Path, names: Sequence[str]) -> dict[str, Array]:
    """Read what `save_arrays` wrote."""
    with np.load(path) as stored:
        return {name: stored[str(i)] for i, name in enumerate(names)}


def peak_bytes() -> int:
    """Largest resident size of this process since the last reset, in bytes; 0 if unknown."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0


def reset_peak() -> None:
    """Start a new peak, where the kernel allows it (otherwise peaks accumulate)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


class Worker:
    """The state of one worker process: an engine, its inputs and its last result."""

    def __init__(self) -> None:
        self.engine: Engine | None = None
        self.feeds: dict[str, Array] = {}
        self.result: Any = None

    def compile(self, command: Mapping[str, Any]) -> dict[str, Any]:
        """Compile a model into an artifact."""
        logs = command["tuning_log"]
        start = time.perf_counter()
        compile_graphopt(
            command["model"],
            command["out"],
            shapes={name: tuple(shape) for name, shape in command["shapes"].items()},
            constants=command["constants"],
            threads=command["threads"],
            target=command["target"],
            tuning_log=tuple(logs) if isinstance(logs, list) else logs,
            numerics=command["numerics"],
        )
        return {"seconds": time.perf_counter() - start, "peak": peak_bytes()}

    def open(self, command: Mapping[str, Any]) -> dict[str, Any]:
        """Open a model in an engine, reading the inputs first so that they are not timed."""
        self.feeds = load_arrays(command["inputs"], command["input_names"])
        opening = Opening(
            command["model"], command["threads"], command["outputs"], command["settings"]
        )
        start = time.perf_counter()
        self.engine = OPENERS[command["engine"]](opening)
        seconds = time.perf_counter() - start
        peak = peak_bytes()
        reset_peak()
        return {"seconds": seconds, "peak": peak, "version": self.engine.version}

    def run(self, command: Mapping[str, Any]) -> dict[str, Any]:
        """Run once untimed (caches and workers wake up), then `iterations` times, timed."""
        assert self.engine is not None
        run, feeds = self.engine.run, self.feeds
        self.result = run(feeds)
        seconds: list[float] = []
        gc.disable()
        for _ in range(command["iterations"]):
            start = time.perf_counter()
            self.result = run(feeds)
            seconds.append(time.perf_counter() - start)
        gc.enable()
        return {"seconds": seconds, "peak": peak_bytes()}

    def outputs(self, command: Mapping[str, Any]) -> dict[str, Any]:
        """Store the outputs of the last run."""
        assert self.engine is not None
        return {"names": save_arrays(command["path"], self.engine.named(self.result))}


def main() -> None:
    """Serve commands until the pipe closes."""
    # Engines print to stdout when they like: keep our channel to ourselves.
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    worker = Worker()
    commands = {
        "compile": worker.compile,
        "open": worker.open,
        "run": worker.run,
        "outputs": worker.outputs,
    }
    for line in sys.stdin:
        command = json.loads(line)
        try:
            reply = {"ok": True, **commands[command["do"]](command)}
        except Exception as error:  # any failure of any engine becomes a failed row
            reply = {"ok": False, "error": f"{type(error).__name__}: {error}"}
        channel.write(json.dumps(reply) + "\n")
        channel.flush()


if __name__ == "__main__":
    main()
