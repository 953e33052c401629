"""Parts of recurrent kernels that no gate is in: packing of weights, rounding of the state."""

from __future__ import annotations

from typing import Any

from tvm import tirx

from schedules import nest
from schedules.interface import PrimExpr
from schedules.nest import Buffer, Stmt
from schedules.recurrent_cells import Cell
from schedules.tile import by_vectors, fold


def pack_weights(cell: Cell, weights: Buffer, packed: Buffer) -> Stmt:
    """packed[panel, k, gate · lanes + unit] = weights[gate · hidden + unit, k], as GatePanels."""
    depth = int(weights.ty.shape[1])

    def panel_of(panel: PrimExpr, units: int) -> Stmt:
        def gate_at(k: PrimExpr, gate: int) -> Stmt:
            def unit(u: PrimExpr) -> PrimExpr:
                return nest.read(weights, panel * cell.lanes + u + gate * cell.hidden, k)

            def put(first: int, count: int, value: Any) -> Stmt | None:
                def body(u: PrimExpr) -> Stmt:
                    column = u + (gate * cell.lanes + first)
                    return nest.write(packed, value(u), panel, k, column)

                return nest.vectorized(count, body) if count else None

            zero = tirx.const(0, str(weights.dtype))
            return nest.sequence(
                put(0, units, unit), put(units, cell.lanes - units, lambda u: zero)
            )

        return nest.serial(
            depth,
            lambda k: nest.sequence(*[gate_at(k, gate) for gate in range(cell.gates)]),
            name="k",
        )

    return nest.parallel(cell.panels, lambda panel: cell.one_panel(panel, panel_of))


def quantize_row(cell: Cell, source: Buffer, target: Buffer, row: PrimExpr) -> Stmt:
    """target[row] = source[row] to the nearest of 256 even steps from its least to its greatest.

    The steps (zero is one of them) are those of the ONNX operator DynamicQuantizeLinear.
    """
    low, high, scale, zero = (
        nest.buffer((extent,), cell.dtype, name, "local")
        for extent, name in (
            (cell.lanes, "low"),
            (cell.lanes, "high"),
            (1, "scale"),
            (1, "zero_point"),
        )
    )
    none, least, top = (tirx.const(v, cell.dtype) for v in (0, 1, 255))

    def gather(first: PrimExpr, count: int) -> Stmt:
        def body(u: PrimExpr) -> Stmt:
            value = nest.read(source, row, first + u)
            return nest.sequence(
                nest.write(low, tirx.min(nest.read(low, u), value), u),
                nest.write(high, tirx.max(nest.read(high, u), value), u),
            )

        return nest.vectorized(count, body)

    whole, rest = divmod(cell.hidden, cell.lanes)
    width = nest.read(high, 0) - nest.read(low, 0)
    step = nest.read(scale, 0)
    bottom = tirx.nearbyint(tirx.min(tirx.max((none - nest.read(low, 0)) / step, none), top))

    def rounded(j: PrimExpr) -> Stmt:
        start = nest.read(zero, 0)
        level = tirx.nearbyint(nest.read(source, row, j) / step) + start
        return nest.write(target, (tirx.min(tirx.max(level, none), top) - start) * step, row, j)

    return nest.sequence(
        nest.allocate(low, high, scale, zero),
        nest.vectorized(cell.lanes, lambda u: nest.write(low, none, u)),
        nest.vectorized(cell.lanes, lambda u: nest.write(high, none, u)),
        nest.serial(whole, lambda p: gather(p * cell.lanes, cell.lanes)) if whole else None,
        gather(nest.integer(whole * cell.lanes), rest) if rest else None,
        fold(low, (), cell.lanes, tirx.min),
        fold(high, (), cell.lanes, tirx.max),
        nest.write(scale, tirx.Select(width > none, width / top, least), 0),
        nest.write(zero, bottom, 0),
        by_vectors(cell.hidden, cell.lanes, rounded),
    )
