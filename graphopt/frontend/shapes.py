"""Types of values: binding the inputs' shapes, and inference of one node at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

import numpy as np
from onnx import (
    AttributeProto,
    GraphProto,
    ModelProto,
    NodeProto,
    TensorProto,
    TypeProto,
    ValueInfoProto,
    checker,
    defs,
    helper,
    numpy_helper,
    shape_inference,
)

from graphopt.errors import ModelError, OptionError
from graphopt.frontend import bounded
from graphopt.frontend.contrib_types import contrib_types
from graphopt.frontend.model import OnnxModel, domain_of

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


def unbound_inputs(model: OnnxModel) -> dict[str, Shape | None]:
    """Inputs with unbound dimensions: name → shape with None there (None: unknown rank)."""
    result: dict[str, Shape | None] = {}
    for value in graph_inputs(model.proto.graph):
        if value.type.WhichOneof("value") != "tensor_type":
            continue
        shape = dimensions(value.type)
        if shape is None or None in shape:
            result[value.name] = shape
    return result


def bind_shapes(proto: ModelProto, shapes: Mapping[str, Sequence[int]]) -> None:
    """Set the shapes of the model's inputs, in place.

    A named dimension bound by one input is bound in the others too. Exporters write an unbound
    dimension of an input as a name, as nothing, as 0 or as −1: afterwards 0 is what it says.

    Raises:
        OptionError: unknown input, wrong rank, a dimension that is fixed otherwise in the model,
            is negative, or has two values; more than 2^31 elements.
    """
    for value in graph_inputs(proto.graph):
        for dim in value.type.tensor_type.shape.dim:
            if dim.WhichOneof("value") == "dim_value" and dim.dim_value <= 0:
                dim.ClearField("value")
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
    declared = dimensions(value.type)
    for dim in wanted:
        if not isinstance(dim, (int, np.integer)) or isinstance(dim, bool) or dim < 0:
            raise OptionError(
                "prepare", f"Input '{name}': {dim!r} is not a dimension.", hint="Give integers ≥ 0."
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


def _operand(kind: TypeProto | None, constant: TensorProto | None) -> bounded.Operand | None:
    shape = static_shape(kind)
    if kind is None or shape is None:
        return None
    values = None if constant is None else numpy_helper.to_array(constant)
    return bounded.Operand(kind.tensor_type.elem_type, shape, values)


def _check_outputs(node: NodeProto) -> None:
    """Refuse what ends the process in ONNX's inference, which believes `num_outputs`."""
    stated = next((item.i for item in node.attribute if item.name == "num_outputs"), None)
    if node.op_type == "Split" and stated is not None and stated != len(node.output):
        raise ModelError(
            "prepare",
            f"num_outputs is {stated}, but the node has {len(node.output)} outputs.",
            node=node.name,
            hint="Correct the attribute.",
        )


_SHAPE_INPUTS = {"Expand": 1, "Reshape": 1, "Tile": 1, "ConstantOfShape": 0}
_MAX_RANK = 64


def _check_rank(node: NodeProto, types: Mapping[str, TypeProto]) -> None:
    """Refuse what fills the memory in ONNX's inference: one dimension per element of a shape."""
    place = _SHAPE_INPUTS.get(node.op_type, len(node.input))
    shape = static_shape(types.get(node.input[place])) if place < len(node.input) else None
    if shape is not None and (len(shape) > 1 or (shape and shape[0] > _MAX_RANK)):
        raise ModelError(
            "prepare",
            f"input {place} acts as a shape; it cannot be of shape {list(shape)}.",
            node=node.name,
            hint="Check the declared input shapes.",
        )


def infer_node(
    node: NodeProto,
    types: Mapping[str, TypeProto],
    constants: Mapping[str, TensorProto],
    opsets: Mapping[str, int],
) -> dict[str, TypeProto]:
    """Types of a node's outputs; empty for operators that are not known.

    Raises:
        ModelError: the inputs' static shapes or types contradict the operator.
    """
    domain = domain_of(node)
    if domain == bounded.DOMAIN:
        return bounded.infer_bounded(
            node, [_operand(types.get(n), constants.get(n)) for n in node.input]
        )
    try:
        schema = defs.get_schema(node.op_type, opsets.get(domain, 1), domain)
    except defs.SchemaError:
        return contrib_types(node, types)
    _check_outputs(node)
    _check_rank(node, types)
    inputs = {name: types[name] for name in node.input if name in types}
    data = {name: constants[name] for name in node.input if name in constants}
    try:
        inferred = shape_inference.infer_node_outputs(
            schema,
            _with_defaults(node),
            inputs,
            data,
            opset_imports=[helper.make_opsetid(d, v) for d, v in opsets.items()],
        )
    except shape_inference.InferenceError as error:
        shapes = [static_shape(types.get(name)) for name in node.input if name]
        if any(shape is not None and 0 in shape for shape in shapes):
            return {}  # inference is stricter with empty tensors than their meaning requires
        if None not in shapes:
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


def _with_defaults(node: NodeProto) -> NodeProto:
    """`node` as shape inference must see it.

    onnx 1.23 takes STFT's `onesided` for 0 where it is left out, though its default is 1
    (test_frontend_prepare tells when it no longer does).
    """
    if node.op_type != "STFT" or any(a.name == "onesided" for a in node.attribute):
        return node
    explicit = NodeProto()
    explicit.CopyFrom(node)
    explicit.attribute.add(name="onesided", type=AttributeProto.INT, i=1)
    return explicit
