"""Windows that slide over the spatial axes: padding and output sizes of convolution and pooling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from graphopt.frontend.emit import NodeContext, Unsupported


@dataclass(frozen=True)
class Window:
    """One sliding window; each tuple has one entry per spatial axis, paddings are ≥ 0."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]

    @property
    def extent(self) -> tuple[int, ...]:
        """Input elements from a window's first to its last tap."""
        return tuple(d * (k - 1) + 1 for k, d in zip(self.kernel, self.dilations, strict=True))

    @property
    def padding(self) -> tuple[int, ...]:
        """As Relax takes it: all before, then all after."""
        return (*self.before, *self.after)

    @property
    def identity(self) -> bool:
        """Whether each window is one element, and each element one window."""
        padding = any((*self.before, *self.after))
        return set(self.kernel) | set(self.strides) <= {1} and not padding

    def along(self, axes: Sequence[int]) -> Window:
        """The window over some of the axes only."""
        fields = (self.kernel, self.strides, self.dilations, self.before, self.after)
        return Window(*[tuple(field[axis] for axis in axes) for field in fields])

    def lifted(self, position: int) -> Window:
        """This window over one axis with another before (0) or behind (1), left as it is."""

        def pair(values: tuple[int, ...], neutral: int) -> tuple[int, ...]:
            return (neutral, *values) if position == 0 else (*values, neutral)

        return Window(
            pair(self.kernel, 1),
            pair(self.strides, 1),
            pair(self.dilations, 1),
            pair(self.before, 0),
            pair(self.after, 0),
        )

    def outputs(self, spatial: tuple[int, ...]) -> tuple[int, ...]:
        """Windows along each axis of an input of size `spatial`; refuses one without any."""
        found = tuple(
            (size + low + high - extent) // stride + 1
            for size, low, high, extent, stride in zip(
                spatial, self.before, self.after, self.extent, self.strides, strict=True
            )
        )
        if min(found, default=1) < 1:
            raise Unsupported(f"no window of {self.kernel} fits into {spatial}")
        return found


def read_window(
    node: NodeContext, kernel: tuple[int, ...], spatial: tuple[int, ...], dilated: bool = True
) -> Window:
    """Strides, dilations and padding of a node, with auto_pad resolved for input size `spatial`."""
    rank = len(spatial)
    strides = _list(node, "strides", rank, 1)
    dilations = _list(node, "dilations", rank, 1) if dilated else (1,) * rank
    if min(strides) < 1 or min(dilations) < 1:
        raise Unsupported("strides and dilations must be positive")
    mode = node.string_attr("auto_pad", "NOTSET") or "NOTSET"
    pads = node.int_list("pads")
    if mode == "NOTSET":
        pads = [0] * (2 * rank) if pads is None else pads
        if len(pads) != 2 * rank:
            raise Unsupported(f"pads has {len(pads)} entries for {rank} spatial axes")
        if min(pads) < 0:
            raise Unsupported("negative padding is not supported")
        before, after = tuple(pads[:rank]), tuple(pads[rank:])
    elif mode == "VALID":
        before = after = (0,) * rank
    elif mode in ("SAME_UPPER", "SAME_LOWER"):
        totals = []
        for size, k, s, d in zip(spatial, kernel, strides, dilations, strict=True):
            out = -(-size // s)
            totals.append(max(0, (out - 1) * s + d * (k - 1) + 1 - size))
        small = tuple(total // 2 for total in totals)
        large = tuple(total - total // 2 for total in totals)
        before, after = (small, large) if mode == "SAME_UPPER" else (large, small)
    else:
        raise Unsupported(f"auto_pad='{mode}' is unknown")
    return Window(kernel, strides, dilations, before, after)


def _list(node: NodeContext, name: str, rank: int, default: int) -> tuple[int, ...]:
    values = node.int_list(name)
    if values is None or not values:
        return (default,) * rank
    if len(values) != rank:
        raise Unsupported(f"{name} has {len(values)} entries for {rank} spatial axes")
    return tuple(values)


def ceil_padding(window: Window, spatial: tuple[int, ...]) -> tuple[int, ...]:
    """Padding behind each axis that makes floor mode give the output size of ceil mode.

    A last window that would start in the padding behind is dropped, as ONNX specifies.
    """
    after = []
    for size, extent, stride, low, high in zip(
        spatial, window.extent, window.strides, window.before, window.after, strict=True
    ):
        out = -(-(size + low + high - extent) // stride) + 1
        if (out - 1) * stride >= size + low:
            out -= 1
        after.append(max(high, (out - 1) * stride + extent - size - low))
    return tuple(after)
