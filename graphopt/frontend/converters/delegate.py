"""Standard operators as parts of vendors' operators: one converter runs another."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from onnx import NodeProto, helper

from graphopt.frontend.emit import Expr, NodeContext, Unsupported, constant, constant_array
from graphopt.frontend.model import Array

OPSET = 21
"""The operator set that parts are of, unless said otherwise."""

_PART = "part"  # no operator has this type: a converter is called, not looked up


class _Inputs:
    """The inputs of a part by their positions as names."""

    def __init__(self, inputs: Sequence[Expr | Array | None]) -> None:
        self.values = {str(i): value for i, value in enumerate(inputs) if value is not None}

    def __getitem__(self, name: str) -> Expr | Array:
        value = self.values[name]
        if isinstance(value, np.ndarray):
            return value
        known = constant_array(value)
        return value if known is None else known

    def expression(self, name: str) -> Expr:
        value = self.values[name]
        return constant(value) if isinstance(value, np.ndarray) else value

    def element(self, name: str) -> int:
        return 0  # parts are given numbers, not codes


def apply(
    node: NodeContext,
    converter: Callable[[NodeContext], Any],
    inputs: Sequence[Expr | Array | None],
    attributes: Mapping[str, Any] | None = None,
    opset: int = OPSET,
) -> Expr:
    """The first output of `converter` on other inputs (None: omitted) and attributes.

    Raises Unsupported where the converter leaves an attribute unread.
    """
    names = [str(i) if value is not None else "" for i, value in enumerate(inputs)]
    proto = NodeProto(op_type=_PART, name=node.id, input=names, output=node.node.output[:1])
    proto.attribute.extend(
        helper.make_attribute(name, value) for name, value in (attributes or {}).items()
    )
    part = node.nested(proto, _Inputs(inputs), opset)
    result = converter(part)
    unread = part.unread()
    if unread:
        raise Unsupported(f"attribute {', '.join(unread)} is not supported")
    return result[0] if isinstance(result, tuple) else result


def passed_on(node: NodeContext, *names: str) -> dict[str, Any]:
    """Those of the attributes `names` that the node states."""
    return {name: node.attribute(name) for name in names if node.has_attribute(name)}


def optional(node: NodeContext, index: int) -> Expr | Array | None:
    """Input `index`: a constant's array, an expression, or None where it is omitted."""
    if not node.has(index):
        return None
    array = node.array(index)
    return node.input(index) if array is None else array
