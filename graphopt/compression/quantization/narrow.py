"""Weights as a model stores them: the nodes and constants that give their float values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

from graphopt.compression.quantization.codebook import nearest
from graphopt.compression.quantization.plan import WeightPlan
from graphopt.compression.quantization.scheme import Array, Format, dequantize, quantize
from graphopt.compression.quantization.weights import broadcast_parameters

_PACKED = {True: ml_dtypes.int4, False: ml_dtypes.uint4}
_HALVES = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


@dataclass(frozen=True)
class Stored:
    """Constants, the nodes that widen them, and the name of the result."""

    constants: tuple[TensorProto, ...]
    nodes: tuple[NodeProto, ...]
    result: str


def codes(weight: Array, plan: WeightPlan) -> Array:
    """The integers (or, of a table, the indices) that stand for weights, in their shape."""
    if plan.kind == "table":
        return nearest(weight, plan.table).astype(np.uint8)
    if plan.codes is not None:
        return plan.codes
    return quantize(weight, *parameters_of(weight, plan), plan.form)


def approximated(weight: Array, plan: WeightPlan) -> Array:
    """The weights as the quantized model sees them, float32."""
    if plan.kind == "table":
        return plan.table[nearest(weight, plan.table)]
    if plan.kind in _HALVES:
        return _half(weight, plan.kind).astype(np.float32)
    return dequantize(codes(weight, plan), *parameters_of(weight, plan))


def stored(weight: Array, plan: WeightPlan, name: Callable[[str], str]) -> Stored:
    """How a model stores weights.

    Args:
        name: makes a name that is not taken.
    """
    base = plan.tensor
    if plan.kind in _HALVES:
        half = numpy_helper.from_array(_half(weight, plan.kind), name(f"{base}_{plan.kind}"))
        result = name(f"{base}_widened")
        cast = helper.make_node("Cast", [half.name], [result], name(f"{base}_Cast"), to=1)
        return Stored((half,), (cast,), result)
    if plan.kind == "table":
        return _stored_table(weight, plan, name)
    integers = codes(weight, plan)
    if plan.packed:
        integers = integers.astype(_PACKED[plan.form.signed])
    zero = plan.zero.astype(integers.dtype)
    constants = (
        numpy_helper.from_array(integers, name(f"{base}_quantized")),
        numpy_helper.from_array(plan.scale, name(f"{base}_scale")),
        numpy_helper.from_array(zero, name(f"{base}_zero_point")),
    )
    result = name(f"{base}_dequantized")
    attributes: dict[str, Any] = {"axis": plan.axis} if plan.axis is not None else {}
    if plan.group:
        attributes = {"axis": plan.depth, "block_size": plan.group}
    node = helper.make_node(
        "DequantizeLinear",
        [tensor.name for tensor in constants],
        [result],
        name(f"{base}_DequantizeLinear"),
        **attributes,
    )
    return Stored(constants, (node,), result)


def _stored_table(weight: Array, plan: WeightPlan, name: Callable[[str], str]) -> Stored:
    base, indices = plan.tensor, codes(weight, plan)
    if plan.packed:
        indices = indices.astype(ml_dtypes.uint4)
    constants = (
        numpy_helper.from_array(indices, name(f"{base}_indices")),
        numpy_helper.from_array(plan.table, name(f"{base}_table")),
    )
    wide, result = name(f"{base}_wide_indices"), name(f"{base}_looked_up")
    nodes = (
        helper.make_node(
            "Cast", [constants[0].name], [wide], name(f"{base}_Cast"), to=TensorProto.INT32
        ),
        helper.make_node("Gather", [constants[1].name, wide], [result], name(f"{base}_Gather")),
    )
    return Stored(constants, nodes, result)


def parameters_of(weight: Array, plan: WeightPlan) -> tuple[Array, Array]:
    """Scales and zero points in shapes that broadcast to the weights."""
    place = (weight.shape, plan.axis, plan.depth, plan.group)
    scale = broadcast_parameters(plan.scale, *place)
    return scale, broadcast_parameters(plan.zero, *place)


def _half(weight: Array, kind: str) -> Array:
    """In 16 bits; what is too large becomes the largest finite number."""
    dtype = _HALVES[kind]
    largest = float(ml_dtypes.finfo(dtype).max)  # type: ignore[no-untyped-call]
    return np.clip(weight, -largest, largest).astype(dtype)


def activation_constants(
    scale: float, zero: int, form: Format, names: tuple[str, str]
) -> tuple[TensorProto, TensorProto]:
    """The scale and the zero point of a tensor."""
    return (
        numpy_helper.from_array(np.array(scale, np.float32), names[0]),
        numpy_helper.from_array(np.array(zero, form.dtype), names[1]),
    )
