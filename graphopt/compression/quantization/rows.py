"""The rows of a stored array, read a few at a time: a file of any size takes the memory of one."""

from __future__ import annotations

import math
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any
from zipfile import ZipFile

import numpy as np

from graphopt.frontend.model import Array

_PIECE = 1 << 20
"""Bytes that are read at once."""


class StoredRows:
    """An array in NumPy's format, of which rows are taken from the first to the last.

    Arrays in Fortran's order, and those without a dimension, are read whole.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        """Read the header.

        Raises:
            ValueError: it is no array, or one of Python objects.
        """
        version = np.lib.format.read_magic(stream)
        read = {(1, 0): np.lib.format.read_array_header_1_0}.get(
            version, np.lib.format.read_array_header_2_0
        )
        self.shape, fortran, self.dtype = read(stream)
        if self.dtype.hasobject:
            raise ValueError("it holds Python objects")
        self._stream = stream
        self._rest: Array | None = None
        if fortran or not self.shape:
            data = self._read(math.prod(self.shape))
            self._rest = data.reshape(self.shape, order="F" if fortran else "C")

    def take(self, count: int) -> Array:
        """The next `count` rows; EOFError if the file ends before."""
        if self._rest is not None:
            taken, self._rest = self._rest[:count], self._rest[count:]
            return taken
        row = self.shape[1:]
        return self._read(count * math.prod(row)).reshape(count, *row)

    def whole(self) -> Array:
        """What was not taken yet."""
        if self._rest is not None:
            return self._rest
        return self.take(self.shape[0])

    def _read(self, count: int) -> Array:
        data = np.empty(count, self.dtype)
        view, done = data.view(np.uint8).data, 0
        while done < len(view):
            part = self._stream.read(min(len(view) - done, _PIECE))
            if not part:
                raise EOFError("the file ends in the middle of an array")
            view[done : done + len(part)] = part
            done += len(part)
        return data


class StoredArrays:
    """The arrays of an .npz by name, or that of an .npy with the name "", open for reading."""

    def __init__(self, path: Path) -> None:
        """Open the file.

        Raises:
            OSError, ValueError, EOFError, zipfile.BadZipFile, NotImplementedError: it is none.
        """
        with ExitStack() as stack:
            self.arrays: dict[str, StoredRows] = {}
            file = stack.enter_context(path.open("rb"))
            if file.read(2) == b"PK":
                archive = stack.enter_context(ZipFile(file))
                for name in archive.namelist():
                    member: Any = stack.enter_context(archive.open(name))
                    self.arrays[name.removesuffix(".npy")] = StoredRows(member)
            else:
                file.seek(0)
                self.arrays[""] = StoredRows(file)
            self._opened = stack.pop_all()

    def __enter__(self) -> StoredArrays:
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()
