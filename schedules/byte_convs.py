"""Convolutions of bytes: which kernel takes which, and how their results lie."""

from __future__ import annotations

import numpy as np

from schedules.byte_tiles import has_sums
from schedules.conv_common import Conv, dimensions
from schedules.interface import Layout, TargetTraits, Workload, channel_block

FEWEST_CHANNELS = 16
"""Below this, most of a block would be empty."""
MOST_TAPS = 512
"""Sums over fewer, of one channel, are exact in float32: 2²⁴ / 2¹⁵."""


def bytes_conv(workload: Workload, traits: TargetTraits) -> Conv | None:
    """The dimensions of a convolution over two axes of uint8 with constant int8, where there are
    instructions for it; None if it is another."""
    op = workload.op
    if op.kind != "conv_integer" or not has_sums(traits) or not op.constant[1]:
        return None
    if [sig.dtype for sig in op.inputs] != ["uint8", "int8"] or len(op.output.shape) != 4:
        return None
    return dimensions(workload)


def is_narrow(conv: Conv) -> bool:
    """Whether neighbouring taps are to be joined, as the channels alone are too few."""
    return conv.groups == 1 and conv.channels < FEWEST_CHANNELS and conv.dilation == (1, 1)


def is_depthwise(conv: Conv) -> bool:
    """Whether each channel has a filter of its own, of few taps."""
    few = conv.kernel[0] * conv.kernel[1] < MOST_TAPS
    return few and conv.groups == conv.channels == conv.filters


def output_layout(workload: Workload, traits: TargetTraits) -> Layout:
    """Blocks of the output's channels: as the next layer of bytes reads them, or one of floats."""
    output = workload.output
    if np.dtype(output.dtype).itemsize == 1:
        return Layout(channel_block(output.shape[1]))
    return Layout(traits.lanes)
