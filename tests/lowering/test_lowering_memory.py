"""Placement of tensors in the workspace."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from graphopt.lowering.memory import ALIGNMENT, Lifetime, align, place

lifetimes = st.builds(
    lambda nbytes, first, length: Lifetime(nbytes, first, first + length),
    st.integers(0, 5000),
    st.integers(0, 12),
    st.integers(0, 6),
)


@given(st.lists(lifetimes, max_size=20))
def test_tensors_that_live_together_never_overlap(tensors):
    offsets, total = place(tensors)
    for i, a in enumerate(tensors):
        assert offsets[i] % ALIGNMENT == 0
        assert offsets[i] + align(a.nbytes) <= total
        for j, b in enumerate(tensors[:i]):
            together = a.first <= b.last and b.first <= a.last
            apart = (
                offsets[i] + align(a.nbytes) <= offsets[j]
                or offsets[j] + align(b.nbytes) <= offsets[i]
            )
            assert apart or not together


@given(st.lists(lifetimes, min_size=1, max_size=20))
def test_the_workspace_is_at_least_the_busiest_moment_and_at_most_the_sum(tensors):
    _, total = place(tensors)
    busiest = max(
        sum(align(t.nbytes) for t in tensors if t.first <= call <= t.last) for call in range(20)
    )
    assert busiest <= total <= sum(align(t.nbytes) for t in tensors)


def test_a_chain_needs_two_buffers():
    chain = [Lifetime(1024, i, i + 1) for i in range(10)]
    assert place(chain)[1] == 2 * 1024
