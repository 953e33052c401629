"""quantize, stage by stage: canonical model → statistics → plan → QDQ model → report."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from graphopt.compression.quantization.apply import apply, needed_opset
from graphopt.compression.quantization.canonical import canonical
from graphopt.compression.quantization.config import QuantizationConfig
from graphopt.compression.quantization.feeds import Data
from graphopt.compression.quantization.graph import STAGE, Graph
from graphopt.compression.quantization.measure import compared, measure, timed
from graphopt.compression.quantization.mixed import Metric
from graphopt.compression.quantization.opset import upgraded
from graphopt.compression.quantization.plan import Plan
from graphopt.compression.quantization.precision import with_mixed_precision
from graphopt.compression.quantization.report import QuantizationReport, make_report
from graphopt.compression.quantization.running import Profiler, Run
from graphopt.compression.quantization.samples import Samples
from graphopt.compression.quantization.statistics import Statistics
from graphopt.compression.quantization.tools import planned
from graphopt.compression.quantization.unfit import judged, without_unfit
from graphopt.errors import OptionError
from graphopt.frontend.model import Array, OnnxModel
from graphopt.frontend.prepare import prepare
from graphopt.frontend.shapes import dimensions

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Quantized:
    """All values of one quantization.

    Attributes:
        model: the QDQ model; float_model: the canonical model it was made from.
        statistics: None if there was no calibration data.
    """

    model: OnnxModel
    float_model: OnnxModel
    statistics: Statistics | None
    plan: Plan
    report: QuantizationReport


def float_form(
    model: OnnxModel,
    config: QuantizationConfig,
    shapes: Mapping[str, Sequence[int]] | None = None,
    constants: Mapping[str, Array] | None = None,
) -> tuple[OnnxModel, OnnxModel]:
    """The prepared model, and its canonical form in the operator set that `config` needs.

    Raises:
        ModelError: the model is invalid, or cannot be raised to the operator set.
    """
    prepared = prepare(model, shapes, constants)
    raised = upgraded(prepared, needed_opset(config))
    if raised.opsets != prepared.opsets:
        raised = prepare(raised)
    base = canonical(raised)
    _declare_outputs(base, model)
    return prepared, base


def _declare_outputs(model: OnnxModel, source: OnnxModel) -> None:
    """Outputs whose rank inference could not find get the type that `source` declares."""
    declared = {value.name: value.type for value in source.proto.graph.output}
    for value in model.proto.graph.output:
        if dimensions(value.type) is None and value.name in declared:
            value.type.CopyFrom(declared[value.name])


def quantize_model(
    model: OnnxModel,
    data: Data | None,
    config: QuantizationConfig,
    run: Run,
    shapes: Mapping[str, Sequence[int]] | None = None,
    constants: Mapping[str, Array] | None = None,
    metric: Metric | None = None,
    profiler: Profiler | None = None,
) -> Quantized:
    """Quantize a loaded model.

    Args:
        data: what to calibrate with; None for weight-only formats, which are then not compared.
        run: runs a model on inputs and gives any of its tensors.
        shapes, constants: bound in the result, see prepare().
        metric: what config.max_drop is about.
        profiler: measures what each layer saves, which the choice of layers for float weighs.

    Raises:
        ModelError: the model cannot be quantized.
        InputError: the calibration data does not fit it.
        OptionError: an option names nothing in the model, or needs data or a metric.
    """
    _check(data, config, metric)
    prepared, base = float_form(model, config, shapes, constants)
    samples = Samples(prepared, base, data, run)
    found = planned(run, samples, base, config)
    warnings = [samples.warning, *constant_inputs(prepared, found.statistics)]
    if config.max_drop is not None or config.min_sqnr is not None:
        found = with_mixed_precision(run, samples, found, config, metric, profiler)
    measurements, outputs, seconds = None, {}, None
    if found.probe is not None:
        log.info("comparing with the float model on %d batches", len(samples.kept))
        measurements = measure(run, found.probe, found.base, found.plan, samples.kept)
        if judged(config):
            found, measurements = without_unfit(run, found, measurements, samples.kept)
        names = Graph(prepared).float_outputs
        internal = apply(found.base, found.plan, integer_io=False)
        outputs = compared(run, prepared, internal, samples.kept, names)
        seconds = timed(run, (prepared, internal), samples.kept[0], names) if names else None
        if not measurements.effects:
            warnings.append(
                "layers were not quantized one at a time, which takes more than a minute here: "
                "the first line of the report follows from the noise behind each layer."
            )
    final = apply(found.base, found.plan)
    report = make_report(
        found.base,
        final,
        found.plan,
        found.statistics,
        measurements,
        outputs,
        found.rows,
        samples.description,
        [warning for warning in warnings if warning is not None],
    )
    if seconds is not None:
        report = report.with_times(*seconds)
    return Quantized(final, found.base, found.statistics, found.plan, report)


def constant_inputs(model: OnnxModel, statistics: Statistics | None) -> list[str]:
    """A warning for each float input that had one value in all calibration data."""
    seen = {} if statistics is None else statistics.tensors
    return [
        f"input '{name}' is {seen[name].low:g} everywhere in the calibration data: its range, and "
        "those behind it, say nothing of other values."
        for name in Graph(model).inputs
        if name in seen and seen[name].count > 1 and seen[name].low == seen[name].high
    ]


def _check(data: Data | None, config: QuantizationConfig, metric: Metric | None) -> None:
    needs = {
        "8-bit activations": config.activations is not None,
        "smooth": config.smooth is not None,
        "correct_bias": config.correct_bias,
        f"rounding='{config.rounding}'": config.rounding != "nearest",
        "max_drop": config.max_drop is not None,
        "min_sqnr": config.min_sqnr is not None,
    }
    asking = [name for name, needed in needs.items() if needed]
    if data is None and asking:
        raise OptionError(
            STAGE,
            f"there is no calibration data: it is needed for {asking[0]}.",
            hint="give some (calibration='samples.npz'), or quantize weights only.",
        )
    if (metric is None) != (config.max_drop is None):
        raise OptionError(
            STAGE,
            "max_drop and metric need each other.",
            hint="metric=f, a function that gets a function from inputs to outputs, and gives a "
            "number that is higher for a better model; min_sqnr needs none.",
        )
