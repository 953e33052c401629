"""ai.onnx.ml: what classifiers and regressors do with their scores."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from tvm import relax

from graphopt.frontend.emit import Expr, NodeContext, Unsupported, constant, dtype_of, shape_of

op = relax.op


def as_rows(node: NodeContext, x: Expr) -> Expr:
    """x as a matrix of one row per sample; a vector is one sample."""
    shape = shape_of(x)
    if len(shape) == 2:
        return x
    if len(shape) < 2:
        return node.reshape(x, (1, math.prod(shape)))
    raise Unsupported(f"samples of shape {shape} are not rows")


@dataclass(frozen=True)
class Labels:
    """The integer labels of a classifier's classes."""

    values: tuple[int, ...]
    strings: bool

    def _checked(self) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        if self.strings:
            raise Unsupported("labels that are strings are not supported", "Use integer labels.")
        return np.array(self.values, np.int64)

    def of_largest(self, node: NodeContext, scores: Expr) -> Expr:
        """The label (N,) of the first largest of scores (N, classes)."""
        labels = self._checked()
        best = node.cast(node.emit(op.argmax(scores, 1, False)), "int64")
        if self.values == tuple(range(len(self.values))):
            return best
        return node.emit(op.take(constant(labels), best, 0, mode="fast"))

    def choose(self, node: NodeContext, above: Expr) -> Expr:
        """The second label where `above` (N, 1) holds, else the first."""
        labels = self._checked()
        chosen = node.emit(op.where(above, constant(labels[1]), constant(labels[0])))
        return node.reshape(chosen, (shape_of(above)[0],))


def labels_of(node: NodeContext, name: str) -> Labels:
    """A classifier's labels, from the attribute of integers or of strings."""
    strings = node.attribute("classlabels_strings")
    values = node.int_list(name)
    if strings:
        return Labels(tuple(range(len(strings))), True)
    if not values:
        raise Unsupported("there are no class labels")
    return Labels(tuple(values), False)


def post_transform(node: NodeContext, scores: Expr, name: str) -> Expr:
    """Scores (N, classes) after NONE, LOGISTIC, SOFTMAX or SOFTMAX_ZERO."""
    if name == "NONE":
        return scores
    if name == "LOGISTIC":
        return node.emit(op.sigmoid(scores))
    if name == "SOFTMAX":
        return node.emit(op.nn.softmax(scores, 1))
    if name == "SOFTMAX_ZERO":
        # Softmax among the scores that are not zero; zeros stay.
        zero = node.scalar(0, scores)
        silent = node.emit(op.equal(scores, zero))
        largest = node.emit(op.max(scores, [1], True))
        raised = node.emit(op.exp(node.emit(op.subtract(scores, largest))))
        raised = node.emit(op.where(silent, zero, raised))
        total = node.emit(op.sum(raised, [1], True))
        total = node.emit(op.where(node.emit(op.equal(total, zero)), node.scalar(1, total), total))
        return node.emit(op.divide(raised, total))
    raise Unsupported(f"post_transform '{name}' is not supported")


def regression(node: NodeContext, scores: Expr, name: str) -> Expr:
    """Scores (N, targets) of a regressor after its transform."""
    if shape_of(scores)[1] == 1 and name != "NONE":
        # ONNX says to transform it, ONNX Runtime does not.
        raise Unsupported(f"what post_transform '{name}' does to one target is disputed")
    return post_transform(node, scores, name)


def two_scores(node: NodeContext, score: Expr, name: str, probability: bool) -> Expr:
    """Scores (N, 2) of two classes from that of the second (N, 1).

    `probability`: the score is one, so that the other class has the rest of 1.
    """
    if name == "PROBIT":
        raise Unsupported("post_transform 'PROBIT' is not supported")
    minus = node.emit(op.negative(score))
    if probability:
        first = node.emit(op.subtract(node.scalar(1, score), score))
        return node.emit(op.concat([first, score], 1))
    if name == "LOGISTIC":
        return node.emit(op.sigmoid(node.emit(op.concat([minus, score], 1))))
    return node.emit(op.concat([minus, score], 1))


def row_scale(node: NodeContext, x: Expr, divisor: Expr) -> Expr:
    """x / divisor, and x itself where the divisor is 0."""
    zero = node.emit(op.equal(divisor, node.scalar(0, divisor)))
    safe = node.emit(op.where(zero, node.scalar(1, divisor), divisor))
    assert dtype_of(x) == dtype_of(safe)
    return node.emit(op.divide(x, safe))
