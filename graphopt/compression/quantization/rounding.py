"""Chooses how weights are rounded by what that does to their layer's output."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from graphopt.compression.quantization.adaround import adaround
from graphopt.compression.quantization.gptq import gptq
from graphopt.compression.quantization.gram import Layer, as_matrices, from_matrices, layers
from graphopt.compression.quantization.graph import Graph
from graphopt.compression.quantization.narrow import parameters_of
from graphopt.compression.quantization.plan import Plan, WeightPlan
from graphopt.compression.quantization.running import Batches, Run
from graphopt.frontend.model import OnnxModel

_METHODS = {"adaround": adaround, "gptq": gptq}


def with_rounding(run: Run, model: OnnxModel, plan: Plan, batches: Batches) -> tuple[Plan, int]:
    """The plan with integers chosen by config.rounding, and for how many layers.

    Args:
        model: the canonical model of the plan; its inputs of products are those of float.
    """
    graph = Graph(model)
    groups = [group for group in plan.groups if group.kind == "product"]
    chosen: dict[str, WeightPlan] = {}
    for layer in layers(run, model, groups, batches):
        weight = plan.weight(layer.group.name)
        if weight is not None and weight.kind == "linear":
            chosen[weight.node] = _rounded(graph, plan, weight, layer)
    weights = tuple(chosen.get(each.node, each) for each in plan.weights)
    return replace(plan, weights=weights), len(chosen)


def _rounded(graph: Graph, plan: Plan, weight: WeightPlan, layer: Layer) -> WeightPlan:
    node = graph.nodes[graph.index[weight.node]]
    values = graph.array(weight.tensor)
    scale, zero = (np.broadcast_to(array, values.shape) for array in parameters_of(values, weight))
    parts = [as_matrices(np.ascontiguousarray(a), node, layer.group) for a in (values, scale, zero)]
    method = _METHODS[plan.config.rounding]
    found = [
        method(matrix, gram, steps, middle, weight.form)
        for matrix, gram, steps, middle in zip(parts[0], layer.gram, *parts[1:], strict=True)
    ]
    codes = from_matrices(np.stack(found), values, layer.group)
    return replace(weight, codes=np.ascontiguousarray(codes))
