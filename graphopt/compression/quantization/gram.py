"""Gram matrices of what products read: by them, layer-wise methods know their error.

For a product y = W·x, the squared error of weights W + D is E‖D·x‖² = tr(D·H·Dᵀ) with H = E[x·xᵀ].
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import NodeProto

from graphopt.compression.quantization.graph import Graph, attribute
from graphopt.compression.quantization.groups import Group
from graphopt.compression.quantization.running import Batches, Run, observed
from graphopt.frontend.model import Array, OnnxModel

_MEMORY = 1 << 28
"""Bytes of Gram matrices that are gathered in one pass over the data."""
_ROWS = 4096
"""Positions of one batch that count: of a large picture, evenly spread ones."""


@dataclass(frozen=True, eq=False)
class Layer:
    """A product as matrices: weights (groups, rows, columns) and Gram (groups, columns, columns).

    Rows are output channels, columns what is summed, as in `as_matrices`.
    """

    group: Group
    gram: Array


def as_matrices(weight: Array, node: NodeProto, group: Group) -> Array:
    """Weights as (groups, output channels of one, summed)."""
    if group.op == "Conv":
        count = attribute(node, "group", 1)
        return weight.reshape(count, weight.shape[0] // count, -1)
    matrix = np.moveaxis(weight, group.axis, 0)
    return np.asarray(matrix.reshape(1, weight.shape[group.axis], -1))


def from_matrices(matrices: Array, weight: Array, group: Group) -> Array:
    """The inverse of as_matrices()."""
    if group.op == "Conv":
        return np.asarray(matrices.reshape(weight.shape))
    moved = np.moveaxis(weight, group.axis, 0).shape
    return np.asarray(np.moveaxis(matrices.reshape(moved), 0, group.axis))


def layers(
    run: Run, model: OnnxModel, groups: Sequence[Group], batches: Batches
) -> Iterator[Layer]:
    """Each product whose weights are a matrix or a convolution, with its Gram matrix.

    Memory is bounded: as many layers as fit are gathered in one pass over the batches.
    """
    graph = Graph(model)
    nodes = {node.name: node for node in graph.nodes}
    waiting = [group for group in groups if _suits(graph, group)]
    kept = list(batches)
    while waiting:
        now, nbytes = [waiting.pop(0)], 0
        nbytes = _gram_bytes(graph, now[0], nodes)
        while waiting and nbytes + _gram_bytes(graph, waiting[0], nodes) <= _MEMORY:
            nbytes += _gram_bytes(graph, waiting[0], nodes)
            now.append(waiting.pop(0))
        grams: dict[str, Array] = {}
        counts = dict.fromkeys((group.name for group in now), 0)
        for values in observed(run, model, kept, [group.inputs[0] for group in now]):
            for group in now:
                columns = _columns(values[group.inputs[0]], nodes[group.name], graph, group)
                found = np.matmul(columns.transpose(0, 2, 1), columns).astype(np.float64)
                grams[group.name] = grams.get(group.name, 0) + found
                counts[group.name] += columns.shape[1]
        for group in now:
            yield Layer(group, grams.pop(group.name) / counts[group.name])


def _suits(graph: Graph, group: Group) -> bool:
    return group.weight is not None and (
        group.op == "Conv" or len(graph.constants[group.weight].dims) == 2
    )


def _gram_bytes(graph: Graph, group: Group, nodes: dict[str, NodeProto]) -> int:
    assert group.weight is not None
    shape = as_matrices(graph.array(group.weight), nodes[group.name], group).shape
    return int(8 * shape[0] * shape[2] ** 2)


def _columns(x: Array, node: NodeProto, graph: Graph, group: Group) -> Array:
    """What the product sums, as (groups, positions, summed)."""
    assert group.weight is not None
    if group.op != "Conv":
        rows = x.reshape(-1, x.shape[-1])
        return _thinned(rows)[np.newaxis]
    kernel = graph.constants[group.weight].dims[2:]
    windows = _windows(x, node, tuple(kernel))
    count = attribute(node, "group", 1)
    # windows: (N, C, outputs…, kernel…) → (groups, positions, C / groups · kernel)
    rank = len(kernel)
    order = (1, 0, *range(2, 2 + rank), *range(2 + rank, 2 + 2 * rank))
    moved = windows.transpose(order)
    channels = moved.shape[0]
    flat = moved.reshape(count, channels // count, -1, int(np.prod(kernel)))
    picked = flat[:, :, _places(flat.shape[2])]
    return np.ascontiguousarray(picked.transpose(0, 2, 1, 3)).reshape(count, picked.shape[2], -1)


def _places(count: int) -> Array:
    return np.unique(np.linspace(0, count - 1, min(count, _ROWS)).astype(np.int64))


def _thinned(rows: Array) -> Array:
    return rows[_places(len(rows))]


def _windows(x: Array, node: NodeProto, kernel: tuple[int, ...]) -> Array:
    """Every window that a convolution sees, (N, C, outputs…, kernel…); a view where possible."""
    rank = len(kernel)
    strides = attribute(node, "strides", [1] * rank)
    dilations = attribute(node, "dilations", [1] * rank)
    pads = _pads(x.shape[2:], node, kernel, strides, dilations)
    wide = np.pad(x, [(0, 0), (0, 0), *pads])
    spans = tuple((k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True))
    view = np.lib.stride_tricks.sliding_window_view(wide, spans, tuple(range(2, 2 + rank)))
    steps = [slice(None, None, stride) for stride in strides]
    taps = [slice(None, None, dilation) for dilation in dilations]
    every = (slice(None), slice(None), *steps, *taps)
    return np.asarray(view[every])


def _pads(
    sizes: Sequence[int],
    node: NodeProto,
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
) -> list[tuple[int, int]]:
    rank = len(kernel)
    mode = attribute(node, "auto_pad", "NOTSET")
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        found = []
        for size, k, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True):
            total = max((-(-size // stride) - 1) * stride + (k - 1) * dilation + 1 - size, 0)
            less, more = total // 2, total - total // 2
            found.append((less, more) if mode == "SAME_UPPER" else (more, less))
        return found
    pads = attribute(node, "pads", [0] * 2 * rank)
    return list(zip(pads[:rank], pads[rank:], strict=True))
