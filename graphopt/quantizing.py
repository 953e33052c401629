"""quantize(): an ONNX model becomes one that computes in integers, with a report of the cost."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from graphopt.artifact.atomic import replacing
from graphopt.bench.inputs import sample_inputs
from graphopt.compression.quantization.config import QuantizationConfig
from graphopt.compression.quantization.feeds import Data, InputSpec
from graphopt.compression.quantization.html import to_html
from graphopt.compression.quantization.images import ImagePreprocessing
from graphopt.compression.quantization.mixed import Metric
from graphopt.compression.quantization.pipeline import quantize_model
from graphopt.compression.quantization.plan import Plan
from graphopt.compression.quantization.report import QuantizationReport
from graphopt.compression.quantization.sources import open_data
from graphopt.compression.quantization.statistics import Statistics
from graphopt.config import (
    CompileConfig,
    ConstantsOption,
    ShapesOption,
    parse_constants,
    parse_shapes,
)
from graphopt.errors import ModelError, OptionError
from graphopt.frontend.load import load_model, require_weights
from graphopt.frontend.model import OnnxModel
from graphopt.model_runs import CompiledRuns
from graphopt.signature import constant_arrays, signature_of

Array = np.ndarray[Any, Any]
Source = Any  # path, bytes or onnx.ModelProto

RANDOM_BATCHES = 8


@dataclass(frozen=True)
class RandomData:
    """Seeded random inputs, for trying things out: the ranges they give are those of no task."""

    model: onnx.ModelProto
    shapes: Mapping[str, tuple[int, ...]]
    constants: Mapping[str, Array]

    repeatable = True
    description = "random numbers"
    warning = (
        "the ranges follow from random numbers, which are the data of no task: calibrate with "
        "typical inputs before using this model."
    )

    def batches(self, specs: tuple[InputSpec, ...]) -> Iterator[Mapping[str, Array]]:
        """Floats are standard normal, integers small and not negative, masks ones."""
        for seed in range(RANDOM_BATCHES):
            feeds = sample_inputs(self.model, self.shapes, given=self.constants, seed=seed)
            yield {spec.name: feeds[spec.name] for spec in specs}


@dataclass(frozen=True, eq=False)
class WithConstants:
    """Calibration data, and in every batch the inputs that are the same for all."""

    data: Data
    constants: Mapping[str, Array]

    @property
    def description(self) -> str:
        """Where the data is from, in words."""
        return self.data.description

    @property
    def warning(self) -> str | None:
        """What the user should know."""
        return self.data.warning

    @property
    def repeatable(self) -> bool:
        """Whether it can be read more than once."""
        return self.data.repeatable

    def batches(self, specs: tuple[InputSpec, ...]) -> Iterator[Mapping[str, Array]]:
        """The batches; a constant that a batch gives itself is the batch's."""
        own = tuple(spec for spec in specs if spec.name not in self.constants)
        for batch in self.data.batches(own):
            yield {**self.constants, **batch}


@dataclass(frozen=True, eq=False)
class QuantizationResult:
    """What quantize() gives.

    Attributes:
        model: an ordinary ONNX model with QuantizeLinear and DequantizeLinear.
        report: what was done to each layer, what it cost and why.
        plan, statistics: every scale and decision, and what calibration saw.
    """

    model: onnx.ModelProto
    report: QuantizationReport
    plan: Plan
    statistics: Statistics | None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model to one .onnx file, atomically.

        Raises:
            ArtifactError: it cannot be written; an old file stays as it was.
            ModelError: it is larger than the 2 GB that protobuf can write.
        """
        try:
            data = self.model.SerializeToString()
        except ValueError as error:
            raise ModelError(
                "save",
                "the quantized model is larger than 2 GB.",
                hint="onnx.save(result.model, path, save_as_external_data=True) writes two files.",
            ) from error
        with replacing(path, "save") as file:
            file.write(data)

    def save_report(self, path: str | os.PathLike[str]) -> None:
        """Write the report to an .html file (self-contained) or a .json file, atomically."""
        kind = Path(path).suffix.lower()
        if kind not in (".html", ".json"):
            raise OptionError("report", f"'{path}' is neither .html nor .json.")
        text = to_html(self.report) if kind == ".html" else self.report.to_json()
        with replacing(path, "report") as file:
            file.write(text.encode())


def quantize(
    model: Source,
    calibration: Any = None,
    config: QuantizationConfig | str | None = None,
    *,
    images: ImagePreprocessing | None = None,
    shapes: ShapesOption = None,
    constants: ConstantsOption = None,
    threads: int | None = None,
    metric: Metric | None = None,
    **options: Any,
) -> QuantizationResult:
    """Quantize a float32 ONNX model after training.

    Args:
        model: a path, the bytes of an .onnx file, or a ModelProto.
        calibration: typical inputs: an .npz or .npy file, a folder of these or of images, or an
            iterable of dicts (input name → array). "random" for random numbers, to try things out.
            None is possible for weight-only formats, which are then not compared.
        config: a QuantizationConfig, or the name of a preset: "int8" (the default),
            "int8-weights", "int4-weights", "float16" or "bfloat16".
        images: how image files become inputs.
        shapes, constants: bound in the result, as in compile(); "random" needs all shapes.
        threads: of the runs on calibration data; None for the physical cores.
        metric: what max_drop is about: a function that gets a function from inputs (by name) to
            outputs, and gives a number that is higher for a better model, such as an accuracy.
        options: single fields of QuantizationConfig, in place of the config's.

    Raises:
        OptionError: an option is unknown, out of range, or names nothing in the model.
        InputError: the calibration data does not fit the model, or is not finite.
        ModelError: the model is invalid, quantized already, or has nothing to quantize.
    """
    chosen = QuantizationConfig.of(config, **options)
    loaded = load_model(model)
    require_weights(loaded)
    return quantize_loaded(
        loaded, calibration, chosen, images=images, shapes=shapes, constants=constants,
        threads=threads, metric=metric,
    )  # fmt: skip


def quantize_loaded(
    model: OnnxModel,
    calibration: Any,
    config: QuantizationConfig,
    *,
    images: ImagePreprocessing | None = None,
    shapes: ShapesOption = None,
    constants: ConstantsOption = None,
    threads: int | None = None,
    metric: Metric | None = None,
) -> QuantizationResult:
    """quantize() for a model that is loaded already."""
    bound = dict(_one("shapes", () if shapes is None else parse_shapes(shapes)))
    values = _one("constants", () if constants is None else parse_constants(constants))
    arrays = constant_arrays(signature_of(model), values)
    data = _data(model, calibration, images, bound, arrays)
    runs = CompiledRuns(threads)
    done = quantize_model(model, data, config, runs, bound, arrays, metric, runs.profile)
    return QuantizationResult(_complete(done.model), done.report, done.plan, done.statistics)


def quantize_for(
    model: OnnxModel, quantization: Any, calibration: Any, config: CompileConfig
) -> tuple[OnnxModel, QuantizationReport]:
    """The quantized form of a model that is about to be compiled with `config`.

    Shapes and constants stay open: they are bound when it is compiled. Calibration takes the first
    constants, and random data the first shapes.
    """
    chosen = QuantizationConfig.of(quantization)
    constants = (
        constant_arrays(signature_of(model), config.constants[0]) if config.constants else {}
    )
    data = _data(
        model, calibration, None, dict(config.shapes[0]) if config.shapes else {}, constants
    )
    if constants and data is not None:
        data = WithConstants(data, constants)
    runs = CompiledRuns(config.threads)
    done = quantize_model(model, data, chosen, runs, profiler=runs.profile)
    return done.model, done.report


def _data(
    model: OnnxModel,
    calibration: Any,
    images: ImagePreprocessing | None,
    shapes: Mapping[str, tuple[int, ...]],
    constants: Mapping[str, Array],
) -> Data | None:
    if calibration is None:
        return None
    if not isinstance(calibration, str) or calibration != "random":
        return open_data(calibration, images)
    known = {name: value.shape for name, value in constants.items()}
    return RandomData(model.proto, signature_of(model).bind({**known, **shapes}), constants)


def _one(name: str, given: Sequence[Any]) -> Any:
    if len(given) > 1:
        raise OptionError("options", f"give one set of {name}, not several.")
    return given[0] if given else ()


def _complete(model: OnnxModel) -> onnx.ModelProto:
    """The model with its external data inside."""
    if model.base_dir is not None:
        onnx.load_external_data_for_model(model.proto, str(model.base_dir))
    return model.proto
