"""Rewrites models of operator sets 1 to 6, whose operators broadcast by attributes, as set 9.

Where a rewrite depends on a rank, it is written with Shape and Reshape nodes, which fold as soon as
shapes are bound.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from onnx import (
    AttributeProto,
    GraphProto,
    ModelProto,
    NodeProto,
    TensorProto,
    helper,
    numpy_helper,
)

from graphopt.errors import ModelError
from graphopt.frontend.model import is_standard, subgraphs

OLDEST_OPSET = 7
"""The first operator set that the converters know; below it operators broadcast by attributes."""

_TARGET = 9


def is_legacy(proto: ModelProto) -> bool:
    """Whether the model is in an operator set below OLDEST_OPSET."""
    return _version(proto) < OLDEST_OPSET


def modernise(proto: ModelProto) -> None:
    """Rewrite a legacy model, whose nodes have unique names, as operator set 9, in place.

    Raises:
        ModelError: a node means something that operator set 9 cannot say, such as training.
    """
    version = _version(proto)
    for opset in proto.opset_import:
        if is_standard(opset):
            opset.version = _TARGET
    constants = {tensor.name: tensor for tensor in proto.graph.initializer}
    _rewrite_graph(proto.graph, constants, version)


def _version(proto: ModelProto) -> int:
    versions = [o.version for o in proto.opset_import if is_standard(o)]
    return int(versions[0]) if versions else OLDEST_OPSET


class _Node:
    """One old node, and the nodes that take its place."""

    def __init__(self, node: NodeProto, constants: Mapping[str, TensorProto], version: int) -> None:
        self.node = node
        self.version = version
        self._constants = constants
        self.before: list[NodeProto] = []

    def take(self, name: str, default: Any = None) -> Any:
        """The value of an attribute, which is removed."""
        for i, attribute in enumerate(self.node.attribute):
            if attribute.name == name:
                value = helper.get_attribute_value(attribute)
                del self.node.attribute[i]
                return value
        return default

    def put(self, name: str, value: Any) -> None:
        """State an attribute."""
        self.node.attribute.append(helper.make_attribute(name, value))

    def default(self, name: str, value: Any) -> None:
        """State an attribute that was left to its old default."""
        if all(attribute.name != name for attribute in self.node.attribute):
            self.put(name, value)

    def refused(self, reason: str) -> ModelError:
        return ModelError(
            "prepare",
            f"{self.node.op_type} of operator set {self.version}: {reason}",
            node=self.node.name,
            hint="Export the model again with a newer operator set.",
        )

    def constant(self, index: int) -> np.ndarray[Any, Any] | None:
        """The value of a constant input."""
        if index >= len(self.node.input):
            return None
        tensor = self._constants.get(self.node.input[index])
        if tensor is None or tensor.data_location == TensorProto.EXTERNAL:
            return None
        return np.asarray(numpy_helper.to_array(tensor))

    def emit(self, op_type: str, inputs: list[str], **attributes: Any) -> str:
        """Put a node before this one; returns its output."""
        name = f"{self.node.name}/legacy_{len(self.before)}"
        made = helper.make_node(op_type, inputs, [name], name=name, **attributes)
        self.before.append(made)
        return name

    def integers(self, values: list[int]) -> str:
        """A constant vector."""
        tensor = numpy_helper.from_array(np.array(values, np.int64))
        return self.emit("Constant", [], value=tensor)

    def rank(self, value: str) -> str:
        """The rank of a value, as a vector of one element."""
        return self.emit("Shape", [self.emit("Shape", [value])])

    def followed_by_ones(self, value: str, count: str) -> str:
        """`value` with `count` (a vector of one element) more trailing axes of extent 1."""
        one = numpy_helper.from_array(np.array([1], np.int64))
        ones = self.emit("ConstantOfShape", [count], value=one)
        shape = self.emit("Concat", [self.emit("Shape", [value]), ones], axis=0)
        return self.emit("Reshape", [value, shape])


def _broadcasting(old: _Node) -> None:
    """B's axes are A's from `axis` on, or the last ones where there is no `axis`."""
    axis = old.take("axis")
    if not old.take("broadcast", 0) or axis is None:
        return
    a, b = old.node.input[:2]
    end = old.integers([-axis])
    if axis >= 0:
        end = old.emit("Sub", [old.rank(a), old.integers([axis])])
    old.node.input[1] = old.followed_by_ones(b, old.emit("Sub", [end, old.rank(b)]))


def _prelu(old: _Node) -> None:
    """The slope is one number, or one per channel: axis 1."""
    x, slope = old.node.input
    known = old.constant(1)
    if known is not None and (known.size == 1 or known.ndim != 1):
        return
    count = old.emit("Sub", [old.rank(x), old.integers([2])])
    old.node.input[1] = old.followed_by_ones(slope, count)


def _gemm(old: _Node) -> None:
    old.take("broadcast")  # C broadcasts by its shape


def _batch_norm(old: _Node) -> None:
    if not old.take("is_test", 0) and len([name for name in old.node.output if name]) > 1:
        raise old.refused("training (is_test=0) is not supported.")


def _dropout(old: _Node) -> None:
    ratio = next((a.f for a in old.node.attribute if a.name == "ratio"), 0.5)
    if not old.take("is_test", 0) and ratio:
        raise old.refused("training (is_test=0) is not supported.")


def _cast(old: _Node) -> None:
    target = old.take("to")
    if isinstance(target, bytes):
        name = target.decode("utf-8", "replace").upper()
        try:
            target = TensorProto.DataType.Value(name)
        except ValueError:
            raise old.refused(f"the element type '{name}' is unknown.") from None
    old.put("to", target)


def _concat(old: _Node) -> None:
    if old.version < 4:
        old.default("axis", 1)


def _pad(old: _Node) -> None:
    paddings = old.take("paddings")
    if paddings is not None:
        old.put("pads", paddings)


def _reshape(old: _Node) -> None:
    shape = old.take("shape")
    if shape is not None:
        old.node.input.append(old.integers([int(dim) for dim in shape]))


def _split(old: _Node) -> None:
    if len(old.node.input) < 2:
        return
    sizes = old.constant(1)
    if sizes is None:
        raise old.refused("sizes that are computed at run time are not supported.")
    del old.node.input[1:]
    old.take("split")
    old.put("split", [int(size) for size in sizes.reshape(-1)])


def _tile(old: _Node) -> None:
    if old.version >= 6:
        return
    tiles, axis = old.constant(1), old.constant(2)
    if tiles is None or axis is None:
        raise old.refused("a count or axis that is computed at run time is not supported.")
    x, position = old.node.input[0], int(axis.reshape(-1)[0])
    if position < 0:
        raise old.refused("a negative axis is not supported.")
    one = numpy_helper.from_array(np.array([1], np.int64))
    behind = old.emit("Sub", [old.rank(x), old.integers([position + 1])])
    parts = [old.integers([1] * position)] if position else []
    parts.append(old.integers([int(tiles.reshape(-1)[0])]))
    parts.append(old.emit("ConstantOfShape", [behind], value=one))
    repeats = old.emit("Concat", parts, axis=0)
    del old.node.input[1:]
    old.node.input.append(repeats)


def _upsample(old: _Node) -> None:
    height, width = old.take("height_scale"), old.take("width_scale")
    if height is None or width is None:
        raise old.refused("height_scale or width_scale is missing.")
    scales = numpy_helper.from_array(np.array([1, 1, height, width], np.float32))
    old.node.input.append(old.emit("Constant", [], value=scales))
    if old.take("mode", b"nearest") == b"bilinear":
        old.put("mode", "linear")


def _selu(old: _Node) -> None:
    if old.version < 6:
        old.default("alpha", 1.6732)
        old.default("gamma", 1.0507)


def _norm_order(old: _Node) -> None:
    order = old.take("p", 2)
    if order != int(order):
        raise old.refused(f"p={order} is not supported.")
    old.put("p", int(order))


def _recurrent(old: _Node) -> None:
    old.take("output_sequence")  # outputs are computed if they are named


_REWRITES: Mapping[str, Callable[[_Node], None]] = {
    **dict.fromkeys(
        ("Add", "Sub", "Mul", "Div", "Pow", "And", "Or", "Xor", "Equal", "Greater", "Less"),
        _broadcasting,
    ),
    **dict.fromkeys(("GRU", "LSTM", "RNN"), _recurrent),
    **dict.fromkeys(("LpPool", "GlobalLpPool"), _norm_order),
    "BatchNormalization": _batch_norm,
    "Cast": _cast,
    "Concat": _concat,
    "Dropout": _dropout,
    "Gemm": _gemm,
    "PRelu": _prelu,
    "Pad": _pad,
    "Reshape": _reshape,
    "Selu": _selu,
    "Split": _split,
    "Tile": _tile,
    "Upsample": _upsample,
}


def _rewrite_graph(graph: GraphProto, constants: Mapping[str, TensorProto], version: int) -> None:
    known = {**constants, **{tensor.name: tensor for tensor in graph.initializer}}
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.type == AttributeProto.TENSOR:
                known[node.output[0]] = attribute.t
    nodes = list(_rewritten(graph.node, known, version))
    copies = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)


def _rewritten(
    nodes: Any, constants: Mapping[str, TensorProto], version: int
) -> Iterator[NodeProto]:
    for node in nodes:
        for graph in subgraphs(node):
            _rewrite_graph(graph, constants, version)
        old = _Node(node, constants, version)
        if is_standard(node):
            old.take("consumed_inputs")  # which inputs may be overwritten; no part of the result
            if node.op_type in _REWRITES:
                _REWRITES[node.op_type](old)
        yield from old.before
        yield node
