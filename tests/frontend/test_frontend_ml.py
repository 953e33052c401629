"""Trees, linear models and feature preparation (ai.onnx.ml) against ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from frontend_reference import assert_close, run_onnxruntime
from onnx import TensorProto, helper

import graphopt
from graphopt.errors import GraphoptError

RNG = np.random.default_rng(3)
ML = "ai.onnx.ml"
FEATURES = 5


def rows(count: int, dtype: str = "float32") -> np.ndarray:
    return RNG.uniform(-2, 2, (count, FEATURES)).astype(dtype)


def model_of(
    op: str,
    feeds: dict[str, np.ndarray],
    attrs: dict[str, Any],
    outputs: tuple[str, ...],
    domain: str = ML,
    version: int = 3,
) -> onnx.ModelProto:
    inputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)
        for name, x in feeds.items()
    ]
    node = helper.make_node(op, list(feeds), list(outputs), name="n", domain=domain, **attrs)
    results = [helper.make_empty_tensor_value_info(name) for name in outputs]
    graph = helper.make_graph([node], "g", inputs, results)
    imports = [helper.make_opsetid("", 18)]
    if domain:
        imports.append(helper.make_opsetid(domain, version))
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


def check(
    op: str,
    feeds: dict[str, np.ndarray],
    attrs: dict[str, Any],
    outputs: tuple[str, ...] = ("y",),
    version: int = 3,
) -> None:
    model = model_of(op, feeds, attrs, outputs, version=version)
    want = run_onnxruntime(model.SerializeToString(), feeds)
    got = graphopt.compile(model).run(feeds)
    assert_close(got, want, 1e-5)


def forest(trees: int, depth: int, modes: list[str], missing: bool = False) -> dict[str, list]:
    """Attributes of random trees; some branches end early."""
    keys = ("treeids", "nodeids", "featureids", "values", "modes", "truenodeids", "falsenodeids")
    nodes: dict[str, list] = {key: [] for key in (*keys, "missing_value_tracks_true")}
    for tree in range(trees):
        pending, made = [(0, 0)], 1
        while pending:
            node, level = pending.pop()
            leaf = level == depth or (level and RNG.uniform() < 0.2)
            children = (0, 0) if leaf else (made, made + 1)
            values = {
                "treeids": tree,
                "nodeids": node,
                "featureids": 0 if leaf else int(RNG.integers(FEATURES)),
                "values": 0.0 if leaf else float(np.float32(RNG.integers(-3, 4) / 2)),
                "modes": "LEAF" if leaf else modes[int(RNG.integers(len(modes)))],
                "truenodeids": children[0],
                "falsenodeids": children[1],
                "missing_value_tracks_true": int(missing and RNG.integers(2)),
            }
            for key, value in values.items():
                nodes[key].append(value)
            if not leaf:
                pending += [(made, level + 1), (made + 1, level + 1)]
                made += 2
    return {f"nodes_{key}": value for key, value in nodes.items()}


def leaves(
    nodes: dict[str, list], prefix: str, targets: list[int], positive: bool = False
) -> dict[str, list]:
    """Every leaf gives something to each of `targets`, or to one of them per tree."""
    result: dict[str, list] = {f"{prefix}_{key}": [] for key in ("treeids", "nodeids", "ids")}
    result[f"{prefix}_weights"] = []
    places = zip(nodes["nodes_treeids"], nodes["nodes_nodeids"], nodes["nodes_modes"], strict=True)
    for tree, node, mode in places:
        if mode != "LEAF":
            continue
        for target in targets:
            result[f"{prefix}_treeids"].append(tree)
            result[f"{prefix}_nodeids"].append(node)
            result[f"{prefix}_ids"].append(target)
            weight = RNG.uniform(0.0 if positive else -1.0, 0.3)
            result[f"{prefix}_weights"].append(float(np.float32(weight)))
    return result


LEQ = ["BRANCH_LEQ"]
ALL = [f"BRANCH_{mode}" for mode in ("LEQ", "LT", "GTE", "GT", "EQ", "NEQ")]


@pytest.mark.parametrize(
    ("modes", "aggregate", "transform", "targets", "missing"),
    [
        (LEQ, "SUM", "NONE", 1, False),
        (["BRANCH_LT"], "AVERAGE", "NONE", 3, True),
        (ALL, "MIN", "NONE", 2, True),
        (LEQ, "MAX", "LOGISTIC", 2, False),
        (LEQ, "SUM", "SOFTMAX", 3, False),
    ],
)
def test_tree_regressor(modes, aggregate, transform, targets, missing) -> None:
    nodes = forest(7, 4, modes, missing)
    attrs = {
        **nodes,
        **leaves(nodes, "target", list(range(targets))),
        "n_targets": targets,
        "aggregate_function": aggregate,
        "post_transform": transform,
        "base_values": [0.25 * (i + 1) for i in range(targets)],
    }
    x = np.round(rows(67) * 2) / 2  # many values equal a threshold
    x[::9, 2] = np.nan
    check("TreeEnsembleRegressor", {"x": x.astype(np.float32)}, attrs)


@pytest.mark.parametrize(
    ("labels", "ids", "positive", "transform", "base"),
    [
        ([3, 5, 9], [0, 1, 2], False, "SOFTMAX", None),
        ([0, 1, 2, 3], [0, 1, 2, 3], True, "NONE", [0.1, 0.2, 0.3, 0.4]),
        ([0, 1], [0], False, "LOGISTIC", None),
        ([0, 1], [0], False, "LOGISTIC", [0.2]),
        ([0, 1], [0], False, "NONE", None),
        ([4, 7], [0], True, "NONE", None),
        ([0, 1], [1], False, "LOGISTIC", None),
        ([0, 1], [0, 1], True, "NONE", None),
    ],
)
def test_tree_classifier(labels, ids, positive, transform, base) -> None:
    nodes = forest(5, 3, LEQ)
    attrs = {
        **nodes,
        **leaves(nodes, "class", ids, positive),
        "classlabels_int64s": labels,
        "post_transform": transform,
    }
    if base:
        attrs["base_values"] = base
    check("TreeEnsembleClassifier", {"x": rows(33)}, attrs, ("label", "scores"))


@pytest.mark.parametrize("transform", ["NONE", "LOGISTIC", "SOFTMAX"])
@pytest.mark.parametrize("classes", [2, 3])
def test_linear_classifier(classes: int, transform: str) -> None:
    scores = 1 if classes == 2 else classes
    attrs = {
        "classlabels_ints": [4, 2, 8][:classes],
        "coefficients": RNG.standard_normal(scores * FEATURES).tolist(),
        "intercepts": RNG.standard_normal(scores).tolist(),
        "post_transform": transform,
    }
    check("LinearClassifier", {"x": rows(9)}, attrs, ("label", "scores"), version=1)


@pytest.mark.parametrize(
    ("op", "dtype", "attrs", "version"),
    [
        ("LinearRegressor", "float32", {"coefficients": [0.5] * 10, "targets": 2}, 1),
        ("LinearRegressor", "float32", {"coefficients": [0.5] * 10, "targets": 2,
                                        "intercepts": [0.25, 1.0],
                                        "post_transform": "LOGISTIC"}, 1),
        ("Scaler", "float32", {"offset": [0.5] * 5, "scale": [1.0, 2.0, 3.0, 4.0, 5.0]}, 1),
        ("Scaler", "int64", {"offset": [1.0], "scale": [0.5]}, 1),
        ("Normalizer", "float32", {"norm": "MAX"}, 1),
        ("Normalizer", "float32", {"norm": "L1"}, 1),
        ("Normalizer", "float32", {"norm": "L2"}, 1),
        ("Binarizer", "float32", {"threshold": 0.25}, 1),
        ("Imputer", "float32", {"imputed_value_floats": [1.0, 2.0, 3.0, 4.0, 5.0],
                                "replaced_value_float": 0.0}, 1),
        ("Imputer", "float32", {"imputed_value_floats": [7.0],
                                "replaced_value_float": float("nan")}, 1),
        ("Imputer", "int64", {"imputed_value_int64s": [9], "replaced_value_int64": 0}, 1),
        ("FeatureVectorizer", "float32", {"inputdimensions": [5]}, 1),
        ("OneHotEncoder", "int64", {"cats_int64s": [-1, 1, 0]}, 1),
        ("LabelEncoder", "int64", {"keys_int64s": [0, 1, -1], "values_floats": [1.5, 2.5, -1.0],
                                   "default_float": 0.5}, 2),
        ("LabelEncoder", "int64", {"keys_int64s": list(range(-1, 20)),
                                   "values_int64s": list(range(30, 51)), "default_int64": 7}, 2),
    ],
)  # fmt: skip
def test_numeric_features(op: str, dtype: str, attrs: dict[str, Any], version: int) -> None:
    x = rows(6, dtype)
    x[1] = 0
    if dtype == "float32" and np.isnan(attrs.get("replaced_value_float", 0.0)):
        x[2, 3] = np.nan
    check(op, {"x": x}, attrs, version=version)


def test_array_feature_extractor() -> None:
    check("ArrayFeatureExtractor", {"x": rows(3), "at": np.array([[4, 0, 2]])}, {}, version=1)


def test_tree_ensemble_of_operator_set_5_walks_sets() -> None:
    # One node: x[0] in {1, 3} → 10, else 20.
    tensor = helper.make_tensor
    attrs = {
        "n_targets": 1,
        "nodes_featureids": [0],
        "nodes_modes": tensor("m", TensorProto.UINT8, (1,), [6]),
        "nodes_splits": tensor("s", TensorProto.FLOAT, (1,), [0.0]),
        "nodes_truenodeids": [0],
        "nodes_trueleafs": [1],
        "nodes_falsenodeids": [1],
        "nodes_falseleafs": [1],
        "membership_values": tensor("v", TensorProto.FLOAT, (3,), [1.0, 3.0, float("nan")]),
        "tree_roots": [0],
        "leaf_targetids": [0, 0],
        "leaf_weights": tensor("w", TensorProto.FLOAT, (2,), [10.0, 20.0]),
    }
    x = np.array([[1.0], [2.0], [3.0], [np.nan]], np.float32)
    model = model_of("TreeEnsemble", {"x": x}, attrs, ("y",), version=5)
    got = graphopt.compile(model).run({"x": x})["y"]
    np.testing.assert_array_equal(got, [[10.0], [20.0], [10.0], [20.0]])


@pytest.mark.parametrize("mode", ["TF", "IDF", "TFIDF"])
@pytest.mark.parametrize("shape", [(9,), (3, 9)])
def test_tf_idf_of_integers(mode: str, shape: tuple[int, ...]) -> None:
    attrs = {
        "mode": mode,
        "min_gram_length": 1,
        "max_gram_length": 3,
        "max_skip_count": 2,
        "ngram_counts": [0, 3, 7],
        "ngram_indexes": [1, 0, 3, 2, 4, 5],
        "pool_int64s": [1, 2, 5, 1, 2, 3, 3, 1, 2, 3],
        "weights": [0.5, 1.0, 2.0, 3.0, 4.0, 5.0],
    }
    feeds = {"x": RNG.integers(0, 5, shape)}
    model = model_of("TfIdfVectorizer", feeds, attrs, ("y",), domain="")
    want = run_onnxruntime(model.SerializeToString(), feeds)
    assert_close(graphopt.compile(model).run(feeds), want, 1e-6)


def test_a_cycle_of_nodes_is_refused() -> None:
    nodes = forest(1, 2, LEQ)
    other = nodes["nodes_nodeids"].index(nodes["nodes_truenodeids"][0])
    nodes["nodes_modes"][other] = "BRANCH_LEQ"
    nodes["nodes_truenodeids"][other] = nodes["nodes_falsenodeids"][other] = 0
    attrs = {**nodes, **leaves(nodes, "target", [0]), "n_targets": 1}
    feeds = {"x": rows(2)}
    with pytest.raises(GraphoptError, match="trees"):
        graphopt.compile(model_of("TreeEnsembleRegressor", feeds, attrs, ("y",))).run(feeds)
