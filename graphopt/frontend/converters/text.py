"""TfIdfVectorizer on tokens that are integers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from tvm import relax

from graphopt.frontend.emit import Expr, NodeContext, Unsupported, constant, dtype_of, shape_of
from graphopt.ops.ngrams import count_ngrams

op = relax.op


def tf_idf(node: NodeContext) -> Expr:
    """Counts of n-grams (TF), whether they occur (IDF) or both (TFIDF), times weights."""
    x = node.input(0)
    shape = shape_of(x)
    if len(shape) not in (1, 2) or 0 in shape:
        raise Unsupported(f"tokens of shape {shape}")
    if node.has_attribute("pool_strings"):
        raise Unsupported("strings are not supported", "Use tokens that are integers.")
    pool, starts = node.int_list("pool_int64s") or [], node.int_list("ngram_counts") or []
    places = node.int_list("ngram_indexes") or []
    least, most = node.int_attr("min_gram_length"), node.int_attr("max_gram_length")
    skips, mode = node.int_attr("max_skip_count"), node.string_attr("mode")
    weights = node.attribute("weights")
    if mode not in ("TF", "IDF", "TFIDF") or not 0 < least <= most or skips < 0 or not places:
        raise Unsupported("the attributes do not describe n-grams")
    rows = x if len(shape) == 2 else node.reshape(x, (1, *shape))
    width, first = max(places) + 1, 0
    total: Expr | None = None
    for size, begin in enumerate(starts, 1):
        end = starts[size] if size < len(starts) else len(pool)
        grams = (end - begin) // size
        if grams < 0 or (end - begin) % size or first + grams > len(places):
            raise Unsupported("ngram_counts, pool and ngram_indexes do not fit together")
        if grams and least <= size <= most:
            table = np.array(pool[begin:end], np.int64).reshape(grams, size)
            found = count_ngrams(rows, constant(table, dtype_of(rows)), skips=skips)
            counts = _placed(node, node.emit(found), places[first : first + grams], width)
            total = counts if total is None else node.emit(op.add(total, counts))
        first += grams
    if total is None:
        total = constant(np.zeros((shape_of(rows)[0], width), np.float32))
    if mode != "TF":
        if mode == "IDF":
            total = node.emit(op.minimum(total, node.scalar(1, total)))
        if weights is not None:
            factors = np.ones(width, np.float32)
            if len(weights) != len(places):
                raise Unsupported(f"{len(weights)} weights for {len(places)} n-grams")
            factors[places] = np.array(weights, np.float32)
            total = node.emit(op.multiply(total, constant(factors)))
    return node.reshape(total, (width,)) if len(shape) == 1 else total


def _placed(node: NodeContext, counts: Expr, places: list[int], width: int) -> Expr:
    """Counts (N, P) as columns `places` of (N, width), zeros elsewhere."""
    if len(set(places)) != len(places) or min(places) < 0:
        raise Unsupported("two n-grams share an index")
    if places == list(range(width)):
        return counts
    # Column P of the padded counts is zero.
    source = np.full(width, len(places), np.int64)
    source[places] = np.arange(len(places))
    padded = node.emit(op.nn.pad(counts, (0, 0, 0, 1)))
    return node.emit(op.take(padded, constant(source), 1, mode="fast"))


CONVERTERS: Mapping[tuple[str, str], Callable[[NodeContext], Any]] = {
    ("", "TfIdfVectorizer"): tf_idf,
}
