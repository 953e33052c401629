"""The PBQP solver against brute force."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.lowering.assignment import solve, total_cost


def brute_force(nodes, edges):
    choices = itertools.product(*(range(len(node)) for node in nodes))
    return min(total_cost(nodes, edges, choice) for choice in choices)


@st.composite
def series_parallel(draw):
    """A chain with skip edges that nest, as in a residual network."""
    count = draw(st.integers(1, 7))
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    nodes = [rng.random(draw(st.integers(1, 3))) for _ in range(count)]
    edges = {}
    for i in range(count - 1):
        edges[i, i + 1] = rng.random((len(nodes[i]), len(nodes[i + 1])))
    for i in range(0, count - 3, 3):
        edges[i, i + 3] = rng.random((len(nodes[i]), len(nodes[i + 3])))
    return nodes, edges


@given(series_parallel())
@settings(max_examples=80, deadline=None)
def test_series_parallel_graphs_are_solved_exactly(problem):
    nodes, edges = problem
    assert np.isclose(total_cost(nodes, edges, solve(nodes, edges)), brute_force(nodes, edges))


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_dense_graphs_get_a_valid_choice_no_worse_than_twice_the_best(seed):
    rng = np.random.default_rng(seed)
    nodes = [1 + rng.random(3) for _ in range(5)]
    pairs = itertools.combinations(range(5), 2)
    edges = {pair: rng.random((3, 3)) for pair in pairs}
    choice = solve(nodes, edges)
    assert all(0 <= pick < 3 for pick in choice)
    assert total_cost(nodes, edges, choice) <= 2 * brute_force(nodes, edges)


def test_edges_in_either_order_mean_the_same():
    nodes = [np.array([0.0, 1.0]), np.array([0.0, 1.0])]
    matrix = np.array([[5.0, 0.0], [5.0, 0.0]])
    assert solve(nodes, {(0, 1): matrix}) == solve(nodes, {(1, 0): matrix.T}) == [0, 1]


def test_a_layout_change_is_paid_only_when_it_is_worth_it():
    fast_but_foreign = np.array([9.0, 4.0])
    change = np.array([[0.0, 3.0], [3.0, 0.0]])
    plain_neighbour = np.array([1.0, 50.0])
    chain = [plain_neighbour, fast_but_foreign, plain_neighbour]
    edges = {(0, 1): change, (1, 2): change}
    assert solve(chain, edges) == [0, 0, 0]
    chain[1] = np.array([11.0, 4.0])
    assert solve(chain, edges) == [0, 1, 0]
