"""Mixed precision: the fewest layers in float with which the model is good enough."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence

from graphopt.compression.quantization.measure import relative_noise
from graphopt.compression.quantization.running import Batches, Feeds
from graphopt.compression.quantization.scheme import decibels

log = logging.getLogger(__name__)

Predict = Callable[[Feeds], Feeds]
Metric = Callable[[Predict], float]
"""Gets a function from inputs to outputs; gives a number that is higher for a better model."""

Judge = Callable[[Predict], float]
"""As Metric, for what is inside: the user's metric or the outputs' SQNR."""

Good = Callable[[Sequence[str]], bool]
"""Whether the model is good enough with these layers quantized."""

_RETURNS = 6
"""Layers, at most, of which it is tried whether they can be quantized after all."""
_LEAST = 1e-9
"""Seconds: a layer that saves less saves nothing."""


def cheapest_in_float(
    effects: Mapping[str, float], savings: Mapping[str, float], good: Good
) -> tuple[str, ...]:
    """Layers to leave in float: few, and such as save little time in integers.

    Two orders of giving layers up are tried: by what each costs in accuracy, which gives the
    fewest, and by that per second that it saves. Of the two results, the one that loses less time.

    Args:
        effects: SQNR in dB of the outputs with each layer quantized alone.
        savings: seconds per run that each layer saves in integers; {} if that is not known.
    """
    noise = {name: 10 ** (-value / 10) for name, value in effects.items()}
    fewest = fewest_in_float(noise, savings, good)
    if not savings or len(fewest) == 0:
        return fewest
    rates = {name: power / max(savings.get(name, 0.0), _LEAST) for name, power in noise.items()}
    other = fewest_in_float(rates, savings, good)
    return min(
        fewest, other, key=lambda kept: (sum(savings.get(name, 0.0) for name in kept), len(kept))
    )


def fewest_in_float(
    costs: Mapping[str, float], savings: Mapping[str, float], good: Good
) -> tuple[str, ...]:
    """Layers to leave in float, the costliest first.

    Layers are given up in the order of their costs; the number of them is found by bisection, and
    then others than the last one are tried in integers again, those that save the most time first.

    Args:
        good: not asked about no layer at all: that is the float model.
    """
    ranked = sorted(costs, key=lambda name: -costs[name])
    if good(ranked):
        return ()
    bad, enough = 0, len(ranked)
    while enough - bad > 1:
        middle = (bad + enough) // 2
        log.info("trying %d of %d layers in float", middle, len(ranked))
        if good(ranked[middle:]):
            enough = middle
        else:
            bad = middle
    kept = ranked[:enough]
    again = sorted(kept[:-1], key=lambda name: (-savings.get(name, 0.0), costs[name]))
    for name in again[:_RETURNS]:
        fewer = [other for other in kept if other != name]
        log.info("trying %s in integers again", name)
        if good([other for other in ranked if other not in fewer]):
            kept = fewer
    return tuple(kept)


def sqnr_judge(exact: Predict, batches: Batches) -> Judge:
    """A judge that gives the outputs' SQNR in dB against `exact`."""
    kept = [(inputs, exact(inputs)) for inputs in batches]

    def judge(predict: Predict) -> float:
        noise = sum(relative_noise(reference, predict(inputs)) for inputs, reference in kept)
        return decibels(float(len(kept)), noise)

    return judge
