"""How often a scalar operation repeats its arguments once the variables it binds are written out.

TVM's analyser writes out bound variables wherever it simplifies, which its passes and its LLVM code
generator do at every binding. In a chain of functions the numbers multiply: eight LeakyRelu in one
kernel (three repetitions each) take seconds to compile, four Elu minutes.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import tvm
from tvm import tirx
from tvm.ir import Expr

from schedules.interface import PrimExpr, Step
from schedules.scalar import evaluate


@cache
def repetitions(step: Step, dtypes: tuple[str, ...]) -> tuple[int, ...]:
    """Per argument (of types `dtypes`), how often it occurs in the step's expression."""
    args = [tirx.Var(f"x{i}", dtype) for i, dtype in enumerate(dtypes)]
    expression = evaluate(step, args)
    return tuple(_occurrences(expression, arg) for arg in args)


def _occurrences(expression: PrimExpr, arg: Any) -> int:
    known = {arg: 1}

    def count(e: PrimExpr) -> int:
        if isinstance(e, tirx.Var):
            return known.get(e, 0)
        if isinstance(e, tirx.Let):
            known[e.var] = count(e.value)
            return count(e.body)
        return sum(map(count, _parts(e)))

    return count(expression)


def _parts(e: PrimExpr) -> tuple[PrimExpr, ...]:
    if isinstance(e, tvm.ir.Call):
        return tuple(e.args)
    # Sums, comparisons, shifts and so on; Not and Cast; Select.
    fields = ("a", "b", "value", "condition", "true_value", "false_value")
    return tuple(getattr(e, name) for name in fields if isinstance(getattr(e, name, None), Expr))
