"""What a model takes and gives, and how given shapes bind its inputs."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto, ValueInfoProto, helper

from graphopt.artifact.plan_json import VALUE_RANGES
from graphopt.codegen.host_program import TENSOR
from graphopt.codegen.plan import TensorSpec
from graphopt.config import Constant, suggestion
from graphopt.errors import ModelError, OptionError
from graphopt.frontend.model import OnnxModel
from graphopt.frontend.prepare import prepare
from graphopt.frontend.scope import unwrapped
from graphopt.frontend.shapes import bind_shapes, dimensions, graph_inputs, static_shape
from graphopt.frontend.specialise import value_inputs
from graphopt.runtime.memory import numpy_dtype
from graphopt.specialisations import MAX_VALUES, Key, values_of

_LISTS = ("sequence_type", "optional_type")


@dataclass(frozen=True)
class Signature:
    """A model's inputs and outputs; a dimension is None where the model leaves it open.

    A dimension that the model states as 0 is open too: that is how some exporters write it. It
    is 0 where a shape or an array given for the input has 0 there.

    An output whose rank the model does not state has the shape ().
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    _skeleton: ModelProto = field(repr=False, compare=False)

    @property
    def static(self) -> bool:
        """Whether the model itself states every input's shape."""
        closed = all(None not in s.shape for s in self.inputs if s.kind == TENSOR)
        return closed and not self._unknown_ranks()

    def bind(self, shapes: Mapping[str, Sequence[int]]) -> dict[str, tuple[int, ...]]:
        """The shape of every input when those named in `shapes` have these; the rest must follow.

        Raises:
            OptionError: the shapes do not fit the model, or leave a dimension open.
        """
        skeleton = ModelProto()
        skeleton.CopyFrom(self._skeleton)
        bind_shapes(skeleton, shapes)
        bound: dict[str, tuple[int, ...]] = {}
        for value in graph_inputs(skeleton.graph):
            if value.type.WhichOneof("value") in _LISTS:
                bound[value.name] = ()  # what comes is seen step by step
                continue
            shape = static_shape(value.type)
            if shape is None:
                raise OptionError(
                    "shapes",
                    f"input '{value.name}' has unbound dimensions {_show(value)}.",
                    hint=f"give its shape: shapes={{'{value.name}': (…)}}, "
                    f"on the command line --shape {value.name}=1,…",
                )
            bound[value.name] = shape
        return bound

    def key(
        self,
        shapes: Mapping[str, Sequence[int]],
        constants: Sequence[Constant],
        bound: Mapping[str, str],
    ) -> Key:
        """The specialisation for these shapes and values; shapes that they imply may be left out.

        Args:
            bound: inputs whose values are needed → the node that needs them.

        Raises:
            OptionError: the shapes or values do not fit the model, or leave something open.
        """
        arrays = constant_arrays(self, constants)
        require_values(bound, arrays)
        found = self.bind({**{name: array.shape for name, array in arrays.items()}, **shapes})
        for name, array in arrays.items():
            if found[name] != array.shape:
                raise OptionError(
                    "constants",
                    f"the value of input '{name}' has shape {array.shape}, its input "
                    f"{found[name]}.",
                )
        values = (values_of(arrays[name]) for name in bound)
        return Key(tuple(found.values()), tuple(values))

    def _unknown_ranks(self) -> bool:
        return any(
            dimensions(v.type) is None
            for v in graph_inputs(self._skeleton.graph)
            if v.type.WhichOneof("value") not in _LISTS
        )


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
    what, inner = unwrapped(value.type)
    kind = inner.WhichOneof("value")
    element = inner.tensor_type.elem_type
    if kind not in (None, "tensor_type") or element == TensorProto.STRING:
        held = "strings" if kind == "tensor_type" else f"a {str(kind).removesuffix('_type')}"
        raise ModelError(
            "load",
            f"the {role} '{value.name}' holds {held}; only tensors of numbers, and sequences and "
            "optionals of these, are supported.",
        )
    if element == TensorProto.UNDEFINED:
        if role == "input":
            raise ModelError("load", f"the input '{value.name}' has no element type.")
        return TensorSpec(value.name, "float32", (), what)
    try:
        dtype = str(helper.tensor_dtype_to_np_dtype(element))
    except KeyError:
        raise ModelError(
            "load", f"the {role} '{value.name}' has the unknown element type {element}."
        ) from None
    shape = tuple(d or None for d in dimensions(inner) or ())
    return TensorSpec(value.name, dtype, shape, what)


def _show(value: ValueInfoProto) -> str:
    if dimensions(value.type) is None:
        return "of unknown rank"
    dims = value.type.tensor_type.shape.dim
    return "(" + ", ".join(str(d.dim_value or d.dim_param or "?") for d in dims) + ")"


def bound_inputs(
    model: OnnxModel, signature: Signature, constants: Sequence[Constant]
) -> dict[str, str]:
    """Inputs whose values are compiled in → the first node that needs them, in the model's order.

    Args:
        constants: values that the user gives; those inputs are compiled in, needed or not.

    Raises:
        ModelError: the model is invalid.
    """
    needed: dict[str, str] = {}
    # Most models have no such input and need no look inside.
    if any(spec.dtype in VALUE_RANGES for spec in signature.inputs):
        needed = value_inputs(prepare(model))
    given = {constant.name: "(given as a constant)" for constant in constants}
    found = {**given, **needed}
    return {spec.name: found[spec.name] for spec in signature.inputs if spec.name in found}


def require_values(bound: Mapping[str, str], given: Container[str]) -> None:
    """Raise OptionError for an input in `bound` (with the node that needs it) not `given`."""
    for name, node in bound.items():
        if name not in given:
            raise OptionError(
                "constants",
                f"the value of input '{name}' is needed to compile node {node}.",
                hint=f"give it: constants={{'{name}': …}}, on the command line --constant {name}=…",
            )


def constant_arrays(
    signature: Signature, constants: Sequence[Constant]
) -> dict[str, np.ndarray[Any, Any]]:
    """The constants as arrays of their inputs' types and ranks.

    Raises:
        OptionError: there is no such input, or the value does not fit it.
    """
    specs = {spec.name: spec for spec in signature.inputs}
    arrays = {}
    for constant in constants:
        spec = specs.get(constant.name)
        if spec is None:
            raise OptionError(
                "constants",
                f"'{constant.name}' is no input of the model.",
                hint=suggestion(constant.name, list(specs)),
            )
        shape = _checked_shape(constant, spec)
        arrays[spec.name] = np.array(constant.values, numpy_dtype(spec.dtype)).reshape(shape)
    return arrays


def _checked_shape(constant: Constant, spec: TensorSpec) -> tuple[int, ...]:
    if spec.dtype not in VALUE_RANGES:
        raise OptionError(
            "constants",
            f"input '{spec.name}' is {spec.dtype}; values of that type cannot be compiled in.",
            hint="give its value when running.",
        )
    low, high = VALUE_RANGES[spec.dtype]
    if len(constant.values) > MAX_VALUES:
        raise OptionError(
            "constants",
            f"the value of input '{spec.name}' has {len(constant.values)} elements; at most "
            f"{MAX_VALUES} can be compiled in.",
        )
    for value in constant.values:
        if spec.dtype.startswith("float"):
            break  # any number is one, rounded
        if isinstance(value, float) or not low <= value <= high:
            raise OptionError(
                "constants", f"{value} is no value of input '{spec.name}', which is {spec.dtype}."
            )
    # One number serves for a tensor of one element too.
    if constant.shape == () and all(dim in (1, None) for dim in spec.shape):
        return (1,) * len(spec.shape)
    if spec.shape and len(constant.shape) != len(spec.shape):
        raise OptionError(
            "constants",
            f"input '{spec.name}' has {len(spec.shape)} dimensions, its value has "
            f"{len(constant.shape)}.",
        )
    return constant.shape
