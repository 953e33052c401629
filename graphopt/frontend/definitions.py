"""Definitions of composite operators in place of ONNX's own, each with the reason why."""

from __future__ import annotations

from onnx import FunctionProto, parser

# The coordinates along one spatial axis, as a column over all points of the grid.
_AFFINE_AXIS = """
    place{k} = Constant <value_int = {place}> ()
    n{k} = Gather(size, place{k})
    index{k} = Range(zero, n{k}, one)
    twice{k} = Mul(index{k}, two)
    below{k} = Sub(n{k}, one)
    offset{k} = Sub(twice{k}, below{k})
    whole{k} = {whole}
    dividend{k} = Cast <to = 1> (offset{k})
    divisor{k} = Cast <to = 1> (whole{k})
    line{k} = Div(dividend{k}, divisor{k})
    shape{k} = Constant <value_ints = {shape}> ()
    placed{k} = Reshape(line{k}, shape{k})
    spread{k} = Expand(placed{k}, spatial)
    column{k} = Reshape(spread{k}, column)
"""

_AFFINE_GRID = """
<domain: "", opset_import: ["" : 20]> AffineGrid (theta, size) => (grid) {{
    zero = Constant <value_int = 0> ()
    one = Constant <value_int = 1> ()
    two = Constant <value_int = 2> ()
    column = Constant <value_ints = [-1, 1]> ()
    axes = Constant <value_ints = [{axes}]> ()
    parts = Constant <value_ints = [1, 1, {axes}]> ()
    batch, channels, spatial = Split(size, parts)
    {each}
    points = Shape(column0)
    unit = Constant <value_float = 1.0> ()
    ones = Expand(unit, points)
    wide = Concat <axis = 1> ({columns}, ones)
    base = CastLike(wide, theta)
    turned = Transpose <perm = [0, 2, 1]> (theta)
    placed = MatMul(base, turned)
    whole = Concat <axis = 0> (batch, spatial, axes)
    grid = Reshape(placed, whole)
}}
"""


def affine_grid(axes: int, align_corners: bool) -> FunctionProto:
    """AffineGrid of operator set 20 over `axes` spatial axes.

    ONNX's own definition squeezes a batch of one away, and fails.
    """
    each = [
        _AFFINE_AXIS.format(
            k=k,
            place=k + 2,
            whole=f"Identity(below{k})" if align_corners else f"Identity(n{k})",
            shape=[-1 if axis == k else 1 for axis in range(axes)],
        )
        for k in range(axes)
    ]
    # Coordinates are in the order x, y, z: the last axis first.
    columns = ", ".join(f"column{k}" for k in reversed(range(axes)))
    text = _AFFINE_GRID.format(axes=axes, each="".join(each), columns=columns)
    return parser.parse_function(text)
