"""Measures what quantization costs: noise at every layer's output and in every tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from graphopt.compression.quantization.graph import Graph
from graphopt.compression.quantization.plan import Plan
from graphopt.compression.quantization.running import Batches, Run, observed
from graphopt.compression.quantization.scheme import decibels, rounded
from graphopt.frontend.model import Array, OnnxModel


@dataclass(frozen=True)
class Measurements:
    """Signal-to-noise ratios in dB, against the canonical float model on the same inputs.

    Attributes:
        layers: by tensor, what all quantization up to it does to a layer's output.
        outputs: the same for the graph's float outputs.
        activations: by tensor, what rounding to 8 bits alone does to it.
        batches: how many were compared.
    """

    layers: Mapping[str, float]
    outputs: Mapping[str, float]
    activations: Mapping[str, float]
    batches: int


@dataclass
class _Power:
    """Sums of squares of a tensor and of the noise on it."""

    signal: float = 0.0
    noise: float = field(default=0.0)

    def add(self, reference: Array, other: Array) -> None:
        wide = reference.astype(np.float64)
        self.signal += float(np.sum(wide**2))
        self.noise += float(np.sum((wide - other.astype(np.float64)) ** 2))

    @property
    def ratio(self) -> float:
        return decibels(self.signal, self.noise)


def compared(
    run: Run, model: OnnxModel, other: OnnxModel, batches: Batches, tensors: Sequence[str]
) -> dict[str, float]:
    """SQNR of each tensor of `other` against `model`, over all batches."""
    powers = {name: _Power() for name in tensors}
    for first, second in _together(run, model, other, batches, tensors, tensors):
        for name, power in powers.items():
            power.add(first[name], second[name])
    return {name: power.ratio for name, power in powers.items()}


def measure(
    run: Run, model: OnnxModel, quantized: OnnxModel, plan: Plan, batches: Batches
) -> Measurements:
    """Compare a canonical model with its quantized form, batch by batch.

    `quantized` has float inputs and outputs.
    """
    graph = Graph(model)
    activations = {each.tensor: each for each in plan.activations}
    outputs = [name for name in graph.outputs if graph.is_float(name)]
    layers = list(dict.fromkeys(name for group in plan.groups for name in group.outputs))
    both = list(dict.fromkeys([*layers, *outputs]))
    cumulative = {name: _Power() for name in both}
    alone = {name: _Power() for name in activations}
    count = 0
    wanted = list(dict.fromkeys([*both, *activations]))
    for first, second in _together(run, model, quantized, batches, wanted, both):
        count += 1
        for name, power in cumulative.items():
            power.add(first[name], second[name])
        for name, power in alone.items():
            each = activations[name]
            power.add(first[name], rounded(first[name], each.scale, each.zero, each.form))
    return Measurements(
        {name: cumulative[name].ratio for name in layers},
        {name: cumulative[name].ratio for name in outputs},
        {name: power.ratio for name, power in alone.items()},
        count,
    )


def _together(
    run: Run,
    model: OnnxModel,
    other: OnnxModel,
    batches: Batches,
    first: Sequence[str],
    second: Sequence[str],
) -> zip[tuple[Mapping[str, Array], Mapping[str, Array]]]:
    kept = list(batches)
    return zip(observed(run, model, kept, first), observed(run, other, kept, second), strict=True)
