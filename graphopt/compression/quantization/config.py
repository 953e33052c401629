"""QuantizationConfig: every option of quantize(), checked before any work starts."""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from graphopt.compression.quantization.scheme import Format
from graphopt.errors import OptionError

METHODS = ("min-max", "moving-average", "percentile", "entropy", "mse")
KINDS = ("linear", "k-means", "power-of-two", "float16", "bfloat16")
TABLES = ("k-means", "power-of-two")
GRANULARITIES = ("channel", "tensor", "group")
ROUNDINGS = ("nearest", "adaround", "gptq")
PRESETS: dict[str, dict[str, Any]] = {
    "int8": {},
    "int8-weights": {"activations": None},
    "int4-weights": {
        "activations": None,
        "weight_bits": 4,
        "granularity": "group",
        "weight_symmetric": False,
    },
    "float16": {"activations": None, "weights": "float16"},
    "bfloat16": {"activations": None, "weights": "bfloat16"},
}
"""What compile(quantization=…) and --preset name."""


@dataclass(frozen=True)
class QuantizationConfig:
    """How to quantize.

    Attributes:
        activations: "uint8", "int8", or None to quantize weights only.
        activation_symmetric: a zero point in the middle instead of one that fits the range.
        method: how ranges of activations follow from calibration data: "mse" (least squared
            error), "min-max", "moving-average" of the batches' extremes, "percentile" or
            "entropy".
        percentile: share of the values, in percent, that method "percentile" keeps in range.
        weights: "linear"; "k-means" or "power-of-two" (a table of 2^weight_bits values, weights
            only); "float16" or "bfloat16" (weights only, stored in 16 bits).
        weight_bits: 2 to 8. Linear 4-bit weights of weight-only models are packed as INT4.
        weight_symmetric: no zero point.
        granularity: one weight scale per output "channel", per "tensor", or per "group" of
            group_size weights that are summed (weights only).
        group_size: weights per scale.
        io_type: "uint8" or "int8" makes the model's float inputs and outputs integer.
        only, exclude: names of nodes or operators; the others, or these, stay in float.
        equalize: cross-layer equalisation of weight ranges before anything else.
        smooth: SmoothQuant's strength from 0 to 1 for transformers, or None for none.
        correct_bias: biases make up for the mean error of rounded weights.
        rounding: "nearest"; "adaround" or "gptq", which choose how each weight is rounded by its
            effect on its layer's output.
        max_drop: leave the fewest layers in float with which the user's metric, which quantize() is
            given, falls by at most this.
        min_sqnr: likewise with which the outputs' SQNR in dB is at least this.
        min_layer_sqnr: a layer stays in float if it reads a tensor that changes so much in level
            that some batch has less than this SQNR in dB in 8 bits, and the outputs have less with
            this layer alone quantized; 0 for no limit. It is for 8-bit weights and activations, and
            gives way to max_drop, min_sqnr and `only`.
    """

    activations: str | None = "uint8"
    activation_symmetric: bool = False
    method: str = "mse"
    percentile: float = 99.999
    weights: str = "linear"
    weight_bits: int = 8
    weight_symmetric: bool = True
    granularity: str = "channel"
    group_size: int = 32
    io_type: str | None = None
    only: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    equalize: bool = False
    smooth: float | None = None
    correct_bias: bool = False
    rounding: str = "nearest"
    max_drop: float | None = None
    min_sqnr: float | None = None
    min_layer_sqnr: float = 20.0

    def __post_init__(self) -> None:
        _one_of("activations", self.activations, ("uint8", "int8", None))
        _one_of("method", self.method, METHODS)
        _one_of("weights", self.weights, KINDS)
        _one_of("granularity", self.granularity, GRANULARITIES)
        _one_of("io_type", self.io_type, ("uint8", "int8", None))
        _one_of("rounding", self.rounding, ROUNDINGS)
        _whole("weight_bits", self.weight_bits, 2, 8)
        _whole("group_size", self.group_size, 2, 1 << 20)
        _number("percentile", self.percentile, 50.0, 100.0)
        if self.smooth is not None:
            _number("smooth", self.smooth, 0.0, 1.0)
        if self.max_drop is not None:
            _number("max_drop", self.max_drop, 0.0, 1e9)
        if self.min_sqnr is not None:
            _number("min_sqnr", self.min_sqnr, 0.0, 200.0)
        _number("min_layer_sqnr", self.min_layer_sqnr, 0.0, 200.0)
        if self.max_drop is not None and self.min_sqnr is not None:
            raise _refuse("max_drop and min_sqnr contradict each other.", "give one of them.")
        if self.rounding != "nearest" and self.weights != "linear":
            raise _refuse(f"rounding='{self.rounding}' is for linear weights.")
        for name in ("activation_symmetric", "weight_symmetric", "equalize", "correct_bias"):
            if not isinstance(getattr(self, name), bool):
                raise _refuse(f"{name} must be True or False, not {getattr(self, name)!r}.")
        for name in ("only", "exclude"):
            given = getattr(self, name)
            if isinstance(given, str) or not all(isinstance(item, str) for item in given):
                raise _refuse(f"{name} must be a list of names, not {given!r}.")
            object.__setattr__(self, name, tuple(given))
        self._check_weight_only()

    def _check_weight_only(self) -> None:
        if self.activations is None:
            if self.io_type is not None:
                raise _refuse("io_type needs activations in 8 bits.", "set activations='uint8'.")
            return
        if self.weights != "linear" or self.granularity == "group":
            what = self.weights if self.weights != "linear" else "a scale per group"
            raise _refuse(
                f"{what} is for weights only: no integer kernel multiplies 8-bit activations by "
                "such weights.",
                "set activations=None.",
            )
        if not self.weight_symmetric:
            raise _refuse(
                "weights with a zero point are for weights only: a sum over the activations would "
                "have to be subtracted from every result.",
                "set activations=None, or weight_symmetric=True.",
            )

    @property
    def weight_form(self) -> Format:
        """The integers of linear weights."""
        return Format(self.weight_bits, True, self.weight_symmetric)

    @property
    def activation_form(self) -> Format:
        """The integers of activations."""
        return Format(8, self.activations == "int8", self.activation_symmetric)

    @property
    def packed(self) -> bool:
        """Whether weights are stored as INT4, two in a byte."""
        return self.activations is None and self.weights == "linear" and self.weight_bits <= 4

    @property
    def is_table(self) -> bool:
        """Whether weights are looked up."""
        return self.weights in TABLES

    def to_json(self) -> str:
        """All options as a JSON object."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> QuantizationConfig:
        """The inverse of to_json(); OptionError for an unknown option."""
        return QuantizationConfig.of(**json.loads(text))

    @staticmethod
    def of(preset: Any = None, **options: Any) -> QuantizationConfig:
        """A preset's name (see PRESETS), or a config, with some options replaced.

        Raises:
            OptionError: the preset or an option is unknown or out of range.
        """
        if isinstance(preset, QuantizationConfig):
            base = {field.name: getattr(preset, field.name) for field in fields(preset)}
        elif preset is None:
            base = {}
        elif isinstance(preset, str) and preset in PRESETS:
            base = dict(PRESETS[preset])
        else:
            raise _refuse(f"unknown quantization {preset!r}.", _suggestion(preset, list(PRESETS)))
        known = [field.name for field in fields(QuantizationConfig)]
        for name in options:
            if name not in known:
                raise _refuse(f"unknown option '{name}'.", _suggestion(name, known))
        for name in ("only", "exclude"):
            if isinstance(options.get(name), list):
                options[name] = tuple(options[name])
        return QuantizationConfig(**{**base, **options})


def _refuse(reason: str, hint: str | None = None) -> OptionError:
    return OptionError("options", reason, hint=hint)


def _one_of(name: str, value: Any, known: Sequence[Any]) -> None:
    if value not in known:
        words = [word for word in known if isinstance(word, str)]
        raise _refuse(f"unknown {name} {value!r}.", _suggestion(value, words))


def _whole(name: str, value: Any, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise _refuse(f"{name} must be a whole number from {low} to {high}, not {value!r}.")


def _number(name: str, value: Any, low: float, high: float) -> None:
    numeric = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not numeric or not low <= value <= high:
        raise _refuse(f"{name} must be a number from {low:g} to {high:g}, not {value!r}.")


def _suggestion(word: Any, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(str(word).lower(), known, n=3, cutoff=0.6)
    names = ", ".join(repr(name) for name in known)
    return f"did you mean {' or '.join(map(repr, close))}?" if close else f"choose from {names}."
