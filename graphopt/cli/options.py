"""Command-line values that need more than a type: shapes, constants, files of arrays."""

from __future__ import annotations

import argparse
import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from graphopt.artifact.atomic import replacing
from graphopt.errors import InputError, OptionError

Array = np.ndarray[Any, Any]
T = TypeVar("T")


def shape(text: str) -> tuple[str, tuple[int, ...]]:
    """NAME=1,3,224,224 → name and shape; a scalar is written NAME= ."""
    # Names of tensors may contain "=", shapes cannot.
    name, separator, dims = text.rpartition("=")
    try:
        sizes = tuple(int(dim) for dim in dims.replace("x", ",").split(",")) if dims else ()
    except ValueError:
        sizes = (-1,)
    if not separator or not name or any(size < 0 for size in sizes):
        raise argparse.ArgumentTypeError(f"'{text}' is not NAME=1,3,224,224")
    return name, sizes


def constant(text: str) -> tuple[str, int | float | tuple[int | float, ...]]:
    """NAME=16000, NAME=true, NAME=0.5 or NAME=0,1 → name and value."""
    name, separator, value = text.rpartition("=")
    try:
        numbers = tuple(_number(word) for word in value.split(","))
    except ValueError:
        numbers = ()
    if not separator or not name or not numbers:
        raise argparse.ArgumentTypeError(f"'{text}' is not NAME=VALUE, such as rate=16000")
    return name, numbers if "," in value else numbers[0]


def _number(word: str) -> int | float:
    words = {"true": 1, "false": 0}
    try:
        return int(words.get(word.lower(), word))
    except ValueError:
        return float(word)


def positive(text: str) -> int:
    """A whole number above 0."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number above 0")
    return value


def specialisations(
    given: Sequence[tuple[str, T]] | None, flag: str = "--shape"
) -> list[dict[str, T]] | None:
    """What the flags ask for: a name given k times makes k specialisations.

    Names given once hold in all of them.

    Raises:
        OptionError: two names are given several times, but not equally often.
    """
    if not given:
        return None
    by_name: dict[str, list[T]] = {}
    for name, value in given:
        by_name.setdefault(name, []).append(value)
    counts = {len(found) for found in by_name.values()} - {1}
    if len(counts) > 1:
        raise OptionError(
            "options",
            f"{flag} is given for several inputs, but not equally often.",
            hint="the k-th values of all inputs make the k-th specialisation.",
        )
    count = counts.pop() if counts else 1
    return [
        {name: found[0] if len(found) == 1 else found[k] for name, found in by_name.items()}
        for k in range(count)
    ]


def one_specialisation(
    given: Sequence[tuple[str, T]] | None, flag: str = "--shape"
) -> dict[str, T] | None:
    """The flags of a verb that works on one specialisation."""
    found = specialisations(given, flag)
    if found is not None and len(found) > 1:
        raise OptionError("options", f"{flag} is given twice for one input.")
    return found[0] if found else None


def writable(path: str) -> Path:
    """`path`, after checking that a file can be written there; OptionError before work is lost."""
    target = Path(path)
    folder = Path(os.path.realpath(target)).parent
    try:
        if target.is_dir():
            raise OptionError("options", f"'{path}' is a directory.", hint="name a file in it.")
        if target.exists() and not target.is_file():
            raise OptionError("options", f"'{path}' is no regular file.", hint="name a file.")
    except PermissionError as error:
        raise OptionError("options", f"'{path}' cannot be written: {error.strerror}.") from error
    if not folder.is_dir():
        raise OptionError("options", f"there is no directory '{folder}' to write into.")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OptionError("options", f"the directory '{folder}' is not writable.")
    return target


def folder(path: str) -> Path:
    """`path`, after checking that it is a folder or can become one; OptionError if not."""
    target = Path(path)
    if target.exists() and not target.is_dir():
        raise OptionError("options", f"'{path}' is no folder.", hint="name one; it may be new.")
    return target


def read_arrays(path: str) -> dict[str, Array]:
    """The arrays of an .npz file by name.

    Raises:
        InputError: the file is missing, or is not an .npz of plain arrays.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            if not isinstance(stored, np.lib.npyio.NpzFile):
                raise InputError("input", f"'{path}' holds a single array.", hint=_NPZ)
            return {name: stored[name] for name in stored.files}
    except OSError as error:
        reason = error.strerror or "it is not an .npz file"
        raise InputError("input", f"cannot read '{path}': {reason}.", hint=_NPZ) from error
    except (ValueError, EOFError, zipfile.BadZipFile, NotImplementedError, TypeError) as error:
        if isinstance(error, TypeError):  # np.load gives an array, which is no context manager
            raise InputError("input", f"'{path}' holds a single array.", hint=_NPZ) from error
        reason = f"'{path}' is not an .npz of numbers: {error}."
        raise InputError("input", reason, hint=_NPZ) from error


_NPZ = "make one with numpy.savez('in.npz', input_name=array)."


def write_arrays(path: Path, arrays: Mapping[str, Array]) -> None:
    """Write an .npz file atomically; names may be any tensor names.

    Raises:
        ArtifactError: it cannot be written; an old file stays as it was.
    """
    with replacing(path, "output") as file, zipfile.ZipFile(file, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)
