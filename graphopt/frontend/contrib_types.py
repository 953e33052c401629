"""Types of com.microsoft operators' outputs, which onnx cannot infer: what Shape nodes ask for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto, TypeProto, helper

Types = Mapping[str, TypeProto]
Rule = Callable[[NodeProto, Types], "dict[int, TypeProto]"]
Dims = tuple[int, ...]


def contrib_types(node: NodeProto, types: Types) -> dict[str, TypeProto]:
    """Types of the outputs of a com.microsoft node; empty where they are not known.

    Only static shapes are followed. A node whose inputs do not fit is left to the importer, which
    says what is wrong with it.
    """
    rule = _RULES.get(node.op_type) if node.domain == "com.microsoft" else None
    if rule is None:
        return {}
    try:
        found = rule(node, types)
    except (KeyError, IndexError, ValueError, TypeError):
        return {}  # an input of unknown type or shape
    return {
        node.output[i]: kind for i, kind in found.items() if i < len(node.output) and node.output[i]
    }


def _dims(node: NodeProto, types: Types, index: int) -> Dims:
    """Static shape of an input; ValueError if it has none."""
    dims = types[node.input[index]].tensor_type.shape.dim
    if any(dim.WhichOneof("value") != "dim_value" for dim in dims):
        raise ValueError(node.input[index])
    return tuple(dim.dim_value for dim in dims)


def _element(node: NodeProto, types: Types, index: int) -> int:
    return int(types[node.input[index]].tensor_type.elem_type)


def _kind(element: int, dims: Any) -> TypeProto:
    return helper.make_tensor_type_proto(element, [int(dim) for dim in dims])


def _attribute(node: NodeProto, name: str, default: int = 0) -> int:
    return next((a.i for a in node.attribute if a.name == name), default)


def _like(*outputs: int, source: int = 0) -> Rule:
    """Some outputs have the type of input `source`."""
    return lambda node, types: dict.fromkeys(outputs, types[node.input[source]])


def _broadcast(first: int, second: int) -> Rule:
    def rule(node: NodeProto, types: Types) -> dict[int, TypeProto]:
        shape = np.broadcast_shapes(_dims(node, types, first), _dims(node, types, second))
        return {0: _kind(_element(node, types, first), shape)}

    return rule


def _product(a: Dims, b: Dims) -> Dims:
    if len(a) < 2 or len(b) < 2 or a[-1] != b[-2]:
        raise ValueError((a, b))
    return (*np.broadcast_shapes(a[:-2], b[:-2]), a[-2], b[-1])


def _matmul(element: int | None = None) -> Rule:
    def rule(node: NodeProto, types: Types) -> dict[int, TypeProto]:
        shapes = []
        for index, letter in enumerate("AB"):
            dims = list(_dims(node, types, index))
            if _attribute(node, f"transBatch{letter}"):
                dims = [*dims[1:-1], dims[0], dims[-1]]
            if _attribute(node, f"trans{letter}"):
                dims[-1], dims[-2] = dims[-2], dims[-1]
            shapes.append(tuple(dims))
        return {0: _kind(element or _element(node, types, 0), _product(*shapes))}

    return rule


def _matmul_bits(node: NodeProto, types: Types) -> dict[int, TypeProto]:
    dims = (*_dims(node, types, 0)[:-1], _attribute(node, "N"))
    return {0: _kind(_element(node, types, 0), dims)}


def _conv(node: NodeProto, types: Types) -> dict[int, TypeProto]:
    """FusedConv with explicit padding."""
    if any(a.name == "auto_pad" and a.s not in (b"", b"NOTSET") for a in node.attribute):
        raise ValueError("auto_pad")
    x, w = _dims(node, types, 0), _dims(node, types, 1)
    rank = len(x) - 2
    lists = {a.name: list(a.ints) for a in node.attribute}
    pads = lists.get("pads", [0] * (2 * rank))
    strides, dilations = lists.get("strides", [1] * rank), lists.get("dilations", [1] * rank)
    out = [
        (size + before + after - d * (k - 1) - 1) // s + 1
        for size, k, before, after, s, d in zip(
            x[2:], w[2:], pads[:rank], pads[rank:], strides, dilations, strict=True
        )
    ]
    return {0: _kind(_element(node, types, 0), (x[0], w[0], *out))}


def _attention(node: NodeProto, types: Types) -> dict[int, TypeProto]:
    batch, length, _ = _dims(node, types, 0)
    sizes = next((list(a.ints) for a in node.attribute if a.name == "qkv_hidden_sizes"), None)
    width = sizes[2] if sizes else _dims(node, types, 1)[1] // 3
    element = _element(node, types, 2 if node.op_type == "QAttention" else 0)
    return {0: _kind(element, (batch, length, width))}


def _multi_head(node: NodeProto, types: Types) -> dict[int, TypeProto]:
    query = _dims(node, types, 0)
    if len(query) != 3 or len(node.input) < 3 or not node.input[2]:
        raise ValueError(query)
    value = _dims(node, types, 2)
    width = value[2] if len(value) == 3 else value[1] * value[3]
    return {0: _kind(_element(node, types, 0), (query[0], query[1], width))}


def _embedding(node: NodeProto, types: Types) -> dict[int, TypeProto]:
    ids, words = _dims(node, types, 0), _dims(node, types, 2)
    kind = _kind(_element(node, types, 2), (*ids, words[1]))
    return {0: kind, 1: _kind(TensorProto.INT32, ids[:1]), 2: kind}


def _global_pool(node: NodeProto, types: Types) -> dict[int, TypeProto]:
    dims = _dims(node, types, 0)
    ones = (1,) * (len(dims) - 2)
    pooled = (dims[0], *ones, dims[-1]) if _attribute(node, "channels_last") else (*dims[:2], *ones)
    return {0: _kind(_element(node, types, 0), pooled)}


def _concat(node: NodeProto, types: Types) -> dict[int, TypeProto]:
    parts = [_dims(node, types, i) for i in range(2, len(node.input), 3)]
    axis = _attribute(node, "axis") % len(parts[0])
    shape = list(parts[0])
    shape[axis] = sum(part[axis] for part in parts)
    return {0: _kind(_element(node, types, 2), shape)}


def _quantized(node: NodeProto, types: Types) -> dict[int, TypeProto]:
    given = len(node.input) > 2 and node.input[2]
    element = _element(node, types, 2) if given else TensorProto.UINT8
    return {0: _kind(element, _dims(node, types, 0))}


def _dequantized(node: NodeProto, types: Types) -> dict[int, TypeProto]:
    return {0: _kind(_element(node, types, 1), _dims(node, types, 0))}


def _gemm(node: NodeProto, types: Types) -> dict[int, TypeProto]:
    b = 3 if node.op_type == "QGemm" else 1
    left, right = _dims(node, types, 0), _dims(node, types, b)
    rows = left[1] if _attribute(node, "transA") else left[0]
    columns = right[0] if _attribute(node, "transB") else right[1]
    element = _element(node, types, 0)
    if node.op_type == "QGemm" and (len(node.input) < 9 or not node.input[8]):
        element = TensorProto.FLOAT
    return {0: _kind(element, (rows, columns))}


def _gathered(node: NodeProto, types: Types) -> dict[int, TypeProto]:
    data, indices = _dims(node, types, 0), _dims(node, types, 1)
    scales = _dims(node, types, 2)
    axis = _attribute(node, "gather_axis") % len(data)
    if _element(node, types, 0) == TensorProto.UINT8:
        data = (*data[:-1], data[-1] * 8 // _attribute(node, "bits", 4))
    if prod(scales) < 1:
        raise ValueError(scales)
    return {0: _kind(_element(node, types, 2), (*data[:axis], *indices, *data[axis + 1 :]))}


def _lstm(node: NodeProto, types: Types) -> dict[int, TypeProto]:
    steps, batch, _ = _dims(node, types, 0)
    directions, hidden, _ = _dims(node, types, 2)
    element = _element(node, types, 0)
    state = _kind(element, (directions, batch, hidden))
    return {0: _kind(element, (steps, directions, batch, hidden)), 1: state, 2: state}


_RULES: Mapping[str, Rule] = {
    "DynamicQuantizeLSTM": _lstm,
    **dict.fromkeys(
        (
            "BiasAdd",
            "BiasGelu",
            "BiasSoftmax",
            "FastGelu",
            "Gelu",
            "GroupNorm",
            "QLinearLeakyRelu",
            "QLinearSigmoid",
            "QLinearSoftmax",
            "QuickGelu",
            "RotaryEmbedding",
            "SimplifiedLayerNormalization",
        ),
        _like(0),
    ),
    "SkipGroupNorm": _like(0, 1),
    "SkipLayerNormalization": _like(0, 3),
    "SkipSimplifiedLayerNormalization": _like(0, 3),
    "QLinearAdd": _broadcast(0, 3),
    "QLinearMul": _broadcast(0, 3),
    "QLinearConcat": _concat,
    "QLinearGlobalAveragePool": _global_pool,
    "QuantizeLinear": _quantized,
    "DequantizeLinear": _dequantized,
    "Attention": _attention,
    "QAttention": _attention,
    "MultiHeadAttention": _multi_head,
    "EmbedLayerNormalization": _embedding,
    "FusedConv": _conv,
    "FusedGemm": _gemm,
    "QGemm": _gemm,
    "FusedMatMul": _matmul(),
    "FusedMatMulActivation": _matmul(),
    "TransposeMatMul": _matmul(),
    "GemmFastGelu": _matmul(),
    "MatMulIntegerToFloat": _matmul(TensorProto.FLOAT),
    "DynamicQuantizeMatMul": _matmul(TensorProto.FLOAT),
    "MatMulNBits": _matmul_bits,
    "GatherBlockQuantized": _gathered,
}
