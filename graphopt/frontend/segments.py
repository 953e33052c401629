"""Segments: parts of a prepared model that compile like models, while it is being cut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from onnx import ModelProto, NodeProto, TypeProto, ValueInfoProto, helper

from graphopt.codegen.host_program import SegmentSpec
from graphopt.errors import ModelError
from graphopt.frontend.bounded import DOMAIN
from graphopt.frontend.model import OnnxModel
from graphopt.frontend.scope import Scope, spec_of
from graphopt.frontend.shapes import static_shape
from graphopt.frontend.specialise import value_positions


@dataclass(frozen=True, eq=False)
class Segment:
    """A part of a model that compiles like a model.

    Attributes:
        model: its inputs are open where shapes depend on data; see prepare_segment.
        static: all shapes are known, and no value is needed: it can be compiled in advance.
    """

    spec: SegmentSpec
    model: OnnxModel
    static: bool


@dataclass(eq=False)
class Rows:
    """Values with as many rows as one count says: name → axis. limit: the most; 0 if unknown."""

    limit: int
    axes: dict[str, int] = field(default_factory=dict)


def value_operands(node: NodeProto) -> list[str]:
    """Inputs of `node` whose values must be known to compile it."""
    positions = value_positions(node)
    places = range(len(node.input)) if positions is None else positions
    return [node.input[i] for i in places if i < len(node.input) and node.input[i]]


class Segments:
    """The segments of a model, made while its graphs are cut."""

    def __init__(self, model: OnnxModel) -> None:
        self.model = model
        self.segments: list[Segment] = []

    def add(
        self,
        nodes: Sequence[NodeProto],
        scope: Scope,
        inputs: list[str],
        outputs: list[str],
        rows: Rows | None,
    ) -> int:
        """Make a segment of these nodes, row-wise if `rows` is given; its index."""
        source = self.model.proto
        proto = ModelProto(ir_version=source.ir_version, opset_import=source.opset_import)
        if any(node.domain == DOMAIN for node in nodes):
            proto.opset_import.append(helper.make_opsetid(DOMAIN, 1))
        proto.graph.name = f"segment{len(self.segments)}"
        proto.graph.node.extend(nodes)
        kinds = {name: _open(scope.type(name)) for name in (*inputs, *outputs)}
        for name in inputs:
            if not kinds[name].tensor_type.elem_type:
                raise ModelError(
                    "prepare",
                    f"the type of '{name}' is not known.",
                    node=next(node.name for node in nodes if name in node.input),
                    hint="Run ONNX shape inference on the model, or state the types.",
                )
            proto.graph.input.append(ValueInfoProto(name=name, type=kinds[name]))
        for name in outputs:
            proto.graph.output.append(ValueInfoProto(name=name, type=kinds[name]))
        used = {name for node in nodes for name in node.input if name}
        made = {name for node in nodes for name in node.output}
        shared = {}
        for name in sorted(used - made):
            tensor = scope.constant(name)
            if tensor is not None:
                shared[name] = tensor
        needed = {name for node in nodes for name in value_operands(node)} - made - set(shared)
        bound = tuple(name for name in inputs if name in needed)
        spec = SegmentSpec(
            inputs=tuple(spec_of(name, kinds[name]) for name in inputs),
            outputs=tuple(spec_of(name, kinds[name]) for name in outputs),
            bound=bound,
            nodes=tuple(node.name for node in nodes),
        )
        if rows is not None:
            spec = replace(
                spec,
                row_inputs=tuple(rows.axes.get(name, -1) for name in inputs),
                row_outputs=tuple(rows.axes.get(name, -1) for name in outputs),
                row_limit=rows.limit,
            )
        static = not bound and all(static_shape(kinds[name]) is not None for name in inputs)
        model = OnnxModel(proto, self.model.base_dir, shared)
        self.segments.append(Segment(spec, model, static))
        return len(self.segments) - 1


def _open(kind: TypeProto) -> TypeProto:
    """The type without names of dimensions: what had one name may differ at run time."""
    result = TypeProto()
    result.CopyFrom(kind)
    for dim in result.tensor_type.shape.dim:
        if dim.WhichOneof("value") == "dim_param":
            dim.ClearField("value")
    return result
