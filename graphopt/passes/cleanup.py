"""Whole-graph cleaning: folding constants, common subexpressions, dead code."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm_ffi
from tvm import relax

from graphopt.ir import Graph
from graphopt.passes.base import Outcome
from graphopt.passes.dataflow import Dataflow
from graphopt.passes.evaluate import EVALUATORS, evaluate, tensor_arguments
from graphopt.passes.rewrite import Rule, View, apply_rules
from graphopt.passes.values import Expr, array_of, constant, dtype_of, op_name, shape_of


@dataclass(frozen=True)
class FoldConstants:
    """Replace calls whose inputs are all constants by their values.

    limit: largest result in bytes. A result smaller than its inputs is always folded, for it
    shrinks the program; broadcasts of small constants are what the limit is against.
    """

    limit: int = 64 << 20
    name: str = "fold_constants"

    def run(self, graph: Graph) -> Outcome:
        rules: tuple[Rule[Any], ...] = (
            Rule("fold", tuple(EVALUATORS), self._match, self._rewrite, self._check),
        )
        return apply_rules(graph, self.name, rules)

    def _match(self, view: View, _var: Expr, value: Expr) -> tuple[Expr, list[Expr]] | None:
        inputs = tensor_arguments(value)
        return (value, inputs) if inputs and all(map(view.is_constant, inputs)) else None

    def _check(self, view: View, found: tuple[Expr, list[Expr]]) -> str | None:
        value, inputs = found
        size = _nbytes(value)
        if size > self.limit and size > sum(map(_nbytes, inputs)):
            return f"the result has {size} bytes"
        if op_name(value) == "broadcast_to" and size > 4096:
            return "a broadcast constant is larger than its source"
        try:
            evaluate(value, [a for a in map(view.constant, inputs) if a is not None])
        except NotImplementedError:
            return "its attributes are not evaluated here"
        return None

    def _rewrite(self, view: View, found: tuple[Expr, list[Expr]]) -> Expr:
        value, inputs = found
        return constant(evaluate(value, [a for a in map(view.constant, inputs) if a is not None]))


def _nbytes(expr: Expr) -> int:
    try:
        item = np.dtype(dtype_of(expr)).itemsize
    except TypeError:
        item = 2  # bfloat16 and narrower
    return int(np.prod(shape_of(expr), dtype=np.int64)) * item


@dataclass(frozen=True)
class MergeCommonSubexpressions:
    """Bindings that compute the same from the same inputs become one.

    Attributes are compared structurally, constants by dtype, shape and digest. The one that
    stays takes over the nodes of the others.
    """

    name: str = "merge_common_subexpressions"

    def run(self, graph: Graph) -> Outcome:
        dataflow = Dataflow(graph)
        digests: dict[object, bytes] = {}
        first: dict[tuple[object, ...], list[str]] = {}
        merges = 0
        for name in dataflow.order:
            value = dataflow.values.get(name)
            if value is None or op_name(value) in ("variable", "constant", "tuple", "other"):
                continue
            candidates = first.setdefault(_outline(value), [])
            twin = next((c for c in candidates if _same(dataflow.values[c], value, digests)), None)
            if twin is None:
                candidates.append(name)
            else:
                dataflow.forward(name, dataflow.vars[twin], dataflow.sites[name])
                merges += 1
        return Outcome(dataflow.to_graph() if merges else graph, merges)


def _outline(value: Expr) -> tuple[object, ...]:
    """What equal values have in common and is cheap to compute: op and variables."""
    if op_name(value) == "item":
        return ("item", int(value.index), value.tuple_value.name)
    args: list[object] = []
    for arg in value.args:
        if isinstance(arg, relax.Tuple):
            args.extend(f.name if isinstance(f, relax.Var) else "" for f in arg.fields)
        else:
            args.append(arg.name if isinstance(arg, relax.Var) else "")
    return (op_name(value), *args)


def _same(left: Expr, right: Expr, digests: dict[object, bytes]) -> bool:
    if op_name(left) == "item":
        return True
    if not tvm_ffi.structural_equal(left.attrs, right.attrs):
        return False
    if not tvm_ffi.structural_equal(left.ty, right.ty):
        return False
    return len(left.args) == len(right.args) and all(
        _same_argument(a, b, digests) for a, b in zip(left.args, right.args, strict=True)
    )


def _same_argument(left: Expr, right: Expr, digests: dict[object, bytes]) -> bool:
    if left.same_as(right):
        return True
    if isinstance(left, relax.Var) or isinstance(right, relax.Var):
        return False
    if isinstance(left, relax.Tuple) and isinstance(right, relax.Tuple):
        return len(left.fields) == len(right.fields) and all(
            _same_argument(a, b, digests) for a, b in zip(left.fields, right.fields, strict=True)
        )
    if op_name(left) == op_name(right) == "constant":
        if shape_of(left) != shape_of(right) or dtype_of(left) != dtype_of(right):
            return False
        return _digest(left, digests) == _digest(right, digests)
    return bool(tvm_ffi.structural_equal(left, right))


def _digest(expr: Expr, digests: dict[object, bytes]) -> bytes:
    if expr not in digests:
        array = array_of(expr)
        assert array is not None  # only constants come here
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        digests[expr] = hashlib.blake2b(data.tobytes(), digest_size=16).digest()
    return digests[expr]


@dataclass(frozen=True)
class RemoveDeadCode:
    """Remove bindings that main's result does not need."""

    name: str = "remove_dead_code"

    def run(self, graph: Graph) -> Outcome:
        dataflow = Dataflow(graph)
        removed = dataflow.remove_dead()
        return Outcome(dataflow.to_graph() if removed else graph, removed)
