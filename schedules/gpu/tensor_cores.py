"""Products of halves on tensor cores: matmuls, and convolutions as implicit products.

A block of four warps computes 64 × 64 sums, each warp 32 × 32 as four fragments of 16 × 16 (CUDA's
warp matrix functions; Markidis et al., "NVIDIA Tensor Core Programmability, Performance &
Precision", 2018). Operands reach shared memory as in gpu/tiles.py; sums leave through it, so that
the epilogue sees elements.

Numerics: products of halves are exact and added up in float32, in an order that the hardware
chooses: the error against float64 before the last rounding is at most 1e-5 of the largest output
for up to 4608 terms of standard-normal data.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from tvm import tirx

from schedules import nest
from schedules.gpu import conv, matmul
from schedules.gpu.block_nest import Loader, inside
from schedules.gpu.threads import barrier, grid, shared
from schedules.gpu.tiles import Finish, Tiles
from schedules.gpu.tilings import Tiling
from schedules.interface import Candidate, PrimExpr, TargetTraits, Workload
from schedules.nest import Buffer, Stmt

EDGE = 16
"""Rows, columns and depth of a fragment."""
_FAMILIES = {"matmul": matmul, "conv2d": conv}
_EFFICIENCY = 2.0  # of what the GPU does in float32 otherwise
_WARP = 32
_PART = 2  # fragments along each edge of a warp's part
TILING = Tiling(across=16, down=8, vectors=1, lanes=4, tall=8, turns=1, depth=32)
_WARPS_ACROSS = TILING.width // (_PART * EDGE)
# Lines of shared memory begin in different banks, and where fragments may be loaded from.
_SKEW = 8


def candidates(workload: Workload, traits: TargetTraits) -> tuple[Candidate, ...]:
    """One candidate where both operands are halves, whatever becomes of the float32 sums, and no
    edge is far smaller than a tile."""
    op, gpu = workload.op, traits.gpu
    if gpu is None or not gpu.tensor_cores or gpu.max_threads < TILING.threads:
        return ()
    if {sig.dtype for sig in op.inputs[:2]} != {"float16"}:
        return ()
    if op.kind not in _FAMILIES or gpu.shared_bytes < shared_bytes():
        return ()
    family = _FAMILIES[op.kind]
    product = family.product_of(workload)
    if product is None or product.dtype != "float32":
        return ()
    if min(product.rows, product.columns, product.steps) < EDGE:
        return ()
    found = family.tiled(workload, replace(product, dtype="float16"), traits, TILING, multiply)
    cost = replace(found.cost, efficiency=_EFFICIENCY)
    return (replace(found, name=f"{found.name}.tensor_cores", cost=cost),)


def shared_bytes() -> int:
    """Memory that the threads of a block share."""
    pieces = TILING.depth * (TILING.height + TILING.width + 2 * _SKEW) * 2
    return pieces + TILING.height * TILING.width * 4


def multiply(tiles: Tiles, loops: bool, finish: Finish) -> Stmt:
    """The kernel of a product of halves in tiles of TILING."""
    assert not loops
    groups, down, across = tiles.blocks()
    t = tiles.tiling

    def block(b: PrimExpr, thread: PrimExpr) -> Stmt:
        group, row, column = nest.unflatten(b, (groups, down, across))
        return _Block(tiles, thread).work(group, row * t.height, column * t.width, finish)

    return grid(groups * down * across, t.threads, block)


class _Block:
    """The work of one thread of a block."""

    def __init__(self, tiles: Tiles, thread: PrimExpr) -> None:
        self.tiles, self.t, self.thread = tiles, tiles.tiling, thread
        t = self.t
        self.left = shared((t.depth, t.height + _SKEW), "float16", "left_piece")
        self.right = shared((t.depth, t.width + _SKEW), "float16", "right_piece")
        self.results = shared((t.height, t.width), "float32", "results")
        self.a = _fragments(_PART, "float16", "a", "matrix_a")
        self.b = _fragments(_PART, "float16", "b", "matrix_b")
        self.sums = _fragments(_PART * _PART, "float32", "sums", "accumulator")
        warp = thread // _WARP
        self.top = warp // _WARPS_ACROSS * (_PART * EDGE)
        self.leftmost = warp % _WARPS_ACROSS * (_PART * EDGE)

    def work(self, group: PrimExpr, row: PrimExpr, column: PrimExpr, finish: Finish) -> Stmt:
        """Sums of the tile at `row` and `column`."""
        t, tiles, thread = self.t, self.tiles, self.thread
        left = Loader(tiles, False, self.left, t.height, tiles.left_steps_first, thread)
        right = Loader(tiles, True, self.right, t.width, tiles.right_steps_first, thread)

        def piece(number: PrimExpr) -> Stmt:
            step = number * t.depth
            return nest.sequence(
                left.load(group, step, row),
                right.load(group, step, column),
                barrier(),
                nest.serial(t.depth // EDGE, lambda k: self._multiply(k * EDGE), "k"),
                barrier(),
            )

        def store(i: PrimExpr) -> Stmt:
            element = i * t.threads + thread
            m, n = element // t.width, element % t.width
            value = nest.read(self.results, m, n)
            stored = finish(value, group, row + m, column + n)
            return inside(tiles, row + m, column + n, stored)

        return nest.sequence(
            nest.allocate(self.left, self.right, self.results, self.a, self.b, self.sums),
            *[nest.whole(each) for each in (self.left, self.right)],
            self._each(self._clear),
            left.prepare(group, row),
            right.prepare(group, column),
            nest.serial(-(-tiles.product.steps // t.depth), piece, "piece"),
            self._each(self._store),
            barrier(),
            nest.serial(t.height * t.width // t.threads, store),
        )

    def _each(self, body: Callable[[int, int], Stmt]) -> Stmt:
        return nest.sequence(*[body(i, j) for i in range(_PART) for j in range(_PART)])

    def _clear(self, i: int, j: int) -> Stmt:
        zero = tirx.const(0, "float32")
        return _call("tvm_fill_fragment", self.sums, i * _PART + j, zero)

    def _multiply(self, k: PrimExpr) -> Stmt:
        """Add 16 steps of the piece. Both operands lie with steps first."""
        t = self.t

        def load(fragment: Buffer, number: int, piece: Buffer, line: PrimExpr, order: str) -> Stmt:
            stride = nest.integer(int(piece.shape[1]))
            # Not address_of(): TVM would think that nothing happens, and leave the load out.
            address = piece.access_ptr("r", ptr_type="float16", offset=k * stride + line)
            return _call("tvm_load_matrix_sync", fragment, number, address, stride, order)

        def add(i: int, j: int) -> Stmt:
            sums = (self.sums.data, nest.integer(i * _PART + j))
            factors = (self.a.data, nest.integer(i), self.b.data, nest.integer(j))
            return _evaluate("tvm_mma_sync", *sums, *factors, *sums)

        assert t.depth % EDGE == 0
        return nest.sequence(
            *[load(self.a, i, self.left, self.top + i * EDGE, "col_major") for i in range(_PART)],
            *[
                load(self.b, j, self.right, self.leftmost + j * EDGE, "row_major")
                for j in range(_PART)
            ],
            self._each(add),
        )

    def _store(self, i: int, j: int) -> Stmt:
        at = nest.read(self.results, self.top + i * EDGE, self.leftmost + j * EDGE)
        stride = nest.integer(self.t.width)
        number = i * _PART + j
        address = tirx.address_of(at)
        return _call("tvm_store_matrix_sync", self.sums, number, address, stride, "row_major")


def _fragments(count: int, dtype: str, name: str, use: str) -> Buffer:
    return nest.buffer((count * EDGE * EDGE,), dtype, name, f"wmma.{use}")


def _call(name: str, fragment: Buffer, number: int, *rest: PrimExpr | str) -> Stmt:
    """An intrinsic of one fragment: which, its three edges, its number, and what else."""
    edges = [nest.integer(EDGE)] * 3
    return _evaluate(name, fragment.data, *edges, nest.integer(number), *rest)


def _evaluate(name: str, *arguments: PrimExpr | str) -> Stmt:
    return tirx.Evaluate(tirx.call_intrin("void", f"tirx.{name}", *arguments))
