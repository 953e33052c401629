"""Bias correction: what rounded weights add to the mean of a layer's output is taken off again.

M. Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV
2019: E[ŷ] − E[y] = (Ŵ − W)·E[x] per output channel, with the mean of the input per channel from
calibration. Where a convolution pads, its borders are corrected as if they were inside.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from onnx import NodeProto

from graphopt.compression.quantization.graph import Graph, attribute
from graphopt.compression.quantization.groups import Group
from graphopt.compression.quantization.narrow import approximated
from graphopt.compression.quantization.plan import Plan
from graphopt.compression.quantization.statistics import Statistics
from graphopt.frontend.model import Array


def corrections(graph: Graph, plan: Plan, statistics: Statistics) -> Mapping[str, Array]:
    """What to add to each product's output per channel, float32, by node."""
    nodes = {node.name: node for node in graph.nodes}
    found = {}
    for group in plan.groups:
        weight = plan.weight(group.name)
        if weight is None:
            continue
        mean = statistics.of(group.inputs[0]).mean
        values = graph.array(weight.tensor)
        if mean is None or values.ndim < 2 or (group.op != "Conv" and values.ndim > 2):
            continue
        noise = approximated(values, weight).astype(np.float64) - values
        shift = _shift(noise, mean, nodes[group.name], group)
        if np.any(shift):
            found[group.name] = -shift.astype(np.float32)
    return found


def _shift(noise: Array, mean: Array, node: NodeProto, group: Group) -> Array:
    """The mean of noise·x per output channel."""
    if group.op != "Conv":
        matrix = noise if group.depth == 0 else noise.T
        return mean @ matrix
    count = attribute(node, "group", 1)
    summed = noise.reshape(*noise.shape[:2], -1).sum(axis=2)
    parts = summed.reshape(count, -1, summed.shape[1])
    return np.asarray(np.einsum("goi,gi->go", parts, mean.reshape(count, -1))).reshape(-1)
