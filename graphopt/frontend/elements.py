"""Element types that kernels do not compute with: kept as codes, made numbers where needed.

bfloat16 is computed with as float32: what a node reads is widened, what it makes is rounded once.
So is float16, but for single operations, whose kernels do the same, and patterns are made of those.
Narrower types are only moved, cast and quantized to or from; those nodes read the codes themselves
(converters/narrow.py). A code is one unsigned integer per element; of 2- to 6-bit types only the
low bits count, as in NumPy's extension types (ml_dtypes).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import ml_dtypes
import numpy as np
from onnx import NodeProto, TensorProto, TypeProto, defs, helper
from tvm import relax

from graphopt.frontend.emit import (
    SUPPORTED_DTYPES,
    Expr,
    GraphEmitter,
    Unsupported,
    constant,
    constant_array,
    dtype_of,
)
from graphopt.frontend.model import Array, domain_of, is_standard, subgraphs
from graphopt.ops.narrow import decode_float, encode_float

_NARROW = """
    FLOAT8E4M3FN FLOAT8E4M3FNUZ FLOAT8E5M2 FLOAT8E5M2FNUZ FLOAT8E8M0 FLOAT6E2M3 FLOAT6E3M2
    FLOAT4E2M1 INT4 UINT4 INT2 UINT2
"""

CODES: Mapping[int, str] = {
    TensorProto.BFLOAT16: "uint16",
    **{getattr(TensorProto, name): "uint8" for name in _NARROW.split()},
}
"""ONNX element types that are kept as codes → the type of the codes."""

_BF16 = "bfloat16"

# They compute nothing: codes go in, the same codes come out.
_MOVED_BY = """
    BitCast CenterCropPad Compress Concat DepthToSpace Expand Flatten Gather GatherElements GatherND
    Pad Reshape ReverseSequence ScatterElements ScatterND Shape Size Slice SpaceToDepth Split
    Squeeze TensorScatter Tile Transpose Trilu Unsqueeze Where
"""


# Operators of which each is one operation on float16, so that rounding once is what kernels do.
_SINGLE = """
    Abs Add ArgMax ArgMin Cast CastLike Ceil Clip ConstantOfShape Cos DequantizeLinear Div Dropout
    Equal Erf Exp Floor Gemm GlobalMaxPool Greater GreaterOrEqual Identity IsInf IsNaN LeakyRelu
    Less LessOrEqual Log LogSoftmax MatMul Max MaxPool Min Mul Neg OneHot Pow QuantizeLinear
    Reciprocal ReduceMax ReduceMean ReduceMin ReduceSum Relu Round Sigmoid Sign Sin Softmax Sqrt Sub
    Tanh TopK
"""

_MOVES, _ON_HALVES = frozenset(_MOVED_BY.split()), frozenset(_SINGLE.split())


def element_name(code: int) -> str:
    """NumPy's name of an ONNX element type.

    Raises:
        Unsupported: it is none of numbers that can be kept.
    """
    try:
        name = str(helper.tensor_dtype_to_np_dtype(code).name)
    except KeyError:
        raise Unsupported(f"element type {code} is unknown") from None
    if code not in CODES and name not in SUPPORTED_DTYPES:
        what = "text" if code == TensorProto.STRING else name
        raise Unsupported(f"element type {what} is not supported")
    return name


def kept_as(code: int) -> str:
    """The type in which elements of an ONNX type are in memory; refuses strings and complex."""
    return CODES.get(code) or element_name(code)


def codes_of(array: Array, code: int) -> Array:
    """The codes of an array of ml_dtypes' types; other arrays as they are."""
    return (
        np.ascontiguousarray(array).view(CODES[code]).reshape(array.shape)
        if (code in CODES)
        else array
    )


class Elements(Protocol):
    """A scope of values that knows which of them are codes."""

    def __getitem__(self, name: str) -> Expr | Array: ...

    def expression(self, name: str) -> Expr: ...

    def element(self, name: str) -> int:
        """ONNX element type of a value that is kept as codes, 0 for any other."""
        ...


class Operands:
    """The values as one node reads them: bfloat16 as float32, unless the node only moves them.

    Nodes of several operations read float16 as float32 too.
    """

    def __init__(self, values: Elements, emitter: GraphEmitter, node: NodeProto) -> None:
        self._values, self._emitter, self._node = values, emitter, node
        self._moves = only_moves(node)
        standard = is_standard(node) and not any(subgraphs(node))
        self._on_halves = self._moves or not standard or node.op_type in _ON_HALVES
        self._widened: dict[str, Expr] = {}
        self._known: set[str] = set()  # values whose type the converter has asked for

    def check(self) -> None:
        """Refuse a node whose converter took codes of a narrow type for numbers."""
        for name in self._node.input:
            element = self._values.element(name) if name else 0
            narrow = element in CODES and element != TensorProto.BFLOAT16
            if narrow and not self._moves and name not in self._known:
                raise Unsupported(f"{element_name(element)} inputs are not supported")

    def __getitem__(self, name: str) -> Expr | Array:
        value = self._values[name]
        if not self._widens(name):
            return value
        half = self._values.element(name) != TensorProto.BFLOAT16
        if isinstance(value, np.ndarray):
            return (value if half else value.view(ml_dtypes.bfloat16)).astype(np.float32)
        if name not in self._widened:
            wide = relax.op.astype(value, "float32") if half else decode_float(value, kind=_BF16)
            self._widened[name] = self._emitter.emit(wide, name, self._node.name)
        return self._widened[name]

    def expression(self, name: str) -> Expr:
        """The same, always as an expression."""
        if not self._widens(name):
            return self._values.expression(name)
        value = self[name]
        return constant(value) if isinstance(value, np.ndarray) else value

    def element(self, name: str) -> int:
        """ONNX element type of a value that the node reads as codes, 0 for any other."""
        self._known.add(name)
        return 0 if self._widens(name) else self._values.element(name)

    def _widens(self, name: str) -> bool:
        if self._values.element(name):
            return not self._moves and self._values.element(name) == TensorProto.BFLOAT16
        return not self._on_halves and _is_half(self._values[name])


def _is_half(value: Expr | Array) -> bool:
    if isinstance(value, np.ndarray):
        return bool(value.dtype == np.float16)
    kind = getattr(value, "ty", None)
    return isinstance(kind, relax.TensorType) and str(kind.dtype) == "float16"


def only_moves(node: NodeProto) -> bool:
    """Whether a node computes nothing with its elements."""
    if not is_standard(node) or node.op_type not in _MOVES:
        return False
    reduction = next((a.s for a in node.attribute if a.name == "reduction"), b"none")
    return reduction in (b"none", b"")


def _element(values: Elements, name: str) -> int:
    if not name:
        return 0
    half = TensorProto.FLOAT16 if _is_half(values[name]) else 0
    return values.element(name) or int(half)


def narrowed(node: NodeProto, index: int, result: Expr, code: int, emitter: GraphEmitter) -> Expr:
    """Output `index` of a node as it is kept: rounded where it is bfloat16 or float16.

    Args:
        result: what the converter made: for bfloat16 and float16 it may be numbers of float32 or
            float64, else it is what is kept.
        code: its ONNX element type (output_element).

    Raises:
        Unsupported: the converter made something else.
    """
    if code == TensorProto.FLOAT16 and dtype_of(result) in ("float32", "float64"):
        call = relax.op.astype(result, "float16")
        return emitter.emit(call, node.output[index], node.name)
    if code not in CODES or dtype_of(result) == CODES[code]:
        return result
    if code == TensorProto.BFLOAT16 and dtype_of(result) in ("float32", "float64"):
        known = constant_array(result)
        if known is not None:
            return constant(codes_of(known.astype(ml_dtypes.bfloat16), code))
        call = encode_float(result, kind=_BF16, saturate=False)
        return emitter.emit(call, node.output[index], node.name)
    raise Unsupported(f"{node.op_type} of {element_name(code)} is not supported")


def output_element(
    node: NodeProto,
    index: int,
    values: Elements,
    types: Mapping[str, TypeProto],
    opsets: Mapping[str, int],
) -> int:
    """ONNX element type of a node's output, 0 where only numbers are read and nothing is known.

    Raises:
        Unsupported: the node reads codes and nothing tells what it makes.
    """
    kind = types.get(node.output[index])
    if kind is not None and kind.tensor_type.elem_type:
        return int(kind.tensor_type.elem_type)
    read = [_element(values, name) for name in node.input]
    for attribute in node.attribute:
        if attribute.name in ("to", "dtype", "output_dtype") and attribute.i:
            return int(attribute.i)
    if not any(read):
        return 0
    domain = domain_of(node)
    try:
        schema = defs.get_schema(node.op_type, opsets.get(domain, 1), domain)
    except defs.SchemaError:
        if any(element in CODES for element in read):
            raise Unsupported(f"the type of its output {index} is not known") from None
        return 0
    made: Any = schema.outputs[min(index, len(schema.outputs) - 1)].type_str
    for position, found in enumerate(read):
        if schema.inputs[min(position, len(schema.inputs) - 1)].type_str == made:
            return found
    return 0
