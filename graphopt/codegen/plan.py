"""The Plan: a straight-line program's memory and calls, for runtime, profiler and C library."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TensorSpec:
    """An input or output as users see it; a dimension is None where it is unbound.

    kind: "tensor"; "sequence" (a list of tensors), "optional" (a tensor or None) or
    "optional_sequence": then dtype and shape are those of the tensors inside.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...]
    kind: str = "tensor"


@dataclass(frozen=True)
class BoundInput:
    """An input whose value is compiled in, because it acts as a shape, an axis, a count or a mode.

    values: in row-major order; those of a bool are 0 and 1, those of a float its bit patterns as
    unsigned integers.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    values: tuple[int, ...]


@dataclass(frozen=True)
class Buffer:
    """A piece of memory a kernel reads or writes.

    space: "input" / "output" (index into the plan's inputs / outputs), "arena" (offset into the
    workspace) or "weight" (offset into the weights). Offsets and sizes are in bytes; arena and
    weight offsets are multiples of 64.
    """

    space: str
    offset: int
    nbytes: int


@dataclass(frozen=True)
class Call:
    """One kernel call. `site` is unique in the plan; `nodes` are the ONNX nodes it computes."""

    site: str
    kernel: str
    args: tuple[int, ...]  # indices into Plan.buffers
    nodes: tuple[str, ...]
    serial: bool  # run by one worker only, because it is too small to share
    flops: float
    bytes: float


@dataclass(frozen=True)
class Plan:
    """A straight-line program: its memory and its ordered kernel calls."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    buffers: tuple[Buffer, ...]
    calls: tuple[Call, ...]
    arena_bytes: int
    weight_bytes: int
    threads: int
