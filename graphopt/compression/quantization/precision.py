"""Finds the plan with the fewest layers in float that is good enough, by trying finished models."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from graphopt.compression.quantization.apply import apply
from graphopt.compression.quantization.config import QuantizationConfig
from graphopt.compression.quantization.graph import STAGE, Graph
from graphopt.compression.quantization.measure import measure
from graphopt.compression.quantization.mixed import (
    Judge,
    Metric,
    Predict,
    cheapest_in_float,
    sqnr_judge,
)
from graphopt.compression.quantization.placement import place
from graphopt.compression.quantization.plan import Plan
from graphopt.compression.quantization.planning import make_plan
from graphopt.compression.quantization.probe import layers_of
from graphopt.compression.quantization.report import ToolRow
from graphopt.compression.quantization.running import (
    Feeds,
    KernelTime,
    Profiler,
    Run,
)
from graphopt.compression.quantization.samples import Samples
from graphopt.compression.quantization.tools import Planned
from graphopt.errors import InputError
from graphopt.frontend.model import OnnxModel

log = logging.getLogger(__name__)


def with_mixed_precision(
    run: Run,
    samples: Samples,
    found: Planned,
    config: QuantizationConfig,
    metric: Metric | None,
    profiler: Profiler | None,
) -> Planned:
    """The plan with layers in float for config.max_drop or min_sqnr.

    Args:
        profiler: measures what each layer saves; None to weigh all layers alike.

    Raises:
        InputError: the metric gives no number.
        ModelError: it is not enough unless all layers are in float.
    """
    assert found.probe is not None
    outputs = Graph(samples.prepared).float_outputs
    exact = _predictor(run, samples.prepared, outputs)
    judge, least = _target(exact, samples, config, metric)
    trials = _Trials(run, found, outputs, judge)
    effects = measure(run, found.probe, found.base, found.plan, samples.kept).effects
    # A layer whose effect is not known is given up last.
    layers = [group.name for group in layers_of(found.plan.groups)]
    effects = {name: effects.get(name, math.inf) for name in layers}
    savings: dict[str, float] = {}
    if profiler is not None and samples.kept:
        models = (samples.prepared, apply(found.base, found.plan, integer_io=False))
        before, after = (profiler(model, samples.kept[0], outputs) for model in models)
        savings = saved_seconds(found.plan, before, after)
    before_value = trials.value(())
    in_float = cheapest_in_float(
        effects,
        savings,
        lambda quantized: trials.value([n for n in layers if n not in set(quantized)]) >= least,
    )
    reached = trials.value(in_float)
    what = "output SQNR" if metric is None else "metric"
    note = f"{what} {before_value:.4g} → {reached:.4g} with {len(in_float)} layers in float"
    if savings and in_float:
        lost = sum(savings.get(name, 0.0) for name in in_float)
        note += f", which saved {lost * 1e6:.3g} of {sum(savings.values()) * 1e6:.3g} µs"
    row = ToolRow("mixed precision", *(math.nan, math.nan), note)
    return replace(found, plan=trials.plan(in_float), rows=(*found.rows, row))


def saved_seconds(
    plan: Plan, before: Sequence[KernelTime], after: Sequence[KernelTime]
) -> dict[str, float]:
    """Seconds per run that each layer saves in integers.

    Args:
        before, after: kernels of the float and of the quantized program: their nodes, and seconds.
            One that computes several layers counts for each with its part.
    """
    owner = {node: group.name for group in layers_of(plan.groups) for node in group.nodes}
    saved = dict.fromkeys((group.name for group in layers_of(plan.groups)), 0.0)
    for kernels, sign in ((before, 1.0), (after, -1.0)):
        for nodes, seconds in kernels:
            owners = {owner[node] for node in nodes if node in owner}
            for name in owners:
                saved[name] += sign * seconds / len(owners)
    return saved


@dataclass
class _Trials:
    """Finished models with some layers in float, each tried once."""

    run: Run
    found: Planned
    outputs: Sequence[str]
    judge: Judge
    known: dict[frozenset[str], float] = field(default_factory=dict)

    def value(self, in_float: Sequence[str]) -> float:
        """What the judge says of the model with these layers in float."""
        key = frozenset(in_float)
        if key not in self.known:
            if len(key) == len(layers_of(self.found.plan.groups)):
                return math.inf  # the float model, which is no quantized one: see plan()
            model = apply(self.found.base, self.plan(in_float), integer_io=False)
            self.known[key] = self.judge(_predictor(self.run, model, self.outputs))
        return self.known[key]

    def plan(self, in_float: Sequence[str]) -> Plan:
        """The plan with some layers in float."""
        return replanned(self.found, dict.fromkeys(in_float, "left in float for accuracy"))


def replanned(found: Planned, in_float: Mapping[str, str]) -> Plan:
    """The plan with some layers in float; what was found out for the others is kept.

    Args:
        in_float: layers, with the reasons.

    Raises:
        ModelError: nothing is left to quantize.
    """
    graph, config = Graph(found.base), found.plan.config
    plan = make_plan(graph, place(graph, config, in_float), found.statistics, config)
    codes = {each.node: each.codes for each in found.plan.weights}
    weights = tuple(replace(each, codes=codes[each.node]) for each in plan.weights)
    kept = {each.node for each in weights}
    shifts = {name: each for name, each in found.plan.corrections.items() if name in kept}
    return replace(plan, weights=weights, corrections=shifts)


def _predictor(run: Run, model: OnnxModel, outputs: Sequence[str]) -> Predict:
    def predict(inputs: Feeds) -> Feeds:
        return run(model, inputs, outputs)

    return predict


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
