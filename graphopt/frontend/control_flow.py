"""If, Loop and Scan during preparation: their bodies are folded, and their types inferred."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from onnx import AttributeProto, GraphProto, NodeProto, TensorProto, TypeProto, helper

from graphopt.errors import ModelError
from graphopt.frontend.model import CONTROL_FLOW, is_standard
from graphopt.frontend.shapes import dimensions

if TYPE_CHECKING:
    from graphopt.frontend.fold import Folder


_MAX_ROUNDS = 64


def is_control_flow(node: NodeProto) -> bool:
    """Whether the node is If, Loop or Scan."""
    return node.op_type in CONTROL_FLOW and is_standard(node)


def body_of(node: NodeProto, name: str = "body") -> GraphProto:
    """A node's graph attribute.

    Raises:
        ModelError: there is none.
    """
    for attribute in node.attribute:
        if attribute.name == name and attribute.type == AttributeProto.GRAPH:
            return attribute.g
    raise ModelError("prepare", f"{node.op_type} has no {name}.", node=node.name)


def attributes(node: NodeProto) -> dict[str, object]:
    """All attributes of a node but its graphs."""
    return {a.name: helper.get_attribute_value(a) for a in node.attribute if not a.HasField("g")}


def fold_bodies(folder: Folder, node: NodeProto) -> NodeProto:
    """The node with folded and typed bodies; the types of its outputs are noted in `folder`.

    The types of carried values are a fixpoint: what the body changes is left open.

    Raises:
        ModelError: the node has the wrong number of inputs or outputs for its body.
    """
    if node.op_type == "If":
        return _fold_if(folder, node)
    return _fold_loop(folder, node)


def _fold_if(folder: Folder, node: NodeProto) -> NodeProto:
    bodies = {name: body_of(node, name) for name in ("then_branch", "else_branch")}
    folded = {name: folder.body(node, graph, {}) for name, graph in bodies.items()}
    sides = [
        [inner.types.get(value.name) for value in bodies[name].output]
        for name, inner in folded.items()
    ]
    for then, otherwise, name in zip(*sides, node.output, strict=False):
        if name:
            folder.set_type(name, joined(then, otherwise))
    return _with_bodies(node, {name: inner.graph() for name, inner in folded.items()})


def carried_count(node: NodeProto) -> int:
    """How many values a Loop or Scan carries from one iteration to the next."""
    if node.op_type == "Loop":
        return len(node.input) - 2
    scanned = next(a.i for a in node.attribute if a.name == "num_scan_inputs")
    return len(node.input) - int(scanned) - int(batched(node))


def batched(node: NodeProto) -> bool:
    """Whether a Scan is that of operator set 8, whose inputs have a batch axis.

    Told from the number of inputs: only there sequence_lens precedes the others.
    """
    if node.op_type != "Scan":
        return False
    return len(node.input) == len(body_of(node).input) + 1


def _fold_loop(folder: Folder, node: NodeProto) -> NodeProto:
    body = body_of(node)
    count = carried_count(node)
    is_loop = node.op_type == "Loop"
    first = 2 if is_loop else int(batched(node))
    lead = 2 if is_loop else 0
    flags = 1 if is_loop else 0
    if len(body.input) != lead + len(node.input) - first or len(body.output) - flags < count:
        raise ModelError(
            "prepare",
            f"{node.op_type} has {len(node.input)} inputs, its body {len(body.input)} inputs and "
            f"{len(body.output)} outputs.",
            node=node.name,
        )
    batch = 1 if batched(node) else 0
    carried = [
        _cut(folder.types.get(name), [0] * batch) or value.type
        for name, value in zip(
            node.input[first : first + count], body.input[lead : lead + count], strict=True
        )
    ]
    fixed: list[TypeProto] = []
    if is_loop:
        fixed = [_counter(body.input[0].type, TensorProto.INT64)]
        fixed.append(_counter(body.input[1].type, TensorProto.BOOL))
    axes = scan_axes(node, "scan_input_axes", len(node.input) - first - count)
    slices = [
        _cut(folder.types.get(name), [batch + axis if batch else axis] + [0] * batch) or value.type
        for name, value, axis in zip(
            node.input[first + count :] if not is_loop else (),
            body.input[lead + count :],
            axes,
            strict=True,
        )
    ]
    for _ in range(_MAX_ROUNDS):
        kinds = dict(
            zip((value.name for value in body.input), (*fixed, *carried, *slices), strict=True)
        )
        inner = folder.body(node, body, kinds)
        results = [inner.types.get(value.name) for value in body.output]
        found = [
            joined(old, new)
            for old, new in zip(carried, results[flags : flags + count], strict=True)
        ]
        if found == carried:
            break
        carried = found
    steps = known_length(folder, node, first + count, axes)
    for name, kind in zip(node.output, carried, strict=False):
        if name:
            folder.set_type(name, _stacked(kind, [0], [None]) if batch else kind)
    out_axes = scan_axes(node, "scan_output_axes", len(body.output) - flags - count)
    stacked = results[flags + count :]
    for name, kind, axis in zip(node.output[count:], stacked, out_axes, strict=False):
        if name:
            place = [0, 1] if batch else [axis]
            folder.set_type(name, _stacked(kind, place, [None] * batch + [steps]))
    return _with_bodies(node, {"body": inner.graph()})


def scan_axes(node: NodeProto, name: str, count: int) -> list[int]:
    """An attribute with an axis (or direction) per scanned value; 0 by default."""
    for attribute in node.attribute:
        if attribute.name == name:
            return [int(v) for v in attribute.ints]
    return [0] * count


def known_length(folder: Folder, node: NodeProto, first: int, axes: Sequence[int]) -> int | None:
    """How often a Scan runs its body, if the shapes say; None for a Loop, which may end early."""
    if node.op_type != "Scan" or batched(node):
        return None
    for name, axis in zip(node.input[first:], axes, strict=False):
        kind = folder.types.get(name)
        shape = None if kind is None else dimensions(kind)
        if shape is not None and -len(shape) <= axis < len(shape):
            return shape[axis]
    return None


def joined(a: TypeProto | None, b: TypeProto | None) -> TypeProto:
    """The most specific type that covers both: a dimension in which they differ is open."""
    result = TypeProto()
    first = None if a is None else a.WhichOneof("value")
    second = None if b is None else b.WhichOneof("value")
    if a is None or b is None or first is None or second is None:
        known = a if second is None else b
        if known is not None and known.WhichOneof("value") == "tensor_type":
            result.tensor_type.elem_type = known.tensor_type.elem_type
        elif known is not None:
            result.CopyFrom(known)
        return result
    if first != second:
        if "optional_type" not in (first, second):
            return result
        inner = [k.optional_type.elem_type if k.HasField("optional_type") else k for k in (a, b)]
        result.optional_type.elem_type.CopyFrom(joined(*inner))
        return result
    if first in ("sequence_type", "optional_type"):
        kind = joined(getattr(a, first).elem_type, getattr(b, first).elem_type)
        getattr(result, first).elem_type.CopyFrom(kind)
        return result
    result.tensor_type.elem_type = a.tensor_type.elem_type or b.tensor_type.elem_type
    mine_all, others = dimensions(a), dimensions(b)
    if mine_all is not None and others is not None and len(mine_all) == len(others):
        result.tensor_type.shape.SetInParent()
        for mine, other in zip(mine_all, others, strict=True):
            dim = result.tensor_type.shape.dim.add()
            if mine is not None and mine == other:
                dim.dim_value = mine
    return result


def _counter(declared: TypeProto, element: int) -> TypeProto:
    shape = dimensions(declared)
    return helper.make_tensor_type_proto(element, [1] if shape is not None and shape else [])


def _cut(kind: TypeProto | None, axes: Sequence[int]) -> TypeProto | None:
    """The type without these axes, removed one after another; None if nothing is known."""
    if kind is None or kind.WhichOneof("value") is None:
        return None
    if kind.WhichOneof("value") != "tensor_type":
        return kind
    if not kind.tensor_type.elem_type:
        return None
    shape = dimensions(kind)
    result = TypeProto()
    result.tensor_type.elem_type = kind.tensor_type.elem_type
    if shape is None:
        return result
    dims = list(shape)
    for axis in axes:
        if not -len(dims) <= axis < len(dims):
            return result
        del dims[axis]
    return helper.make_tensor_type_proto(kind.tensor_type.elem_type, dims)


def _stacked(kind: TypeProto | None, axes: Sequence[int], sizes: Sequence[int | None]) -> TypeProto:
    """The type with axes of these sizes put in at these places of the result."""
    if kind is None or kind.WhichOneof("value") != "tensor_type":
        return TypeProto()
    shape = dimensions(kind)
    result = TypeProto()
    result.tensor_type.elem_type = kind.tensor_type.elem_type
    if shape is None:
        return result
    dims = list(shape)
    for axis, size in zip(axes, sizes, strict=True):
        dims.insert(axis if axis >= 0 else axis + len(dims) + 1, size)
    return helper.make_tensor_type_proto(kind.tensor_type.elem_type, dims)


def _with_bodies(node: NodeProto, bodies: Mapping[str, GraphProto]) -> NodeProto:
    copy = NodeProto(
        op_type=node.op_type,
        domain=node.domain,
        name=node.name,
        input=node.input,
        output=node.output,
    )
    for attribute in node.attribute:
        if attribute.name in bodies:
            copy.attribute.add(name=attribute.name, type=attribute.type, g=bodies[attribute.name])
        else:
            copy.attribute.add().CopyFrom(attribute)
    return copy
