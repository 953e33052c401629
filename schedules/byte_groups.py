"""Groups of a convolution of bytes: how many are summed at once, and their packed weights.

A vector of sums belongs to 16 filters, which may be those of several groups. These read the
channels of all of them, with weights of zero between the groups: products of nothing, but of such
a kind that every vector is full and no byte is moved. With 16 filters or more in a group there are
none.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd, lcm
from typing import Any

import numpy as np

from schedules.byte_tiles import COLUMNS, GROUP
from schedules.conv_common import Conv, ceil_div
from schedules.interface import channel_block


@dataclass(frozen=True)
class Merging:
    """How the groups of a convolution are summed.

    groups: of the convolution. merged: of these, that are summed as one. channels, filters: of so
    many together. piece: channels that lie side by side in a block and are summed in one step.
    """

    groups: int
    merged: int
    channels: int
    filters: int
    piece: int

    @property
    def count(self) -> int:
        """How many merged groups there are; the last one may be short."""
        return ceil_div(self.groups, self.merged)

    @property
    def pieces(self) -> int:
        """Of each merged group."""
        return ceil_div(self.channels, self.piece)

    def panels(self, panel: int) -> int:
        """Panels of filters of each merged group."""
        return ceil_div(self.filters, panel)

    def fits(self, panel: int) -> bool:
        """Whether a panel of so many filters never has those of two merged groups."""
        return self.count == 1 or self.filters % panel == 0


def merging(conv: Conv) -> Merging:
    """As few groups at once as fill vectors of filters and words of channels."""
    block = channel_block(conv.channels)
    channels, filters = conv.channels // conv.groups, conv.filters // conv.groups
    merged = lcm(COLUMNS // gcd(filters, COLUMNS), GROUP // gcd(channels, GROUP))
    if conv.groups == 1 or merged >= conv.groups:
        return Merging(conv.groups, conv.groups, conv.channels, conv.filters, block)
    together = merged * channels
    return Merging(conv.groups, merged, together, merged * filters, gcd(together, block))


@dataclass(frozen=True)
class ByteWeights:
    """Packs int8 (O,C/groups,…) as (panels, pieces, …, piece / 4, panel, 4): zeros where neither a
    filter nor a channel is, and between groups that are merged."""

    merging: Merging
    panel: int

    def pack(self, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """See the class."""
        plan, panel, kernel = self.merging, self.panel, array.shape[2:]
        filters, channels = array.shape[0] // plan.groups, array.shape[1]
        shape = (plan.count, plan.merged, filters, plan.merged, channels, *kernel)
        wide = np.zeros(shape, array.dtype)
        for group, part in enumerate(np.split(array, plan.groups)):
            outer, inner = divmod(group, plan.merged)
            wide[outer, inner, :, inner] = part
        shape = (plan.count, plan.panels(panel) * panel, plan.pieces * plan.piece, *kernel)
        padded = np.zeros(shape, array.dtype)
        padded[:, : plan.filters, : plan.channels] = wide.reshape(
            plan.count, plan.filters, plan.channels, *kernel
        )
        parts = (plan.count, plan.panels(panel), panel, plan.pieces, plan.piece // GROUP, GROUP)
        split = padded.reshape(*parts, *kernel)
        axes = (0, 1, 3, *range(6, split.ndim), 4, 2, 5)
        packed = np.ascontiguousarray(split.transpose(axes))
        return packed.reshape(self.packed_shape(array.shape))

    def packed_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of pack()'s result."""
        plan = self.merging
        outer = (plan.count * plan.panels(self.panel), plan.pieces, *shape[2:])
        return (*outer, plan.piece // GROUP, self.panel, GROUP)
