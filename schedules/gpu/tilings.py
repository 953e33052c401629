"""How matrix products on a device are cut into blocks and threads: the default, and the choice."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from schedules.interface import Candidate, Knob, TargetTraits
from schedules.space import tunable


@dataclass(frozen=True)
class Product:
    """`groups` products of (rows, steps) by (steps, columns)."""

    groups: int
    rows: int
    columns: int
    steps: int
    dtype: str  # of the sums

    @property
    def flops(self) -> float:
        return 2.0 * self.groups * self.rows * self.columns * self.steps


@dataclass(frozen=True)
class Tiling:
    """How a product is cut.

    Attributes:
        across, down: threads of a block along columns and rows.
        vectors, lanes: of a thread's columns.
        tall: a thread's rows at a time.
        turns: how often it takes so many rows.
        depth: steps of the reduction between two barriers.
    """

    across: int
    down: int
    vectors: int
    lanes: int
    tall: int
    turns: int
    depth: int

    @property
    def threads(self) -> int:
        return self.across * self.down

    @property
    def width(self) -> int:
        """Columns of a block."""
        return self.across * self.vectors * self.lanes

    @property
    def height(self) -> int:
        """Rows of a block."""
        return self.down * self.tall * self.turns

    @property
    def row_block(self) -> int:
        """Rows that lie together where the left operand is packed."""
        return self.down * self.tall


_DEPTH = 16
_THREADS = 256
_LANES = 4
_ITEM = 8  # bytes of the widest sums
_KNOBS = (
    ("across", (4, 8, 16, 32)),
    ("down", (1, 2, 4, 8, 16, 32)),
    ("vectors", (1, 2, 4)),
    ("tall", (1, 2, 4, 8)),
    ("turns", (1,)),
    ("depth", (4, 8, 16, 32)),
)
_LOOP_KNOBS = (
    ("across", (1,)),
    ("down", (1,)),
    ("vectors", (1, 2, 3, 4)),
    ("tall", (1, 2, 3, 4, 6, 8, 10, 12, 14)),
    ("turns", (1, 2, 4, 8, 12, 16)),
    ("depth", (32, 64, 128, 256, 512)),
)
_LOOP_DEPTH = 128
_LOOP_ROWS = 96


def default_tiling(product: Product, traits: TargetTraits) -> Tiling:
    """A tiling within the device's limits that keeps its units busy."""
    assert traits.gpu is not None
    gpu = traits.gpu
    if gpu.loops:
        return _loop_tiling(product, traits)
    threads = 1 << (min(gpu.max_threads, _THREADS).bit_length() - 1)
    down = 1 << (threads.bit_length() // 2)
    if product.rows <= 8:
        down = min(down, 4)
    down = min(down, threads)
    tiling = Tiling(threads // down, down, 1, _LANES, 4, 1, min(_DEPTH, product.steps))
    for wider in (replace(tiling, vectors=2), replace(tiling, vectors=2, tall=8)):
        if _blocks(product, wider) >= 2 * gpu.units:
            tiling = wider
    while shared_bytes(tiling) > gpu.shared_bytes:
        smaller = _smaller(tiling)
        if smaller == tiling:
            raise ValueError(f"{gpu.shared_bytes} bytes of shared memory are too few for a product")
        tiling = smaller
    return tiling


def _smaller(tiling: Tiling) -> Tiling:
    """A tiling that needs less shared memory; the same if there is none."""
    if tiling.depth > 4:
        return replace(tiling, depth=tiling.depth // 2)
    if tiling.tall > 1:
        return replace(tiling, tall=tiling.tall // 2, vectors=1)
    if tiling.threads > 1:
        side = "across" if tiling.across >= tiling.down else "down"
        return replace(tiling, **{side: getattr(tiling, side) // 2})
    return replace(tiling, depth=1)


def _blocks(product: Product, tiling: Tiling) -> int:
    """Blocks that a product is cut into."""
    across = ceildiv(product.columns, tiling.width)
    return product.groups * across * ceildiv(product.rows, tiling.height)


def tuned_over(
    product: Product, traits: TargetTraits, make: Callable[[Tiling], Candidate]
) -> Candidate:
    """make(tiling) of the default tiling, open to all others that the device allows."""
    default = default_tiling(product, traits)
    gpu = traits.gpu
    assert gpu is not None
    values = _LOOP_KNOBS if gpu.loops else _KNOBS

    def decided(chosen: Mapping[str, int]) -> Candidate | None:
        tiling = Tiling(lanes=default.lanes, **chosen)
        fits = tiling.threads <= gpu.max_threads and (
            gpu.loops or shared_bytes(tiling) <= gpu.shared_bytes
        )
        # Sums of one thread in more than its registers, or most of them outside the product.
        sums = tiling.vectors * tiling.lanes * tiling.tall
        crowded = sums > (64 if not gpu.loops else 28 * tiling.lanes)
        wasteful = tiling.width >= 2 * max(product.columns, default.width)
        if tiling != default and (not fits or crowded or wasteful):
            return None
        return make(tiling)

    knobs = [Knob(name, found) for name, found in values]
    return tunable(knobs, {name: getattr(default, name) for name, _ in values}, decided)


def _loop_tiling(product: Product, traits: TargetTraits) -> Tiling:
    assert traits.gpu is not None
    lanes = traits.lanes
    most = 12 if traits.vector_bytes == 64 else 4
    vectors = 2 if product.columns > lanes else 1
    tall = min(range(1, most + 1), key=lambda t: (ceildiv(product.rows, t) * (t + 1.5), -t))
    blocks = product.groups * ceildiv(product.columns, vectors * lanes)
    turns = ceildiv(product.rows, tall)
    turns = min(turns, max(1, _LOOP_ROWS // tall))
    while turns > 1 and blocks * ceildiv(product.rows, tall * turns) < 4 * traits.gpu.units:
        turns = ceildiv(turns, 2)
    return Tiling(1, 1, vectors, lanes, tall, turns, min(_LOOP_DEPTH, product.steps))


def shared_bytes(tiling: Tiling) -> int:
    """Of a block's pieces of both operands."""
    return _ITEM * tiling.depth * (tiling.width + tiling.height)


def ceildiv(a: int, b: int) -> int:
    """a / b rounded up."""
    return -(-a // b)
