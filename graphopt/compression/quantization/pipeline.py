"""quantize, stage by stage: canonical model → statistics → plan → QDQ model → report."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from graphopt.compression.quantization.apply import apply, needed_opset
from graphopt.compression.quantization.canonical import canonical
from graphopt.compression.quantization.config import QuantizationConfig
from graphopt.compression.quantization.feeds import Data, checked, input_specs
from graphopt.compression.quantization.graph import STAGE, Graph
from graphopt.compression.quantization.measure import measure
from graphopt.compression.quantization.opset import upgraded
from graphopt.compression.quantization.placement import Placement, place
from graphopt.compression.quantization.plan import Plan
from graphopt.compression.quantization.planning import make_plan
from graphopt.compression.quantization.report import QuantizationReport, make_report
from graphopt.compression.quantization.running import Run, check_same, observed
from graphopt.compression.quantization.statistics import Statistics, gather
from graphopt.compression.quantization.switches import effects, switched
from graphopt.errors import OptionError
from graphopt.frontend.model import Array, OnnxModel
from graphopt.frontend.prepare import prepare
from graphopt.frontend.shapes import dimensions

log = logging.getLogger(__name__)

KEPT_BATCHES = 16
KEPT_BYTES = 1 << 26
"""Calibration batches on which the quantized model is compared with the float one, at most."""

_EFFECT_RUNS = 400
"""Runs, at most, that find out what each layer costs alone."""


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
) -> Quantized:
    """Quantize a loaded model.

    Args:
        data: what to calibrate with; None for weight-only formats, which are then not compared.
        run: runs a model on inputs and gives any of its tensors.
        shapes, constants: bound in the result, see prepare().

    Raises:
        ModelError: the model cannot be quantized.
        InputError: the calibration data does not fit it.
        OptionError: an option names nothing in the model, or needs data.
    """
    if data is None and config.activations is not None:
        raise OptionError(
            STAGE,
            "8-bit activations need calibration data.",
            hint="give some (calibration='samples.npz'), or activations=None for weights only.",
        )
    prepared, base = float_form(model, config, shapes, constants)
    placement = place(Graph(base), config)
    samples = _Samples(prepared, base, data, run)
    statistics = samples.statistics(base, placement) if data is not None else None
    plan = make_plan(Graph(base), placement, statistics, config)
    final = apply(base, plan)
    measurements, costs = None, {}
    if data is not None:
        log.info("comparing with the float model on %d batches", len(samples.kept))
        measurements = measure(run, base, apply(base, plan, integer_io=False), plan, samples.kept)
        costs = _effects(run, base, plan, samples.kept)
    warnings = [] if data is None or data.warning is None else [data.warning]
    report = make_report(
        base, final, plan, statistics, measurements, costs, (), samples.description, warnings
    )
    return Quantized(final, base, statistics, plan, report)


def _effects(
    run: Run, base: OnnxModel, plan: Plan, kept: Sequence[Mapping[str, Array]]
) -> dict[str, float]:
    """What each layer costs alone, on as many batches as there is time for."""
    graph, switches = Graph(base), switched(base, plan)
    outputs = [name for name in graph.outputs if graph.is_float(name)]
    count = max(1, _EFFECT_RUNS // (len(switches.layers) + 1))
    log.info("quantizing %d layers one at a time", len(switches.layers))
    return effects(run, switches, outputs, kept[:count]) if outputs else {}


class _Samples:
    """Calibration data, read once; its first batches are kept to compare models on."""

    def __init__(self, prepared: OnnxModel, base: OnnxModel, data: Data | None, run: Run) -> None:
        self._prepared, self._data, self._run = prepared, data, run
        self._specs = input_specs(base)
        self.kept: list[Mapping[str, Array]] = []

    @property
    def description(self) -> str:
        """Where they are from."""
        return "no data" if self._data is None else self._data.description

    def statistics(self, base: OnnxModel, placement: Placement) -> Statistics:
        """Statistics of what is to be in 8 bits, and of what products read."""
        assert self._data is not None
        log.info("calibrating with %s", self.description)
        channels = _channels(placement)
        tensors = list(dict.fromkeys([*placement.tensors, *channels]))
        batches = checked(self._data.batches(self._specs), self._specs)
        return gather(self._observed(base, tensors, batches), tensors, channels)

    def _observed(
        self, base: OnnxModel, tensors: Sequence[str], batches: Iterable[Mapping[str, Array]]
    ) -> Iterator[Mapping[str, Array]]:
        first = not self.kept
        for feeds in self._keeping(batches) if first else batches:
            if first:
                check_same(self._run, self._prepared, base, feeds)
                first = False
            yield from observed(self._run, base, [feeds], tensors)

    def _keeping(self, batches: Iterable[Mapping[str, Array]]) -> Iterator[Mapping[str, Array]]:
        nbytes = 0
        for feeds in batches:
            nbytes += sum(array.nbytes for array in feeds.values())
            if not self.kept or (len(self.kept) < KEPT_BATCHES and nbytes <= KEPT_BYTES):
                self.kept.append(feeds)
            yield feeds


def _channels(placement: Placement) -> dict[str, int]:
    """Axes of the channels of what products read."""
    return {
        name: group.channels
        for group in placement.groups
        if group.kind == "product"
        for name in group.inputs
    }
