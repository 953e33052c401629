"""Chooses one candidate per group so that kernels plus layout changes cost the least.

A partitioned Boolean quadratic problem: each node has a cost per choice, each edge a cost per pair
of choices. Nodes of degree 0, 1 and 2 are eliminated exactly (reductions R0, R1 and R2); where
none is left the node of highest degree is decided greedily (RN). Networks are almost always
series-parallel, so that the result is nearly always optimal.

Source: Scholz and Eckstein, "Register Allocation for Irregular Architectures", LCTES 2002.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from heapq import heapify, heappop, heappush

import numpy as np
from numpy.typing import NDArray

Costs = NDArray[np.float64]


def solve(nodes: Sequence[Costs], edges: Mapping[tuple[int, int], Costs]) -> list[int]:
    """The choice of each node.

    Args:
        nodes: per node a vector of finite costs, at least one.
        edges: (a, b) with a != b to a matrix [choices of a, choices of b]; at most one per pair of
            nodes, in either order.
    """
    costs = [np.array(node, dtype=np.float64) for node in nodes]
    graph: list[dict[int, Costs]] = [{} for _ in nodes]
    for (a, b), matrix in edges.items():
        _add_edge(graph, a, b, np.asarray(matrix, dtype=np.float64))
    alive = set(range(len(costs)))
    order: list[tuple[int, dict[int, Costs]]] = []

    def rank(node: int) -> tuple[int, int, int]:
        degree = len(graph[node])
        return min(degree, 3), -degree, node

    # A node is entered again when its degree changes; its older entries are then out of date.
    queue = [rank(node) for node in alive]
    heapify(queue)
    while alive:
        entry = heappop(queue)
        node = entry[2]
        if node not in alive or entry != rank(node):
            continue
        neighbours = dict(graph[node])
        if len(neighbours) == 1:
            ((other, matrix),) = neighbours.items()
            costs[other] += (costs[node][:, None] + matrix).min(axis=0)
        elif len(neighbours) == 2:
            (a, to_a), (b, to_b) = neighbours.items()
            joint = (costs[node][:, None, None] + to_a[:, :, None] + to_b[:, None, :]).min(axis=0)
            _add_edge(graph, a, b, joint)
        elif neighbours:
            best = costs[node].copy()
            for other, matrix in neighbours.items():
                best += (matrix + costs[other][None, :]).min(axis=1)
            chosen = int(best.argmin())
            for other, matrix in neighbours.items():
                costs[other] += matrix[chosen]
            decided = np.full_like(costs[node], np.inf)
            decided[chosen] = 0.0
            costs[node], neighbours = decided, {}
        order.append((node, neighbours))
        around, graph[node] = graph[node], {}
        alive.remove(node)
        for other in around:
            graph[other].pop(node)
            heappush(queue, rank(other))
    choice = [0] * len(costs)
    for node, neighbours in reversed(order):
        total = costs[node].copy()
        for other, matrix in neighbours.items():
            total += matrix[:, choice[other]]
        choice[node] = int(total.argmin())
    return choice


def total_cost(
    nodes: Sequence[Costs], edges: Mapping[tuple[int, int], Costs], choice: Sequence[int]
) -> float:
    """Cost of a given choice."""
    cost = sum(float(node[pick]) for node, pick in zip(nodes, choice, strict=True))
    return cost + sum(float(matrix[choice[a], choice[b]]) for (a, b), matrix in edges.items())


def _add_edge(graph: list[dict[int, Costs]], a: int, b: int, matrix: Costs) -> None:
    if b in graph[a]:
        matrix = graph[a][b] + matrix
    graph[a][b] = matrix
    graph[b][a] = matrix.T
