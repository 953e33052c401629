"""What a C library says of itself: tensors as C declares them, and the layout of its workspace."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from graphopt.codegen import abi
from graphopt.codegen.c_library.names import identifiers
from graphopt.codegen.plan import Plan, TensorSpec

ALIGNMENT = 64
"""Of the workspace and all that lies in it, in bytes."""

DTYPES: dict[str, tuple[str, int]] = {
    "bool": ("uint8_t", 1),
    "int8": ("int8_t", 1),
    "uint8": ("uint8_t", 1),
    "int16": ("int16_t", 2),
    "uint16": ("uint16_t", 2),
    "int32": ("int32_t", 4),
    "uint32": ("uint32_t", 4),
    "int64": ("int64_t", 8),
    "uint64": ("uint64_t", 8),
    "float16": ("uint16_t", 2),
    "bfloat16": ("uint16_t", 2),
    "float32": ("float", 4),
    "float64": ("double", 8),
    "float8_e4m3fn": ("uint8_t", 1),
    "float8_e4m3fnuz": ("uint8_t", 1),
    "float8_e5m2": ("uint8_t", 1),
    "float8_e5m2fnuz": ("uint8_t", 1),
    "float8_e8m0fnu": ("uint8_t", 1),
    "float6_e2m3fn": ("uint8_t", 1),
    "float6_e3m2fn": ("uint8_t", 1),
    "float4_e2m1fn": ("uint8_t", 1),
    "int4": ("int8_t", 1),
    "uint4": ("uint8_t", 1),
    "int2": ("int8_t", 1),
    "uint2": ("uint8_t", 1),
}
"""Element type → the C type that holds it (a bit pattern where C lacks it), and its bytes."""


@dataclass(frozen=True)
class Tensor:
    """An input or output: its ONNX name, and its name in C."""

    name: str
    member: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def c_type(self) -> str:
        """The C type of an element."""
        return DTYPES[self.dtype][0]

    @property
    def elements(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.elements * DTYPES[self.dtype][1]


@dataclass(frozen=True)
class Interface:
    """A library's tensors and memory.

    Attributes:
        staging: where copies of inputs and outputs lie that are not aligned, in bytes from the
            staging area's begin; inputs, then outputs.
        handle_bytes, arena_bytes, staging_bytes: the workspace's three parts, in this order, each
            a multiple of ALIGNMENT.
    """

    name: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    threads: int
    weight_bytes: int
    handle_bytes: int
    arena_bytes: int
    staging: tuple[int, ...]
    staging_bytes: int

    @property
    def workspace_bytes(self) -> int:
        """What a caller provides for one handle."""
        return self.handle_bytes + self.arena_bytes + self.staging_bytes


def interface_of(name: str, plan: Plan) -> Interface:
    """The interface of a library called `name` with this plan."""
    inputs, outputs = _tensors(plan.inputs), _tensors(plan.outputs)
    offsets, end = [], 0
    for tensor in (*inputs, *outputs):
        offsets.append(end)
        end += _aligned(tensor.nbytes)
    slots = abi.FIRST_IO + len(inputs) + len(outputs)
    # Two barriers; a semaphore and a thread for each worker; flags and pointers.
    lines = 2 + 2 * plan.threads + 4
    return Interface(
        name=name,
        inputs=inputs,
        outputs=outputs,
        threads=plan.threads,
        weight_bytes=plan.weight_bytes,
        handle_bytes=_aligned(slots * abi.SLOT_BYTES) + lines * ALIGNMENT,
        arena_bytes=_aligned(plan.arena_bytes),
        staging=tuple(offsets),
        staging_bytes=end,
    )


def _tensors(specs: tuple[TensorSpec, ...]) -> tuple[Tensor, ...]:
    members = identifiers((spec.name for spec in specs), ("_RANK", "_SHAPE", "_ELEMENTS", "_BYTES"))
    return tuple(
        Tensor(spec.name, member, spec.dtype, tuple(d for d in spec.shape if d is not None))
        for spec, member in zip(specs, members, strict=True)
    )


def _aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT
