"""Small builders for hand-written loop nests in TIR: loops, buffers, functions.

Kernels whose structure a schedule cannot express (tiles of two heights side by side, a recurrence
over time) are written as loop nests directly. A loop takes a function from its variable to its
body, so a nest reads from the outside in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tvm import s_tir, tirx

from schedules.epilogue import operand_layouts
from schedules.interface import PLAIN, PrimExpr, PrimFunc, Schedule, Workload

Stmt = Any
Buffer = Any
Body = Callable[[PrimExpr], Stmt]


def integer(value: int) -> PrimExpr:
    """`value` as an index."""
    return tirx.const(value, "int32")


def buffer(shape: Sequence[int], dtype: str, name: str, scope: str = "global") -> Buffer:
    """A buffer variable; a parameter, or memory once `allocate` stands before its uses."""
    return tirx.decl_buffer(tuple(shape), dtype, name, scope=scope, layout=None)


def operand_buffers(workload: Workload) -> list[Buffer]:
    """Parameters for the operands of an epilogue over a row-major output."""
    layouts = operand_layouts(workload.epilogue, workload.output, PLAIN)
    return [
        buffer(where.physical(sig.shape), sig.dtype, f"operand{i}")
        for i, (sig, where) in enumerate(zip(workload.epilogue.operands, layouts, strict=True))
    ]


def read(source: Buffer, *index: PrimExpr | int) -> PrimExpr:
    """Element of `source` at `index`."""
    return tirx.BufferLoad(source, [integer(i) if isinstance(i, int) else i for i in index])


def write(target: Buffer, value: PrimExpr, *index: PrimExpr | int) -> Stmt:
    """Store `value` in `target` at `index`."""
    return tirx.BufferStore(target, value, [integer(i) if isinstance(i, int) else i for i in index])


def ramp(first: PrimExpr | int, lanes: int) -> PrimExpr:
    """`lanes` consecutive indices from `first` on; `first` itself where that is one."""
    first = integer(first) if isinstance(first, int) else first
    return first if lanes == 1 else tirx.Ramp(first, integer(1), lanes)


def whole(buffer: Buffer) -> Stmt:
    """Keep all of a buffer that instructions use by its address: TVM shrinks a buffer to the part
    that it sees read or written."""
    last = read(buffer, *[int(extent) - 1 for extent in buffer.shape])
    return tirx.Evaluate(tirx.address_of(last))


def reader(source: Buffer) -> Callable[..., PrimExpr]:
    """`source` as a function of its index, as epilogues read their operands."""
    return lambda *index: read(source, *index)


def sequence(*stmts: Stmt | None) -> Stmt:
    """The statements in order; None stands for nothing."""
    kept = [
        inner
        for s in stmts
        if s is not None
        # What a nested sequence allocates must live on behind it.
        for inner in (s.seq if isinstance(s, tirx.SeqStmt) else [s])
    ]
    return kept[0] if len(kept) == 1 else tirx.SeqStmt(kept)


def allocate(*buffers: Buffer) -> Stmt:
    """Memory for `buffers`, alive to the end of the enclosing sequence."""
    return sequence(*[tirx.AllocBuffer(b) for b in buffers])


def _loop(kind: Any, extent: int | PrimExpr, body: Body, name: str) -> Stmt:
    if isinstance(extent, int):
        extent = integer(extent)
    var = tirx.Var(name, "int32")
    return tirx.For(var, integer(0), extent, kind, body(var))


def serial(extent: int | PrimExpr, body: Body, name: str = "i") -> Stmt:
    """A loop one after the other; no loop at all where the extent is 1."""
    if extent == 1 and isinstance(extent, int):
        return body(integer(0))
    return _loop(tirx.ForKind.SERIAL, extent, body, name)


def unrolled(extent: int, body: Body, name: str = "u") -> Stmt:
    """A loop unrolled in full."""
    return body(integer(0)) if extent == 1 else _loop(tirx.ForKind.UNROLLED, extent, body, name)


def vectorized(extent: int, body: Body, name: str = "lane") -> Stmt:
    """A loop that becomes vector operations of `extent` lanes."""
    return body(integer(0)) if extent == 1 else _loop(tirx.ForKind.VECTORIZED, extent, body, name)


def parallel(extent: int, body: Body, name: str = "task") -> Stmt:
    """A loop shared among the workers; only as the outermost of a nest of the function's body."""
    return _loop(tirx.ForKind.PARALLEL, extent, body, name)


def branch(condition: PrimExpr | bool, then: Stmt, otherwise: Stmt | None = None) -> Stmt | None:
    """If-then-else, decided here where the condition is known."""
    if isinstance(condition, bool):
        return then if condition else otherwise
    return tirx.IfThenElse(condition, then, otherwise)


def bind(value: PrimExpr, body: Body, name: str = "x") -> Stmt:
    """`body` of a variable that holds `value`, so that it is computed once."""
    if isinstance(value, (int, tirx.IntImm)):
        return body(value)
    var = tirx.Var(name, "int32")
    return sequence(tirx.Bind(var, value), body(var))


def prefetch(source: Buffer, *index: PrimExpr | int, nearest: bool = False) -> Stmt:
    """Bring the cache line of an element to the second-level cache, or the first; never faults."""
    read_only, locality, data = integer(0), integer(3 if nearest else 2), integer(1)
    address = tirx.address_of(read(source, *index))
    return tirx.Evaluate(
        tirx.call_llvm_intrin("void", "llvm.prefetch", address, read_only, locality, data)
    )


def function(parameters: Iterable[Buffer], body: Stmt) -> PrimFunc:
    """A PrimFunc of `parameters`, which do not alias, ready for a Schedule."""
    root = s_tir.SBlock([], [], [], "root", body)
    realized = s_tir.SBlockRealize([], tirx.const(True, "bool"), root)
    func = tirx.PrimFunc(list(parameters), realized)
    return func.with_attr({"tirx.noalias": True, "global_symbol": "main"})


def as_written(schedule: Schedule) -> None:
    """The schedule of a kernel whose loops are final as written."""


def unflatten(index: PrimExpr, shape: Sequence[int]) -> tuple[PrimExpr, ...]:
    """Coordinates in row-major `shape` of a flat index; no division for axes of extent 1.

    Flattening them again cancels the divisions, so that a row-major buffer read this way costs
    nothing.
    """
    result: list[PrimExpr] = []
    significant = [i for i, dim in enumerate(shape) if dim != 1]
    stride = 1
    for axis in reversed(range(len(shape))):
        if shape[axis] == 1:
            result.append(integer(0))
            continue
        quotient = index if stride == 1 else tirx.floordiv(index, integer(stride))
        first = axis == significant[0]
        result.append(quotient if first else tirx.floormod(quotient, integer(shape[axis])))
        stride *= shape[axis]
    return tuple(reversed(result))


@dataclass(frozen=True)
class Split:
    """An axis in `count` parts whose sizes differ by one at most: the first `larger` have size + 1.

    Unlike parts of one size and a remainder, no part is so thin that it wastes a register tile.
    Where there are more parts than elements, the last ones are empty.
    """

    count: int
    size: int
    larger: int

    @classmethod
    def of(cls, extent: int, most: int, multiple: int = 1) -> Split:
        """`extent` in parts of at most `most`, their number a multiple of `multiple`."""
        count = -(-extent // most)
        count = -(-count // multiple) * multiple
        return cls(count, *divmod(extent, count))

    @property
    def largest(self) -> int:
        return self.size + (1 if self.larger else 0)

    def part(self, index: PrimExpr, body: Callable[[PrimExpr, int], Stmt]) -> Stmt:
        """`body` of the start and the size of part `index`; it is built for each size in use."""
        short = body(index * self.size + self.larger, self.size) if self.size else None
        if not self.larger:
            return short
        long = body(index * (self.size + 1), self.size + 1)
        if self.larger == self.count:
            return long
        return tirx.IfThenElse(index < self.larger, long, short)
