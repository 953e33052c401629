"""Counts of n-grams in rows of tokens."""

from __future__ import annotations

from typing import Any

from tvm import relax

from graphopt.ops.base import Expr, call_op, ranked_shape, register


def count_ngrams(x: Expr, pool: Expr, *, skips: int) -> Expr:
    """How often each n-gram of `pool` (P,n) occurs in each row of x (N,C), as float32 (N,P).

    Tokens of an n-gram lie 1 to `skips` + 1 places apart, all alike; x and pool are of one type.
    """
    return call_op(COUNT_NGRAMS, (x, pool), {"skips": skips})


def _infer(call: Expr, _: Any) -> Any:
    rows = ranked_shape(call.args[0], "x", 2)[0]
    grams = ranked_shape(call.args[1], "pool", 2)[0]
    return relax.TensorType([rows, grams], "float32")


COUNT_NGRAMS = register("graphopt.count_ngrams", 2, _infer)
