"""Ensembles of decision trees over the rows of a matrix."""

from __future__ import annotations

from typing import Any

from tvm import relax

from graphopt.ops.base import Expr, attributes, call_op, ranked_shape, register


def tree_ensemble(
    x: Expr,
    feature: Expr,
    threshold: Expr,
    children: Expr,
    roots: Expr,
    target: Expr,
    weight: Expr,
    flags: Expr | None = None,
    *,
    targets: int,
    mode: int,
    aggregate: str,
) -> Expr:
    """Sums (or minima, maxima) per target of the leaves that each row of x reaches.

    Shapes: x (N,F) of the thresholds' type; int32 feature (nodes,), children (nodes,2), roots
    (trees,), target (entries,) and flags (nodes,); threshold (nodes,), weight (entries,) → (N,
    targets). A node with feature ≥ 0 compares x[feature] with its threshold and goes to children[1]
    if that holds, else to children[0]. A leaf has feature −1, and its children are the range of its
    entries. `mode` is the comparison: 0 ≤, 1 <, 2 ≥, 3 >, 4 =, 5 ≠; −1 where flags tell it: 2·mode
    + 1 where a missing value (NaN) takes the true branch.
    """
    inputs = (x, feature, threshold, children, roots, target, weight)
    attrs = {"targets": targets, "mode": mode, "aggregate": aggregate}
    return call_op(TREE_ENSEMBLE, inputs if flags is None else (*inputs, flags), attrs)


def _infer(call: Expr, _: Any) -> Any:
    rows, _features = ranked_shape(call.args[0], "x", 2)
    return relax.TensorType([rows, attributes(call)["targets"]], call.args[2].ty.dtype)


TREE_ENSEMBLE = register("graphopt.tree_ensemble", -1, _infer)
