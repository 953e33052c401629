"""The host program: what a small interpreter does between compiled segments.

A model with control flow, sequences, optionals or shapes that depend on data is cut into segments,
which are compiled like models, and steps around them. Steps compute no data: they read conditions,
counts and lengths, pick branches, repeat bodies, keep lists, copy memory and cut views.

Values have names, unique in the whole program. A value is a tensor, a list (a sequence), or None
(an optional without an element).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from graphopt.codegen.plan import BoundInput, TensorSpec

TENSOR, SEQUENCE, OPTIONAL, OPTIONAL_SEQUENCE = KINDS = (
    "tensor",
    "sequence",
    "optional",
    "optional_sequence",
)
"""Kinds of values. A sequence holds tensors; an optional is None, or a tensor or sequence."""

HOST_OPERATORS = frozenset(
    (
        "Concat",
        "ConcatFromSequence",
        "Expand",
        "Optional",
        "OptionalGetElement",
        "OptionalHasElement",
        "Reshape",
        "SequenceAt",
        "SequenceConstruct",
        "SequenceEmpty",
        "SequenceErase",
        "SequenceInsert",
        "SequenceLength",
        "Slice",
        "Split",
        "SplitToSequence",
        "Squeeze",
        "Unsqueeze",
    )
)
"""Operators that a HostCall can name."""


@dataclass(frozen=True)
class CallSegment:
    """Run a compiled segment. Inputs and outputs are in the segment's order."""

    segment: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Trim:
    """`output` is the first `count` (int64 [1]) elements of `value` along `axis`: a view."""

    value: str
    count: str
    axis: int
    output: str


@dataclass(frozen=True)
class HostCall:
    """An operator on lists, or one that only moves or re-reads memory, by its ONNX name.

    inputs: "" where omitted. attributes: whole numbers, by name.
    """

    node: str
    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class Block:
    """Steps in order. parameters: set by whoever runs the block; results: read from it then."""

    parameters: tuple[str, ...]
    steps: tuple[Step, ...]
    results: tuple[str, ...]


@dataclass(frozen=True)
class Branch:
    """If: runs one of two blocks without parameters; its results become `outputs`."""

    node: str
    condition: str
    then: Block
    otherwise: Block
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Loop:
    """ONNX's Loop.

    Attributes:
        trips, condition: "" where omitted.
        initial: of the carried values.
        body: takes iteration, condition and carried values; gives condition, carried values and
            one element of each stacked output.
        ranks: of iteration and condition as the body declares them, 0 or 1.
        stacked: element type and shape of each stacked output's elements, for no iteration at
            all; 0 where a dimension is unknown.
    """

    node: str
    trips: str
    condition: str
    initial: tuple[str, ...]
    body: Block
    ranks: tuple[int, int]
    stacked: tuple[TensorSpec, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Scan:
    """ONNX's Scan, of operator set 8 (`batched`) or later.

    Attributes:
        lengths: of the sequences in a batch; "" where omitted or not batched.
        initial: of the carried values.
        scanned: inputs that are cut along `axes`, some of them `backward`, from the end.
        body: takes carried values and slices; gives carried values and elements to stack.
        stack_axes, stack_backward: where outputs are stacked, and which in reverse order.
        stacked: as for Loop.
    """

    node: str
    batched: bool
    lengths: str
    initial: tuple[str, ...]
    scanned: tuple[str, ...]
    axes: tuple[int, ...]
    backward: tuple[bool, ...]
    body: Block
    stack_axes: tuple[int, ...]
    stack_backward: tuple[bool, ...]
    stacked: tuple[TensorSpec, ...]
    outputs: tuple[str, ...]


Step: TypeAlias = CallSegment | Trim | HostCall | Branch | Loop | Scan


@dataclass(frozen=True)
class SegmentSpec:
    """What a segment takes and gives.

    Attributes:
        inputs, outputs: a dimension is None where it depends on data, the shape None-filled or ()
            where the rank does.
        bound: inputs whose values it is specialised for, in the order of `inputs`.
        nodes: ids of the ONNX nodes it computes.
        row_inputs, row_outputs: where each row of the outputs depends on that row of the inputs
            only, the axis of the rows in each of them, −1 for one without; else empty. Such a
            segment may run with more rows than there are: bucket() tells how many.
        row_limit: the most rows there can be; 0 if that is not known.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    bound: tuple[str, ...]
    nodes: tuple[str, ...]
    row_inputs: tuple[int, ...] = ()
    row_outputs: tuple[int, ...] = ()
    row_limit: int = 0


_LEAST_BUCKET = 8


def bucket(rows: int, limit: int) -> int:
    """With how many rows a row-wise segment runs for `rows`, at most `limit` (0: not known)."""
    size = max(_LEAST_BUCKET, 1 << max(rows - 1, 0).bit_length())
    return min(size, limit) if limit else size


@dataclass(frozen=True)
class HostProgram:
    """A whole program.

    Attributes:
        inputs, outputs: as users see them; None for a dimension that depends on data.
        constants: small values that steps read; large ones are given out by segments.
        body: its parameters are the inputs, its results the outputs, in their order.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    constants: tuple[BoundInput, ...]
    body: Block
    segments: tuple[SegmentSpec, ...]
