"""Determinants of square matrices by LU decomposition with partial pivoting, in float64.

The matrices of a batch are shared among the workers; each is copied to scratch memory, where rows
are eliminated in place. Error against float64: that of Gaussian elimination in float64, rounded.
"""

from __future__ import annotations

from functools import partial

from tvm import tirx

from schedules import nest
from schedules.interface import PLAIN, Candidate, PrimExpr, PrimFunc, TargetTraits, Workload
from schedules.nest import Stmt
from schedules.scalar_values import cast
from schedules.vectors import Frame, candidate, parallel

_ZERO = tirx.const(0.0, "float64")


def candidates(workload: Workload, traits: TargetTraits) -> tuple[Candidate, ...]:
    """Row-major."""
    if workload.op.kind != "determinant":
        return ()
    compute = partial(_compute, workload)
    size = float(workload.op.inputs[0].shape[1])
    return (candidate("determinant", workload, (PLAIN,), PLAIN, compute, size),)


def _compute(workload: Workload) -> PrimFunc:
    frame = Frame(workload, (PLAIN,), PLAIN)
    [source] = frame.inputs
    batch, n, _ = workload.op.inputs[0].shape

    def one(b: PrimExpr) -> Stmt:
        a = nest.buffer((n, n), "float64", "a")
        pivot = nest.buffer((1,), "int32", "pivot", "local")
        result = nest.buffer((1,), "float64", "result", "local")
        swap = nest.buffer((1,), "float64", "swap", "local")
        factor = nest.buffer((1,), "float64", "factor", "local")

        def find(k: PrimExpr) -> Stmt:
            def compare(step: PrimExpr) -> Stmt:
                row = k + 1 + step
                best = tirx.abs(nest.read(a, nest.read(pivot, 0), k))
                return nest.branch(tirx.abs(nest.read(a, row, k)) > best, nest.write(pivot, row, 0))

            return nest.sequence(
                nest.write(pivot, k, 0), nest.serial(n - 1 - k, compare, "candidate")
            )

        def exchange(k: PrimExpr) -> Stmt:
            chosen = nest.read(pivot, 0)

            def entry(j: PrimExpr) -> Stmt:
                return nest.sequence(
                    nest.write(swap, nest.read(a, k, j), 0),
                    nest.write(a, nest.read(a, chosen, j), k, j),
                    nest.write(a, nest.read(swap, 0), chosen, j),
                )

            negated = nest.write(result, _ZERO - nest.read(result, 0), 0)
            return tirx.IfThenElse(
                chosen > k, nest.sequence(nest.serial(n, entry, "j"), negated), None
            )

        def eliminate(k: PrimExpr) -> Stmt:
            def row(step: PrimExpr) -> Stmt:
                i = k + 1 + step

                def entry(rest: PrimExpr) -> Stmt:
                    j = k + 1 + rest
                    less = nest.read(factor, 0) * nest.read(a, k, j)
                    return nest.write(a, nest.read(a, i, j) - less, i, j)

                return nest.sequence(
                    nest.write(factor, nest.read(a, i, k) / nest.read(a, k, k), 0),
                    nest.serial(n - 1 - k, entry, "j"),
                )

            # A column of zeros: the product is zero already, and nothing is left to divide by.
            return tirx.IfThenElse(
                nest.read(a, k, k) == _ZERO, _nothing(), nest.serial(n - 1 - k, row, "row")
            )

        def column(k: PrimExpr) -> Stmt:
            product = nest.read(result, 0) * nest.read(a, k, k)
            return nest.sequence(find(k), exchange(k), nest.write(result, product, 0), eliminate(k))

        def copy(i: PrimExpr) -> Stmt:
            return nest.serial(
                n,
                lambda j: nest.write(a, cast(nest.read(source, b, i, j), "float64"), i, j),
                "j",
            )

        value = cast(nest.read(result, 0), workload.op.output.dtype)
        return nest.sequence(
            nest.allocate(a, pivot, result, swap, factor),
            nest.serial(n, copy, "row"),
            nest.write(result, tirx.const(1.0, "float64"), 0),
            nest.serial(n, column, "k"),
            frame.finish(value, [b]),
        )

    return frame.function(parallel(batch, one))


def _nothing() -> Stmt:
    return tirx.Evaluate(nest.integer(0))
