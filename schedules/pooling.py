"""Max and average pooling, blocked by channels or row-major.

Windows that hang over the border visit only the taps inside: bounds of the vertical loop per output
row, and code of its own for the columns at either border, so that no tap is tested. Averages are
sums in float32 (exact integers: truncated) divided once; errors stay below 1e-6 of the largest
input. max gives NaN where a window holds one, and −inf (the least integer) for an empty window.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from tvm import tirx

from schedules import nest
from schedules.interface import (
    PLAIN,
    Candidate,
    Layout,
    PrimExpr,
    PrimFunc,
    TargetTraits,
    Workload,
    channel_layouts,
)
from schedules.nest import Stmt
from schedules.scalar_binary import maximum
from schedules.scalar_values import cast, lowest
from schedules.vectors import (
    Frame,
    accumulator,
    blocks_of,
    candidate,
    lanes_of,
    load_as,
    of_type,
    parallel_grid,
    scratch,
)
from schedules.windows import Axis, Run, runs

_PIXELS = 4
_WIDEST_UNROLLED = 7  # columns of a window; wider ones are loops


def candidates(workload: Workload, traits: TargetTraits) -> tuple[Candidate, ...]:
    """Blocked (float dtypes) and row-major."""
    op = workload.op
    if op.kind not in ("max_pool2d", "avg_pool2d"):
        return ()
    layouts = (PLAIN, *channel_layouts(op.output.shape[1], [op.inputs[0].dtype], traits))
    kernel = op.attr("kernel")
    return tuple(
        candidate(
            op.kind,
            workload,
            (layout,),
            layout,
            partial(_compute, workload, layout, traits),
            flops_per_element=float(kernel[0] * kernel[1]),
        )
        for layout in layouts
    )


def _compute(workload: Workload, layout: Layout, traits: TargetTraits) -> PrimFunc:
    return Pool(workload, layout, traits).function()


class Pool:
    """The kernel of a pooling; its methods make parts of the nest."""

    def __init__(self, workload: Workload, layout: Layout, traits: TargetTraits) -> None:
        op = workload.op
        self.op = op
        self.layout = layout
        self.frame = Frame(workload, (layout,), layout)
        kernel, strides, padding = op.attr("kernel"), op.attr("strides"), op.attr("padding")
        dilation = op.attr("dilation")
        shape, out = op.inputs[0].shape, op.output.shape
        self.rows, self.columns = (
            Axis(
                shape[2 + i],
                out[2 + i],
                kernel[i],
                strides[i],
                padding[i],
                padding[2 + i],
                dilation[i],
            )
            for i in (0, 1)
        )
        self.largest = op.kind == "max_pool2d"
        self.dtype = op.output.dtype if self.largest else accumulator(op.output.dtype)
        self.include_pad = not self.largest and op.attr("count_include_pad")
        self.identity = lowest(self.dtype) if self.largest else tirx.const(0, self.dtype)
        self.lanes = layout.block or lanes_of(traits, self.dtype)

    def function(self) -> PrimFunc:
        physical = self.layout.physical(self.op.output.shape)
        row = self._blocked_row if self.layout.block else self._plain_row
        return self.frame.function(parallel_grid(physical[:3], row))

    def _combine(self, total: PrimExpr, value: PrimExpr) -> PrimExpr:
        # The value comes first: whether it is NaN is known before the total is.
        return maximum(value, total) if self.largest else total + value

    def _counted(self, which: int, out: PrimExpr, inside: PrimExpr) -> PrimExpr:
        """Taps of one axis that an average divides by; `inside` of them are not padding."""
        if not self.include_pad:
            return inside
        return (self.rows, self.columns)[which].padded_taps(out)

    def _value(self, total: PrimExpr, count: PrimExpr) -> PrimExpr:
        """The pooled value, in the op's dtype."""
        if not self.largest:
            count = cast(tirx.max(count, 1), self.dtype)
            total = total / count if "float" in self.dtype else tirx.truncdiv(total, count)
        return of_type(total, self.op.output)

    def _window(
        self,
        out: PrimExpr,
        columns: Callable[[PrimExpr], Stmt | None],
    ) -> Stmt:
        """Loop over the vertical taps of output row `out`; columns(y) handles input row y."""
        first, count = self.rows.taps(out)
        axis = self.rows
        return nest.serial(
            count,
            lambda t: columns(out * axis.stride - axis.before + (first + t) * axis.dilation),
            "kh",
        )

    def one(self, n: PrimExpr, c: PrimExpr, row: PrimExpr, column: PrimExpr) -> Stmt:
        """One output (all channels of its block), with both loops' bounds computed."""
        width = self.layout.block or 1
        total = scratch((width,), self.dtype, "total")
        first, count = self.columns.taps(column)
        axis = self.columns

        def index(y: PrimExpr, x: PrimExpr, lane: PrimExpr) -> list[PrimExpr]:
            return [n, c, y, x, lane] if self.layout.block else [n, c, y, x]

        def tap(y: PrimExpr, t: PrimExpr) -> Stmt:
            x = column * axis.stride - axis.before + (first + t) * axis.dilation
            return nest.vectorized(
                width,
                lambda lane: nest.write(
                    total,
                    self._combine(
                        nest.read(total, lane),
                        load_as(self.frame.inputs[0], self.dtype, *index(y, x, lane)),
                    ),
                    lane,
                ),
            )

        _, rows = self.rows.taps(row)
        divisor = self._counted(0, row, rows) * self._counted(1, column, count)
        return nest.sequence(
            nest.allocate(total),
            nest.vectorized(width, lambda lane: nest.write(total, self.identity, lane)),
            self._window(row, lambda y: nest.serial(count, lambda t: tap(y, t), "kw")),
            nest.vectorized(
                width,
                lambda lane: self.frame.finish(
                    self._value(nest.read(total, lane), divisor), index(row, column, lane)
                ),
            ),
        )

    def _blocked_row(self, n: PrimExpr, c: PrimExpr, row: PrimExpr) -> Stmt:
        axis = self.columns
        if axis.kernel > _WIDEST_UNROLLED:
            return nest.serial(axis.out, lambda x: self.one(n, c, row, x), "ow")
        parts = [
            nest.serial(
                run.count,
                lambda t, run=run: self._tile(n, c, row, run.start + t * run.width, run),  # type: ignore[misc]
                "wt",
            )
            for run in runs(axis, min(_PIXELS, axis.out))
        ]
        return nest.sequence(*parts)

    def _tile(self, n: PrimExpr, c: PrimExpr, row: PrimExpr, start: PrimExpr, run: Run) -> Stmt:
        """`run.width` neighbouring outputs of a blocked row."""
        axis, lanes = self.columns, self.lanes
        total = scratch((run.width, lanes), self.dtype, "total")

        def each(body: Callable[[PrimExpr, PrimExpr], Stmt], low: int, high: int) -> Stmt:
            return nest.unrolled(
                high - low, lambda p: nest.vectorized(lanes, lambda x: body(p + low, x))
            )

        def columns(y: PrimExpr) -> Stmt | None:
            parts = []
            for kw in range(axis.kernel):
                low, high = (0, run.width)
                if not run.interior:
                    low, high = axis.valid(run.start, run.width, kw)

                def tap(p: PrimExpr, x: PrimExpr, kw: int = kw) -> Stmt:
                    at = (start + p) * axis.stride - axis.before + kw * axis.dilation
                    value = load_as(self.frame.inputs[0], self.dtype, n, c, y, at, x)
                    return nest.write(total, self._combine(nest.read(total, p, x), value), p, x)

                if low < high:
                    parts.append(each(tap, low, high))
            return nest.sequence(*parts) if parts else tirx.Evaluate(0)

        _, rows = self.rows.taps(row)
        down = self._counted(0, row, rows)

        def store(p: PrimExpr, x: PrimExpr) -> Stmt:
            column = start + p
            _, inside = axis.taps(column)
            inside = nest.integer(axis.kernel) if run.interior else inside
            across = self._counted(1, column, inside)
            value = self._value(nest.read(total, p, x), down * across)
            return self.frame.finish(value, (n, c, row, column, x))

        return nest.sequence(
            nest.allocate(total),
            each(lambda p, x: nest.write(total, self.identity, p, x), 0, run.width),
            self._window(row, columns),
            each(store, 0, run.width),
        )

    def _plain_row(self, n: PrimExpr, c: PrimExpr, row: PrimExpr) -> Stmt:
        axis = self.columns
        interior = [o for o in range(axis.out) if axis.interior(o, 1)]
        low, high = (interior[0], interior[-1] + 1) if interior else (axis.out, axis.out)

        def border(start: int, count: int) -> Stmt | None:
            if not count:
                return None
            return nest.serial(count, lambda x: self.one(n, c, row, x + start), "ow")

        vectors = [
            nest.serial(
                count,
                lambda v, at=at, width=width: self._vector(  # type: ignore[misc]
                    n, c, row, v * width + (at + low), width
                ),
                "wt",
            )
            for at, count, width in blocks_of(high - low, self.lanes)
        ]
        return nest.sequence(border(0, low), *vectors, border(high, axis.out - high))

    def _vector(self, n: PrimExpr, c: PrimExpr, row: PrimExpr, start: PrimExpr, width: int) -> Stmt:
        """`width` neighbouring outputs of a row-major row, whose windows hang over no border."""
        axis = self.columns
        total = scratch((width,), self.dtype, "total")

        def tap(y: PrimExpr, kw: PrimExpr) -> Stmt:
            offset = start * axis.stride - axis.before + kw * axis.dilation
            return nest.vectorized(
                width,
                lambda x: nest.write(
                    total,
                    self._combine(
                        nest.read(total, x),
                        load_as(
                            self.frame.inputs[0], self.dtype, n, c, y, offset + x * axis.stride
                        ),
                    ),
                    x,
                ),
            )

        _, rows = self.rows.taps(row)
        down = self._counted(0, row, rows)

        def store(x: PrimExpr) -> Stmt:
            across = nest.integer(axis.kernel)
            value = self._value(nest.read(total, x), down * across)
            return self.frame.finish(value, (n, c, row, start + x))

        return nest.sequence(
            nest.allocate(total),
            nest.vectorized(width, lambda x: nest.write(total, self.identity, x)),
            self._window(row, lambda y: nest.serial(axis.kernel, lambda k: tap(y, k), "kw")),
            nest.vectorized(width, store),
        )
