"""Types of values: binding the inputs' shapes, and inference of one node at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

import numpy as np
from onnx import (
    GraphProto,
    ModelProto,
    NodeProto,
    TensorProto,
    TypeProto,
    ValueInfoProto,
    checker,
    defs,
    helper,
    shape_inference,
)

from graphopt.errors import ModelError, OptionError
from graphopt.frontend.model import OnnxModel

Shape = tuple[int | None, ...]

_MAX_ELEMENTS = 2**31 - 1


def dimensions(kind: TypeProto) -> Shape | None:
    """Shape of a tensor type, None where a dimension is unbound; None if the rank is unknown."""
    if kind.WhichOneof("value") != "tensor_type" or not kind.tensor_type.HasField("shape"):
        return None
    return tuple(
        dim.dim_value if dim.WhichOneof("value") == "dim_value" and dim.dim_value >= 0 else None
        for dim in kind.tensor_type.shape.dim
    )


def static_shape(kind: TypeProto | None) -> tuple[int, ...] | None:
    """Shape of a tensor type if every dimension is known, else None."""
    shape = None if kind is None else dimensions(kind)
    if shape is None or any(dim is None for dim in shape):
        return None
    return tuple(dim for dim in shape if dim is not None)


def tensor_type(tensor: TensorProto) -> TypeProto:
    """Type of a tensor with data."""
    return helper.make_tensor_type_proto(tensor.data_type, list(tensor.dims))


def graph_inputs(graph: GraphProto) -> list[ValueInfoProto]:
    """Inputs that the caller gives: those without an initializer."""
    known = {tensor.name for tensor in graph.initializer}
    known.update(tensor.values.name for tensor in graph.sparse_initializer)
    return [value for value in graph.input if value.name not in known]


def _input_shape(value: ValueInfoProto) -> Shape | None:
    # Exporters write an unbound input dimension as a name, as nothing, as 0 or as -1.
    shape = dimensions(value.type)
    return None if shape is None else tuple(dim or None for dim in shape)


def unbound_inputs(model: OnnxModel) -> dict[str, Shape | None]:
    """Inputs with unbound dimensions: name → shape with None there (None: unknown rank)."""
    result: dict[str, Shape | None] = {}
    for value in graph_inputs(model.proto.graph):
        if value.type.WhichOneof("value") != "tensor_type":
            continue
        shape = _input_shape(value)
        if shape is None or None in shape:
            result[value.name] = shape
    return result


def bind_shapes(proto: ModelProto, shapes: Mapping[str, Sequence[int]]) -> None:
    """Set the shapes of the model's inputs, in place.

    A named dimension bound by one input is bound in the others too.

    Raises:
        OptionError: unknown input, wrong rank, a dimension that is fixed otherwise in the model,
            is not positive, or has two values; more than 2^31 elements.
    """
    inputs = {value.name: value for value in graph_inputs(proto.graph)}
    symbols: dict[str, tuple[int, str]] = {}
    for name, wanted in shapes.items():
        if name not in inputs:
            raise OptionError(
                "prepare",
                f"shapes names '{name}', which is no input of the model.",
                hint=f"The inputs are: {', '.join(inputs) or '(none)'}.",
            )
        _bind_input(inputs[name], wanted, symbols)
    for name, value in inputs.items():
        for dim in value.type.tensor_type.shape.dim:
            bound = symbols.get(dim.dim_param) if _is_symbol(dim.dim_param) else None
            if bound is not None and name not in shapes:
                dim.dim_value = bound[0]


def _is_symbol(name: str) -> bool:
    # Paddle names every unknown dimension "?": equal names then mean nothing.
    return any(character.isalnum() for character in name)


def _bind_input(
    value: ValueInfoProto, wanted: Sequence[int], symbols: dict[str, tuple[int, str]]
) -> None:
    name = value.name
    declared = _input_shape(value)
    for dim in wanted:
        if not isinstance(dim, (int, np.integer)) or isinstance(dim, bool) or dim <= 0:
            raise OptionError(
                "prepare", f"Input '{name}': {dim!r} is not a dimension.", hint="Give integers ≥ 1."
            )
    if prod(int(dim) for dim in wanted) > _MAX_ELEMENTS:
        raise OptionError("prepare", f"Input '{name}': {tuple(wanted)} has over 2^31 elements.")
    if declared is not None and len(declared) != len(wanted):
        raise OptionError(
            "prepare",
            f"Input '{name}' has {len(declared)} dimensions {_show(value)}, "
            f"shapes gives {len(wanted)}: {tuple(wanted)}.",
        )
    proto = value.type.tensor_type.shape
    if declared is None:
        proto.Clear()
        for _ in wanted:
            proto.dim.add()
        declared = (None,) * len(wanted)
    for i, (dim, fixed, size) in enumerate(zip(proto.dim, declared, wanted, strict=True)):
        if fixed is not None and fixed != size:
            raise OptionError(
                "prepare",
                f"Input '{name}': dimension {i} is {fixed} in the model, shapes gives {size}.",
                hint=f"The model's shape is {_show(value)}.",
            )
        if _is_symbol(dim.dim_param):
            other = symbols.setdefault(dim.dim_param, (int(size), name))
            if other[0] != size:
                raise OptionError(
                    "prepare",
                    f"Dimension '{dim.dim_param}' is {other[0]} in input '{other[1]}' "
                    f"and {size} in input '{name}'.",
                    hint="A named dimension has one value in the whole model.",
                )
    for dim, size in zip(proto.dim, wanted, strict=True):
        dim.dim_value = int(size)


def _show(value: ValueInfoProto) -> str:
    dims = value.type.tensor_type.shape.dim
    return "(" + ", ".join(dim.dim_param or str(dim.dim_value or "?") for dim in dims) + ")"


def infer_node(
    node: NodeProto,
    types: Mapping[str, TypeProto],
    constants: Mapping[str, TensorProto],
    opsets: Mapping[str, int],
) -> dict[str, TypeProto]:
    """Types of a node's outputs; empty for operators that ONNX does not define.

    Raises:
        ModelError: the inputs' static shapes or types contradict the operator.
    """
    domain = "" if node.domain == "ai.onnx" else node.domain
    try:
        schema = defs.get_schema(node.op_type, opsets.get(domain, 1), domain)
    except defs.SchemaError:
        return {}
    inputs = {name: types[name] for name in node.input if name in types}
    data = {name: constants[name] for name in node.input if name in constants}
    try:
        inferred = shape_inference.infer_node_outputs(
            schema,
            node,
            inputs,
            data,
            opset_imports=[helper.make_opsetid(d, v) for d, v in opsets.items()],
        )
    except shape_inference.InferenceError as error:
        if all(static_shape(types.get(name)) is not None for name in node.input if name):
            detail = str(error).splitlines()[0].split("] ", 1)[-1].rstrip(".")
            shown = ", ".join(
                f"{name} {list(static_shape(types[name]) or ())}" for name in node.input if name
            )
            raise ModelError(
                "prepare",
                f"{node.op_type} cannot take these inputs: {shown} ({detail}).",
                node=node.name,
                hint="Check the given input shapes.",
            ) from error
        return {}
    except (checker.ValidationError, RuntimeError, ValueError, KeyError):
        return {}  # missing types or a withdrawn operator: nothing is known about the outputs
    return dict(inferred)
