"""What a model takes and gives, and how given shapes bind its inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from onnx import ModelProto, TensorProto, ValueInfoProto, helper

from graphopt.codegen.plan import TensorSpec
from graphopt.errors import ModelError, OptionError
from graphopt.frontend.model import OnnxModel
from graphopt.frontend.shapes import bind_shapes, dimensions, graph_inputs, static_shape


@dataclass(frozen=True)
class Signature:
    """A model's inputs and outputs; a dimension is None where the model leaves it open.

    An output whose rank the model does not state has the shape ().
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    _skeleton: ModelProto = field(repr=False, compare=False)

    @property
    def static(self) -> bool:
        """Whether the model itself states every input's shape."""
        return all(None not in spec.shape for spec in self.inputs) and not self._unknown_ranks()

    def bind(self, shapes: Mapping[str, Sequence[int]]) -> dict[str, tuple[int, ...]]:
        """The shape of every input when those named in `shapes` have these; the rest must follow.

        Raises:
            OptionError: the shapes do not fit the model, or leave a dimension open.
        """
        skeleton = ModelProto()
        skeleton.CopyFrom(self._skeleton)
        bind_shapes(skeleton, shapes)
        bound = {}
        for value in graph_inputs(skeleton.graph):
            shape = static_shape(value.type)
            if shape is None or 0 in shape:
                raise OptionError(
                    "shapes",
                    f"input '{value.name}' has unbound dimensions {_show(value)}.",
                    hint=f"give its shape: shapes={{'{value.name}': (…)}}, "
                    f"on the command line --shape {value.name}=1,…",
                )
            bound[value.name] = shape
        return bound

    def _unknown_ranks(self) -> bool:
        return any(dimensions(v.type) is None for v in graph_inputs(self._skeleton.graph))


def signature_of(model: OnnxModel) -> Signature:
    """The signature of a model.

    Raises:
        ModelError: an input or output is no tensor of numbers.
    """
    graph = model.proto.graph
    skeleton = ModelProto()
    for value in graph_inputs(graph):
        skeleton.graph.input.add().CopyFrom(value)
    return Signature(
        tuple(_spec(value, "input") for value in skeleton.graph.input),
        tuple(_spec(value, "output") for value in graph.output),
        skeleton,
    )


def _spec(value: ValueInfoProto, role: str) -> TensorSpec:
    kind = value.type.WhichOneof("value")
    element = value.type.tensor_type.elem_type
    if kind not in (None, "tensor_type") or element == TensorProto.STRING:
        what = "strings" if kind == "tensor_type" else f"a {str(kind).removesuffix('_type')}"
        raise ModelError(
            "load", f"the {role} '{value.name}' is {what}; only tensors of numbers are supported."
        )
    if element == TensorProto.UNDEFINED:
        if role == "input":
            raise ModelError("load", f"the input '{value.name}' has no element type.")
        return TensorSpec(value.name, "float32", ())
    dtype = str(helper.tensor_dtype_to_np_dtype(element))
    return TensorSpec(value.name, dtype, tuple(d or None for d in dimensions(value.type) or ()))


def _show(value: ValueInfoProto) -> str:
    if dimensions(value.type) is None:
        return "of unknown rank"
    dims = value.type.tensor_type.shape.dim
    return "(" + ", ".join(str(d.dim_value or d.dim_param or "?") for d in dims) + ")"
