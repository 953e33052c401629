"""Integer products read a transposed right operand as it lies."""

from __future__ import annotations

from dataclasses import dataclass

from tvm import relax

from graphopt.ir import Graph
from graphopt.ops.base import attributes
from graphopt.ops.quantize import matmul_integer
from graphopt.passes.base import Outcome
from graphopt.passes.rewrite import Rule, View, apply_rules
from graphopt.passes.values import Expr, permutation

_PRODUCT = "graphopt.matmul_integer"


@dataclass(frozen=True)
class Transposed:
    """matmul_integer(a, permute_dims(source, axes)), where the last two axes are exchanged."""

    call: Expr
    source: Expr
    axes: tuple[int, ...]


def _match(view: View, _var: Expr, value: Expr) -> Transposed | None:
    call = view.call(value.args[1], "permute_dims")
    if call is None:
        return None
    axes = permutation(call)
    # Then the rows of the exchanged operand are contiguous, or nothing is left to move.
    if axes[-2] != len(axes) - 1:
        return None
    return Transposed(value, call.args[0], (*axes[:-2], axes[-1], axes[-2]))


def _alone(view: View, found: Transposed) -> str | None:
    return None if view.used_once(found.call.args[1]) else "the transposed operand is also used"


def _rewrite(_view: View, found: Transposed) -> Expr:
    attrs = attributes(found.call)
    b = found.source
    if found.axes != tuple(range(len(found.axes))):
        b = relax.op.permute_dims(b, list(found.axes))
    return matmul_integer(
        found.call.args[0], b, zeros=attrs["zeros"], transpose_b=not attrs["transpose_b"]
    )


@dataclass(frozen=True)
class AbsorbTransposedOperands:
    """a @ permute_dims(b) with the last two axes exchanged reads b with transpose_b.

    Kernels transpose in registers what they pack anyway. What is left of a permutation, of the
    heads of attention say, moves whole rows.
    """

    name: str = "absorb_transposed_operands"

    def run(self, graph: Graph) -> Outcome:
        rule = Rule("transposed right operand", (_PRODUCT,), _match, _rewrite, _alone)
        return apply_rules(graph, self.name, (rule,))
