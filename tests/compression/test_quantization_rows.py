"""Stored arrays are read row by row, as NumPy would read them whole."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from graphopt.compression.quantization.rows import StoredArrays, StoredRows


def stored(array: Any) -> StoredRows:
    file = io.BytesIO()
    np.save(file, array)
    file.seek(0)
    return StoredRows(file)


@given(
    arrays.arrays(
        st.sampled_from([np.float32, np.int64, np.uint8, ">f4"]),
        arrays.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=5),
    ),
    st.booleans(),
    st.integers(1, 3),
)
def test_rows_are_numpys(array: Any, fortran: bool, count: int) -> None:
    rows = stored(np.asfortranarray(array) if fortran else array)
    assert (rows.shape, rows.dtype) == (array.shape, array.dtype)
    for start in range(0, len(array) - count + 1, count):
        np.testing.assert_array_equal(rows.take(count), array[start : start + count])
    np.testing.assert_array_equal(stored(array).whole(), array)


def test_a_scalar_is_read_whole() -> None:
    assert stored(np.float32(3)).whole() == 3


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_of_an_archive_are_read_side_by_side(tmp_path: Path, save: Any) -> None:
    a, b = np.arange(12.0).reshape(6, 2), np.arange(6)
    save(tmp_path / "two.npz", a=a, b=b)
    with StoredArrays(tmp_path / "two.npz") as two:
        for start in range(0, 6, 3):
            np.testing.assert_array_equal(two.arrays["a"].take(3), a[start : start + 3])
            np.testing.assert_array_equal(two.arrays["b"].take(3), b[start : start + 3])


def test_python_objects_are_not_unpickled() -> None:
    file = io.BytesIO()
    np.save(file, np.array([{}], object), allow_pickle=True)
    file.seek(0)
    with pytest.raises(ValueError, match="Python objects"):
        StoredRows(file)
