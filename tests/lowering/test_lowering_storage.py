"""Regions inside regions: where they are placed and how long they live."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphopt.lowering.storage import Storage


def test_parts_live_as_long_as_the_whole():
    """A chain in which the memory of a part's neighbour would be free, were it placed alone."""
    storage = Storage()
    whole = storage.add("arena", 0, 256)
    early, late = storage.inside(whole, 0, 128), storage.inside(whole, 128, 128)
    between = storage.add("arena", 0, 128)
    storage.touch(early, 0)
    storage.touch(between, 1)
    storage.touch(between, 2)
    storage.touch(late, 3)
    buffers, total = storage.buffers()
    assert total == 256 + 128
    assert buffers[late].offset == buffers[early].offset + 128
    begin = buffers[whole].offset
    assert buffers[between].offset + 128 <= begin or buffers[between].offset >= begin + 256


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 7)), min_size=1, max_size=12))
def test_nested_parts_are_where_their_offsets_add_up(steps):
    storage = Storage()
    other = storage.add("arena", 0, 640)
    regions = [(storage.add("arena", 0, 64 * 64), 0, 64 * 64)]
    for call, (pick, lines) in enumerate(steps):
        host, start, room = regions[pick % len(regions)]
        offset = min(64 * lines, room - 64)
        inner = storage.inside(host, offset, room - offset)
        regions.append((inner, start + offset, room - offset))
        storage.touch(inner, call)
    storage.touch(other, 0)
    buffers, total = storage.buffers()
    base = buffers[regions[0][0]].offset
    for index, start, nbytes in regions:
        assert buffers[index].offset == base + start
        assert buffers[index].nbytes == nbytes
        assert buffers[index].offset + nbytes <= total


def test_what_is_not_the_programs_own_has_no_parts():
    storage = Storage()
    with pytest.raises(AssertionError):
        storage.inside(storage.add("input", 0, 128), 64, 64)


def test_each_writer_is_named_once():
    storage = Storage()
    region = storage.add("arena", 0, 64)
    storage.written(region, [3, 1])
    storage.written(region, [1])
    assert storage.writers(region) == (3, 1)
