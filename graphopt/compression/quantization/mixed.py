"""Mixed precision: the fewest layers in float with which the model is good enough."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence

from graphopt.compression.quantization.running import Batches, Run
from graphopt.compression.quantization.scheme import decibels
from graphopt.compression.quantization.switches import Switched, relative_noise
from graphopt.frontend.model import Array

log = logging.getLogger(__name__)

Predict = Callable[[Mapping[str, Array]], Mapping[str, Array]]
Metric = Callable[[Predict], float]
"""Gets a function from inputs to outputs; gives a number that is higher for a better model."""

Judge = Callable[[Predict], float]
"""As Metric, for what is inside: the user's metric or the outputs' SQNR."""

_RETURNS = 24
"""Layers, at most, of which it is tried whether they can be quantized after all."""


def fewest_in_float(
    effects: Mapping[str, float], good: Callable[[Sequence[str]], bool]
) -> tuple[str, ...]:
    """Layers to leave in float, the costliest first.

    Layers are given up in the order of what they cost alone; the number of them is found by
    bisection, and then the cheaper ones are tried in integers again, one by one.

    Args:
        effects: SQNR in dB of the outputs with each layer quantized alone.
        good: whether the model is good enough with these layers quantized. It is not asked about
            no layer at all: that is the float model.
    """
    ranked = sorted(effects, key=lambda name: effects[name])
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
    for name in ranked[max(enough - 1 - _RETURNS, 0) : enough - 1][::-1]:
        fewer = [other for other in kept if other != name]
        if good([other for other in ranked if other not in fewer]):
            kept = fewer
    return tuple(kept)


def switched_run(
    run: Run, switches: Switched, outputs: Sequence[str], quantized: Sequence[str]
) -> Predict:
    """The model with these layers quantized, as a function from inputs to outputs."""

    def predict(inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        return run(switches.model, switches.feeds(inputs, quantized), outputs)

    return predict


def sqnr_judge(exact: Predict, batches: Batches) -> Judge:
    """A judge that gives the outputs' SQNR in dB against `exact`."""
    kept = [(inputs, exact(inputs)) for inputs in batches]

    def judge(predict: Predict) -> float:
        noise = sum(relative_noise(reference, predict(inputs)) for inputs, reference in kept)
        return decibels(float(len(kept)), noise)

    return judge
