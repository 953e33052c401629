"""ai.onnx.ml: ensembles of decision trees."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from tvm import relax

from graphopt.frontend.converters.forest import Forest, numbers, read_legacy, read_modern
from graphopt.frontend.converters.scores import (
    as_rows,
    labels_of,
    post_transform,
    regression,
    two_scores,
)
from graphopt.frontend.emit import Expr, NodeContext, Unsupported, constant, dtype_of
from graphopt.frontend.model import Array

op = relax.op

_AGGREGATES = {"SUM": "sum", "AVERAGE": "sum", "MIN": "min", "MAX": "max"}
_TRANSFORMS = ("NONE", "SOFTMAX", "LOGISTIC", "SOFTMAX_ZERO", "PROBIT")


def _aggregated(
    node: NodeContext, forest: Forest, x: Expr, targets: int, how: str, base: Array | None
) -> Expr:
    if how not in _AGGREGATES:
        raise Unsupported(f"aggregate_function '{how}' is unknown")
    score = forest.emit(node, node.cast(as_rows(node, x), forest.dtype), targets, _AGGREGATES[how])
    if how == "AVERAGE":
        count = node.scalar(1.0 / len(forest.roots), score)
        score = node.emit(op.multiply(score, count))
    if base is None or not base.any():
        return score
    if base.size not in (1, targets):
        raise Unsupported(f"{base.size} base values for {targets} targets")
    return node.emit(op.add(score, constant(base, dtype_of(score))))


def regressor(node: NodeContext) -> Expr:
    """TreeEnsembleRegressor: aggregated leaves per target."""
    forest, base = read_legacy(node, "target"), numbers(node, "base_values")
    how = node.string_attr("aggregate_function", "SUM")
    targets = node.int_attr("n_targets", 1)
    score = _aggregated(node, forest, node.input(0), targets, how, base)
    result = regression(node, score, node.string_attr("post_transform", "NONE"))
    return node.cast(result, "float32")


def ensemble(node: NodeContext) -> Expr:
    """TreeEnsemble of operator set 5."""
    forest = read_modern(node)
    how = ("AVERAGE", "SUM", "MIN", "MAX")[node.int_attr("aggregate_function", 1)]
    x, targets = node.input(0), node.int_attr("n_targets", 1)
    score = _aggregated(node, forest, x, targets, how, None)
    transform = _TRANSFORMS[node.int_attr("post_transform", 0)]
    return node.cast(regression(node, score, transform), dtype_of(x))


def classifier(node: NodeContext) -> tuple[Expr | None, Expr | None]:
    """TreeEnsembleClassifier: the label of the highest score, and all scores."""
    forest, base = read_legacy(node, "class"), numbers(node, "base_values")
    labels = labels_of(node, "classlabels_int64s")
    transform = node.string_attr("post_transform", "NONE")
    classes = len(labels.values)
    used = set(forest.target)
    if classes != 2:
        score = _aggregated(node, forest, node.input(0), classes, "SUM", base)
        ranked = score
        if base is None and len(used) < classes:
            silent = np.array([0.0 if c in used else -np.inf for c in range(classes)])
            ranked = node.emit(op.add(score, constant(silent, dtype_of(score))))
        label = labels.of_largest(node, ranked) if node.wants(0) else None
        return label, node.cast(post_transform(node, score, transform), "float32")
    return _binary(node, forest, base, labels, transform)


def _binary(
    node: NodeContext, forest: Forest, base: Array | None, labels: Any, transform: str
) -> tuple[Expr | None, Expr | None]:
    """Two classes: one score decides, by rules that ONNX Runtime made the custom."""
    used = set(forest.target)
    score = _aggregated(node, forest, node.input(0), 2, "SUM", None)
    first, second = (node.slice(score, [1], [i], [i + 1]) for i in (0, 1))
    positive = all(weight >= 0 for weight in forest.weight)
    alone = len(used) == 1
    threshold = 0.5 if alone and positive else 0.0
    single = 1 not in used
    if base is not None and base.size == 2:
        if single:
            first = node.emit(op.add(first, node.scalar(float(base[0]), first)))
            second = node.emit(op.add(second, node.scalar(float(base[1]), second)))
        else:
            second = node.emit(op.add(first, node.scalar(float(base[1]), first)))
            first = node.emit(op.negative(second))
        deciding = first if single else second
        scores = node.emit(op.concat([first, second], 1))
        result = post_transform(node, scores, transform)
    else:
        if base is not None and base.size == 1:
            first = node.emit(op.add(first, node.scalar(float(base[0]), first)))
        elif base is not None and base.size:
            raise Unsupported(f"{base.size} base values for 2 classes")
        deciding = first if single else second
        if single:
            result = two_scores(node, first, transform, positive)
        else:
            scores = node.emit(op.concat([first, second], 1))
            result = post_transform(node, scores, transform)
    above = node.emit(op.greater(deciding, node.scalar(threshold, deciding)))
    label = labels.choose(node, above) if node.wants(0) else None
    return label, node.cast(result, "float32")


CONVERTERS: Mapping[tuple[str, str], Callable[[NodeContext], Any]] = {
    ("ai.onnx.ml", "TreeEnsemble"): ensemble,
    ("ai.onnx.ml", "TreeEnsembleRegressor"): regressor,
    ("ai.onnx.ml", "TreeEnsembleClassifier"): classifier,
}
