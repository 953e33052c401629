"""Calibration data from files: .npz, .npy and folders of these."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from graphopt.compression.quantization.feeds import InputSpec, fits
from graphopt.compression.quantization.graph import STAGE
from graphopt.compression.quantization.rows import StoredArrays, StoredRows
from graphopt.errors import InputError
from graphopt.frontend.model import Array

MAX_BATCH = 8
"""Samples that are run together where the model leaves the batch open."""


@dataclass(frozen=True)
class ArrayFile:
    """An .npz (arrays by input name) or .npy (the only input), samples along the first axis."""

    path: Path

    repeatable = True
    warning = None

    @property
    def description(self) -> str:
        """Where the data is from, in words."""
        return f"the file {self.path.name}"

    def batches(self, specs: tuple[InputSpec, ...]) -> Iterator[Mapping[str, Array]]:
        """Batches of the model's size, or of up to MAX_BATCH samples where that is open."""
        with _reading(self.path) as stored:
            yield from in_batches(_named(stored, specs, self.path), specs)


@dataclass(frozen=True)
class ArrayFolder:
    """A folder: one .npz or .npy per batch, or one .npy per input, named like it."""

    path: Path

    repeatable = True
    warning = None

    @property
    def description(self) -> str:
        """Where the data is from, in words."""
        return f"the folder {self.path.name}"

    def batches(self, specs: tuple[InputSpec, ...]) -> Iterator[Mapping[str, Array]]:
        """One batch per file, in the order of the names; a missing batch axis is added."""
        by_name = {spec.name: spec for spec in specs}
        files = sorted(p for p in self.path.iterdir() if p.suffix in (".npz", ".npy"))
        if {path.stem for path in files} == {spec.name for spec in specs} and all(
            path.suffix == ".npy" for path in files
        ):
            with ExitStack() as stack:
                arrays = {path.stem: stack.enter_context(_reading(path))[""] for path in files}
                yield from in_batches(arrays, specs)
            return
        for path in files:
            with _reading(path) as stored:
                named = _named(stored, specs, path)
                batch = {n: _with_batch(named[n].whole(), spec) for n, spec in by_name.items()}
            yield batch


def in_batches(
    arrays: Mapping[str, StoredRows], specs: tuple[InputSpec, ...]
) -> Iterator[Mapping[str, Array]]:
    """Arrays with samples along the first axis, as batches.

    An array of the input's rank is cut along its first axis into pieces of the input's batch; one
    with an axis more has whole batches along it. A scalar input is the same for all.

    Raises:
        InputError: numbers of samples differ, or do not divide into batches.
    """
    _check_samples(arrays, specs)
    sizes = {spec.name: _rows_of_a_batch(arrays[spec.name], spec) for spec in specs}
    counts = {
        name: arrays[name].shape[0] // (size or 1)
        for name, size in sizes.items()
        if size is not None
    }
    if len({*counts.values()}) > 1:
        given = ", ".join(f"{name}: {count}" for name, count in counts.items())
        raise InputError(STAGE, f"the inputs have different numbers of batches ({given}).")
    same = {name: arrays[name].whole() for name, size in sizes.items() if size is None}
    for _ in range(max(counts.values(), default=1)):
        batch = dict(same)
        for name, size in sizes.items():
            if size is not None:
                rows = arrays[name].take(size or 1)
                batch[name] = rows if size else rows[0]
        yield batch


def _check_samples(arrays: Mapping[str, StoredRows], specs: tuple[InputSpec, ...]) -> None:
    """Inputs whose batch is open must have as many samples as each other."""
    lengths = {
        spec.name: arrays[spec.name].shape[0]
        for spec in specs
        if spec.shape and spec.shape[0] is None and len(arrays[spec.name].shape) == len(spec.shape)
    }
    if len({*lengths.values()}) > 1:
        sizes = ", ".join(f"{name}: {length}" for name, length in lengths.items())
        raise InputError(STAGE, f"the inputs have different numbers of samples ({sizes}).")


def _rows_of_a_batch(array: StoredRows, spec: InputSpec) -> int | None:
    """How many rows make a batch, 0 if each row is one; None to use the array whole every time."""
    if spec.shape is None or spec.shape == ():
        return None
    if len(array.shape) == len(spec.shape) + 1:
        return 0
    if len(array.shape) != len(spec.shape) or array.shape[0] == 0:
        return None  # the check of the batches says what is wrong
    count, batch = array.shape[0], spec.shape[0]
    if batch is None:
        batch = max(size for size in range(1, MAX_BATCH + 1) if count % size == 0)
    if batch == 0 or count % batch:
        raise InputError(
            STAGE,
            f"'{spec.name}' has {count} samples, and the model takes {batch} at a time.",
            hint=f"give a multiple of {batch}.",
        )
    return batch


def _with_batch(array: Array, spec: InputSpec) -> Array:
    if spec.shape and array.ndim == len(spec.shape) - 1 and fits((1, *array.shape), spec.shape):
        return array[np.newaxis]
    return array


def _named(
    arrays: Mapping[str, StoredRows], specs: tuple[InputSpec, ...], path: Path
) -> Mapping[str, StoredRows]:
    """Arrays by input name; one array is the only input's, whatever it is called."""
    names = [spec.name for spec in specs]
    if not arrays:
        raise InputError(STAGE, f"'{path}' holds no array.")
    if len(arrays) == 1 == len(names):
        return {names[0]: next(iter(arrays.values()))}
    missing, unknown = [n for n in names if n not in arrays], [n for n in arrays if n not in names]
    if missing or unknown:
        wrong = f"lacks input '{missing[0]}'" if missing else f"has '{unknown[0]}'"
        raise InputError(
            STAGE, f"'{path}' {wrong}.", hint=f"the model's inputs: {', '.join(names)}."
        )
    return arrays


@contextmanager
def _reading(path: Path) -> Iterator[Mapping[str, StoredRows]]:
    """The arrays of a file by name, while it is read; that of an .npy has the name "".

    Raises:
        InputError: it cannot be read, is no file of numbers, or ends too early.
    """
    try:
        with StoredArrays(path) as stored:
            yield stored.arrays
    except OSError as error:
        raise InputError(STAGE, f"cannot read '{path}': {error.strerror or error}.") from error
    except (ValueError, EOFError, BadZipFile, zlib.error, NotImplementedError) as error:
        raise InputError(
            STAGE, f"'{path}' is no file of numbers, or is damaged: {error}.",
            hint="write it again (numpy.savez).",
        ) from error  # fmt: skip
