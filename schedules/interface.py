"""The vocabulary between lowering and kernel families: values, layouts, workloads, candidates.

Everything here is frozen and hashable, so that a workload can be the key of a tuning record and
identical groups of a network share one kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from math import prod
from typing import Any, Protocol, TypeAlias

import numpy as np

# A TVM object. TVM is untyped: everything of it that crosses this interface is named here.
TETensor = Any
PrimFunc = Any
Schedule = Any
PrimExpr = Any

Attr: TypeAlias = "int | float | str | bool | tuple[Attr, ...]"


@dataclass(frozen=True)
class TensorSig:
    """Logical shape and dtype (NumPy's name) of a tensor."""

    shape: tuple[int, ...]
    dtype: str = "float32"

    @property
    def elements(self) -> int:
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.elements * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class Layout:
    """How an activation lies in memory.

    block == 0: row-major. Otherwise axis 1 is split into blocks, as in NCHW16c: logical
    (N, C, *S) is stored as (N, ceil(C / block), *S, block). Lanes past C hold zeros: whoever
    writes a blocked tensor keeps that true, whoever reads one may rely on it.
    """

    block: int = 0

    def physical(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape in memory of a tensor with logical `shape` (rank >= 2 where blocked)."""
        if self.block == 0:
            return shape
        return (shape[0], -(-shape[1] // self.block), *shape[2:], self.block)


PLAIN = Layout()


def channel_block(channels: int) -> int:
    """Block of the channels of a tensor of bytes: at most 64 and a multiple of 16, chosen so that
    few lanes are empty. One rule for all kernels, so that neighbours agree."""
    blocks = -(-channels // 64)
    return 16 * -(-channels // (16 * blocks))


class Packing(Protocol):
    """How a constant input is rearranged at compile time; frozen dataclasses implement it."""

    def pack(self, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Return `array` (logical shape) as the kernel reads it."""
        ...

    def packed_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of pack()'s result for an array of logical `shape`."""
        ...


@dataclass(frozen=True)
class Op:
    """One anchor operation on logical tensors: its kind (schedules/README lists them) and attrs.

    `constant[i]` says that input i is a compile-time constant, which may be packed.
    `more` are the outputs after the first, of ops that have several; these have no epilogue and
    all their outputs lie row-major.
    """

    kind: str
    inputs: tuple[TensorSig, ...]
    output: TensorSig
    attrs: tuple[tuple[str, Attr], ...] = ()
    constant: tuple[bool, ...] = ()
    more: tuple[TensorSig, ...] = ()

    def attr(self, name: str) -> Any:
        """Value of attribute `name`; KeyError if the op has none."""
        return dict(self.attrs)[name]


@dataclass(frozen=True)
class Step:
    """One scalar operation of an epilogue; `args` index the values before it."""

    op: str
    args: tuple[int, ...]
    attrs: tuple[tuple[str, Attr], ...] = ()

    def attr(self, name: str) -> Any:
        """Value of attribute `name`; KeyError if the step has none."""
        return dict(self.attrs)[name]


@dataclass(frozen=True)
class Epilogue:
    """An elementwise program in SSA form applied to each element of the anchor's output.

    Value 0 is the anchor's output, values 1 … len(operands) the operands, then one value per step;
    the last value is the group's output (value 0 where there is no step). Operands have the rank of
    the anchor's output; each dimension equals the output's or is 1 (broadcast). All steps compute
    in the shape of the output.
    """

    operands: tuple[TensorSig, ...] = ()
    steps: tuple[Step, ...] = ()
    dtype: str = "float32"  # of the result
    constant: tuple[bool, ...] = ()  # which operands are compile-time constants


@dataclass(frozen=True)
class Workload:
    """A fusion group without a layout: what a kernel must compute. Inputs: op's, then operands."""

    op: Op
    epilogue: Epilogue = field(default_factory=Epilogue)

    @property
    def inputs(self) -> tuple[TensorSig, ...]:
        return self.op.inputs + self.epilogue.operands

    @property
    def constant(self) -> tuple[bool, ...]:
        return self.op.constant + self.epilogue.constant

    @property
    def output(self) -> TensorSig:
        return TensorSig(self.op.output.shape, self.epilogue.dtype)

    @property
    def outputs(self) -> tuple[TensorSig, ...]:
        return (self.output, *self.op.more)


@dataclass(frozen=True)
class GpuTraits:
    """What schedules need to know of a GPU, or of another device that runs such kernels.

    Attributes:
        max_threads: of a block (OpenCL: work-items of a group).
        shared_bytes: of shared (OpenCL: local) memory that a block may use.
        max_blocks: along the first axis of a grid.
        warp: threads that run in lockstep; 1 if that is not known.
        units: multiprocessors (OpenCL: compute units).
        loops: the threads of a block are iterations of loops on one core, as an OpenCL device that
            is a CPU runs them: few threads that do much each, and few barriers, are fastest there.
        fp16, fp64: whether there is arithmetic of these types.
        dp4a: whether four products of bytes are one instruction.
        tensor_cores: whether warps multiply matrices of halves (CUDA's warp matrix functions).
    """

    max_threads: int = 256
    shared_bytes: int = 32 << 10
    max_blocks: int = (1 << 31) - 1
    warp: int = 1
    units: int = 1
    loops: bool = False
    fp16: bool = False
    fp64: bool = False
    dp4a: bool = False
    tensor_cores: bool = False


@dataclass(frozen=True)
class TargetTraits:
    """What schedules need to know of a CPU, or of a device. Sizes in bytes, per core.

    `gpu` is None for a CPU. For a device, `arch` is its kind ("opencl", "cuda"), `vector_bytes` the
    width in which one thread should read and write memory, and the caches play no part.
    """

    arch: str  # "x86_64", "aarch64", …
    vector_bytes: int  # 64 AVX-512, 32 AVX2, 16 SSE and NEON
    vector_registers: int  # 32 or 16
    fma: bool = True
    vnni: bool = False
    l1_bytes: int = 32 << 10
    l2_bytes: int = 1 << 20
    threads: int = 1
    amx: bool = False  # 64-byte vectors, and tiles of bytes
    vbmi: bool = False  # 64-byte vectors, and permutations of their bytes
    dotprod: bool = False  # aarch64: products of four signed bytes
    i8mm: bool = False  # and of unsigned with signed ones
    gpu: GpuTraits | None = None
    alignment: int = 64  # of buffers in the workspace

    @property
    def lanes(self) -> int:
        """float32 values in one vector register; also the channel block of blocked layouts."""
        return self.vector_bytes // 4


def channel_layouts(
    channels: int, dtypes: Sequence[str], traits: TargetTraits
) -> tuple[Layout, ...]:
    """The blocked layouts that feature maps of so many channels and these types usually have."""
    found: dict[Layout, None] = {}
    for dtype in dtypes:
        if dtype.startswith("float"):
            found[Layout(traits.lanes)] = None
        elif dtype in ("uint8", "int8"):
            found[Layout(channel_block(channels))] = None
    return tuple(found)


@dataclass(frozen=True)
class Cost:
    """What a candidate does, for the static price table: multiply-adds count 2 FLOPs.

    `efficiency` is the share of one core's peak FLOP/s that the kernel's inner loop reaches when
    its data is in cache; `passes` counts barrier-separated parallel phases.
    """

    flops: float
    bytes: float
    efficiency: float = 0.5
    passes: int = 1


Decisions: TypeAlias = "tuple[tuple[str, int], ...]"
"""The value of each knob of a space, by name."""


@dataclass(frozen=True)
class Knob:
    """One decision about a kernel, and the values that it may take, in ascending order."""

    name: str
    values: tuple[int, ...]


@dataclass(frozen=True)
class Space:
    """Kernels that compute the same between the same layouts: what a candidate leaves open.

    make: the candidate for a value of each knob; None where the values do not fit together. How
        constants are packed may depend on them, since no neighbour sees it.
    """

    knobs: tuple[Knob, ...]
    make: Callable[[Mapping[str, int]], Candidate | None] = field(compare=False, repr=False)


class Numerics(IntEnum):
    """How freely kernels may compute, the most careful setting first.

    STRICT: non-finite inputs spread no further than IEEE arithmetic takes them. DEFAULT: they may
    spread within a tile (Winograd's transforms), and the error of a kernel stays within what the
    whole of a network has room for. RELAXED: its error is several times that.
    """

    STRICT = 0
    DEFAULT = 1
    RELAXED = 2


@dataclass(frozen=True)
class Candidate:
    """One way to compute a workload: everything that neighbours can see, and how to schedule it.

    name: stable id such as "conv2d.winograd4[nb=32]"; part of tuning keys.
    layouts: one per workload input. Constants have a Packing (or a Layout, packed at compile time
        too); activations have a Layout.
    output: layout of the result.
    compute: builds the unscheduled PrimFunc (usually by te.create_prim_func): parameters in the
        order of workload.inputs, then workload.outputs; their shapes are physical.
    schedule: applied to a Schedule whose "main" is that function. `parallel` may mark only loops
        that are outermost in the function's body; see schedules/README.md.
    numerics: the most careful setting that allows it.
    decisions: which of the kernels of `space` this is; families offer the one that is good without
        measuring.
    """

    name: str
    layouts: tuple[Layout | Packing, ...]
    output: Layout
    cost: Cost
    compute: Callable[[], PrimFunc] = field(compare=False, repr=False)
    schedule: Callable[[Schedule], None] = field(compare=False, repr=False)
    numerics: Numerics = Numerics.STRICT
    decisions: Decisions = ()
    space: Space | None = field(default=None, compare=False, repr=False)


Family = Callable[[Workload, TargetTraits], "tuple[Candidate, ...]"]
"""A kernel family: the candidates it offers for a workload; empty if it is not its kind."""
