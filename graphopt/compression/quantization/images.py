"""Calibration data from image files, with preprocessing that the user states."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from graphopt.compression.quantization.feeds import InputSpec
from graphopt.compression.quantization.graph import STAGE
from graphopt.errors import InputError, OptionError
from graphopt.frontend.model import Array

SUFFIXES = frozenset((".bmp", ".jpeg", ".jpg", ".png", ".webp"))

_MODES = {"rgb": "RGB", "bgr": "RGB", "gray": "L"}


@dataclass(frozen=True)
class ImagePreprocessing:
    """How an image becomes an input: (pixel / 255 − mean) / std per channel.

    Attributes:
        mean, std: one number, or one per channel, of pixels from 0 to 1.
        size: height and width; None for the model's own.
        color: order of the channels: "rgb", "bgr" or "gray".
        layout: "nchw" or "nhwc".
        crop: keep the aspect ratio and cut out the middle; otherwise the image is stretched.
    """

    mean: float | Sequence[float] = 0.0
    std: float | Sequence[float] = 1.0
    size: tuple[int, int] | None = None
    color: str = "rgb"
    layout: str = "nchw"
    crop: bool = False

    def __post_init__(self) -> None:
        if self.color not in _MODES:
            raise OptionError("options", f"color must be rgb, bgr or gray, not {self.color!r}.")
        if self.layout not in ("nchw", "nhwc"):
            raise OptionError("options", f"layout must be nchw or nhwc, not {self.layout!r}.")
        channels = 1 if self.color == "gray" else 3
        for name in ("mean", "std"):
            values = np.asarray(getattr(self, name), np.float64)
            if values.ndim > 1 or values.size not in (1, channels) or not np.isfinite(values).all():
                raise OptionError(
                    "options",
                    f"{name} must be one number or {channels}, not {getattr(self, name)}.",
                )
        if not np.asarray(self.std).all():
            raise OptionError("options", "std must not be 0.")

    def array(self, image: Any, size: tuple[int, int]) -> Array:
        """A Pillow image as one sample, float32 (1, C, H, W) or (1, H, W, C)."""
        from PIL import Image, ImageOps

        image, wide = image.convert(_MODES[self.color]), (size[1], size[0])
        method = Image.Resampling.BILINEAR
        fitted = ImageOps.fit(image, wide, method) if self.crop else image.resize(wide, method)
        pixels = np.asarray(fitted, np.float32) / 255
        if pixels.ndim == 2:
            pixels = pixels[:, :, np.newaxis]
        if self.color == "bgr":
            pixels = pixels[:, :, ::-1]
        scaled = (pixels - np.asarray(self.mean)) / np.asarray(self.std)
        if self.layout == "nchw":
            scaled = scaled.transpose(2, 0, 1)
        return np.ascontiguousarray(scaled[np.newaxis], np.float32)


@dataclass(frozen=True)
class ImageFolder:
    """The images of a folder, in the order of their names, one per batch."""

    path: Path
    preprocessing: ImagePreprocessing

    repeatable = True
    warning = None

    @property
    def description(self) -> str:
        """Where the data is from, in words."""
        return f"the images in {self.path.name}"

    def batches(self, specs: tuple[InputSpec, ...]) -> Iterator[Mapping[str, Array]]:
        """One image per batch.

        Raises:
            InputError: the model takes no images, or a file is none.
            OptionError: Pillow is not installed, or the size is not known.
        """
        if importlib.util.find_spec("PIL") is None:
            raise OptionError(
                STAGE, "reading images needs Pillow, which is not installed.",
                hint="pip install pillow, or give arrays (.npz).",
            )  # fmt: skip
        from PIL import Image

        size = _size(specs, self.preprocessing)
        for path in sorted(self.path.iterdir()):
            if path.suffix.lower() not in SUFFIXES:
                continue
            try:
                with Image.open(path) as image:
                    sample = self.preprocessing.array(image, size)
            except (OSError, SyntaxError, ValueError) as error:  # Pillow raises all of these
                raise InputError(
                    STAGE, f"'{path}' is no image, or is damaged: {error}.",
                    hint="remove it from the folder, or write it again.",
                ) from error  # fmt: skip
            yield {specs[0].name: sample}


def _size(specs: tuple[InputSpec, ...], preprocessing: ImagePreprocessing) -> tuple[int, int]:
    if len(specs) != 1 or specs[0].shape is None or len(specs[0].shape) != 4:
        raise InputError(STAGE, "the model does not take one image of four dimensions.")
    if preprocessing.size is not None:
        return preprocessing.size
    _, *rest = specs[0].shape
    height, width = rest[1:] if preprocessing.layout == "nchw" else rest[:2]
    if height is None or width is None:
        raise OptionError(
            STAGE, f"input '{specs[0].name}' leaves the size of images open.",
            hint="state it: --image-size 224x224, in Python ImagePreprocessing(size=(224, 224)).",
        )  # fmt: skip
    return height, width
