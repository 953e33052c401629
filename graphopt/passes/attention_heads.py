"""Attention reads and writes (B,S,H,D) in place of transposes in front of it and behind it."""

from __future__ import annotations

from dataclasses import dataclass

from graphopt.ir import Graph
from graphopt.ops import fused
from graphopt.ops.base import attributes
from graphopt.passes.base import Outcome
from graphopt.passes.rewrite import Rule, View, apply_rules
from graphopt.passes.values import Expr, op_name, permutation

_HEADS = (0, 2, 1, 3)  # (B,S,H,D) ↔ (B,H,S,D); its own inverse


@dataclass(frozen=True)
class Moved:
    """An attention with what it reads once the transposes `absorbed` are gone."""

    inputs: tuple[Expr, ...]
    scale: float
    heads_inside: tuple[bool, bool, bool, bool]
    absorbed: tuple[Expr, ...]


def _operands(view: View, _var: Expr, value: Expr) -> Moved | None:
    """Attention on transposed queries, keys or values that nothing but attention reads."""
    attrs = attributes(value)
    inputs, inside, absorbed = list(value.args), list(attrs["heads_inside"]), []
    for index in range(3):
        source = view.call(inputs[index], "permute_dims")
        if source is None or permutation(source) != _HEADS:
            continue
        if _read_by_attention_only(view, inputs[index]):
            absorbed.append(inputs[index])
            inputs[index], inside[index] = source.args[0], not inside[index]
    if not absorbed:
        return None
    q, k, v, result = inside
    return Moved(tuple(inputs), attrs["scale"], (q, k, v, result), tuple(absorbed))


def _read_by_attention_only(view: View, expr: Expr) -> bool:
    users = view.users(expr)
    return all(user and op_name(view.value(user)) == "graphopt.attention" for user in users)


def _result(view: View, _var: Expr, value: Expr) -> Moved | None:
    """A transposed result of attention."""
    call = view.call(value.args[0], "graphopt.attention")
    if call is None or permutation(value) != _HEADS:
        return None
    attrs = attributes(call)
    q, k, v, result = attrs["heads_inside"]
    return Moved(tuple(call.args), attrs["scale"], (q, k, v, not result), (value.args[0],))


def _only_transposed(view: View, found: Moved) -> str | None:
    if view.used_once(found.absorbed[0]):
        return None
    return "attention's result is also used as it is"


def _make(_view: View, found: Moved) -> Expr:
    return fused.attention(*found.inputs, scale=found.scale, heads_inside=found.heads_inside)


@dataclass(frozen=True)
class AbsorbHeadTransposes:
    """permute_dims [0,2,1,3] of queries, keys, values and the result becomes `heads_inside`.

    The projections' results (B,S,H·D) are (B,S,H,D) without moving anything; attention's kernel
    reads either order at the same speed. A transpose that others need stays for all.
    """

    name: str = "absorb_head_transposes"

    def run(self, graph: Graph) -> Outcome:
        rules = (
            Rule("operands of attention", ("graphopt.attention",), _operands, _make),
            Rule("result of attention", ("permute_dims",), _result, _make, _only_transposed),
        )
        return apply_rules(graph, self.name, rules)
