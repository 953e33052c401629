"""ONNX Runtime's own quantizer at its best for ONNX Runtime, for comparisons."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import version_converter
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

FIRST_PER_CHANNEL = 13
"""The opset in which scales for each channel came."""

Feeds = dict[str, np.ndarray[Any, Any]]


class _Reader(CalibrationDataReader):  # type: ignore[misc]  # untyped
    def __init__(self, batches: Sequence[Feeds]) -> None:
        self._batches: Iterator[Feeds] = iter(batches)

    def get_next(self) -> Feeds | None:
        return next(self._batches, None)


def write_prepared(source: Path, target: Path, fuse: bool = True) -> None:
    """Write `source` as ONNX Runtime's tool wants it, in an opset with scales per channel."""
    with tempfile.TemporaryDirectory(prefix="graphopt-ort-") as folder:
        model = onnx.load(source)
        if max(each.version for each in model.opset_import if not each.domain) < FIRST_PER_CHANNEL:
            # Else the tools write attributes that the model's opset does not have.
            source = Path(folder) / "upgraded.onnx"
            onnx.save(version_converter.convert_version(model, FIRST_PER_CHANNEL), source)
        quant_pre_process(
            str(source), str(target), skip_symbolic_shape=True, skip_optimization=not fuse
        )


def quantize_with_ort(source: Path, target: Path, batches: Sequence[Feeds], **options: Any) -> None:
    """Write `source` quantized to `target`: QDQ, unsigned activations, signed weights per channel.

    `options` go to quantize_static.
    """
    with tempfile.TemporaryDirectory(prefix="graphopt-ort-") as folder:
        prepared = Path(folder) / "prepared.onnx"
        write_prepared(source, prepared)
        try:
            _quantize(prepared, target, batches, options)
        except ValueError:
            # The tool takes no bias (1, n) of a Gemm, which its own fusion may have made.
            write_prepared(source, prepared, fuse=False)
            _quantize(prepared, target, batches, options)


def _quantize(
    prepared: Path, target: Path, batches: Sequence[Feeds], options: Mapping[str, Any]
) -> None:
    quantize_static(
        str(prepared),
        str(target),
        _Reader(batches),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        **options,
    )
