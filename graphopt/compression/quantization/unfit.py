"""Layers whose input changes too much in level for 8 bits of one scale stay in float."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import replace

from graphopt.compression.quantization.config import QuantizationConfig
from graphopt.compression.quantization.measure import Measurements, measure
from graphopt.compression.quantization.plan import Plan
from graphopt.compression.quantization.precision import replanned
from graphopt.compression.quantization.running import Feeds, Run
from graphopt.compression.quantization.tools import Planned

log = logging.getLogger(__name__)


def judged(config: QuantizationConfig) -> bool:
    """Whether layers are judged one by one.

    Not where the user set a bar for the whole model or chose the layers, and not where bits are
    fewer than 8: their noise is what was asked for.
    """
    own = config.max_drop is not None or config.min_sqnr is not None or bool(config.only)
    return config.activations is not None and config.weight_bits == 8 and not own


def unfit_layers(plan: Plan, measurements: Measurements) -> dict[str, str]:
    """Layers that stay in float by plan.config.min_layer_sqnr, with the reasons.

    They are those that read tensors of changing level, such as sound, loud and quiet, or its
    spectra: the scale that serves the loud leaves few steps for the quiet, which no choice of
    ranges or rounding mends. Both must fall below the bar: what a layer reads, in one batch at
    least, and the outputs with that layer alone quantized, since a network may take no notice.
    """
    least = plan.config.min_layer_sqnr
    found = {}
    for group in plan.groups:
        effect = measurements.effects.get(group.name, math.inf)
        # Where all of a tensor is below the bar, its range was chosen so: it is no matter of level.
        served = [n for n in group.reads if measurements.activations.get(n, 0.0) >= least]
        quiet = min((measurements.quietest[name] for name in served), default=math.inf)
        if effect < least and quiet < least:
            found[group.name] = (
                f"left in float: what it reads changes in level, down to {quiet:.1f} dB in 8 bits, "
                f"and with it alone quantized the outputs have {effect:.1f} dB (min_layer_sqnr is "
                f"{least:g})"
            )
    return found


def without_unfit(
    run: Run, found: Planned, measurements: Measurements, batches: Sequence[Feeds]
) -> tuple[Planned, Measurements]:
    """The plan without its unfit layers, measured anew.

    Where no product would be left, the plan is kept: then nothing would be quantized, which is not
    what was asked for.
    """
    unfit = unfit_layers(found.plan, measurements)
    products = {group.name for group in found.plan.groups if group.kind == "product"}
    if found.probe is None or not unfit or unfit.keys() >= products:
        return found, measurements
    log.info("%d layers stay in float: %s", len(unfit), ", ".join(unfit))
    plan = replanned(found, unfit)
    again = measure(run, found.probe, found.base, plan, batches)
    return replace(found, plan=plan), again
