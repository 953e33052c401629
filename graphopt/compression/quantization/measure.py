"""Measures what quantization costs: noise at every layer's output and in every tensor."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from graphopt.compression.quantization.graph import Graph
from graphopt.compression.quantization.groups import Group
from graphopt.compression.quantization.plan import Plan
from graphopt.compression.quantization.probe import FloatProbe, integer_probe, layers_of
from graphopt.compression.quantization.running import Feeds, Run
from graphopt.compression.quantization.scheme import decibels, rounded
from graphopt.frontend.model import Array, OnnxModel

log = logging.getLogger(__name__)

ENOUGH = 1.0
"""Seconds for quantizing layers one at a time; one batch is always taken, up to LIMIT. Likewise
for runs whose time is measured."""
LIMIT = 60.0
_TURNS = 15


@dataclass(frozen=True)
class Measurements:
    """Signal-to-noise ratios in dB, against the canonical float model on the same inputs.

    Attributes:
        layers: by tensor, what all quantization up to it does to a layer's output.
        activations: by tensor, what rounding to 8 bits alone does to it.
        quietest: by tensor, likewise in the batch that suffers most.
        effects: by layer, of the model's outputs with that layer alone quantized; {} if measuring
            it would take too long.
        batches: how many were compared.
    """

    layers: Mapping[str, float]
    activations: Mapping[str, float]
    quietest: Mapping[str, float]
    effects: Mapping[str, float]
    batches: int


@dataclass
class Power:
    """Sums of squares of a tensor and of the noise on it."""

    signal: float = 0.0
    noise: float = 0.0

    def add(self, reference: Array, other: Array) -> None:
        """Take in one batch's tensor."""
        exact = reference.reshape(-1)
        wrong = exact - other.reshape(-1)
        self.signal += float(np.einsum("i,i", exact, exact, dtype=np.float64))
        self.noise += float(np.einsum("i,i", wrong, wrong, dtype=np.float64))

    def join(self, other: Power) -> None:
        """Take in another one's sums."""
        self.signal += other.signal
        self.noise += other.noise

    @property
    def ratio(self) -> float:
        """In dB."""
        return decibels(self.signal, self.noise)


def compared(
    run: Run, model: OnnxModel, other: OnnxModel, batches: Sequence[Feeds], outputs: Sequence[str]
) -> dict[str, float]:
    """SQNR in dB of each output of `other` against `model`, over all batches."""
    powers = {name: Power() for name in outputs}
    for inputs in batches if outputs else ():
        first, second = run(model, inputs, outputs), run(other, inputs, outputs)
        for name, power in powers.items():
            power.add(first[name], second[name])
    return {name: power.ratio for name, power in powers.items()}


def measure(
    run: Run, probe: FloatProbe, model: OnnxModel, plan: Plan, batches: Sequence[Feeds]
) -> Measurements:
    """Compare a canonical model with its quantized form, batch by batch and layer by layer.

    Args:
        probe: of `model`, with noise inputs for the plan's layers at least.
    """
    outputs = Graph(model).float_outputs
    written = list(dict.fromkeys(name for group in plan.groups for name in group.outputs))
    other = integer_probe(model, plan, written)
    activations = {each.tensor: each for each in plan.activations}
    layers, alone = ({name: Power() for name in names} for names in (written, activations))
    quietest = dict.fromkeys(activations, math.inf)
    effects = Effects(run, probe, outputs, layers_of(plan.groups))
    for inputs in batches:
        computed = run(probe.model, probe.feeds(inputs, {}, {}), probe.wanted)
        exact = {**inputs, **computed}
        found = run(other.model, other.feeds(inputs, exact), other.wanted)
        for name, power in layers.items():
            power.add(exact[name], found[name])
        for name, power in alone.items():
            each = activations[name]
            here = Power()
            here.add(exact[name], rounded(exact[name], each.scale, each.zero, each.form))
            power.join(here)
            quietest[name] = min(quietest[name], here.ratio)
        effects.add(inputs, exact, {name: found[own] for name, own in other.alone.items()})
    return Measurements(
        {name: power.ratio for name, power in layers.items()},
        {name: power.ratio for name, power in alone.items()},
        quietest,
        effects.result(),
        len(batches),
    )


def timed(
    run: Run, models: Sequence[OnnxModel], inputs: Feeds, outputs: Sequence[str]
) -> tuple[float, ...]:
    """Median seconds of a run of each model, which take turns."""
    seconds: list[list[float]] = [[] for _ in models]
    for _ in range(_TURNS):
        for model, found in zip(models, seconds, strict=True):
            started = time.perf_counter()
            run(model, inputs, outputs)
            found.append(time.perf_counter() - started)
        if sum(map(sum, seconds)) > ENOUGH:
            break
    return tuple(float(np.median(found)) for found in seconds)


class Effects:
    """What each layer alone does to the outputs, on as many batches as there is time for."""

    def __init__(
        self, run: Run, probe: FloatProbe, outputs: Sequence[str], layers: Sequence[Group]
    ) -> None:
        self._run, self._probe, self._outputs = run, probe, outputs
        self._layers = {
            group.name: group.outputs
            for group in layers
            if all(name in probe.noise for name in group.outputs)
        }
        self._noise = dict.fromkeys(self._layers, 0.0)
        self._batches, self._ended = 0, not outputs
        self._seconds = 0.0

    def add(
        self, inputs: Feeds, exact: Mapping[str, Array], quantized: Mapping[str, Array]
    ) -> None:
        """Take in one batch, unless the time is used up.

        Args:
            exact: the float model's tensors. quantized: by name, what a layer alone writes.
        """
        if self._ended:
            return
        log.info("quantizing %d layers one at a time", len(self._layers))
        started = time.perf_counter()
        for place, (name, written) in enumerate(self._layers.items()):
            added = {tensor: quantized[tensor] - exact[tensor] for tensor in written}
            feeds = self._probe.feeds(inputs, added, exact)
            found = self._run(self._probe.model, feeds, self._probe.wanted)
            reference = {output: exact[output] for output in self._outputs}
            self._noise[name] += relative_noise(reference, found)
            spent = time.perf_counter() - started
            # The first run may have to compile the model for these shapes.
            started = time.perf_counter() if place == 0 and not self._batches else started
            if not self._batches and place > 0 and spent / place * len(self._layers) > LIMIT:
                self._ended = True
                return
        self._batches += 1
        self._seconds += time.perf_counter() - started
        self._ended = self._seconds * (self._batches + 1) / self._batches > ENOUGH

    def result(self) -> dict[str, float]:
        """SQNR of the outputs, all together, by layer; {} if one batch takes too long.

        Each output counts in proportion to its own power, so that none outweighs the others by
        its unit.
        """
        if not self._batches:
            return {}
        return {name: decibels(float(self._batches), noise) for name, noise in self._noise.items()}


def relative_noise(reference: Mapping[str, Array], found: Mapping[str, Array]) -> float:
    """Mean over the outputs of noise power over signal power."""
    ratios = []
    for name, exact in reference.items():
        power = Power()
        power.add(exact, found[name])
        silent = float(power.noise > 0)
        ratios.append(power.noise / power.signal if power.signal else silent)
    return float(np.mean(ratios))
