"""Refuses models that contradict the ONNX standard, or themselves in what they declare."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import onnx
from onnx import (
    ModelProto,
    NodeProto,
    TensorProto,
    TypeProto,
    ValueInfoProto,
    helper,
    numpy_helper,
)

from graphopt.errors import ModelError
from graphopt.frontend.model import OnnxModel, is_standard, tensor_nbytes
from graphopt.frontend.shapes import dimensions, static_shape, unbound_inputs

# The checker serialises what it checks; larger weights are checked by their size only.
_MAX_CHECKED_BYTES = 4096

_MAX_FINDING = 1000  # characters; names in damaged models can be of any length

# Findings of the checker that other stages handle better: the importer lists all unknown operators
# at once, and converts GroupNormalization of operator set 18, which ONNX withdrew.
_TOLERATED = ("No Op registered", "No opset import for domain", "is deprecated in domain_version")


def check_standard(proto: ModelProto) -> None:
    """Refuse what onnx.checker refuses, except what other stages say better."""
    skeleton = ModelProto(
        ir_version=proto.ir_version,
        opset_import=proto.opset_import,
        functions=proto.functions,
    )
    graph = skeleton.graph
    graph.name = proto.graph.name or "graph"
    graph.node.extend(proto.graph.node)
    graph.input.extend(proto.graph.input)
    graph.output.extend(proto.graph.output)
    graph.sparse_initializer.extend(proto.graph.sparse_initializer)
    for value in (*graph.input, *graph.output):
        # The checker requires types and shapes that exporters often leave out.
        if value.type.WhichOneof("value") is None:
            value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
        if value.type.WhichOneof("value") == "tensor_type":
            value.type.tensor_type.shape.SetInParent()
    known = {value.name for value in proto.graph.input}
    for tensor in proto.graph.initializer:
        inline = tensor.data_location != onnx.TensorProto.EXTERNAL
        if inline and tensor_nbytes(tensor) <= _MAX_CHECKED_BYTES and not _lacks_data(tensor):
            graph.initializer.append(tensor)
        elif tensor.name not in known:
            kind = helper.make_tensor_type_proto(tensor.data_type, list(tensor.dims))
            graph.input.append(ValueInfoProto(name=tensor.name, type=kind))
    try:
        onnx.checker.check_model(skeleton)
    except onnx.checker.ValidationError as error:
        text = str(error)
        if any(known in text for known in _TOLERATED):
            return
        raise ModelError(
            "prepare",
            f"The model is not valid ONNX: {_short(text)}",
            node=_node_at_fault(text),
            hint="Export the model again, or check it with onnx.checker.",
        ) from error


def check_declared(
    proto: ModelProto, nodes: Sequence[NodeProto], types: Mapping[str, TypeProto], bound: bool
) -> None:
    """Refuse outputs whose declared type or shape is not what their nodes compute.

    `types` are those found by inference, `nodes` those that remain. Shapes that the caller bound
    (`bound`) may be others than those an output was exported with.
    """
    makers = {name: node.name for node in nodes for name in node.output}
    fixed = not bound and not unbound_inputs(OnnxModel(proto))
    for value in proto.graph.output:
        declared, found = value.type, types.get(value.name)
        if found is None or declared.WhichOneof("value") != "tensor_type":
            continue
        if found.WhichOneof("value") != "tensor_type":
            continue
        stated, computed = declared.tensor_type.elem_type, found.tensor_type.elem_type
        if stated and computed and stated != computed:
            raise ModelError(
                "prepare",
                f"The output '{value.name}' is declared as {_type_name(stated)}, "
                f"it is {_type_name(computed)}.",
                node=makers.get(value.name),
                hint=_REDECLARE,
            )
        wanted, given = dimensions(declared), static_shape(found)
        if not fixed or wanted is None or given is None:
            continue
        fits = len(wanted) == len(given) and all(
            w in (None, g) for w, g in zip(wanted, given, strict=False)
        )
        if not fits:
            raise ModelError(
                "prepare",
                f"The output '{value.name}' is declared with the shape {_dims(wanted)}, "
                f"it has {_dims(given)}.",
                node=makers.get(value.name),
                hint=_REDECLARE,
            )


_REDECLARE = "Correct or remove the declaration (onnx.shape_inference shows the right one)."


def check_values(node: NodeProto, constants: Mapping[str, TensorProto]) -> None:
    """Refuse parameters for which ONNX's own definition of the operator makes no sense.

    Raises:
        ModelError: an AffineGrid aligns the corners of an axis of one element. The definition
            divides by zero; engines put the element at −1, 0 or 1.
    """
    if node.op_type != "AffineGrid" or not is_standard(node) or len(node.input) < 2:
        return
    size = constants.get(node.input[1])
    aligned = any(a.name == "align_corners" and a.i for a in node.attribute)
    if aligned and size is not None and 1 in numpy_helper.to_array(size).ravel()[2:]:
        raise ModelError(
            "prepare",
            "align_corners of an axis of one element divides by zero in ONNX's definition.",
            node=node.name,
            hint="Give sizes of at least 2, or do not align corners.",
        )


def _type_name(code: int) -> str:
    return str(TensorProto.DataType.Name(code)).lower()


def _dims(shape: Sequence[int | None]) -> str:
    return "(" + ", ".join("?" if dim is None else str(dim) for dim in shape) + ")"


def _short(text: str) -> str:
    words = " ".join(text.split())
    return words if len(words) <= _MAX_FINDING else f"{words[:_MAX_FINDING]}…"


def _node_at_fault(text: str) -> str | None:
    """The node that a finding of onnx.checker speaks of, if it has a name."""
    found = re.search(r"Bad node spec for node\. Name: (.*?) OpType:", text, re.DOTALL)
    return found.group(1)[:_MAX_FINDING] or None if found else None


def _lacks_data(tensor: onnx.TensorProto) -> bool:
    # A graph whose weights were stripped can still be inspected; import needs the values.
    return not any(
        (
            tensor.HasField("raw_data"),
            tensor.float_data,
            tensor.int32_data,
            tensor.int64_data,
            tensor.double_data,
            tensor.uint64_data,
            tensor.string_data,
        )
    )
