"""What this machine can do at most: arithmetic per second and bytes moved per second, measured.

The micro-kernels are compiled by TVM for this machine, so that the roof is what its code generator
can reach, and run as one Python thread per core (TVM releases the interpreter lock in kernels).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from tvm import s_tir, te, tirx

from graphopt.target import TargetSpec

Run = Callable[[], None]

_CHAIN = 32  # dependent multiply-adds per loaded value, so that loads cost nothing
_CHAINS = 8  # independent chains: two units times four cycles of latency
_REPEATS = 60  # many short ones: on a shared machine some of them meet a quiet moment


@dataclass(frozen=True)
class Machine:
    """Measured peaks with `threads` threads. FLOP/s count a multiply-add as two; bandwidths in B/s.

    memory: triad over arrays far larger than L2 (they may still fit a large L3);
    cache: the same over arrays that fit each core's L2.
    """

    threads: int
    flops: float
    memory: float
    cache: float
    l2_bytes: int

    def bandwidth(self, nbytes: float) -> float:
        """The bandwidth that a kernel touching `nbytes` can hope for."""
        return self.cache if nbytes <= self.l2_bytes * self.threads else self.memory

    def roof(self, flops: float, nbytes: float) -> float:
        """Least seconds that a kernel doing `flops` on `nbytes` can take."""
        return max(flops / self.flops, nbytes / self.bandwidth(nbytes))


def _build(outputs: Sequence[Any], block: str, target: TargetSpec) -> Any:
    schedule = s_tir.Schedule(te.create_prim_func(list(outputs)))
    *_, inner = schedule.get_loops(schedule.get_sblock(block))
    schedule.vectorize(inner)
    return tvm.compile(schedule.mod, target=target.tvm_target(1))["main"]


def _multiply_add(target: TargetSpec) -> tuple[Any, tuple[int, int]]:
    """A kernel that does nothing but multiply-adds, and the shape of its two arrays."""
    # One vector of `_CHAINS` registers: LLVM splits it into chains that run side by side.
    shape = (1024, _CHAINS * target.traits(1).lanes)
    x = te.placeholder(shape, name="x")

    def chain(row: Any, lane: Any) -> Any:
        value = x[row, lane]
        for _ in range(_CHAIN):
            value = value * tirx.const(0.5, "float32") + tirx.const(0.25, "float32")
        return value

    return _build([x, te.compute(shape, chain, name="out")], "out", target), shape


def _triad(target: TargetSpec, rows: int) -> tuple[Any, tuple[int, int]]:
    shape = (rows, 4 * target.traits(1).lanes)
    b = te.placeholder(shape, name="b")
    c = te.placeholder(shape, name="c")
    a = te.compute(shape, lambda i, j: b[i, j] + tirx.const(3, "float32") * c[i, j], name="a")
    return _build([b, c, a], "a", target), shape


def _arrays(shape: tuple[int, int], count: int) -> list[Any]:
    return [tvm.runtime.tensor(np.ones(shape, "float32")) for _ in range(count)]


def _together(runs: Sequence[Run], calls: int) -> float:
    """Seconds per call when every thread makes `calls` calls at the same time; the best of several.

    The best, because a roof is what was reached at least once.
    """

    def repeat(run: Run, start: threading.Barrier) -> None:
        start.wait()
        for _ in range(calls):
            run()

    best = float("inf")
    for _ in range(_REPEATS):
        start = threading.Barrier(len(runs) + 1)
        workers = [threading.Thread(target=repeat, args=(run, start)) for run in runs]
        for worker in workers:
            worker.start()
        start.wait()
        begin = time.perf_counter()
        for worker in workers:
            worker.join()
        best = min(best, (time.perf_counter() - begin) / calls)
    return best


def _bandwidth(target: TargetSpec, rows: int, threads: int, calls: int) -> float:
    kernel, shape = _triad(target, rows)
    owned = [_arrays(shape, 3) for _ in range(threads)]
    runs: list[Run] = [lambda arrays=arrays: kernel(*arrays) for arrays in owned]  # type: ignore[misc]
    return 3 * 4.0 * shape[0] * shape[1] * threads / _together(runs, calls)


def measure(threads: int, large_bytes: int = 96 << 20) -> Machine:
    """Measure this machine with `threads` threads; `large_bytes` per array and thread."""
    target = TargetSpec.parse("cpu")
    kernel, shape = _multiply_add(target)
    owned = [_arrays(shape, 2) for _ in range(threads)]
    runs: list[Run] = [lambda arrays=arrays: kernel(*arrays) for arrays in owned]  # type: ignore[misc]
    flops = 2.0 * _CHAIN * shape[0] * shape[1] * threads / _together(runs, 40)
    row_bytes = 4 * 4 * target.traits(1).lanes
    resident_rows = target.l2_bytes // 2 // 3 // row_bytes
    return Machine(
        threads,
        flops,
        _bandwidth(target, large_bytes // row_bytes, threads, 1),
        _bandwidth(target, resident_rows, threads, 100),
        target.l2_bytes,
    )
