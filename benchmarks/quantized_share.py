"""How much of a quantized model's work is in integers, whoever made it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import ModelProto, NodeProto, ValueInfoProto

_PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM")

_MOVES = (
    "Flatten",
    "Identity",
    "MaxPool",
    "Pad",
    "Reshape",
    "Slice",
    "Squeeze",
    "Transpose",
    "Unsqueeze",
)


@dataclass(frozen=True)
class Share:
    """Products whose operands are all in 8 bits or fewer; all of them; the first's share of MACs.

    With `weights_only` it is enough that the weights are.
    """

    quantized: int
    products: int
    of_macs: float


def quantized_share(
    model: ModelProto, feeds: Mapping[str, np.ndarray[Any, Any]], weights_only: bool = False
) -> Share:
    """Count a QDQ model's products, as they are with these inputs.

    Control flow is not looked into: the model should have none.
    """
    made_by = {name: node for node in model.graph.node for name in node.output}
    products = [node for node in model.graph.node if node.op_type in _PRODUCTS]
    read = [node.input[0] for node in products if node.input[0] in made_by]
    shapes = _shapes(model, feeds, [*{*read, *(node.output[0] for node in products)}])
    constants = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    done, count, total = 0, 0, 0
    for node in products:
        inputs = [made_by.get(name) for name in node.input[:2]]
        sources = inputs[1:] if weights_only else inputs
        quantized = all(_dequantized(each, made_by) for each in sources)
        macs = _macs(node, shapes, constants, made_by)
        total += macs
        count += quantized
        done += macs if quantized else 0
    return Share(count, len(products), done / max(total, 1))


def _dequantized(node: NodeProto | None, made_by: Mapping[str, NodeProto]) -> bool:
    """Whether a value comes from DequantizeLinear, through data movement at most."""
    if node is None or node.op_type == "DequantizeLinear":
        return node is not None
    if node.op_type == "Concat":
        return all(_dequantized(made_by.get(name), made_by) for name in node.input)
    return node.op_type in _MOVES and _dequantized(made_by.get(node.input[0]), made_by)


def _shapes(
    model: ModelProto, feeds: Mapping[str, np.ndarray[Any, Any]], names: list[str]
) -> dict[str, tuple[int, ...]]:
    """Shapes of what nodes write, by running the model."""
    wanted = ModelProto()
    wanted.CopyFrom(model)
    present = {value.name for value in model.graph.output}
    wanted.graph.output.extend(ValueInfoProto(name=name) for name in names if name not in present)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(
        wanted.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    taken = {value.name for value in session.get_inputs()}
    found = session.run(names, {name: array for name, array in feeds.items() if name in taken})
    return {name: array.shape for name, array in zip(names, found, strict=True)}


def _macs(
    node: NodeProto,
    shapes: Mapping[str, tuple[int, ...]],
    constants: Mapping[str, tuple[int, ...]],
    made_by: Mapping[str, NodeProto],
) -> int:
    """Multiplications, one each with an addition."""
    result = shapes[node.output[0]]
    weight = _dims(node.input[1], constants, made_by)
    if node.op_type == "Conv":
        assert weight is not None
        return prod(result) * prod(weight[1:])
    if node.op_type == "ConvTranspose":
        assert weight is not None
        return prod(result) * weight[0] * prod(weight[2:]) // _attribute(node, "group", 1)
    if node.op_type == "LSTM":
        again = _dims(node.input[2], constants, made_by)
        assert weight is not None
        assert again is not None
        steps, directions, batch, _ = result
        return steps * batch * directions * (prod(weight[1:]) + prod(again[1:]))
    if weight is None:
        # Both operands are computed: attention.
        return prod(result) * shapes[node.input[0]][-1]
    axis = 1 if node.op_type == "Gemm" and _attribute(node, "transB", 0) else len(weight) - 2
    return prod(result) * weight[axis]


def _dims(
    name: str, constants: Mapping[str, tuple[int, ...]], made_by: Mapping[str, NodeProto]
) -> tuple[int, ...] | None:
    """The shape of a constant, quantized or not."""
    while name not in constants:
        node = made_by.get(name)
        if node is None or node.op_type not in ("DequantizeLinear", "QuantizeLinear"):
            return None
        name = node.input[0]
    return constants[name]


def _attribute(node: NodeProto, name: str, default: int) -> int:
    return next(
        (onnx.helper.get_attribute_value(each) for each in node.attribute if each.name == name),
        default,
    )
