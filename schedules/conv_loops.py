"""The frame of a convolution kernel: its parameters, its parallel loop and its epilogue.

Convolutions need different code at the borders of an image (fewer taps, narrower tiles). A schedule
derives such code from predicates, which costs speed and compile time where it fails; here each tile
is emitted for exactly the columns and taps that it has, so that nothing is tested in inner loops.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

from schedules import nest
from schedules.epilogue import apply_epilogue, operand_layouts
from schedules.interface import Layout, Packing, PrimExpr, PrimFunc, Workload
from schedules.nest import Buffer, Stmt


def between(low: int, high: int, body: Callable[[PrimExpr], Stmt]) -> Stmt:
    """`body(i)` for low ≤ i < high, unrolled."""
    return nest.unrolled(high - low, lambda i: body(i + low))


def parallel_grid(extents: Sequence[int], body: Callable[..., Stmt]) -> Stmt:
    """One parallel loop over the product of `extents`; `body` takes the coordinates."""

    def bound(rest: tuple[PrimExpr, ...], known: tuple[PrimExpr, ...]) -> Stmt:
        if not rest:
            return body(*known)
        return nest.bind(rest[0], lambda x: bound(rest[1:], (*known, x)), "at")

    return nest.parallel(prod(extents), lambda task: bound(nest.unflatten(task, extents), ()))


def over_channels(channels: int, block: int, body: Callable[[PrimExpr, int], Stmt]) -> Stmt:
    """body(block of channels, number of channels in it) for all; without blocks (0), one by one."""
    if not block:
        return nest.serial(channels, lambda c: body(c, 1), "ic")
    full, rest = divmod(channels, block)
    return nest.sequence(
        nest.serial(full, lambda c: body(c, block), "ic") if full else None,
        body(nest.integer(full), rest) if rest else None,
    )


class Kernel:
    """The buffers of one convolution: image, packed weights, epilogue operands, output."""

    def __init__(
        self, workload: Workload, source: Layout, weights: Layout | Packing, output: Layout
    ) -> None:
        """The image has layout `source`; `weights` is how input 1 is packed."""
        epilogue = workload.epilogue
        self.workload = workload
        self.layout = output
        self.image: Buffer = nest.buffer(
            source.physical(workload.op.inputs[0].shape), "float32", "image"
        )
        shape = workload.op.inputs[1].shape
        packed = (
            weights.physical(shape) if isinstance(weights, Layout) else weights.packed_shape(shape)
        )
        self.weights: Buffer = nest.buffer(packed, "float32", "weights")
        where = operand_layouts(epilogue, workload.output, output)
        self._operands = [
            nest.buffer(layout.physical(sig.shape), sig.dtype, f"operand{i}")
            for i, (sig, layout) in enumerate(zip(epilogue.operands, where, strict=True))
        ]
        self._result: Buffer = nest.buffer(
            output.physical(workload.output.shape), workload.output.dtype, "result"
        )

    def finish(self, value: PrimExpr, index: Sequence[PrimExpr]) -> Stmt:
        """Store the epilogue of the anchor's `value` at physical `index` of the output."""
        operands = [nest.reader(buffer) for buffer in self._operands]
        result = apply_epilogue(self.workload, value, operands, self.layout, index)
        return nest.write(self._result, result, *index)

    def function(self, *nests: Stmt) -> PrimFunc:
        """The finished function, whose body is the sequence of `nests`."""
        parameters = [self.image, self.weights, *self._operands, self._result]
        return nest.function(parameters, nest.sequence(*nests))
