"""non_max_suppression: per batch and class, the best boxes of which no two overlap too much.

Inputs: boxes (B,N,4), scores (B,C,N), the most boxes per class (1 element, int64), the IoU and the
score thresholds (1 float32 each). Outputs: (batch, class, box) of the selected boxes, best first
within batch and class, padded with zeros; and how many there are. The classes of all batches are
shared among the workers: candidates above the score threshold are sorted, equal scores by position,
then each is kept unless it overlaps one that was kept. Overlaps are computed in float32 with one
division, so that a quotient that equals the threshold is kept.

Source: ONNX NonMaxSuppression; the greedy scheme is Felzenszwalb et al., "Object Detection with
Discriminatively Trained Part-Based Models", 2010, section 4.4.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from tvm import tirx

from schedules import nest
from schedules.interface import Candidate, PrimExpr, PrimFunc, TargetTraits, Workload
from schedules.nest import Buffer, Stmt
from schedules.plain import Parameters, alone, plain_candidate, read_flat
from schedules.scalar_values import cast
from schedules.selection import clear_rest
from schedules.sorting import Pairs, Scalar, Sorter, key_dtype, key_of, repeat, reversed_key
from schedules.vectors import parallel, scratch

_SIDES = 5
"""What is kept of a box: low and high of both axes, and the area."""


def candidates(workload: Workload, traits: TargetTraits) -> tuple[Candidate, ...]:
    """One candidate."""
    op = workload.op
    if op.kind != "non_max_suppression":
        return ()
    operations = 40.0 * op.inputs[1].elements + op.output.elements
    compute = partial(_compute, workload)
    return (plain_candidate("non_max_suppression.greedy", workload, compute, operations, 3),)


def _compute(workload: Workload) -> PrimFunc:
    op, to = workload.op, Parameters(workload)
    target, total = to.outputs
    batches, boxes, _ = op.inputs[0].shape
    tasks, most = batches * op.inputs[1].shape[1], min(boxes, op.attr("most"))
    if not tasks * most:
        return to.function(alone(nest.write(total, tirx.const(0, "int64"), 0)))
    kept = nest.buffer((tasks * most,), "int32", "kept")
    counts = nest.buffer((tasks,), "int32", "counts")

    def select(task: PrimExpr) -> Stmt:
        return _Greedy(workload, to, kept, counts).statement(task)

    before = Scalar("int32", "before")
    starts = nest.buffer((tasks,), "int32", "starts")

    def add_up(task: PrimExpr) -> Stmt:
        return nest.sequence(
            nest.write(starts, before.get(), task),
            before.set(before.get() + nest.read(counts, task)),
        )

    def store(task: PrimExpr) -> Stmt:
        batch, which = nest.unflatten(task, (batches, op.inputs[1].shape[1]))

        def row(i: PrimExpr) -> Stmt:
            at = nest.read(starts, task) + i
            box = nest.read(kept, task * most + i)
            return nest.sequence(
                *[
                    nest.write(target, cast(value, "int64"), at, column)
                    for column, value in enumerate((batch, which, box))
                ]
            )

        return nest.serial(nest.read(counts, task), row)

    rows = op.output.shape[0]
    tripled = nest.buffer((1,), "int64", "tripled")
    return to.function(
        nest.allocate(kept, counts, starts, tripled),
        parallel(tasks, select),
        alone(
            nest.sequence(
                before.set(0),
                nest.serial(tasks, add_up),
                nest.write(total, cast(before.get(), "int64"), 0),
                nest.write(tripled, cast(before.get() * 3, "int64"), 0),
            ),
            nest.allocate(before.buffer),
        ),
        parallel(tasks, store),
        clear_rest(target, 1, rows * 3, tripled),
    )


@dataclass(frozen=True)
class _Greedy:
    """The selection among the boxes of one class."""

    workload: Workload
    to: Parameters
    kept: Buffer
    counts: Buffer

    def statement(self, task: PrimExpr) -> Stmt:
        op = self.workload.op
        boxes, scores, most, overlap, least = self.to.inputs
        batches, count, _ = op.inputs[0].shape
        limit = min(count, op.attr("most"))
        batch, which = nest.unflatten(task, (batches, op.inputs[1].shape[1]))
        dtype = op.inputs[1].dtype
        # TVM narrows a buffer to the elements that are used, unless a loop runs over them.
        room, size = max(2, limit), max(2, count)
        pairs = Pairs.scratch(size, key_dtype(dtype), "row")
        sorter = Sorter(pairs, size, dtype)
        sides = scratch((_SIDES, room), "float32", "sides")
        box = scratch((_SIDES,), "float32", "box")
        found, done, rank = (Scalar("int32", n) for n in ("found", "done", "rank"))
        wanted, other, free = (Scalar("int32", n) for n in ("wanted", "other", "free"))
        shared = Scalar("float32", "shared")

        def offer(i: PrimExpr) -> Stmt:
            score = nest.read(scores, batch, which, i)
            put = nest.sequence(
                pairs.put(found.get(), reversed_key(key_of(score, dtype)), i),
                found.set(found.get() + 1),
            )
            if not op.attr("has_score"):
                return put
            return tirx.IfThenElse(score > cast(read_flat(least, 0), dtype), put, None)

        def corner(i: int) -> PrimExpr:
            return cast(nest.read(boxes, batch, pairs.position(rank.get()), i), "float32")

        def load() -> Stmt:
            if op.attr("center"):
                half = tirx.const(0.5, "float32")
                # x, y, width, height
                sizes = [corner(2) * half, corner(3) * half]
                low = [corner(i) - sizes[i] for i in (0, 1)]
                high = [corner(i) + sizes[i] for i in (0, 1)]
            else:
                low = [tirx.min(corner(i), corner(i + 2)) for i in (0, 1)]
                high = [tirx.max(corner(i), corner(i + 2)) for i in (0, 1)]
            return nest.sequence(
                nest.write(box, low[0], 0),
                nest.write(box, low[1], 1),
                nest.write(box, high[0], 2),
                nest.write(box, high[1], 3),
                nest.write(
                    box,
                    (nest.read(box, 2) - nest.read(box, 0))
                    * (nest.read(box, 3) - nest.read(box, 1)),
                    4,
                ),
            )

        def side(i: int) -> PrimExpr:
            return nest.read(sides, i, tirx.min(other.get(), nest.integer(limit - 1)))

        zero = tirx.const(0, "float32")

        def extent(axis: int) -> PrimExpr:
            low = tirx.max(side(axis), nest.read(box, axis))
            high = tirx.min(side(axis + 2), nest.read(box, axis + 2))
            return tirx.max(high - low, zero)

        union = side(4) + nest.read(box, 4) - shared.get()
        positive = tirx.all(
            shared.get() > zero, side(4) > zero, nest.read(box, 4) > zero, union > zero
        )
        overlaps = tirx.if_then_else(
            positive, shared.get() / union > cast(read_flat(overlap, 0), "float32"), False
        )
        against = nest.sequence(
            shared.set(extent(0) * extent(1)),
            tirx.IfThenElse(overlaps, free.set(0), None),
            other.set(other.get() + 1),
        )
        keep = nest.sequence(
            nest.serial(
                _SIDES, lambda s: nest.write(sides, nest.read(box, s), s, done.get()), "side"
            ),
            nest.write(self.kept, pairs.position(rank.get()), task * limit + done.get()),
            done.set(done.get() + 1),
        )
        consider = nest.sequence(
            load(),
            free.set(1),
            other.set(0),
            repeat(tirx.all(free.get() == 1, other.get() < done.get()), against),
            tirx.IfThenElse(free.get() == 1, keep, None),
            rank.set(rank.get() + 1),
        )
        ceiling = tirx.const(limit, "int64")
        cells = (found, done, rank, wanted, other, free, shared)
        return nest.sequence(
            pairs.allocate(),
            sorter.allocate(),
            nest.allocate(sides, box, *[cell.buffer for cell in cells]),
            found.set(0),
            wanted.set(
                cast(
                    tirx.max(
                        tirx.min(cast(read_flat(most, 0), "int64"), ceiling),
                        tirx.const(0, "int64"),
                    ),
                    "int32",
                )
            ),
            nest.serial(
                2, lambda i: pairs.put(i, tirx.const(0, key_dtype(dtype)), nest.integer(0))
            ),
            nest.serial(
                _SIDES, lambda s: nest.serial(2, lambda i: nest.write(sides, zero, s, i)), "side"
            ),
            nest.serial(count, offer),
            sorter.sort(found.get()),
            done.set(0),
            rank.set(0),
            repeat(tirx.all(rank.get() < found.get(), done.get() < wanted.get()), consider),
            nest.write(self.counts, done.get(), task),
        )
