"""Opens what a user names as calibration data."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from graphopt.compression.quantization.feeds import Data, Given
from graphopt.compression.quantization.files import ArrayFile, ArrayFolder
from graphopt.compression.quantization.graph import STAGE
from graphopt.compression.quantization.images import (
    SUFFIXES,
    ImageFolder,
    ImagePreprocessing,
)
from graphopt.errors import InputError, OptionError


def open_data(source: Any, images: ImagePreprocessing | None = None) -> Data:
    """Calibration data from a path, or an iterable of dicts.

    Args:
        source: an .npz, .npy or folder of these or of images; or an iterable of dicts (input
            name → array), or of arrays for a model with one input.
        images: how images become inputs; needed for a folder of images, and only for it.

    Raises:
        InputError: there is no such file, or nothing usable in the folder.
        OptionError: `source` is something else, or images without preprocessing.
    """
    if isinstance(source, (str, os.PathLike)):
        return _from_path(Path(source), images)
    if images is not None:
        raise OptionError(STAGE, "preprocessing of images is stated, but the data is no folder.")
    if isinstance(source, Mapping):
        return Given((source,))
    if isinstance(source, (bytes, bytearray)) or not isinstance(source, Iterable):
        raise OptionError(
            STAGE,
            f"calibration must be a path or an iterable of dicts, not {type(source).__name__}.",
            hint="for example calibration='samples.npz', or 'random' for random numbers.",
        )
    return Given(source)


def _from_path(path: Path, images: ImagePreprocessing | None) -> Data:
    if path.is_file():
        if path.suffix not in (".npz", ".npy"):
            raise InputError(
                STAGE, f"calibration data '{path}' is no .npz or .npy.",
                hint="give arrays, or a folder of images.",
            )  # fmt: skip
        return ArrayFile(path)
    if not path.is_dir():
        raise InputError(
            STAGE,
            f"there is no calibration data at '{path}'.",
            hint="give an .npz or a folder, or the word random for random numbers.",
        )
    suffixes = {item.suffix.lower() for item in path.iterdir()}
    if suffixes & {".npz", ".npy"}:
        return ArrayFolder(path)
    if not suffixes & SUFFIXES:
        raise InputError(STAGE, f"the folder '{path}' has no .npz, .npy or image.")
    if images is None:
        raise OptionError(
            STAGE,
            f"'{path}' has images, and how they become inputs is not stated.",
            hint="state it: --image-mean 0.485,0.456,0.406 --image-std 0.229,0.224,0.225, in "
            "Python images=ImagePreprocessing(mean=…, std=…).",
        )
    return ImageFolder(path, images)
