"""Running sums and products on a device.

Lines that lie side by side in memory get a thread each. Otherwise a block of threads takes a line,
a piece at a time: log₂(threads) steps in shared memory, in each of which an element is joined with
the one 1, 2, 4, … places before (Hillis and Steele, "Data parallel algorithms", 1986), and what
the pieces before came to.

Numerics: float16 in float32; the error against float64 is at most that of adding in sequence,
n·2⁻²⁴ of the largest partial sum of absolute values. Integers are exact.
"""

from __future__ import annotations

from functools import partial

from tvm import tirx

from schedules import nest
from schedules.gpu.elements import Index, each_element
from schedules.gpu.threads import barrier, grid, registers, shared
from schedules.gpu.tilings import ceildiv
from schedules.interface import Candidate, PrimExpr, PrimFunc, TargetTraits, Workload
from schedules.nest import Stmt
from schedules.plain import Parameters, plain_candidate, rows_of
from schedules.scalar_values import cast
from schedules.scan import FUNCTIONS
from schedules.vectors import accumulator, load_as

_THREADS = 256
_SIDE_BY_SIDE = 16
"""Lines next to each other from which on a thread for each is better."""


def candidates(workload: Workload, traits: TargetTraits) -> tuple[Candidate, ...]:
    """One candidate where threads are threads."""
    op, gpu = workload.op, traits.gpu
    if op.kind != "scan" or gpu is None or gpu.loops or not op.output.elements:
        return ()
    compute = partial(_compute, workload, traits)
    # A thread does little besides reading and writing.
    return (plain_candidate("gpu.scan", workload, compute, 0.1 * op.output.elements),)


def _compute(workload: Workload, traits: TargetTraits) -> PrimFunc:
    assert traits.gpu is not None
    line = _Lines(workload)
    if line.inner >= _SIDE_BY_SIDE:
        return line.to.function(each_element((line.outer, line.inner), traits, line.in_order))
    most = min(_THREADS, traits.gpu.max_threads)
    threads = 1
    while threads < line.length and 2 * threads <= most:
        threads *= 2
    blocks = line.outer * line.inner
    return line.to.function(grid(blocks, threads, partial(line.in_steps, threads)))


class _Lines:
    def __init__(self, workload: Workload) -> None:
        op, self.to = workload.op, Parameters(workload)
        self.outer, self.length, self.inner = rows_of(op.output, op.attr("axis"))
        self.shape, self.dtype = op.output.shape, op.output.dtype
        self.wide = accumulator(self.dtype)
        start, self.combine = FUNCTIONS[op.attr("function")]
        self.identity = tirx.const(start, self.wide)
        self.exclusive, self.reverse = op.attr("exclusive"), op.attr("reverse")

    def _at(self, o: PrimExpr, step: PrimExpr, i: PrimExpr) -> tuple[PrimExpr, ...]:
        """Where the element of a line that comes in turn `step` lies."""
        j = self.length - 1 - step if self.reverse else step
        return nest.unflatten((o * self.length + j) * self.inner + i, self.shape)

    def _load(self, at: tuple[PrimExpr, ...]) -> PrimExpr:
        return load_as(self.to.inputs[0], self.wide, *at)

    def _store(self, value: PrimExpr, at: tuple[PrimExpr, ...]) -> Stmt:
        return nest.write(self.to.outputs[0], cast(value, self.dtype), *at)

    def in_order(self, line: Index) -> Stmt:
        """A line, by one thread."""
        o, i = line
        total = registers((1,), self.wide, "total")

        def step(t: PrimExpr) -> Stmt:
            at = self._at(o, t, i)
            add = nest.write(total, self.combine(nest.read(total, 0), self._load(at)), 0)
            store = self._store(nest.read(total, 0), at)
            return nest.sequence(*((store, add) if self.exclusive else (add, store)))

        return nest.sequence(
            nest.allocate(total),
            nest.write(total, self.identity, 0),
            nest.serial(self.length, step, "step"),
        )

    def in_steps(self, threads: int, block: PrimExpr, thread: PrimExpr) -> Stmt:
        """A line, by a block of so many threads, a power of two."""
        o, i = nest.unflatten(block, (self.outer, self.inner))
        part = shared((2, threads), self.wide, "part")
        before = registers((1,), self.wide, "before")
        steps = threads.bit_length() - 1
        last = steps % 2

        def join(number: int) -> Stmt:
            source, reach = number % 2, 1 << number
            own = nest.read(part, source, thread)
            joined = self.combine(nest.read(part, source, thread - reach), own)
            value = tirx.if_then_else(thread >= reach, joined, own)
            return nest.sequence(nest.write(part, value, 1 - source, thread), barrier())

        def piece(number: PrimExpr) -> Stmt:
            step = number * threads + thread
            at, inside = self._at(o, step, i), step < self.length
            if self.exclusive:
                previous = nest.read(part, last, thread - 1)
                found = tirx.if_then_else(thread > 0, previous, self.identity)
            else:
                found = nest.read(part, last, thread)
            total, whole = nest.read(before, 0), nest.read(part, last, threads - 1)
            stored = self._store(self.combine(total, found), at)
            return nest.sequence(
                nest.write(
                    part, tirx.if_then_else(inside, self._load(at), self.identity), 0, thread
                ),
                barrier(),
                *[join(number) for number in range(steps)],
                tirx.IfThenElse(inside, stored, None),
                nest.write(before, self.combine(total, whole), 0),
                barrier(),
            )

        return nest.sequence(
            nest.allocate(part, before),
            nest.write(before, self.identity, 0),
            nest.serial(ceildiv(self.length, threads), piece, "piece"),
        )
