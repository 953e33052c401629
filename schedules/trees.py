"""Ensembles of decision trees: each row of the input walks every tree from its root to a leaf.

Blocks of rows are shared among the workers. Within a block the trees are the outer loop, so that
the nodes of a tree stay in the first-level cache for all its rows. Sums are kept in the type of the
thresholds, in the order of the trees.
"""

from __future__ import annotations

from functools import partial

from tvm import tirx

from schedules import nest
from schedules.interface import PLAIN, Candidate, PrimExpr, PrimFunc, TargetTraits, Workload
from schedules.nest import Buffer, Stmt
from schedules.scalar_binary import BINARY
from schedules.scalar_math import is_nan
from schedules.scalar_values import cast
from schedules.vectors import Frame, candidate, parallel

_ROWS = 64
_TESTS = ("less_equal", "less", "greater_equal", "greater", "equal", "not_equal")


def candidates(workload: Workload, traits: TargetTraits) -> tuple[Candidate, ...]:
    """Row-major."""
    op = workload.op
    if op.kind != "tree_ensemble":
        return ()
    trees = op.inputs[4].elements
    return (
        candidate(
            "tree_ensemble",
            workload,
            (PLAIN,) * len(op.inputs),
            PLAIN,
            partial(_compute, workload, traits),
            flops_per_element=50.0 * trees,
        ),
    )


def _compute(workload: Workload, traits: TargetTraits) -> PrimFunc:
    op = workload.op
    frame = Frame(workload, (PLAIN,) * len(op.inputs), PLAIN)
    x, feature, threshold, children, roots, target, weight, *flags = frame.inputs
    rows, targets = op.output.shape
    dtype = op.inputs[2].dtype
    start = {"sum": 0.0, "min": float("inf"), "max": float("-inf")}[str(op.attr("aggregate"))]
    block = max(1, min(_ROWS, -(-rows // traits.threads)))
    split = nest.Split.of(rows, block)

    def part(first: PrimExpr, count: int) -> Stmt:
        total = nest.buffer((count, targets), dtype, "total")
        place = nest.buffer((1,), "int32", "place", "local")

        def walk(tree: PrimExpr, row: PrimExpr) -> Stmt:
            node = nest.read(place, 0)
            value = nest.read(x, first + row, nest.read(feature, node))
            right = _test(op.attr("mode"), value, nest.read(threshold, node), node, flags)
            step = tirx.While(
                nest.read(feature, node) >= 0,
                nest.write(place, nest.read(children, node, tirx.Cast("int32", right)), 0),
            )
            begin = nest.read(children, node, 0)

            def leaf(entry: PrimExpr) -> Stmt:
                index = begin + entry
                column = nest.read(target, index)
                joined = _join(
                    str(op.attr("aggregate")),
                    nest.read(total, row, column),
                    nest.read(weight, index),
                )
                return nest.write(total, joined, row, column)

            return nest.sequence(
                nest.write(place, nest.read(roots, tree), 0),
                step,
                nest.serial(nest.read(children, node, 1) - begin, leaf, "entry"),
            )

        def finish(row: PrimExpr, column: PrimExpr) -> Stmt:
            value = nest.read(total, row, column)
            if start:
                # No tree has spoken.
                empty = value == tirx.const(start, dtype)
                value = tirx.Select(empty, tirx.const(0.0, dtype), value)
            return frame.finish(cast(value, op.output.dtype), [first + row, column])

        def grid(body: object) -> Stmt:
            assert callable(body)
            return nest.serial(
                count, lambda r: nest.serial(targets, lambda c: body(r, c), "target"), "row"
            )

        return nest.sequence(
            nest.allocate(total, place),
            grid(lambda r, c: nest.write(total, tirx.const(start, dtype), r, c)),
            nest.serial(
                op.inputs[4].elements,
                lambda tree: nest.serial(count, lambda row: walk(tree, row), "row"),
                "tree",
            ),
            grid(finish),
        )

    return frame.function(parallel(split.count, lambda i: split.part(i, part)))


def _test(
    mode: int, value: PrimExpr, limit: PrimExpr, node: PrimExpr, flags: list[Buffer]
) -> PrimExpr:
    """Whether `value` takes the true branch; flags hold 2·test + (missing values take it)."""
    if not flags:
        return BINARY[_TESTS[mode]](value, limit)
    flag = nest.read(flags[0], node)
    result = BINARY[_TESTS[0]](value, limit)
    if mode < 0:
        for i, name in enumerate(_TESTS[1:], 1):
            chosen = tirx.shift_right(flag, nest.integer(1)) == i
            test = BINARY[name](value, limit)
            result = tirx.any(tirx.all(chosen, test), tirx.all(tirx.Not(chosen), result))
    else:
        result = BINARY[_TESTS[mode]](value, limit)
    missing = tirx.bitwise_and(flag, nest.integer(1)) == 1
    return tirx.any(result, tirx.all(missing, is_nan(value)))


def _join(aggregate: str, a: PrimExpr, b: PrimExpr) -> PrimExpr:
    if aggregate == "sum":
        return a + b
    return tirx.min(a, b) if aggregate == "min" else tirx.max(a, b)
