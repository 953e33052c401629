"""The frame of a kernel of bytes: its parameters and its epilogue."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from schedules import nest
from schedules.byte_tiles import COLUMNS
from schedules.conv_common import ceil_div
from schedules.epilogue import apply_epilogue, operand_layouts
from schedules.interface import Layout, Packing, PrimExpr, PrimFunc, Workload
from schedules.nest import Stmt


class Frame:
    """The buffers of a kernel of bytes: source, weights, operands, result."""

    def __init__(
        self, workload: Workload, source: Layout, weights: Layout | Packing, target: Layout
    ) -> None:
        first, second = workload.op.inputs[:2]
        shape = (
            weights.physical(second.shape)
            if isinstance(weights, Layout)
            else weights.packed_shape(second.shape)
        )
        self.workload, self.target = workload, target
        self.source = nest.buffer(source.physical(first.shape), first.dtype, "source")
        self.weights = nest.buffer(shape, second.dtype, "weights")
        where = operand_layouts(workload.epilogue, workload.output, target)
        self._operands = [
            nest.buffer(layout.physical(sig.shape), sig.dtype, f"operand{i}")
            for i, (sig, layout) in enumerate(zip(workload.epilogue.operands, where, strict=True))
        ]
        out = target.physical(workload.output.shape)
        self._result = nest.buffer(out, workload.output.dtype, "result")

    def finish(self, value: PrimExpr, index: Sequence[PrimExpr]) -> Stmt:
        """Store the epilogue of a sum at physical `index` of the output."""
        operands = [nest.reader(buffer) for buffer in self._operands]
        element = apply_epilogue(self.workload, value, operands, self.target, index)
        return nest.write(self._result, element, *index)

    def channels(
        self,
        panel: PrimExpr,
        vectors: int,
        leading: Sequence[PrimExpr],
        position: Sequence[PrimExpr],
        value: Callable[[PrimExpr], PrimExpr],
    ) -> Stmt:
        """Store one panel of filters at one position of a blocked output of `leading` axes."""
        piece = min(COLUMNS, self.target.block)  # of a panel, that lies in one block
        each = self.target.block // piece
        groups = ceil_div(self.workload.output.shape[1], self.target.block) * each
        pieces = vectors * COLUMNS // piece

        def store(i: PrimExpr) -> Stmt:
            group = panel * pieces + i

            def lane(x: PrimExpr) -> Stmt:
                index = (*leading, group // each, *position, group % each * piece + x)
                return self.finish(value(i * piece + x), index)

            stored = nest.vectorized(piece, lane)
            return nest.branch(groups % pieces == 0 or group < groups, stored)

        return nest.unrolled(pieces, store)

    def function(self, *nests: Stmt) -> PrimFunc:
        """The finished function."""
        parameters = [self.source, self.weights, *self._operands, self._result]
        return nest.function(parameters, nest.sequence(*nests))
