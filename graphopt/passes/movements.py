"""Operators that move numbers, or choose among them, and compute none: integers pass them too."""

from __future__ import annotations

from collections.abc import Sequence

import tvm
from tvm import relax

from graphopt.ops.base import attributes
from graphopt.passes.dataflow import OUTPUT
from graphopt.passes.rewrite import View
from graphopt.passes.values import Expr, op_name

MOVEMENTS = (
    "reshape", "permute_dims", "strided_slice", "broadcast_to", "concat", "take", "nn.pad",
    "nn.max_pool2d", "graphopt.resize2d",
)  # fmt: skip
"""Their numbers are those of their operands, or what is padded with; they keep their order."""


def moves(call: Expr) -> bool:
    """Whether a call of one of MOVEMENTS computes no number, as linear resizing does."""
    kind = op_name(call)
    if kind == "graphopt.resize2d":
        return bool(attributes(call)["method"] == "nearest")
    return kind in MOVEMENTS and (kind != "concat" or isinstance(call.args[0], relax.Tuple))


def operands_of(call: Expr) -> list[Expr]:
    """What a movement moves."""
    return list(call.args[0].fields) if op_name(call) == "concat" else [call.args[0]]


def with_operands(call: Expr, operands: Sequence[Expr], shift: float = 0) -> Expr:
    """The same movement of other tensors; `shift` is added to what is padded with."""
    if op_name(call) == "concat":
        return relax.op.concat(list(operands), call.attrs.axis)
    if op_name(call) == "nn.pad":
        value = float(call.attrs.pad_value) + shift
        return padded(call, operands[0], value)
    return tvm.ir.Call(call.op, [*operands, *call.args[1:]], call.attrs, list(call.ty_args))


def padded(call: Expr, x: Expr, value: float) -> Expr:
    """A padding of another tensor with another value."""
    widths = [int(width) for width in call.attrs.pad_width]
    return relax.op.nn.pad(x, widths, str(call.attrs.pad_mode), value)


def readers(view: View, expr: Expr) -> list[str]:
    """The bindings that read `expr`, or what movements make of it, but for movements themselves."""
    pending, visited = [expr], {expr.name}
    found: list[str] = []
    while pending:
        current = pending.pop()
        for name in view.users(current):
            if name == OUTPUT or name in visited:
                continue
            visited.add(name)
            call = view.value(name)
            if moves(call) and any(operand.same_as(current) for operand in operands_of(call)):
                pending.append(view.variable(name))
            else:
                found.append(name)
    return found
