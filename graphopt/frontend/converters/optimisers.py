"""ai.onnx.preview.training: one step of a gradient method, as plain formulas."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tvm import relax

from graphopt.frontend.emit import Expr, NodeContext, Unsupported, dtype_of

op = relax.op

_DOMAIN = "ai.onnx.preview.training"


def _tensors(node: NodeContext, kinds: int) -> list[list[Expr]]:
    """The inputs behind rate and step, as one list per kind (values, gradients, states)."""
    given = [node.input(i) for i in range(2, len(node))]
    if not given or len(given) % kinds:
        raise Unsupported(f"{len(given)} tensors are not {kinds} of each kind")
    count = len(given) // kinds
    return [given[i * count : (i + 1) * count] for i in range(kinds)]


def _scaled(node: NodeContext, x: Expr, factor: float) -> Expr:
    return node.emit(op.multiply(x, node.scalar(factor, x)))


def _mixed(node: NodeContext, a: Expr, factor: float, b: Expr, other: float) -> Expr:
    """factor·a + other·b."""
    return node.emit(op.add(_scaled(node, a, factor), _scaled(node, b, other)))


def _regularised(node: NodeContext, x: Expr, gradient: Expr, norm: float) -> Expr:
    """The gradient with that of norm/2·‖x‖²."""
    return node.emit(op.add(_scaled(node, x, norm), gradient)) if norm else gradient


def _step(node: NodeContext, like: Expr) -> tuple[Expr, Expr]:
    """Rate and number of the step in the type of the tensors."""
    return node.cast(node.input(0), dtype_of(like)), node.cast(node.input(1), dtype_of(like))


def adagrad(node: NodeContext) -> tuple[Expr, ...]:
    """Adagrad: steps divided by the root of the summed squares of the gradients."""
    values, gradients, squares = _tensors(node, 3)
    norm, decay = node.float_attr("norm_coefficient"), node.float_attr("decay_factor")
    epsilon = node.float_attr("epsilon", 1e-6)
    moved, summed = [], []
    for x, gradient, square in zip(values, gradients, squares, strict=True):
        rate, time = _step(node, x)
        slowed = node.emit(op.add(_scaled(node, time, decay), node.scalar(1, x)))
        g = _regularised(node, x, gradient, norm)
        total = node.emit(op.add(square, node.emit(op.multiply(g, g))))
        root = node.emit(op.add(node.emit(op.sqrt(total)), node.scalar(epsilon, x)))
        step = node.emit(op.multiply(node.emit(op.divide(rate, slowed)), g))
        moved.append(node.emit(op.subtract(x, node.emit(op.divide(step, root)))))
        summed.append(total)
    return (*moved, *summed)


def adam(node: NodeContext) -> tuple[Expr, ...]:
    """Adam: steps along the mean gradient, divided by the root of the mean squares."""
    values, gradients, means, squares = _tensors(node, 4)
    alpha, beta = node.float_attr("alpha", 0.9), node.float_attr("beta", 0.999)
    norm, after = node.float_attr("norm_coefficient"), node.float_attr("norm_coefficient_post")
    epsilon = node.float_attr("epsilon", 1e-6)
    moved, first, second = [], [], []
    for x, gradient, mean, square in zip(values, gradients, means, squares, strict=True):
        rate, time = _step(node, x)
        g = _regularised(node, x, gradient, norm)
        new_mean = _mixed(node, mean, alpha, g, 1 - alpha)
        new_square = _mixed(node, square, beta, node.emit(op.multiply(g, g)), 1 - beta)
        root = node.emit(op.add(node.emit(op.sqrt(new_square)), node.scalar(epsilon, x)))
        one = node.scalar(1, x)
        left, right = (
            node.emit(op.subtract(one, node.emit(op.power(node.scalar(decay, x), time))))
            for decay in (beta, alpha)
        )
        corrected = node.emit(op.multiply(rate, node.emit(op.sqrt(left))))
        corrected = node.emit(op.divide(corrected, right))
        started = node.emit(op.greater(time, node.scalar(0, x)))
        factor = node.emit(op.where(started, corrected, rate))
        step = node.emit(op.divide(node.emit(op.multiply(factor, new_mean)), root))
        result = node.emit(op.subtract(x, step))
        moved.append(_scaled(node, result, 1 - after) if after else result)
        first.append(new_mean)
        second.append(new_square)
    return (*moved, *first, *second)


def momentum(node: NodeContext) -> tuple[Expr, ...]:
    """Gradient descent with standard or Nesterov's momentum."""
    values, gradients, velocities = _tensors(node, 3)
    alpha, beta = node.float_attr("alpha"), node.float_attr("beta")
    norm, mode = node.float_attr("norm_coefficient"), node.string_attr("mode")
    if mode not in ("standard", "nesterov"):
        raise Unsupported(f"mode '{mode}' is unknown")
    moved, kept = [], []
    for x, gradient, velocity in zip(values, gradients, velocities, strict=True):
        rate, time = _step(node, x)
        g = _regularised(node, x, gradient, norm)
        started = node.emit(op.greater(time, node.scalar(0, x)))
        weight = node.emit(op.where(started, node.scalar(beta, x), node.scalar(1, x)))
        fresh = node.emit(op.multiply(weight, g))
        new = node.emit(op.add(_scaled(node, velocity, alpha), fresh))
        direction = new
        if mode == "nesterov":
            direction = node.emit(op.add(g, _scaled(node, new, alpha)))
        moved.append(node.emit(op.subtract(x, node.emit(op.multiply(rate, direction)))))
        kept.append(new)
    return (*moved, *kept)


def _gradient(node: NodeContext) -> Expr:
    raise Unsupported("gradients are for training", "Export the model for inference.")


CONVERTERS: Mapping[tuple[str, str], Callable[[NodeContext], Any]] = {
    (_DOMAIN, "Adagrad"): adagrad,
    (_DOMAIN, "Adam"): adam,
    (_DOMAIN, "Momentum"): momentum,
    (_DOMAIN, "Gradient"): _gradient,
}
