"""The accuracy tools that a configuration asks for, in their order, each with what it gained."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, replace

from graphopt.compression.quantization.apply import apply
from graphopt.compression.quantization.bias_correction import corrections
from graphopt.compression.quantization.config import QuantizationConfig
from graphopt.compression.quantization.equalize import equalised
from graphopt.compression.quantization.graph import Graph
from graphopt.compression.quantization.measure import compared
from graphopt.compression.quantization.placement import place
from graphopt.compression.quantization.plan import Plan
from graphopt.compression.quantization.planning import make_plan
from graphopt.compression.quantization.probe import FloatProbe
from graphopt.compression.quantization.report import ToolRow
from graphopt.compression.quantization.rounding import with_rounding
from graphopt.compression.quantization.running import Run
from graphopt.compression.quantization.samples import Samples
from graphopt.compression.quantization.smooth import smoothed
from graphopt.compression.quantization.statistics import Statistics
from graphopt.frontend.model import OnnxModel

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Planned:
    """A canonical model with its statistics and plan, and what the tools so far gained.

    Attributes:
        probe: the model that gave the statistics; None without data.
        quality: SQNR in dB of the worst output, once a tool has asked for it.
    """

    base: OnnxModel
    probe: FloatProbe | None
    statistics: Statistics | None
    plan: Plan
    rows: tuple[ToolRow, ...] = ()
    quality: float | None = None


def planned(run: Run, samples: Samples, base: OnnxModel, config: QuantizationConfig) -> Planned:
    """Calibrate and plan a canonical model, with every tool that the configuration asks for.

    Equalisation and smoothing change the float model, not what it computes, before the ranges
    that count are gathered; rounding and bias correction then change the plan.
    """
    found = _plain(run, samples, base, config)
    if config.equalize:
        done = equalised(found.base)
        log.info("equalised %d pairs of layers", done.pairs)
        after = _plain(run, samples, done.model, config)
        found = _joined(run, samples, found, after, "equalisation", f"{done.pairs} pairs of layers")
    if config.smooth is not None and found.statistics is not None:
        smooth = smoothed(found.base, found.plan.groups, found.statistics, config.smooth)
        note = f"{smooth.folded} tensors, {smooth.factors} more with a factor of their own"
        after = _plain(run, samples, smooth.model, config)
        found = _joined(run, samples, found, after, "SmoothQuant", note)
    if config.rounding != "nearest":
        plan, count = with_rounding(run, found.base, found.plan, samples.kept)
        after = replace(found, plan=plan)
        found = _joined(run, samples, found, after, config.rounding, f"{count} layers")
    if config.correct_bias and found.statistics is not None:
        shifts = corrections(Graph(found.base), found.plan, found.statistics)
        after = replace(found, plan=replace(found.plan, corrections=shifts))
        note = f"{len(shifts)} layers"
        found = _joined(run, samples, found, after, "bias correction", note)
    return found


def _plain(run: Run, samples: Samples, base: OnnxModel, config: QuantizationConfig) -> Planned:
    graph = Graph(base)
    placement = place(graph, config)
    log.info("calibrating with %s", samples.description)
    statistics, probe = samples.statistics(base, placement) or (None, None)
    return Planned(base, probe, statistics, make_plan(graph, placement, statistics, config))


def _joined(
    run: Run, samples: Samples, before: Planned, after: Planned, tool: str, note: str
) -> Planned:
    first = quality(run, samples, before) if before.quality is None else before.quality
    second = quality(run, samples, after)
    rows = (*before.rows, ToolRow(tool, first, second, note))
    return replace(after, rows=rows, quality=second)


def quality(run: Run, samples: Samples, found: Planned) -> float:
    """SQNR in dB of the worst output; NaN without data."""
    if not samples.kept:
        return math.nan
    quantized = apply(found.base, found.plan, integer_io=False)
    outputs = Graph(found.base).float_outputs
    values = compared(run, samples.prepared, quantized, samples.kept, outputs)
    return min(values.values(), default=math.nan)
