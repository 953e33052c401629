"""Seeded inputs that a model can really be given: token ids in range, masks of ones."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from graphopt.errors import InputError

Array = np.ndarray[Any, Any]
Shapes = Mapping[str, tuple[int, ...]]

# A Gather still indexes the same rows after these.
_TRANSPARENT = {"Cast", "Reshape", "Unsqueeze", "Squeeze", "Flatten", "Identity", "Transpose"}


def graph_inputs(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """Return the inputs a caller must feed (old models list their weights as inputs too)."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in weights]


def is_dynamic(model: onnx.ModelProto) -> bool:
    """True if some input has a dimension without a positive size."""
    return any(
        dim.dim_value <= 0
        for value in graph_inputs(model)
        for dim in value.type.tensor_type.shape.dim
    )


def resolve_shape(value: onnx.ValueInfoProto, shapes: Shapes) -> tuple[int, ...]:
    """Return the shape given in `shapes`, or the model's own; InputError if neither is known."""
    dims = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
    if value.name in shapes:
        given = tuple(shapes[value.name])
        fits = len(given) == len(dims) and all(
            own <= 0 or own == size for own, size in zip(dims, given, strict=True)
        )
        if not fits:
            raise InputError("inputs", f"shape {given} does not fit {value.name!r}: {dims}")
        return given
    if any(size <= 0 for size in dims):
        raise InputError(
            "inputs",
            f"input {value.name!r} has unbound dimensions",
            hint=f"give its shape: --shape {value.name}=1,…",
        )
    return tuple(dims)


def _rows_indexed_by(model: onnx.ModelProto, name: str) -> int | None:
    """Smallest number of rows among the constant tables that input `name` indexes."""
    tables = {tensor.name: tensor for tensor in model.graph.initializer}
    same = {name}
    rows: list[int] = []
    for node in model.graph.node:  # topologically sorted, so one sweep follows the value
        if node.op_type in _TRANSPARENT and node.input and node.input[0] in same:
            same.add(node.output[0])
        if node.op_type == "Gather" and node.input[1] in same and node.input[0] in tables:
            axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
            rows.append(int(tables[node.input[0]].dims[axis]))
    return min(rows, default=None)


def sample_inputs(
    model: onnx.ModelProto,
    shapes: Shapes | None = None,
    *,
    limits: Mapping[str, int] | None = None,
    given: Mapping[str, Array] | None = None,
    seed: int = 0,
) -> dict[str, Array]:
    """Return one array per input, the same for the same seed on every machine.

    Floats are standard normal. Booleans, and integers whose name contains "mask", are ones;
    integers that index a constant table stay inside it; uint8 covers 0 … 255; other integers are
    0 or 1. `limits` overrides the exclusive upper bound of an integer input, `given` the whole
    array.

    Raises:
        InputError: a shape is missing or does not fit, or a name or dtype is unknown.
    """
    shapes, limits, given = shapes or {}, limits or {}, given or {}
    values = graph_inputs(model)
    unknown = ({*shapes} | {*limits} | {*given}) - {value.name for value in values}
    if unknown:
        names = ", ".join(value.name for value in values)
        raise InputError("inputs", f"no input named {', '.join(sorted(unknown))}", hint=names)
    feeds: dict[str, Array] = {}
    for value in values:
        if value.name in given:
            feeds[value.name] = given[value.name]
            continue
        shape = resolve_shape(value, shapes)
        rng = np.random.default_rng((seed, zlib.crc32(value.name.encode())))
        element = value.type.tensor_type.elem_type
        if element in (TensorProto.UNDEFINED, TensorProto.STRING):
            raise InputError("inputs", f"input {value.name!r} is not a numeric tensor")
        dtype = helper.tensor_dtype_to_np_dtype(element)
        if dtype == np.bool_:
            feeds[value.name] = np.ones(shape, dtype)
        elif np.issubdtype(dtype, np.integer):
            if "mask" in value.name.lower() and value.name not in limits:
                feeds[value.name] = np.ones(shape, dtype)
                continue
            rows = limits.get(value.name) or _rows_indexed_by(model, value.name)
            limit = rows or (256 if dtype == np.uint8 else 2)
            feeds[value.name] = rng.integers(0, limit, shape).astype(dtype)
        else:
            feeds[value.name] = rng.standard_normal(shape, dtype=np.float32).astype(dtype)
    return feeds


def bind_shapes(model: onnx.ModelProto, feeds: Mapping[str, Array]) -> onnx.ModelProto:
    """Return a copy of `model` whose inputs have exactly the shapes of `feeds`.

    Shapes of other values are dropped: they may name dimensions that are now known.
    """
    bound = onnx.ModelProto()
    bound.CopyFrom(model)
    for value in graph_inputs(bound):
        dims = value.type.tensor_type.shape.dim
        for dim, size in zip(dims, feeds[value.name].shape, strict=True):
            dim.dim_value = size
    del bound.graph.value_info[:]
    for output in bound.graph.output:
        for dim in output.type.tensor_type.shape.dim:
            if dim.dim_value <= 0:
                dim.Clear()
    return bound
