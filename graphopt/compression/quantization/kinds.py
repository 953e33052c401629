"""One node's group: which kind of integer kernel it may be, or why it may be none."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from onnx import NodeProto

from graphopt import integer_kernels as table
from graphopt.compression.quantization.graph import Graph, attribute, is_op


@dataclass(frozen=True)
class Group:
    """Nodes that read 8-bit tensors and give one (or several, for Split), rounded once.

    Attributes:
        name, op: of the first node, the anchor.
        kind: "product", "arithmetic", "pointwise" or "move", see integer_kernels.
        nodes: the anchor, then its epilogue.
        inputs: activations that the anchor reads.
        residual: what the epilogue adds, if it adds a tensor.
        outputs: what the last node writes.
        weight, axis: a product's weights, and their axis of output channels.
        depth: their axis of summation, which groups of a scale divide.
        bias: constant that the anchor adds per channel, or None.
        channels: axis of the channels in the anchor's input and output.
    """

    name: str
    op: str
    kind: str
    nodes: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    residual: str | None = None
    weight: str | None = None
    axis: int = 0
    depth: int = 1
    bias: str | None = None
    channels: int = 1

    @property
    def output(self) -> str:
        """The first output."""
        return self.outputs[0]

    @property
    def reads(self) -> tuple[str, ...]:
        """Activations in 8 bits."""
        return self.inputs + ((self.residual,) if self.residual is not None else ())


@dataclass(frozen=True)
class Refusal:
    """A node that could be worth quantizing, and why it stays in float."""

    node: str
    op: str
    reason: str


def is_epilogue(graph: Graph, node: NodeProto, inside: set[str]) -> bool:
    """Whether a node is pointwise on values `inside` a kernel and on constants per channel."""
    if not is_op(node, *table.EPILOGUE) or len([name for name in node.output if name]) != 1:
        return False
    given = [name for name in node.input if name]
    if any(name not in inside and name not in graph.constants for name in given):
        return False
    shape = graph.shape(node.output[0])
    if node.op_type in ("Clip", "BatchNormalization"):
        return given[0] in inside  # their other operands are scalars and vectors
    for name in given:
        if name not in inside:
            dims = tuple(graph.constants[name].dims)
            # A constant must not enlarge the result.
            if prod(dims) > 1 and (shape is None or len(dims) > len(shape)):
                return False
    return True


def product_group(graph: Graph, node: NodeProto) -> Group | Refusal:
    """The group of a Conv, Gemm or MatMul without epilogue."""

    def refuse(reason: str) -> Refusal:
        return Refusal(node.name, node.op_type, reason)

    x, w = node.input[0], node.input[1]
    if x in graph.constants:
        return refuse("its first operand is constant")
    if w not in graph.constants:
        if node.op_type == "MatMul":
            return refuse("both operands are computed (as in attention), which stays in float")
        return refuse("its weights are computed")
    if not graph.is_float(w):
        return refuse("its weights are not float32")
    shape = tuple(graph.constants[w].dims)
    if prod(shape) == 0:
        return refuse("its weights are empty")
    bias = node.input[2] if len(node.input) > 2 and node.input[2] else None
    if bias is not None and bias not in graph.constants:
        return refuse("its bias is computed")
    axis, depth, channels = 0, 1, 1
    if node.op_type == "MatMul":
        if len(shape) < 2:
            return refuse("its weights are a vector")
        axis, depth, channels = len(shape) - 1, len(shape) - 2, -1
    elif node.op_type == "Gemm":
        if attribute(node, "transA", 0):
            return refuse("its first operand is transposed")
        if attribute(node, "alpha", 1.0) != 1 or attribute(node, "beta", 1.0) != 1:
            return refuse("it has a factor (alpha or beta)")
        axis = 0 if attribute(node, "transB", 0) else 1
        depth, channels = 1 - axis, 1
        if bias is not None and tuple(graph.constants[bias].dims) != shape[axis : axis + 1]:
            return refuse("its bias is no vector over the output channels")
    return Group(
        node.name, node.op_type, "product", (node.name,), (x,), (node.output[0],),
        weight=w, axis=axis, depth=depth, bias=bias, channels=channels,
    )  # fmt: skip


def other_group(graph: Graph, node: NodeProto) -> Group | None:
    """The group of a node that is no product, without epilogue; None if it stays in float."""
    outputs = tuple(name for name in node.output if name)
    if not outputs or not all(graph.is_float(name) for name in (*outputs, node.input[0])):
        return None
    data = [name for name in _data(node) if name not in graph.constants]
    if not data:
        return None
    kind = None
    if _moves(graph, node):
        kind = "move"
    elif is_op(node, *table.ARITHMETIC) and _is_arithmetic(graph, node, data):
        kind = "arithmetic"
    elif is_op(node, *table.ACTIVATIONS) and len(data) == 1 and _is_bounded(node, data[0]):
        kind = "pointwise"
    if kind is None:
        return None
    return Group(node.name, node.op_type, kind, (node.name,), tuple(dict.fromkeys(data)), outputs)


def _is_bounded(node: NodeProto, x: str) -> bool:
    return bool(node.op_type != "Div" or node.input[0] == x)


def _data(node: NodeProto) -> list[str]:
    """The operands that hold data; the others are axes, sizes, indices or scalars."""
    several = ("Concat", "Add", "Sub", "Mul", "Div", "Max", "Min", "PRelu")
    return [name for name in node.input[: None if node.op_type in several else 1] if name]


def _moves(graph: Graph, node: NodeProto) -> bool:
    """Whether a node only moves data, and all that it moves is computed."""
    if is_op(node, "Resize"):
        return bool(attribute(node, "mode", "nearest") == "nearest")
    if not is_op(node, *table.SHARED_SCALE):
        return False
    if node.op_type == "Concat":
        return all(name not in graph.constants for name in node.input)
    if node.op_type == "MaxPool":
        return len([name for name in node.output if name]) == 1
    if node.op_type == "Pad":
        value = node.input[2] if len(node.input) > 2 else ""
        constant = attribute(node, "mode", "constant") == "constant"
        return not constant or not value or _is_zero(graph, value)
    return True


def _is_zero(graph: Graph, name: str) -> bool:
    return name in graph.constants and not graph.array(name).any()


def _is_arithmetic(graph: Graph, node: NodeProto, data: list[str]) -> bool:
    if node.op_type in ("Add", "Sub", "Mul"):
        return len(set(data)) == 2
    if node.op_type == "ReduceMean":
        return _spatial_mean(graph, node)
    if node.op_type == "Resize":
        return bool(attribute(node, "mode", "nearest") == "linear")
    return True


def _spatial_mean(graph: Graph, node: NodeProto) -> bool:
    """Whether a mean is over pixels, as in squeeze-and-excite; others are normalisations'."""
    axes = attribute(node, "axes")
    if axes is None and len(node.input) > 1 and node.input[1] in graph.constants:
        axes = graph.array(node.input[1]).reshape(-1).tolist()
    shape = graph.shape(node.input[0])
    if axes is None or shape is None or len(shape) < 4:
        return False
    return sorted(int(axis) % len(shape) for axis in axes) == list(range(2, len(shape)))
