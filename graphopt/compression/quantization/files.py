"""Calibration data from files: .npz, .npy and folders of these."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from graphopt.compression.quantization.feeds import InputSpec, fits
from graphopt.compression.quantization.graph import STAGE
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
        yield from in_batches(_named(read(self.path), specs, self.path), specs)


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
        files = sorted(p for p in self.path.iterdir() if p.suffix in (".npz", ".npy"))
        if {path.stem for path in files} == {spec.name for spec in specs} and all(
            path.suffix == ".npy" for path in files
        ):
            arrays = {path.stem: read(path)[""] for path in files}
            yield from in_batches(arrays, specs)
            return
        for path in files:
            named = _named(read(path), specs, path)
            yield {spec.name: _with_batch(named[spec.name], spec) for spec in specs}


def in_batches(
    arrays: Mapping[str, Array], specs: tuple[InputSpec, ...]
) -> Iterator[Mapping[str, Array]]:
    """Arrays with samples along the first axis, as batches.

    An array of the input's rank is cut along its first axis into pieces of the input's batch; one
    with an axis more has whole batches along it. A scalar input is the same for all.

    Raises:
        InputError: numbers of samples differ, or do not divide into batches.
    """
    _check_samples(arrays, specs)
    pieces = {spec.name: _cuts(arrays[spec.name], spec) for spec in specs}
    counts = {len(cuts) for cuts in pieces.values() if cuts is not None}
    if len(counts) > 1:
        sizes = ", ".join(f"{n}: {len(cuts)}" for n, cuts in pieces.items() if cuts is not None)
        raise InputError(STAGE, f"the inputs have different numbers of batches ({sizes}).")
    for place in range(counts.pop() if counts else 1):
        batch = {}
        for name, cuts in pieces.items():
            batch[name] = arrays[name] if cuts is None else arrays[name][cuts[place]]
        yield batch


def _check_samples(arrays: Mapping[str, Array], specs: tuple[InputSpec, ...]) -> None:
    """Inputs whose batch is open must have as many samples as each other."""
    lengths = {
        spec.name: len(arrays[spec.name])
        for spec in specs
        if spec.shape and spec.shape[0] is None and arrays[spec.name].ndim == len(spec.shape)
    }
    if len({*lengths.values()}) > 1:
        sizes = ", ".join(f"{name}: {length}" for name, length in lengths.items())
        raise InputError(STAGE, f"the inputs have different numbers of samples ({sizes}).")


def _cuts(array: Array, spec: InputSpec) -> list[slice | int] | None:
    """Where to cut an array; None to use it whole every time."""
    if spec.shape is None or spec.shape == ():
        return None
    if array.ndim == len(spec.shape) + 1:
        return list(range(len(array)))
    if array.ndim != len(spec.shape) or len(array) == 0:
        return None  # the check of the batches says what is wrong
    count, batch = len(array), spec.shape[0]
    if batch is None:
        batch = max(size for size in range(1, MAX_BATCH + 1) if count % size == 0)
    if batch == 0 or count % batch:
        raise InputError(
            STAGE,
            f"'{spec.name}' has {count} samples, and the model takes {batch} at a time.",
            hint=f"give a multiple of {batch}.",
        )
    return [slice(start, start + batch) for start in range(0, count, batch)]


def _with_batch(array: Array, spec: InputSpec) -> Array:
    if spec.shape and array.ndim == len(spec.shape) - 1 and fits((1, *array.shape), spec.shape):
        return array[np.newaxis]
    return array


def _named(
    arrays: Mapping[str, Array], specs: tuple[InputSpec, ...], path: Path
) -> Mapping[str, Array]:
    """Arrays by input name; one array is the only input's, whatever it is called."""
    names = [spec.name for spec in specs]
    if len(arrays) == 1 == len(names):
        return {names[0]: next(iter(arrays.values()))}
    missing, unknown = [n for n in names if n not in arrays], [n for n in arrays if n not in names]
    if missing or unknown:
        wrong = f"lacks input '{missing[0]}'" if missing else f"has '{unknown[0]}'"
        raise InputError(
            STAGE, f"'{path}' {wrong}.", hint=f"the model's inputs: {', '.join(names)}."
        )
    return arrays


def read(path: Path) -> dict[str, Array]:
    """The arrays of a file by name; that of an .npy has the name "".

    Raises:
        InputError: it cannot be read, or is no file of numbers.
    """
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return {"": loaded}
        with loaded as stored:
            return {name: stored[name] for name in stored.files}
    except OSError as error:
        raise InputError(STAGE, f"cannot read '{path}': {error.strerror or error}.") from error
    except (ValueError, EOFError, zipfile.BadZipFile, NotImplementedError) as error:
        raise InputError(STAGE, f"'{path}' is no file of numbers: {error}.") from error
