"""Finds the plan with the fewest layers in float that is good enough, and checks it."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from graphopt.compression.quantization.apply import apply
from graphopt.compression.quantization.config import QuantizationConfig
from graphopt.compression.quantization.graph import STAGE, Graph
from graphopt.compression.quantization.mixed import (
    Judge,
    Metric,
    Predict,
    fewest_in_float,
    sqnr_judge,
    switched_run,
)
from graphopt.compression.quantization.placement import place
from graphopt.compression.quantization.plan import Plan
from graphopt.compression.quantization.planning import make_plan
from graphopt.compression.quantization.report import ToolRow
from graphopt.compression.quantization.running import Run
from graphopt.compression.quantization.samples import Samples
from graphopt.compression.quantization.switches import effects, switched
from graphopt.compression.quantization.tools import Planned
from graphopt.errors import InputError
from graphopt.frontend.model import Array

log = logging.getLogger(__name__)

_CORRECTIONS = 8
"""More layers, at most, that go to float because the finished model is worse than was foretold."""


def with_mixed_precision(
    run: Run,
    samples: Samples,
    found: Planned,
    config: QuantizationConfig,
    metric: Metric | None,
) -> tuple[Planned, str | None]:
    """The plan with layers in float for config.max_drop or min_sqnr, and a warning or None.

    Raises:
        InputError: the metric gives no number.
    """
    graph, switches = Graph(found.base), switched(found.base, found.plan)
    outputs = [name for name in graph.outputs if graph.is_float(name)]
    exact = switched_run(run, switches, outputs, ())
    judge, least = _target(exact, samples, config, metric)
    costs = effects(run, switches, outputs, samples.kept)

    def value(quantized: Sequence[str]) -> float:
        return judge(switched_run(run, switches, outputs, quantized))

    before = value(switches.layers)
    in_float = list(fewest_in_float(costs, lambda quantized: value(quantized) >= least))
    ranked = sorted(costs, key=lambda name: costs[name])
    warning = None
    for _ in range(_CORRECTIONS):
        plan = _without(found, config, in_float)
        reached = judge(_finished(run, found, plan, outputs))
        if reached >= least or len(in_float) == len(ranked):
            break
        in_float.append(next(name for name in ranked if name not in in_float))
    if reached < least:
        warning = f"the quantized model reaches {reached:.4g}, and {least:.4g} was asked for."
    what = "output SQNR" if metric is None else "metric"
    note = f"{what} {before:.4g} → {reached:.4g} with {len(in_float)} layers in float"
    row = ToolRow("mixed precision", *(math.nan, math.nan), note)
    return replace(found, plan=plan, rows=(*found.rows, row)), warning


def _target(
    exact: Predict, samples: Samples, config: QuantizationConfig, metric: Metric | None
) -> tuple[Judge, float]:
    """What judges a model, and the least value that is good enough."""
    if metric is None:
        assert config.min_sqnr is not None
        return sqnr_judge(exact, samples.kept), config.min_sqnr
    assert config.max_drop is not None
    base = metric(exact)
    if not isinstance(base, (int, float)) or not math.isfinite(base):
        raise InputError(
            STAGE, f"the metric gives {base!r} for the float model, which is no number."
        )
    log.info("the float model's metric is %g", base)
    return metric, float(base) - config.max_drop


def _finished(run: Run, found: Planned, plan: Plan, outputs: Sequence[str]) -> Predict:
    model = apply(found.base, plan, integer_io=False)

    def predict(inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        return run(model, inputs, outputs)

    return predict


def _without(found: Planned, config: QuantizationConfig, in_float: Sequence[str]) -> Plan:
    """The plan with some layers in float; what was found out for the others is kept."""
    graph = Graph(found.base)
    placement = place(graph, config, in_float)
    plan = make_plan(graph, placement, found.statistics, config)
    codes = {each.node: each.codes for each in found.plan.weights}
    weights = tuple(replace(each, codes=codes[each.node]) for each in plan.weights)
    kept = {each.node for each in weights}
    shifts = {name: each for name, each in found.plan.corrections.items() if name in kept}
    return replace(plan, weights=weights, corrections=shifts)
