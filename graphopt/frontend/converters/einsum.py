"""Einsum, as diagonals, sums and products of two operands at a time; determinants."""

from __future__ import annotations

import math
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from tvm import relax

from graphopt.frontend.emit import Expr, NodeContext, Unsupported, shape_of
from graphopt.ops.determinant import determinant

op = relax.op

_ELLIPSIS = "..."


@dataclass(frozen=True)
class Operand:
    """A value whose axes are named by distinct letters."""

    value: Expr
    letters: str

    def size(self, letter: str) -> int:
        """Extent of an axis."""
        return shape_of(self.value)[self.letters.index(letter)]


def einsum(node: NodeContext) -> Expr:
    """Einsum of any number of operands, with ellipses, repeated letters and outer products."""
    values = node.inputs()
    terms, output = _parse(node.string_attr("equation"), [len(shape_of(value)) for value in values])
    sizes: dict[str, int] = {}
    for term, value in zip(terms, values, strict=True):
        for letter, dim in zip(term, shape_of(value), strict=True):
            known = sizes.setdefault(letter, dim)
            if dim not in (1, known) and known != 1:
                raise Unsupported(f"'{letter}' has extent {known} and {dim}")
            sizes[letter] = known if dim == 1 else dim
    operands = [
        _without_broadcasts(node, _diagonal(node, value, term), sizes)
        for term, value in zip(terms, values, strict=True)
    ]
    while True:
        operands = [_summed(node, x, i, operands, output) for i, x in enumerate(operands)]
        if len(operands) == 1:
            break
        first, second = _cheapest(operands)
        rest = [x for i, x in enumerate(operands) if i not in (first, second)]
        wanted = set(output).union(*(x.letters for x in rest))
        operands = [_product(node, operands[first], operands[second], wanted), *rest]
    [last] = operands
    return node.transpose(last.value, [last.letters.index(c) for c in output])


def _parse(equation: str, ranks: Sequence[int]) -> tuple[list[str], str]:
    """Letters per axis of each operand and of the output; ellipses become letters of their own."""
    text = equation.replace(" ", "")
    left, arrow, right = text.partition("->")
    terms = left.split(",")
    if len(terms) != len(ranks):
        raise Unsupported(f"equation '{equation}' does not fit {len(ranks)} operands")
    named = set(text) - set("->,.")
    if not named <= set(string.ascii_letters):
        raise Unsupported(f"equation '{equation}' has unknown signs")
    hidden = [
        rank - len(term.replace(_ELLIPSIS, ""))
        for term, rank in zip(terms, ranks, strict=True)
        if _ELLIPSIS in term
    ]
    depth = max(hidden, default=0)
    # Letters outside of the alphabet cannot be in the equation.
    extra = "".join(chr(0x3B1 + i) for i in range(depth))
    found = []
    for term, rank in zip(terms, ranks, strict=True):
        missing = rank - len(term.replace(_ELLIPSIS, ""))
        if missing < 0 or (missing and _ELLIPSIS not in term):
            raise Unsupported(f"equation '{equation}' does not fit an operand of rank {rank}")
        found.append(term.replace(_ELLIPSIS, extra[depth - missing :]))
    if any("." in term for term in found):
        raise Unsupported(f"equation '{equation}' has a stray point")
    if arrow:
        output = right.replace(_ELLIPSIS, extra)
    else:
        output = extra + "".join(sorted(c for c in named if left.count(c) == 1))
    every = set("".join(found))
    if len(set(output)) != len(output) or not set(output) <= every:
        raise Unsupported(f"equation '{equation}' has an output of repeated or new letters")
    return found, output


def _diagonal(node: NodeContext, value: Expr, term: str) -> Operand:
    """One axis for letters that occur several times: their diagonal."""
    for letter in dict.fromkeys(term):
        while term.count(letter) > 1:
            first = term.index(letter)
            second = term.index(letter, first + 1)
            others = [a for a in range(len(term)) if a not in (first, second)]
            shape = shape_of(value)
            n = shape[first]
            if shape[second] != n:
                raise Unsupported(f"'{letter}' has extent {n} and {shape[second]} in one operand")
            front = [shape[a] for a in others]
            flat = node.reshape(node.transpose(value, [*others, first, second]), (*front, n * n))
            axis = len(others)
            value = node.slice(flat, [axis], [0], [n * n], [n + 1])
            term = "".join(term[a] for a in others) + letter
    return Operand(value, term)


def _without_broadcasts(node: NodeContext, x: Operand, sizes: Mapping[str, int]) -> Operand:
    """x without the axes of extent 1 that are larger in other operands."""
    letters = "".join(c for c in x.letters if x.size(c) == sizes[c])
    return Operand(node.reshape(x.value, [x.size(c) for c in letters]), letters)


def _summed(
    node: NodeContext, x: Operand, index: int, operands: Sequence[Operand], output: str
) -> Operand:
    """x summed over the letters that no one else has."""
    used = set(output).union(*(o.letters for i, o in enumerate(operands) if i != index))
    axes = [i for i, letter in enumerate(x.letters) if letter not in used]
    if not axes:
        return x
    letters = "".join(c for c in x.letters if c in used)
    return Operand(node.emit(op.sum(x.value, axes, False)), letters)


def _cheapest(operands: Sequence[Operand]) -> tuple[int, int]:
    """The pair with the fewest multiplications; two operands keep their order."""

    def cost(pair: tuple[int, int]) -> int:
        a, b = (operands[i] for i in pair)
        size = {c: x.size(c) for x in (a, b) for c in x.letters}
        return math.prod(size.values())

    return min(combinations(range(len(operands)), 2), key=cost)


def _product(node: NodeContext, a: Operand, b: Operand, wanted: set[str]) -> Operand:
    """The product of two operands, summed over what both have and no one wants."""
    batch = [c for c in a.letters if c in b.letters and c in wanted]
    summed = [c for c in a.letters if c in b.letters and c not in wanted]
    rows = [c for c in a.letters if c not in b.letters]
    columns = [c for c in b.letters if c not in a.letters]
    size = {c: x.size(c) for x in (a, b) for c in x.letters}
    order = [*batch, *rows, *columns]

    def extents(letters: Sequence[str]) -> list[int]:
        return [size[c] for c in letters]

    def arranged(x: Operand, letters: Sequence[str], shape: Sequence[int]) -> Expr:
        turned = node.transpose(x.value, [x.letters.index(c) for c in letters])
        return node.reshape(turned, shape)

    if not summed:
        left = arranged(a, [*batch, *rows], [*extents([*batch, *rows]), *[1] * len(columns)])
        right = arranged(
            b, [*batch, *columns], [*extents(batch), *[1] * len(rows), *extents(columns)]
        )
        return Operand(node.emit(op.multiply(left, right)), "".join(order))
    lead, m, k, n = (
        extents(batch),
        *(math.prod(extents(part)) for part in (rows, summed, columns)),
    )
    left = arranged(a, [*batch, *rows, *summed], [*lead, m, k])
    right = arranged(b, [*batch, *summed, *columns], [*lead, k, n])
    result = node.reshape(node.emit(op.matmul(left, right)), extents(order))
    return Operand(result, "".join(order))


def det(node: NodeContext) -> Expr:
    """Det of the last two axes."""
    x = node.input(0)
    *batch, rows, columns = shape_of(x)
    if rows != columns:
        raise Unsupported(f"matrices of {rows} rows and {columns} columns")
    flat = node.reshape(x, (math.prod(batch), rows, columns))
    return node.reshape(node.emit(determinant(flat)), batch)


CONVERTERS: Mapping[tuple[str, str], Callable[[NodeContext], Any]] = {
    ("", "Einsum"): einsum,
    ("", "Det"): det,
}
