"""The builders of hand-written loop nests: parts of an axis, transposed copies."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from harness import ALL_TRAITS, host_target
from hypothesis import given
from hypothesis import strategies as st

from schedules import nest
from schedules.interface import TargetTraits
from schedules.transposing import copy_panel, copy_panel_transposed


@given(extent=st.integers(1, 500), most=st.integers(1, 40), multiple=st.integers(1, 8))
def test_parts_cover_the_axis_and_differ_by_one(extent: int, most: int, multiple: int) -> None:
    split = nest.Split.of(extent, most, multiple)
    assert split.count % multiple == 0
    assert split.largest <= most
    assert split.larger * (split.size + 1) + (split.count - split.larger) * split.size == extent


@pytest.mark.parametrize("traits", ALL_TRAITS, ids=lambda t: f"lanes{t.lanes}")
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(("depth", "columns"), [(1, 1), (16, 16), (19, 37), (40, 5)])
def test_copies_pad_with_zeros(
    traits: TargetTraits, transposed: bool, depth: int, columns: int
) -> None:
    lanes = traits.lanes
    width = -(-columns // lanes) * lanes
    shape = (columns, depth) if transposed else (depth, columns)
    source, target = nest.buffer(shape, "float32", "a"), nest.buffer((depth, width), "float32", "b")

    def read(k: object, j: object) -> object:
        return nest.read(source, j, k) if transposed else nest.read(source, k, j)

    copier = copy_panel_transposed if transposed else copy_panel
    copy = copier(read, target, depth, columns, lanes, "float32")
    func = nest.function([source, target], nest.parallel(1, lambda _: copy))
    module = tvm.driver.build(tvm.IRModule({"main": func}), target=host_target(traits))
    values = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    result = tvm.runtime.tensor(np.full((depth, width), np.nan, np.float32))
    module["main"](tvm.runtime.tensor(values), result)
    expected = np.zeros((depth, width), np.float32)
    expected[:, :columns] = values.T if transposed else values
    np.testing.assert_array_equal(result.numpy(), expected)
