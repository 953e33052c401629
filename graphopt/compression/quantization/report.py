"""What quantization did to each layer, what it cost, and why; first, which layer lost most."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from graphopt.compression.quantization.config import QuantizationConfig
from graphopt.compression.quantization.graph import Graph
from graphopt.compression.quantization.groups import Group
from graphopt.compression.quantization.histogram import BINS, Histogram
from graphopt.compression.quantization.measure import Measurements
from graphopt.compression.quantization.narrow import approximated
from graphopt.compression.quantization.plan import ActivationPlan, Plan
from graphopt.compression.quantization.ranges import clipped_share
from graphopt.compression.quantization.scheme import signal_to_noise
from graphopt.compression.quantization.statistics import Statistics, TensorStatistics
from graphopt.frontend.model import OnnxModel, tensor_nbytes

_SKETCH = 60
"""Bars of a tensor's histogram in the report."""


@dataclass(frozen=True)
class TensorRow:
    """A tensor in 8 bits.

    Attributes:
        low, high: the range it keeps; least, largest: what calibration saw.
        clipped: share of the values outside the range.
        sqnr: in dB, of the tensor in 8 bits against itself.
        sketch: counts of the values between `least` and `largest`, in bars of equal width.
    """

    tensor: str
    scale: float
    zero: int
    low: float
    high: float
    least: float
    largest: float
    clipped: float
    sqnr: float
    sketch: tuple[int, ...]


@dataclass(frozen=True)
class LayerRow:
    """A layer: one integer kernel.

    Attributes:
        nodes: of the model, the anchor first.
        bits: of the weights, None for a layer without.
        scales: the least and the largest scale of the weights; None where they have none.
        reads: tensors in 8 bits.
        weight_sqnr: in dB, of the weights; None for a layer without.
        output_sqnr: in dB, of its output, with everything before it quantized too.
        effect: in dB, of the model's outputs with only this layer quantized; None if not measured.
    """

    node: str
    op: str
    kind: str
    nodes: tuple[str, ...]
    bits: int | None
    scales: tuple[float, float] | None
    reads: tuple[str, ...]
    weight_sqnr: float | None
    output_sqnr: float | None
    effect: float | None


@dataclass(frozen=True)
class FloatRow:
    """A node that stays in float, and why."""

    node: str
    op: str
    reason: str


@dataclass(frozen=True)
class ToolRow:
    """What an accuracy tool did: SQNR of the outputs in dB before and after, and what in words."""

    tool: str
    before: float
    after: float
    note: str


@dataclass(frozen=True)
class QuantizationReport:
    """The account of one quantization.

    Attributes:
        data: where the calibration data is from; batches: how many there were; compared: on how
            many of them the quantized model was compared with the float one.
        outputs: by name, SQNR in dB of the quantized model's outputs.
        layers: in topological order. floats: in topological order.
        bytes_before, bytes_after: of the models' constants.
        seconds_before, seconds_after: per run on calibration data, if there is any.
        warnings: what the user should know.
    """

    config: QuantizationConfig
    data: str
    batches: int
    compared: int
    outputs: Mapping[str, float]
    layers: tuple[LayerRow, ...]
    floats: tuple[FloatRow, ...]
    tensors: tuple[TensorRow, ...]
    tools: tuple[ToolRow, ...]
    bytes_before: int
    bytes_after: int
    warnings: tuple[str, ...] = ()
    seconds_before: float | None = None
    seconds_after: float | None = None

    @property
    def headline(self) -> str:
        """Which layer lost the accuracy."""
        if not self.outputs:
            return "Nothing was compared: there is no calibration data."
        name, worst = min(self.outputs.items(), key=lambda item: item[1])
        if worst == math.inf:
            return "No accuracy is lost: the outputs are those of the float model."
        total = f"output '{name}' has {decibel(worst)}"
        known = [row for row in self.layers if row.effect is not None]
        if known:
            first = min(known, key=lambda row: row.effect if row.effect is not None else math.inf)
            others = sorted(row.effect for row in known if row.effect is not None)[1:2]
            rest = f", the next worst {decibel(others[0])}" if others else ""
            return (
                f"Most accuracy is lost in {first.node} ({first.op}): with it alone quantized the "
                f"outputs have {decibel(first.effect)}{rest}; with all layers, {total}."
            )
        dropped = self._largest_step()
        if dropped is None:
            return f"With all layers, {total}."
        return f"Most accuracy is lost in {dropped.node} ({dropped.op}); with all layers, {total}."

    def _largest_step(self) -> LayerRow | None:
        """The layer whose output has the most noise that the layer before it had not."""
        noise, step, found = 0.0, 0.0, None
        for row in self.layers:
            if row.output_sqnr is None or not math.isfinite(row.output_sqnr):
                continue
            here = 10 ** (-row.output_sqnr / 10)
            if here - noise > step:
                step, found = here - noise, row
            noise = here
        return found

    def with_times(self, before: float, after: float) -> QuantizationReport:
        """The report with seconds per run of the float and of the quantized model."""
        return replace(self, seconds_before=before, seconds_after=after)

    def to_dict(self) -> dict[str, Any]:
        """Plain values; non-finite numbers are strings."""
        plain: dict[str, Any] = _finite({"headline": self.headline, **asdict(self)})
        return plain

    def to_json(self) -> str:
        """A JSON object."""
        return json.dumps(self.to_dict(), allow_nan=False)


def make_report(
    model: OnnxModel,
    quantized: OnnxModel,
    plan: Plan,
    statistics: Statistics | None,
    measurements: Measurements | None,
    outputs: Mapping[str, float],
    tools: Sequence[ToolRow],
    data: str,
    warnings: Sequence[str],
) -> QuantizationReport:
    """The report on a canonical model and its quantized form.

    Args:
        outputs: SQNR in dB of the quantized model's outputs.
    """
    graph = Graph(model)
    return QuantizationReport(
        config=plan.config,
        data=data,
        batches=0 if statistics is None else statistics.batches,
        compared=0 if measurements is None else measurements.batches,
        outputs=dict(outputs),
        layers=tuple(_layer(graph, plan, group, measurements) for group in plan.groups),
        floats=tuple(FloatRow(each.node, each.op, each.reason) for each in plan.refusals),
        tensors=tuple(
            _tensor(each, statistics.of(each.tensor), measurements)
            for each in plan.activations
            if statistics is not None
        ),
        tools=tuple(tools),
        bytes_before=_constant_bytes(model),
        bytes_after=_constant_bytes(quantized),
        warnings=tuple(warnings),
    )


def _layer(
    graph: Graph,
    plan: Plan,
    group: Group,
    measurements: Measurements | None,
) -> LayerRow:
    weight = plan.weight(group.name)
    found = None if measurements is None else measurements.layers.get(group.output)
    effect = None if measurements is None else measurements.effects.get(group.name)
    noise = None
    if weight is not None:
        values = graph.array(weight.tensor)
        noise = signal_to_noise(values, approximated(values, weight))
    return LayerRow(
        group.name,
        group.op,
        group.kind,
        group.nodes,
        None if weight is None else 16 if weight.kind.endswith("float16") else weight.form.bits,
        None
        if weight is None or weight.scale.size == 0
        else (float(weight.scale.min()), float(weight.scale.max())),
        tuple(name for name in group.reads if plan.activation(name) is not None),
        noise,
        found,
        effect,
    )


def _tensor(
    plan: ActivationPlan, seen: TensorStatistics, measurements: Measurements | None
) -> TensorRow:
    sqnr = math.nan if measurements is None else measurements.activations[plan.tensor]
    return TensorRow(
        plan.tensor,
        plan.scale,
        plan.zero,
        plan.low,
        plan.high,
        seen.low,
        seen.high,
        clipped_share(seen, plan.low, plan.high),
        sqnr,
        _sketch(seen),
    )


def _sketch(seen: TensorStatistics) -> tuple[int, ...]:
    low, high = min(seen.low, 0.0), max(seen.high, 0.0)
    bars = np.zeros(_SKETCH)
    if high > low:
        for side, sign in ((seen.negative, -1.0), (seen.positive, 1.0)):
            bars += _bars(side, sign, low, high)
        bars[min(int(-low / (high - low) * _SKETCH), _SKETCH - 1)] += seen.zeros
    return tuple(int(count) for count in bars)


def _bars(side: Histogram, sign: float, low: float, high: float) -> Any:
    middles = sign * (np.arange(BINS) + 0.5) * side.width
    places = np.clip(((middles - low) / (high - low) * _SKETCH).astype(int), 0, _SKETCH - 1)
    return np.bincount(places, side.counts.astype(np.float64), _SKETCH)


def _constant_bytes(model: OnnxModel) -> int:
    total = 0
    for tensor in model.proto.graph.initializer:
        packed = len(tensor.raw_data) if tensor.HasField("raw_data") else 0
        total += packed or tensor_nbytes(tensor)
    return total


def decibel(value: float | None) -> str:
    """A ratio in words."""
    if value is None or math.isnan(value):
        return "—"
    if math.isinf(value):
        return "no noise" if value > 0 else "no signal"
    return f"{value:.1f} dB"


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
