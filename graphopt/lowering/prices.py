"""The static price table: what a kernel or a layout change takes, in seconds, without measuring.

A roofline with three ceilings: arithmetic, activations, which the layer before left in a near
cache, and weights, which were last used one run ago and come from far memory. It need not be right
in seconds, only rank candidates: figures are of the class of a recent server core, were fitted to
ResNet-18, ResNet-50 and SqueezeNet on one and two cores, and scale with the target's vector width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np

from schedules.interface import Candidate, Cost, TargetTraits, Workload

CLOCK_HZ = 3.0e9
BANDWIDTH = 14e9
"""Bytes per second of one core from the outer cache levels."""
LAST_LEVEL_BYTES = 16 << 20
"""A network's constants up to this size stay in the last-level cache between two runs."""
LAST_LEVEL_BANDWIDTH = 24e9
"""Bytes of weights per second that one core streams from there while it computes."""
MEMORY_BANDWIDTH = 13e9
"""The same from memory."""
SHARED_MEMORY_BANDWIDTH = 40e9
"""The same from memory for all cores together."""
BARRIER_SECONDS = 0.4e-6
SERIAL_SECONDS = 3e-6
"""A kernel shorter than this on one core gains less from a second one than a barrier costs."""


def peak_flops(traits: TargetTraits) -> float:
    """FLOP/s of one core: two vector multiply-add pipes."""
    return traits.lanes * (4 if traits.fma else 2) * CLOCK_HZ


def single_core_seconds(cost: Cost, traits: TargetTraits) -> float:
    """Time of a kernel on one core."""
    compute = cost.flops / (peak_flops(traits) * max(cost.efficiency, 1e-3))
    return max(compute, cost.bytes / BANDWIDTH)


SMALL_PROGRAM_SECONDS = 150e-6
"""A program shorter than this on one core is run by one: waking workers would cost more."""


def is_serial(cost: Cost, traits: TargetTraits) -> bool:
    """Whether a kernel is too small to share among workers."""
    return single_core_seconds(cost, traits) < SERIAL_SECONDS


def weight_bandwidth(constant_bytes: float, workers: int) -> float:
    """Bytes per second at which `workers` read the weights of a network with so many constants."""
    if constant_bytes <= LAST_LEVEL_BYTES:
        return workers * LAST_LEVEL_BANDWIDTH
    return min(workers * MEMORY_BANDWIDTH, SHARED_MEMORY_BANDWIDTH)


def price(
    cost: Cost, traits: TargetTraits, weight_bytes: float = 0.0, constant_bytes: float = 0.0
) -> float:
    """Time of a kernel in a program that runs on traits.threads workers, barriers included.

    Args:
        weight_bytes: how much of its traffic, as packed, are constants.
        constant_bytes: of the whole network.
    """
    weight_bytes = min(weight_bytes, cost.bytes)
    near = replace(cost, bytes=cost.bytes - weight_bytes)
    workers = 1 if is_serial(cost, traits) else traits.threads
    barriers = cost.passes * BARRIER_SECONDS if traits.threads > 1 else 0.0
    alone = single_core_seconds(near, traits) / workers
    streaming = weight_bytes / weight_bandwidth(constant_bytes, workers)
    # A smooth maximum: the two overlap, but not where both take about as long.
    return float(np.cbrt(alone**3 + streaming**3)) + barriers


@dataclass(frozen=True)
class Offer:
    """A candidate for a group, and what is known of it.

    seconds: measured time of its kernel; None if it was not measured.
    origin: where its decisions come from: "default", "tuned" (measured on such a machine) or
        "borrowed" (from records of another one, whose times mean nothing here).
    """

    candidate: Candidate
    seconds: float | None = None
    origin: str = "default"


Advisor: TypeAlias = "Callable[[Workload, Sequence[Candidate]], tuple[Offer, ...]]"
"""Knows kernels that were measured: one offer for each candidate, with the best decisions known."""


def unadvised(_workload: Workload, candidates: Sequence[Candidate]) -> tuple[Offer, ...]:
    """The candidates as they are: nothing was measured."""
    return tuple(Offer(candidate) for candidate in candidates)
