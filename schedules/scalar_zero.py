"""Which scalar programs map zeros to zeros, so that padding lanes need no mask."""

from __future__ import annotations

import math
from collections.abc import Sequence

from schedules.interface import Epilogue, Step

_ZERO_TO_ZERO = frozenset(
    [
        "identity",
        "negative",
        "abs",
        "expm1",
        "log1p",
        "sqrt",
        "tanh",
        "erf",
        "relu",
        "hard_swish",
        "silu",
        "gelu",
        "gelu_tanh",
        "softsign",
        "mish",
        "floor",
        "ceil",
        "round",
        "sign",
        "square",
        "sin",
        "tan",
        "asin",
        "atan",
        "sinh",
        "asinh",
        "atanh",
        "leaky_relu",
        "elu",
        "selu",
        "celu",
        "cast",
    ]
)


def keeps_zero(epilogue: Epilogue, without_anchor: bool) -> bool:
    """Whether padding lanes that hold zeros in all values hold zeros in the result.

    Known are value 0 (zero, unless there is no anchor), constants, and operands with channels
    (zero: their padding lanes are). A product is only zero if its other factor is known finite.
    """
    known: list[float | None] = [None if without_anchor else 0.0]
    for sig in epilogue.operands:
        has_channels = len(sig.shape) > 1 and sig.shape[1] > 1
        known.append(0.0 if has_channels else None)
    for step in epilogue.steps:
        known.append(_known(step, [known[i] for i in step.args]))
    return known[-1] == 0.0


def _known(step: Step, args: Sequence[float | None]) -> float | None:
    """The value of a step in a padding lane, if it is zero or a constant."""
    if step.op == "constant":
        return float(step.attr("value"))
    if step.op == "where":
        return 0.0 if args[1] == args[2] == 0.0 else None
    if any(a is None for a in args):
        return None
    values = [a for a in args if a is not None]
    if step.op in _ZERO_TO_ZERO or step.op in ("add", "subtract", "maximum", "minimum"):
        return 0.0 if not any(values) else None
    if step.op == "clip" and len(values) == 1:
        attrs = dict(step.attrs)
        low, high = attrs.get("min"), attrs.get("max")
        inside = (low is None or low <= 0) and (high is None or high >= 0)  # type: ignore[operator]
        return 0.0 if values[0] == 0 and inside else None
    if step.op in ("multiply", "prelu"):
        return 0.0 if 0.0 in values and all(map(math.isfinite, values)) else None
    if step.op == "divide":
        return 0.0 if values[0] == 0 and values[1] != 0 and not math.isnan(values[1]) else None
    return None
