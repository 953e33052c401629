"""How a device kernel is launched: grid, block and memory of a block, read from its lowered IR."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import tvm_ffi
from tvm import tirx

from graphopt.errors import CompileError

Extents = tuple[int, int, int]


@dataclass(frozen=True)
class Launch:
    """Blocks in a grid and threads in a block along x, y and z, and bytes of their memory.

    shared_bytes is what a block shares; a thread's own variables are not counted, since the
    device's compiler decides how many of them it keeps in registers.
    """

    grid: Extents
    block: Extents
    shared_bytes: int

    def __str__(self) -> str:
        grid, block = ("x".join(map(str, extents)) for extents in (self.grid, self.block))
        return f"grid {grid}, block {block}, {self.shared_bytes} bytes shared"


@dataclass(frozen=True)
class Limits:
    """What a device can launch: threads in a block, bytes that they share, blocks along x, y, z."""

    threads: int
    shared_bytes: int
    grid: Extents = ((1 << 31) - 1, (1 << 16) - 1, (1 << 16) - 1)
    block: Extents = (1024, 1024, 64)


def launch_of(kernel: Any) -> Launch:
    """The launch of a lowered device function (behind tirx.transform.SplitHostDevice)."""
    extents: dict[str, int] = {}
    shared: list[int] = []

    def note_extent(node: Any) -> None:
        if node.attr_key == "thread_extent":
            extents[str(node.node.thread_tag)] = int(node.value)

    def note_memory(node: Any) -> None:
        if node.buffer.scope().startswith("shared"):
            shared.append(_nbytes(node.buffer))

    visits = [(tirx.AttrStmt, note_extent), (tirx.AllocBuffer, note_memory)]
    tvm_ffi.structural_walk(kernel.body, visits)
    grid, block = (
        (extents.get(f"{name}.x", 1), extents.get(f"{name}.y", 1), extents.get(f"{name}.z", 1))
        for name in ("blockIdx", "threadIdx")
    )
    return Launch(grid, block, sum(shared))


def check_limits(launches: Mapping[str, Launch], limits: Limits, device: str) -> None:
    """Refuse kernels that the device could not launch.

    Args:
        launches: the launch of each kernel, by name.
        device: what the limits are of, for the error's text.
    Raises:
        CompileError: one is too large.
    """
    for name, launch in launches.items():
        for what, used, allowed in _demands(launch, limits):
            if used > allowed:
                raise CompileError(
                    "codegen",
                    f"the kernel {name} ({launch}) needs {used} {what}; {device} has {allowed}.",
                    hint="This is a defect of graphopt; please report it with the model.",
                )


def _demands(launch: Launch, limits: Limits) -> Iterator[tuple[str, int, int]]:
    yield "threads in a block", prod(launch.block), limits.threads
    yield "bytes of shared memory", launch.shared_bytes, limits.shared_bytes
    for axis, blocks, most in zip("xyz", launch.grid, limits.grid, strict=True):
        yield f"blocks along {axis}", blocks, most
    for axis, threads, most in zip("xyz", launch.block, limits.block, strict=True):
        yield f"threads along {axis}", threads, most


def _nbytes(buffer: Any) -> int:
    dtype = tvm_ffi.dtype(str(buffer.dtype))
    element: int = -(-dtype.bits * dtype.lanes // 8)
    return prod(int(extent) for extent in buffer.shape) * element
