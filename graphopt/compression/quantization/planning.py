"""Statistics → plan: ranges become scales, weights get theirs."""

from __future__ import annotations

import numpy as np

from graphopt.compression.quantization.codebook import kmeans, powers_of_two
from graphopt.compression.quantization.config import QuantizationConfig
from graphopt.compression.quantization.graph import STAGE, Graph
from graphopt.compression.quantization.groups import Group
from graphopt.compression.quantization.placement import Placement
from graphopt.compression.quantization.plan import ActivationPlan, Plan, WeightPlan
from graphopt.compression.quantization.ranges import Range, find_range
from graphopt.compression.quantization.scheme import (
    Array,
    parameters,
    widened_for_bias,
)
from graphopt.compression.quantization.statistics import Statistics
from graphopt.compression.quantization.weights import weight_parameters
from graphopt.errors import ModelError

_NONE = np.zeros(0, np.float32)


def make_plan(
    graph: Graph, placement: Placement, statistics: Statistics | None, config: QuantizationConfig
) -> Plan:
    """The plan for a canonical model.

    Args:
        statistics: may be None where no tensor is to be in 8 bits.

    Raises:
        InputError: a tensor was never seen.
        ModelError: weights are not finite.
    """
    activations: tuple[ActivationPlan, ...] = ()
    if statistics is not None:
        activations = _activations(placement, statistics, config)
    scales = {each.tensor: each.scale for each in activations}
    weights = []
    for group in placement.groups:
        if group.weight is None:
            continue
        values = graph.array(group.weight)
        if not np.isfinite(values).all():
            raise ModelError(
                STAGE,
                f"the weights '{group.weight}' have a NaN or an infinity.",
                node=group.name,
                hint="exclude the node, or train the model again.",
            )
        bias = None if group.bias is None else graph.array(group.bias)
        weights.append(_weight(group, values, bias, scales, config))
    return Plan(config, placement.groups, placement.refusals, activations, tuple(weights))


def _activations(
    placement: Placement, statistics: Statistics, config: QuantizationConfig
) -> tuple[ActivationPlan, ...]:
    ranges = {name: find_range(statistics.of(name), config) for name in placement.tensors}
    for together in placement.shared:
        union = _union([ranges[name] for name in together])
        ranges.update(dict.fromkeys(together, union))
    form = config.activation_form
    found = []
    for name, (low, high) in ranges.items():
        scale, zero = parameters(low, high, form)
        found.append(ActivationPlan(name, float(scale), int(zero), form, low, high))
    return tuple(found)


def _union(ranges: list[Range]) -> Range:
    return min(low for low, _ in ranges), max(high for _, high in ranges)


def _weight(
    group: Group,
    values: Array,
    bias: Array | None,
    scales: dict[str, float],
    config: QuantizationConfig,
) -> WeightPlan:
    assert group.weight is not None
    form, axis, depth, size = config.weight_form, None, None, 0
    scale = zero = table = _NONE
    kind = config.weights
    if kind == "linear":
        axis = None if config.granularity == "tensor" else group.axis
        if config.granularity == "group":
            axis, depth, size = None, group.depth, config.group_size
        scale, zero = weight_parameters(values, form, axis, depth, size)
        if config.activations is not None and bias is not None:
            scale = _fitted(group, values, scale, axis, bias, scales)
    elif config.is_table:
        make = kmeans if kind == "k-means" else powers_of_two
        table = make(values, 2**config.weight_bits)
        kind = "table"
    return WeightPlan(
        group.name, group.weight, kind, form, axis, depth, size, scale, zero, table,
        config.packed or (kind == "table" and config.weight_bits <= 4),
    )  # fmt: skip


def _fitted(
    group: Group,
    values: Array,
    scale: Array,
    axis: int | None,
    bias: Array,
    scales: dict[str, float],
) -> Array:
    """Weight scales under which the bias fits in int32."""
    sx = scales[group.inputs[0]]
    if axis is None:
        dead = np.asarray(not values.any())
        return widened_for_bias(scale, sx, np.max(np.abs(bias)), dead)
    rest = tuple(k for k in range(values.ndim) if k != axis)
    return widened_for_bias(scale, sx, bias, np.asarray(~values.any(axis=rest)))
