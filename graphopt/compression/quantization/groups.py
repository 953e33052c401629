"""Groups of nodes that may become one integer kernel each, and why the others may not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod

from onnx import NodeProto

from graphopt import integer_kernels as table
from graphopt.compression.quantization.graph import Graph, attribute, is_op

MAX_EPILOGUE = 24
"""Nodes behind a product that one kernel takes."""


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


def find_groups(graph: Graph) -> tuple[tuple[Group, ...], tuple[Refusal, ...]]:
    """Every group of the graph in topological order of the anchors, and every refusal."""
    finder = _Finder(graph)
    finder.products()
    finder.residuals()
    finder.others()
    order = graph.index
    groups = sorted(finder.groups.values(), key=lambda group: order[group.name])
    refusals = sorted(finder.refusals, key=lambda refusal: order[refusal.node])
    return tuple(groups), tuple(refusals)


class _Finder:
    """State of one search: groups by anchor, and the nodes that belong to one."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.groups: dict[str, Group] = {}
        self.refusals: list[Refusal] = []
        self.taken: set[str] = set()

    def products(self) -> None:
        """Products with their epilogues; refusals for those that cannot be integer."""
        for node in self.graph.nodes:
            if not is_op(node, *table.PRODUCTS):
                continue
            found = _product(self.graph, node)
            if isinstance(found, Refusal):
                self.refusals.append(found)
            else:
                self._add(self._with_epilogue(found))

    def residuals(self) -> None:
        """Additions of a tensor behind a product become part of its group.

        Where both summands are products', the later one takes the addition: the other summand is
        complete by then.
        """
        ends = {group.output: name for name, group in self.groups.items()}
        order = self.graph.index
        for node in self.graph.nodes:
            if node.name in self.taken or not is_op(node, "Add"):
                continue
            first, second = node.input
            if first == second or first in self.graph.constants or second in self.graph.constants:
                continue
            fitting = [
                (order[ends[name]], name, other)
                for name, other in ((first, second), (second, first))
                if name in ends
                and self.graph.is_private(name)
                and self.groups[ends[name]].residual is None
                and self._as_large(name, other)
            ]
            if not fitting:
                continue
            _, name, other = max(fitting)
            group = self.groups[ends.pop(name)]
            group = replace(
                group, nodes=(*group.nodes, node.name), residual=other, outputs=(node.output[0],)
            )
            group = self._with_epilogue(group)
            self._add(group)
            ends[group.output] = group.name

    def others(self) -> None:
        """Arithmetic, pointwise work and data movement; refusals for the rest."""
        for node in self.graph.nodes:
            if node.name in self.taken or is_op(node, *table.PRODUCTS):
                continue
            found = _other(self.graph, node)
            if found is not None:
                moves = found.kind == "move"
                self._add(found if moves else self._with_epilogue(found))
            elif node.op_type in table.FLOAT:
                self.refusals.append(Refusal(node.name, node.op_type, table.FLOAT[node.op_type]))

    def _add(self, group: Group) -> None:
        self.groups[group.name] = group
        self.taken.update(group.nodes)

    def _as_large(self, mine: str, other: str) -> bool:
        """Whether adding `other` leaves the shape of `mine`, as far as is known."""
        shape, second = self.graph.shape(mine), self.graph.shape(other)
        if shape is None or second is None:
            return False
        return len(shape) >= len(second) and all(
            b in (1, a) for a, b in zip(shape[::-1], second[::-1], strict=False)
        )

    def _with_epilogue(self, group: Group) -> Group:
        """The group with the pointwise work behind it that nothing else reads into."""
        nodes, output = list(group.nodes), group.output
        while len(nodes) <= MAX_EPILOGUE:
            region = self._region(output)
            if not region:
                break
            nodes += [node.name for node in region]
            output = region[-1].output[0]
        return replace(group, nodes=tuple(nodes), outputs=(output,))

    def _region(self, value: str) -> list[NodeProto]:
        """The smallest set of pointwise nodes that all uses of `value` pass through.

        Their other operands are constants; x·sigmoid(x) is such a set, and so is GELU written
        out. Empty where there is none.
        """
        graph, region, inside = self.graph, dict[str, NodeProto](), {value}
        while len(region) <= MAX_EPILOGUE:
            if any(name in graph.outputs for name in inside):
                return []
            waiting = {
                node.name: node
                for name in inside
                for node in graph.readers(name)
                if node.name not in region
            }
            if not waiting:
                return []
            node = min(waiting.values(), key=lambda node: graph.index[node.name])
            if node.name in self.taken or not _is_epilogue(graph, node, inside):
                return []
            region[node.name] = node
            inside.add(node.output[0])
            if all(
                reader.name in region
                for name in inside - {node.output[0]}
                for reader in graph.readers(name)
            ):
                return list(region.values())
        return []


def _is_epilogue(graph: Graph, node: NodeProto, inside: set[str]) -> bool:
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


def _product(graph: Graph, node: NodeProto) -> Group | Refusal:
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


def _other(graph: Graph, node: NodeProto) -> Group | None:
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


def by_weight(groups: Mapping[str, Group]) -> dict[str, list[Group]]:
    """Products by the name of their weights, which several may share."""
    found: dict[str, list[Group]] = {}
    for group in groups.values():
        if group.weight is not None:
            found.setdefault(group.weight, []).append(group)
    return found
