"""ai.onnx.ml: linear models, and the preparation of numeric features."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from onnx import numpy_helper
from tvm import relax

from graphopt.frontend.converters.scores import (
    as_rows,
    labels_of,
    post_transform,
    regression,
    row_scale,
    two_scores,
)
from graphopt.frontend.emit import (
    Expr,
    NodeContext,
    Unsupported,
    constant,
    dtype_of,
    shape_of,
)
from graphopt.frontend.model import Array

op = relax.op

_DOMAIN = "ai.onnx.ml"
_MAX_KEYS = 256
"""Keys that are compared one by one; more need to be integers that lie close together."""
_FEW_KEYS = 8
_MAX_RANGE = 1 << 20
"""The largest difference of integer keys that index a table."""


def _floats(node: NodeContext, name: str) -> Array | None:
    values = node.attribute(name)
    return None if values is None or not len(values) else np.array(values, np.float32)


def _linear(node: NodeContext, x: Expr, outputs: int) -> Expr:
    """x · coefficientsᵀ + intercepts in float32, (N, outputs)."""
    rows = node.cast(as_rows(node, x), "float32")
    coefficients, intercepts = _floats(node, "coefficients"), _floats(node, "intercepts")
    features = shape_of(rows)[1]
    if coefficients is None or coefficients.size != outputs * features:
        raise Unsupported(f"the coefficients do not fit {outputs} outputs of {features} features")
    matrix = coefficients.reshape(outputs, features).T
    result = node.emit(op.matmul(rows, constant(np.ascontiguousarray(matrix))))
    if intercepts is None:
        return result
    if intercepts.size != outputs:
        raise Unsupported(f"{intercepts.size} intercepts for {outputs} outputs")
    return node.emit(op.add(result, constant(intercepts)))


def linear_regressor(node: NodeContext) -> Expr:
    """LinearRegressor."""
    score = _linear(node, node.input(0), node.int_attr("targets", 1))
    return regression(node, score, node.string_attr("post_transform", "NONE"))


def linear_classifier(node: NodeContext) -> tuple[Expr | None, Expr | None]:
    """LinearClassifier: the label of the highest score, and all scores."""
    node.ignore("multi_class")
    labels = labels_of(node, "classlabels_ints")
    transform = node.string_attr("post_transform", "NONE")
    coefficients = _floats(node, "coefficients")
    features = shape_of(as_rows(node, node.input(0)))[1]
    outputs = 0 if coefficients is None else coefficients.size // max(features, 1)
    score = _linear(node, node.input(0), outputs)
    if outputs == 1 and len(labels.values) == 2:
        above = node.emit(op.greater(score, node.scalar(0, score)))
        label = labels.choose(node, above) if node.wants(0) else None
        if transform == "LOGISTIC":
            return label, two_scores(node, score, transform, probability=False)
        return label, two_scores(node, score, transform, probability=True)
    if outputs != len(labels.values):
        raise Unsupported(f"{outputs} scores for {len(labels.values)} classes")
    label = labels.of_largest(node, score) if node.wants(0) else None
    return label, post_transform(node, score, transform)


def scaler(node: NodeContext) -> Expr:
    """(x − offset) · scale, per feature."""
    x = node.cast(node.input(0), "float32")
    for name, function in (("offset", op.subtract), ("scale", op.multiply)):
        values = _floats(node, name)
        if values is not None:
            if values.size not in (1, shape_of(x)[-1]):
                raise Unsupported(f"{values.size} values of {name} for {shape_of(x)[-1]} features")
            x = node.emit(function(x, constant(values)))
    return x


def normalizer(node: NodeContext) -> Expr:
    """Rows divided by their largest element or their norm; rows of zeros stay."""
    x = node.cast(node.input(0), "float32")
    axis, norm = [len(shape_of(x)) - 1], node.string_attr("norm", "MAX")
    if norm == "MAX":
        return row_scale(node, x, node.emit(op.max(x, axis, True)))
    if norm == "L1":
        return row_scale(node, x, node.emit(op.sum(node.emit(op.abs(x)), axis, True)))
    if norm == "L2":
        total = node.emit(op.sum(node.emit(op.multiply(x, x)), axis, True))
        return row_scale(node, x, node.emit(op.sqrt(total)))
    raise Unsupported(f"norm '{norm}' is unknown")


def binarizer(node: NodeContext) -> Expr:
    """1 where x is above the threshold, else 0."""
    x = node.input(0)
    limit = node.float_attr("threshold")
    if np.dtype(dtype_of(x)).kind != "f":
        limit = float(np.floor(limit))  # of integers as many are above the next lower one
    above = node.emit(op.greater(x, node.scalar(limit, x)))
    return node.cast(above, dtype_of(x))


def imputer(node: NodeContext) -> Expr:
    """Another value, one for all or one per feature, where x has the replaced one."""
    x = node.input(0)
    floats, integers = _floats(node, "imputed_value_floats"), node.int_list("imputed_value_int64s")
    old_float, old_int = (
        node.float_attr("replaced_value_float"),
        node.int_attr("replaced_value_int64"),
    )
    if np.dtype(dtype_of(x)).kind == "f":
        values: Array | None = floats
        missing = (
            node.emit(op.isnan(x))
            if np.isnan(old_float)
            else node.emit(op.equal(x, node.scalar(old_float, x)))
        )
    else:
        values = None if integers is None else np.array(integers, np.int64)
        missing = node.emit(op.equal(x, node.scalar(old_int, x)))
    if values is None or values.size not in (1, shape_of(x)[-1]):
        raise Unsupported("the imputed values do not fit the features")
    given = values.reshape(()) if values.size == 1 else values
    return node.emit(op.where(missing, constant(given, dtype_of(x)), x))


def array_feature_extractor(node: NodeContext) -> Expr:
    """Elements of the last axis."""
    x, indices = node.input(0), node.input(1)
    shape = shape_of(x)
    count = int(np.prod(shape_of(indices), dtype=np.int64))
    known = node.array(1)
    if known is not None and ((known < 0) | (known >= shape[-1])).any():
        raise Unsupported(f"an index is out of range for {shape[-1]} features")
    flat = node.reshape(indices, (count,))
    taken = node.emit(op.take(x, flat, len(shape) - 1, mode="wrap"))
    return node.reshape(taken, (1, count)) if len(shape) == 1 else taken


def feature_vectorizer(node: NodeContext) -> Expr:
    """The inputs' features side by side, as float32."""
    sizes = node.int_list("inputdimensions")
    parts = []
    for i, value in enumerate(node.inputs()):
        rows = node.cast(as_rows(node, value), "float32")
        have = shape_of(rows)[1]
        if sizes is not None and i < len(sizes):
            if have > sizes[i]:
                rows = node.slice(rows, [1], [0], [sizes[i]])
            elif have < sizes[i]:
                rows = node.emit(op.nn.pad(rows, (0, 0, 0, sizes[i] - have)))
        parts.append(rows)
    return parts[0] if len(parts) == 1 else node.emit(op.concat(parts, 1))


def one_hot_encoder(node: NodeContext) -> Expr:
    """A new last axis with 1 at the place of the category."""
    x = node.input(0)
    categories = node.int_list("cats_int64s")
    if categories is None or node.has_attribute("cats_strings"):
        raise Unsupported("categories that are strings are not supported")
    if not node.int_attr("zeros", 1):
        raise Unsupported("zeros=0, an error for unknown categories, is not supported")
    wide = node.reshape(node.cast(x, "int64"), (*shape_of(x), 1))
    hit = node.emit(op.equal(wide, constant(np.array(categories, np.int64))))
    return node.cast(hit, "float32")


def _table(node: NodeContext, prefix: str) -> Array | None:
    tensor = node.attribute(f"{prefix}_tensor")
    if tensor is not None:
        array = np.asarray(numpy_helper.to_array(tensor)).reshape(-1)
        return None if array.dtype.kind in "OUS" else array
    integers = node.int_list(f"{prefix}_int64s")
    return np.array(integers, np.int64) if integers else _floats(node, f"{prefix}_floats")


def label_encoder(node: NodeContext) -> Expr:
    """Numbers to numbers by a table of keys; a default for the others."""
    x = node.input(0)
    if node.has_attribute("classes_strings") or any(
        node.has_attribute(f"{side}_strings") for side in ("keys", "values")
    ):
        raise Unsupported("strings are not supported", "Use labels that are numbers.")
    keys, values = _table(node, "keys"), _table(node, "values")
    given = node.attribute("default_tensor")
    integer, real = node.int_attr("default_int64", -1), node.float_attr("default_float", -0.0)
    node.ignore("default_string")
    if keys is None or values is None or keys.size != values.size or not keys.size:
        raise Unsupported("keys and values of numbers and of one length are needed")
    default = np.asarray(integer if values.dtype.kind in "iu" else real)
    if given is not None:
        default = np.asarray(numpy_helper.to_array(given)).reshape(())
    if len({key.tobytes() for key in keys}) != keys.size:
        raise Unsupported("a key occurs twice")
    dtype = str(values.dtype)
    if keys.dtype.kind in "iu" and keys.size > _FEW_KEYS:
        low, extent = int(keys.min()), int(keys.max()) - int(keys.min()) + 1
        if extent <= _MAX_RANGE:
            return _looked_up(node, x, low, _dense(keys - low, values, extent, default))
    if keys.size > _MAX_KEYS:
        raise Unsupported(f"{keys.size} keys; at most {_MAX_KEYS} scattered ones are supported")
    result: Expr = constant(default, dtype)
    for key, value in zip(keys, values, strict=True):
        if key != key:  # NaN finds NaN
            same = node.emit(op.isnan(x))
        else:
            same = node.emit(op.equal(x, node.scalar(key.item(), x)))
        result = node.emit(op.where(same, constant(value, dtype), result))
    return result


def _dense(places: Array, values: Array, extent: int, default: Array) -> Array:
    """The values in order of their keys, the default in gaps and at the end."""
    table = np.full(extent + 1, default, values.dtype)
    table[places] = values
    return table


def _looked_up(node: NodeContext, x: Expr, low: int, table: Array) -> Expr:
    """table[x − low], or its last element where x is outside."""
    last = len(table) - 1
    wide = node.cast(x, "int64")
    below = node.emit(op.less(wide, node.scalar(low, wide)))
    above = node.emit(op.greater_equal(wide, node.scalar(low + last, wide)))
    outside = node.emit(op.logical_or(below, above))
    place = node.emit(op.subtract(wide, node.scalar(low, wide)))
    place = node.emit(op.where(outside, node.scalar(last, place), place))
    return node.emit(op.take(constant(table), place, 0, mode="fast"))


CONVERTERS: Mapping[tuple[str, str], Callable[[NodeContext], Any]] = {
    (_DOMAIN, "ArrayFeatureExtractor"): array_feature_extractor,
    (_DOMAIN, "Binarizer"): binarizer,
    (_DOMAIN, "FeatureVectorizer"): feature_vectorizer,
    (_DOMAIN, "Imputer"): imputer,
    (_DOMAIN, "LabelEncoder"): label_encoder,
    (_DOMAIN, "LinearClassifier"): linear_classifier,
    (_DOMAIN, "LinearRegressor"): linear_regressor,
    (_DOMAIN, "Normalizer"): normalizer,
    (_DOMAIN, "OneHotEncoder"): one_hot_encoder,
    (_DOMAIN, "Scaler"): scaler,
}
