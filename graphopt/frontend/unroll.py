"""Short loops and scans over tensors become straight-line nodes, which compile together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from onnx import AttributeProto, GraphProto, NodeProto, numpy_helper

from graphopt.frontend.control_flow import (
    batched,
    body_of,
    carried_count,
    known_length,
    scan_axes,
)
from graphopt.frontend.model import subgraphs
from graphopt.frontend.rename import produced, rename_nodes
from graphopt.frontend.shapes import dimensions

if TYPE_CHECKING:
    from graphopt.frontend.fold import Folder

# Longer loops stay loops: straight-line code grows with the iterations, and so does compiling it.
_MAX_ITERATIONS = 16
_MAX_NODES = 512


def unrolled(folder: Folder, node: NodeProto) -> list[NodeProto] | None:
    """`node`, with folded bodies, as straight-line nodes if it is a short loop over tensors.

    Its iterations must be known in advance: a constant trip count or length, and no early end.
    """
    if node.op_type not in ("Loop", "Scan") or batched(node):
        return None
    body = body_of(node)
    count = carried_count(node)
    trips = _trips(folder, node, body, count)
    if trips is None or not 1 <= trips <= _MAX_ITERATIONS:
        return None
    if trips * len(body.node) > _MAX_NODES or not _plain(folder, node, body):
        return None
    return list(_iterations(folder, node, body, count, trips))


def _trips(folder: Folder, node: NodeProto, body: GraphProto, count: int) -> int | None:
    if node.op_type == "Scan":
        axes = scan_axes(node, "scan_input_axes", len(node.input) - count)
        return known_length(folder, node, count, axes)
    trips = folder.constants.get(node.input[0])
    if trips is None:
        return None
    if node.input[1]:
        condition = folder.constants.get(node.input[1])
        if condition is None or not bool(folder.model.array(condition).reshape(-1)[0]):
            return None
    sources = {n.output[0]: n.input[0] for n in body.node if n.op_type == "Identity"}
    last = body.output[0].name
    while last in sources:
        last = sources[last]
    known = {t.name: t for t in body.initializer}.get(last) or folder.constants.get(last)
    goes_on = last == body.input[1].name or (
        known is not None and bool(folder.model.array(known).reshape(-1)[0])
    )
    return int(folder.model.array(trips).reshape(-1)[0]) if goes_on else None


def _plain(folder: Folder, node: NodeProto, body: GraphProto) -> bool:
    """Whether only tensors go in and come out, and the body has no body inside."""
    if any(True for inner in body.node for _ in subgraphs(inner)):
        return False
    kinds = {v.name: v.type for v in (*body.value_info, *body.input, *body.output)}
    names = {name for inner in body.node for name in (*inner.input, *inner.output) if name}
    names.update(value.name for value in (*body.input, *body.output))
    for name in names:
        kind = kinds.get(name) or folder.types.get(name)
        if kind is not None and kind.WhichOneof("value") not in (None, "tensor_type"):
            return False
    return True


def _iterations(
    folder: Folder, node: NodeProto, body: GraphProto, count: int, trips: int
) -> Iterator[NodeProto]:
    is_loop = node.op_type == "Loop"
    lead, flags, first = (2, 1, 2) if is_loop else (0, 0, 0)
    carried = list(node.input[first : first + count])
    scanned = [] if is_loop else list(node.input[count:])
    axes = scan_axes(node, "scan_input_axes", len(scanned))
    backward = scan_axes(node, "scan_input_directions", len(scanned))
    rows: list[list[str]] = [[] for _ in body.output[flags + count :]]
    constants = {tensor.name: f"{node.name}/{tensor.name}" for tensor in body.initializer}
    for tensor in body.initializer:
        folder.set_constant(constants[tensor.name], tensor)
    for k in range(trips):
        names = {n: f"{node.name}/{k}/{n}" for n in sorted(produced(body.node))}
        names.update(constants)
        if is_loop:
            for value, number in ((body.input[0], np.int64(k)), (body.input[1], np.bool_(True))):
                rank = len(dimensions(value.type) or ())
                names[value.name] = name = f"{node.name}/{k}/{value.name}"
                array = np.asarray(number).reshape((1,) * min(rank, 1))
                folder.set_constant(name, numpy_helper.from_array(array, name))
        for value, name in zip(body.input[lead : lead + count], carried, strict=True):
            names[value.name] = name
        for value, source, axis, back in zip(
            body.input[lead + count :], scanned, axes, backward, strict=True
        ):
            names[value.name] = name = f"{node.name}/{k}/{value.name}"
            index = trips - 1 - k if back else k
            yield from _pick(folder, node, source, name, axis, index)
        copies = GraphProto()
        copies.node.extend(body.node)
        rename_nodes(copies.node, names)
        for inner in copies.node:
            inner.name = f"{inner.name}[{k}]"
            yield inner
        results = [names.get(value.name, value.name) for value in body.output]
        carried = results[flags : flags + count]
        for row, name in zip(rows, results[flags + count :], strict=True):
            row.append(name)
    for name, target in zip(carried, node.output, strict=False):
        if target:
            yield NodeProto(
                op_type="Identity", input=[name], output=[target], name=f"{node.name}/{target}"
            )
    out_axes = scan_axes(node, "scan_output_axes", len(rows))
    out_backward = scan_axes(node, "scan_output_directions", len(rows))
    for row, target, axis, back in zip(
        rows, node.output[count:], out_axes, out_backward, strict=False
    ):
        if target:
            yield from _stack(folder, node, row[::-1] if back else row, target, axis)


def _pick(
    folder: Folder, node: NodeProto, source: str, target: str, axis: int, index: int
) -> Iterator[NodeProto]:
    place = f"{target}/index"
    folder.set_constant(place, numpy_helper.from_array(np.int64(index), place))
    pick = NodeProto(op_type="Gather", input=[source, place], output=[target], name=f"{target}/cut")
    pick.attribute.add(name="axis", type=AttributeProto.INT, i=axis)
    yield pick


def _stack(
    folder: Folder, node: NodeProto, row: Sequence[str], target: str, axis: int
) -> Iterator[NodeProto]:
    parts = []
    where = f"{target}/axis"
    by_input = folder.opsets.get("", 1) >= 13
    if by_input:
        folder.set_constant(where, numpy_helper.from_array(np.array([axis], np.int64), where))
    for k, name in enumerate(row):
        part = f"{target}/{k}"
        inputs = [name, where] if by_input else [name]
        wide = NodeProto(op_type="Unsqueeze", input=inputs, output=[part], name=part)
        if not by_input:
            wide.attribute.add(name="axes", type=AttributeProto.INTS, ints=[axis])
        parts.append(part)
        yield wide
    join = NodeProto(op_type="Concat", input=parts, output=[target], name=f"{node.name}/{target}")
    join.attribute.add(name="axis", type=AttributeProto.INT, i=axis)
    yield join
