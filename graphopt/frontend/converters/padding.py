"""Pad: constants, edges, reflections and repetitions around a tensor; negative amounts cut."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tvm import relax

from graphopt.frontend.emit import (
    Expr,
    NodeContext,
    Unsupported,
    constant,
    dtype_of,
    normal_axis,
    shape_of,
)
from graphopt.ops.padding import pad_with

op = relax.op

_MODES = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}
_EXACT = 2**53  # nn.pad states its value as a float64


def pad(node: NodeContext) -> Expr:
    """Pad of all operator sets; the padding value may be computed at run time."""
    x = node.input(0)
    mode = node.string_attr("mode", "constant") or "constant"
    if mode not in _MODES:
        raise Unsupported(f"mode '{mode}' is unknown")
    before, after = _widths(node, len(shape_of(x)))
    node.ignore("value")
    x = _cut(node, x, before, after)
    before, after = [max(0, w) for w in before], [max(0, w) for w in after]
    if not any((*before, *after)):
        return x
    if dtype_of(x) == "bool":
        return node.cast(_pad(node, node.cast(x, "uint8"), before, after, mode), "bool")
    return _pad(node, x, before, after, mode)


def _widths(node: NodeContext, rank: int) -> tuple[list[int], list[int]]:
    """Elements to add before and after each axis; negative ones are removed."""
    if node.opset < 11:
        pads = node.int_list("pads") or node.int_list("paddings") or []
        axes = list(range(rank))
    else:
        pads = node.ints(1, "pads")
        stated = node.ints(3, "axes") if node.has(3) else range(rank)
        axes = [normal_axis(axis, rank) for axis in stated]
    if len(pads) != 2 * len(axes) or len(set(axes)) != len(axes):
        raise Unsupported(f"pads has {len(pads)} entries for axes {axes}")
    before, after = [0] * rank, [0] * rank
    for i, axis in enumerate(axes):
        before[axis], after[axis] = pads[i], pads[len(axes) + i]
    return before, after


def _cut(node: NodeContext, x: Expr, before: list[int], after: list[int]) -> Expr:
    """`x` without what negative widths remove."""
    shape = shape_of(x)
    cut = [axis for axis in range(len(shape)) if before[axis] < 0 or after[axis] < 0]
    begin = [max(0, -before[axis]) for axis in cut]
    end = [shape[axis] - max(0, -after[axis]) for axis in cut]
    if any(b >= e for b, e in zip(begin, end, strict=True)):
        raise Unsupported("negative padding removes a whole axis")
    return node.slice(x, cut, begin, end)


def _pad(node: NodeContext, x: Expr, before: list[int], after: list[int], mode: str) -> Expr:
    widths = [width for pair in zip(before, after, strict=True) for width in pair]
    if mode != "constant":
        return node.emit(op.nn.pad(x, widths, _MODES[mode]))
    if node.opset < 11:
        return node.emit(op.nn.pad(x, widths, "constant", node.float_attr("value")))
    known = node.array(2)
    value: Any = 0 if known is None else known.reshape(-1)[0].item()
    if node.has(2) and (known is None or (isinstance(value, int) and abs(value) > _EXACT)):
        given = node.input(2) if known is None else constant(known)
        one = node.cast(node.reshape(given, (1,)), dtype_of(x))
        return node.emit(pad_with(x, one, before=tuple(before), after=tuple(after)))
    return node.emit(op.nn.pad(x, widths, "constant", float(value)))


CONVERTERS: Mapping[tuple[str, str], Callable[[NodeContext], Any]] = {("", "Pad"): pad}
