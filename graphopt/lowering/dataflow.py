"""The graph between Relax and kernels: operations on numbered values, without layouts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from schedules.interface import Attr, TensorSig

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Anchor:
    """An operation with a kernel of its own; kinds and attrs as in schedules/README.md."""

    kind: str
    attrs: tuple[tuple[str, Attr], ...] = ()


@dataclass(frozen=True)
class Pointwise:
    """An operation on each element; inputs are broadcast to the output."""

    op: str
    attrs: tuple[tuple[str, Attr], ...] = ()


@dataclass(frozen=True)
class View:
    """The input's memory under another shape; costs nothing for row-major tensors."""


@dataclass(frozen=True)
class Legalised:
    """An operation only TVM knows: the PrimFunc of its legalisation, inputs then outputs."""

    name: str
    function: Any
    digest: str


Action: TypeAlias = Anchor | Pointwise | View | Legalised


@dataclass(frozen=True)
class Operation:
    """One step of the dataflow. `nodes` are the ONNX nodes that it computes."""

    action: Action
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    nodes: tuple[str, ...]


@dataclass(frozen=True)
class Dataflow:
    """A straight-line program on values, in a valid order.

    values: signature of each value id. constants: those known now. inputs and outputs: (name,
    value id) in the model's order.
    """

    values: tuple[TensorSig, ...]
    constants: Mapping[int, Array]
    inputs: tuple[tuple[str, int], ...]
    outputs: tuple[tuple[str, int], ...]
    operations: tuple[Operation, ...]

    def users(self) -> dict[int, list[int]]:
        """Value id → indices of the operations that read it."""
        users: dict[int, list[int]] = {}
        for index, operation in enumerate(self.operations):
            for value in dict.fromkeys(operation.inputs):
                users.setdefault(value, []).append(index)
        return users
