"""Reads the attributes of tree ensembles into flat arrays of nodes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from onnx import numpy_helper

from graphopt.frontend.emit import Expr, NodeContext, Unsupported, constant
from graphopt.frontend.model import Array
from graphopt.ops.trees import tree_ensemble

_MODES = {
    "BRANCH_LEQ": 0,
    "BRANCH_LT": 1,
    "BRANCH_GTE": 2,
    "BRANCH_GT": 3,
    "BRANCH_EQ": 4,
    "BRANCH_NEQ": 5,
}
_EQUAL = 4
_MEMBER = 6  # of operator set 5: membership in a set of values


@dataclass
class Forest:
    """Nodes and leaves in the form that graphopt.ops.trees.tree_ensemble takes."""

    dtype: str
    feature: list[int] = field(default_factory=list)
    threshold: list[float] = field(default_factory=list)
    mode: list[int] = field(default_factory=list)
    missing: list[int] = field(default_factory=list)
    children: list[tuple[int, int]] = field(default_factory=list)
    roots: list[int] = field(default_factory=list)
    target: list[int] = field(default_factory=list)
    weight: list[float] = field(default_factory=list)

    def branch(self, feature: int, threshold: float, mode: int, missing: bool) -> int:
        """A new inner node, whose children are set later."""
        self.feature.append(feature)
        self.threshold.append(threshold)
        self.mode.append(mode)
        self.missing.append(int(missing))
        self.children.append((0, 0))
        return len(self.feature) - 1

    def leaf(self, entries: Sequence[tuple[int, float]]) -> int:
        """A new leaf with its (target, weight) entries."""
        node = self.branch(-1, 0.0, -1, False)
        begin = len(self.target)
        for target, weight in entries:
            self.target.append(target)
            self.weight.append(weight)
        self.children[node] = (begin, len(self.target))
        return node

    def emit(self, node: NodeContext, x: Expr, targets: int, aggregate: str) -> Expr:
        """Scores (N, targets) of rows x (N, F), which are of the forest's dtype."""
        features = int(x.ty.shape[1])
        if max(self.feature, default=-1) >= features:
            raise Unsupported(f"feature {max(self.feature)} of {features} does not exist")
        if any(not 0 <= target < targets for target in self.target):
            raise Unsupported(f"a leaf names a target outside of {targets}")
        self._check()
        if not self.roots:
            raise Unsupported("there are no trees")
        if not self.target:
            self.target, self.weight = [0], [0.0]  # an array without elements has no memory
        modes = {mode for mode in self.mode if mode >= 0}
        uniform = modes.pop() if len(modes) == 1 else -1 if modes else 0
        flags = None
        if uniform < 0 or any(self.missing):
            codes = [
                2 * max(m, 0) + missing for m, missing in zip(self.mode, self.missing, strict=True)
            ]
            flags = constant(np.array(codes), "int32")
        return node.emit(
            tree_ensemble(
                x,
                constant(np.array(self.feature), "int32"),
                constant(np.array(self.threshold), self.dtype),
                constant(np.array(self.children), "int32"),
                constant(np.array(self.roots), "int32"),
                constant(np.array(self.target), "int32"),
                constant(np.array(self.weight), self.dtype),
                flags,
                targets=targets,
                mode=uniform,
                aggregate=aggregate,
            )
        )

    def _check(self) -> None:
        """Every walk must end: a node is reached at most once."""
        seen: set[int] = set()
        pending = list(dict.fromkeys(self.roots))
        while pending:
            node = pending.pop()
            if node in seen or not 0 <= node < len(self.feature):
                raise Unsupported("the nodes do not form trees")
            seen.add(node)
            if self.feature[node] >= 0:
                pending.extend(dict.fromkeys(self.children[node]))


def numbers(node: NodeContext, name: str) -> Array | None:
    """An attribute's numbers, from a list of floats or from `name`_as_tensor."""
    tensor = node.attribute(f"{name}_as_tensor")
    if tensor is not None:
        return np.asarray(numpy_helper.to_array(tensor)).reshape(-1)
    values = node.attribute(name)
    return None if values is None else np.array(values, np.float32)


def read_legacy(node: NodeContext, prefix: str) -> Forest:
    """The forest of TreeEnsembleRegressor ("target") and TreeEnsembleClassifier ("class")."""
    thresholds, weights = numbers(node, "nodes_values"), numbers(node, f"{prefix}_weights")
    node.ignore("nodes_hitrates", "nodes_hitrates_as_tensor")
    trees, ids = node.int_list("nodes_treeids") or [], node.int_list("nodes_nodeids") or []
    modes = [mode.decode() for mode in node.attribute("nodes_modes") or []]
    features = node.int_list("nodes_featureids") or []
    yes, no = node.int_list("nodes_truenodeids") or [], node.int_list("nodes_falsenodeids") or []
    missing = node.int_list("nodes_missing_value_tracks_true") or [0] * len(ids)
    leaf_trees = node.int_list(f"{prefix}_treeids") or []
    leaf_nodes = node.int_list(f"{prefix}_nodeids") or []
    leaf_targets = node.int_list(f"{prefix}_ids") or []
    if thresholds is None or weights is None:
        raise Unsupported("thresholds or weights are missing")
    count = len(ids)
    same = (trees, modes, features, yes, no, missing, thresholds)
    if any(len(part) != count for part in same) or not (
        len(leaf_trees) == len(leaf_nodes) == len(leaf_targets) == len(weights)
    ):
        raise Unsupported("the attributes of nodes or leaves differ in length")
    entries: dict[tuple[int, int], list[tuple[int, float]]] = {}
    for tree, place, target, weight in zip(
        leaf_trees, leaf_nodes, leaf_targets, weights.tolist(), strict=True
    ):
        entries.setdefault((tree, place), []).append((target, weight))
    forest = Forest(str(thresholds.dtype))
    index: dict[tuple[int, int], int] = {}
    for i in range(count):
        key = (trees[i], ids[i])
        if key in index:
            raise Unsupported(f"node {key[1]} of tree {key[0]} is defined twice")
        if modes[i] == "LEAF":
            index[key] = forest.leaf(entries.get(key, ()))
        elif modes[i] in _MODES:
            index[key] = forest.branch(
                features[i], float(thresholds[i]), _MODES[modes[i]], bool(missing[i])
            )
        else:
            raise Unsupported(f"node mode '{modes[i]}' is unknown")
    children: set[int] = set()
    for i in range(count):
        if modes[i] == "LEAF":
            continue
        keys = ((trees[i], no[i]), (trees[i], yes[i]))
        if any(key not in index for key in keys):
            raise Unsupported(f"node {ids[i]} of tree {trees[i]} has an unknown child")
        here = index[trees[i], ids[i]]
        forest.children[here] = (index[keys[0]], index[keys[1]])
        children.update(forest.children[here])
    roots = [(t, n) for t, n in zip(trees, ids, strict=True) if index[t, n] not in children]
    if len(roots) != len(set(trees)) or len({tree for tree, _ in roots}) != len(roots):
        raise Unsupported("the nodes do not form trees of one root each")
    forest.roots = [index[key] for key in roots]
    return forest


def read_modern(node: NodeContext) -> Forest:
    """The forest of TreeEnsemble."""

    def tensor(name: str) -> Array | None:
        value = node.attribute(name)
        return None if value is None else np.asarray(numpy_helper.to_array(value)).reshape(-1)

    def integers(name: str) -> list[int]:
        return node.int_list(name) or []

    node.ignore("nodes_hitrates")
    splits, modes, weights = tensor("nodes_splits"), tensor("nodes_modes"), tensor("leaf_weights")
    members = tensor("membership_values")
    if splits is None or modes is None or weights is None:
        raise Unsupported("splits, modes or weights are missing")
    features, targets = integers("nodes_featureids"), integers("leaf_targetids")
    yes, yes_leaf = integers("nodes_truenodeids"), integers("nodes_trueleafs")
    no, no_leaf = integers("nodes_falsenodeids"), integers("nodes_falseleafs")
    missing = integers("nodes_missing_value_tracks_true") or [0] * len(features)
    parts: tuple[Any, ...] = (splits, modes, yes, yes_leaf, no, no_leaf, missing)
    if any(len(part) != len(features) for part in parts) or len(targets) != len(weights):
        raise Unsupported("the attributes of nodes or leaves differ in length")
    sets = _sets(members)
    forest = Forest(str(splits.dtype))
    heads, tails = [], []  # a set is a chain of comparisons, which all lead to the same place
    for i, feature in enumerate(features):
        mode = int(modes[i])
        values = [float(splits[i])]
        if mode == _MEMBER:
            values, mode = next(sets, [float("nan")]), _EQUAL
        elif not 0 <= mode < _MEMBER:
            raise Unsupported(f"node mode {mode} is unknown")
        chain = [forest.branch(feature, value, mode, bool(missing[i])) for value in values]
        heads.append(chain[0])
        tails.append(chain)
    for i, chain in enumerate(tails):
        after = [*chain[1:], None]
        for here, following in zip(chain, after, strict=True):
            false = following
            if false is None:
                false = _child(forest, no[i], no_leaf[i], heads, targets, weights)
            true = _child(forest, yes[i], yes_leaf[i], heads, targets, weights)
            forest.children[here] = (false, true)
    for root in integers("tree_roots"):
        if not 0 <= root < len(features):
            raise Unsupported(f"root {root} does not exist")
        alone = yes_leaf[root] and no_leaf[root] and yes[root] == no[root]
        if alone:
            forest.roots.append(_child(forest, yes[root], 1, heads, targets, weights))
        else:
            forest.roots.append(heads[root])
    return forest


def _child(
    forest: Forest, place: int, leaf: int, heads: list[int], targets: list[int], weights: Array
) -> int:
    limit = len(targets) if leaf else len(heads)
    if not 0 <= place < limit:
        raise Unsupported(f"a node has an unknown child {place}")
    return forest.leaf([(targets[place], float(weights[place]))]) if leaf else heads[place]


def _sets(members: Array | None) -> Iterator[list[float]]:
    """The sets of values, which NaNs separate, in the order of the nodes that use them."""
    values: list[float] = []
    for value in [] if members is None else members.tolist():
        if value == value:
            values.append(value)
            continue
        yield values or [float("nan")]
        values = []
    if values:
        yield values
