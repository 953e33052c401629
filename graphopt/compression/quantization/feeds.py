"""Calibration batches: what a model takes, and checks that what is given fits it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from onnx import helper

from graphopt.compression.quantization.graph import STAGE
from graphopt.errors import InputError, OptionError
from graphopt.frontend.model import Array, OnnxModel
from graphopt.frontend.shapes import Shape, dimensions, graph_inputs


@dataclass(frozen=True)
class InputSpec:
    """One input of a model; a dimension is None where it is open, the shape where its rank is."""

    name: str
    dtype: np.dtype[Any]
    shape: Shape | None


class Data(Protocol):
    """Calibration data: batches by input name."""

    @property
    def description(self) -> str:
        """Where the data is from, in words."""
        ...

    @property
    def warning(self) -> str | None:
        """What the user of a model calibrated with it should know."""
        ...

    @property
    def repeatable(self) -> bool:
        """Whether it can be read more than once."""
        ...

    def batches(self, specs: tuple[InputSpec, ...]) -> Iterator[Mapping[str, Array]]:
        """The batches, one after another; nothing is kept."""
        ...


@dataclass(frozen=True, eq=False)
class Given:
    """Dicts of arrays from an iterable."""

    source: Iterable[Any]

    warning = None

    @property
    def description(self) -> str:
        """Where the data is from, in words."""
        return "data given from Python"

    @property
    def repeatable(self) -> bool:
        """Whether it can be read more than once: iterators, such as generators, cannot."""
        return not isinstance(self.source, Iterator)

    def batches(self, specs: tuple[InputSpec, ...]) -> Iterator[Mapping[str, Array]]:
        """The batches, one after another; an array alone is for the only input."""
        for item in self.source:
            if isinstance(item, Mapping):
                yield item
            elif len(specs) == 1 and hasattr(item, "__array__"):
                yield {specs[0].name: np.asarray(item)}
            else:
                raise InputError(
                    STAGE,
                    f"a batch of calibration data is a {type(item).__name__}.",
                    hint="give dicts: input name → array.",
                )


def input_specs(model: OnnxModel) -> tuple[InputSpec, ...]:
    """What the model takes.

    Raises:
        OptionError: an input is no tensor.
    """
    found = []
    for value in graph_inputs(model.proto.graph):
        if value.type.WhichOneof("value") != "tensor_type":
            raise OptionError(
                STAGE, f"input '{value.name}' is a sequence or optional; only tensors can be fed."
            )
        dtype = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        found.append(InputSpec(value.name, np.dtype(dtype), dimensions(value.type)))
    return tuple(found)


def checked(
    batches: Iterable[Mapping[str, Any]], specs: tuple[InputSpec, ...]
) -> Iterator[dict[str, Array]]:
    """Batches in the inputs' types; numbers of other types are converted where that is exact.

    Raises:
        InputError: names, shapes or types do not fit, or a float input is not finite.
    """
    for place, batch in enumerate(batches):
        names = {spec.name for spec in specs}
        missing, unknown = names - set(batch), set(batch) - names
        if missing or unknown:
            wrong = f"lacks input '{min(missing)}'" if missing else f"names '{min(unknown)}'"
            raise InputError(
                STAGE,
                f"batch {place} of the calibration data {wrong}.",
                hint=f"the model's inputs: {', '.join(sorted(names))}.",
            )
        yield {spec.name: _checked(batch[spec.name], spec, place) for spec in specs}


def _checked(given: Any, spec: InputSpec, place: int) -> Array:
    where = f"input '{spec.name}' in batch {place} of the calibration data"
    try:
        array = np.asarray(given)
    except ValueError as error:
        raise InputError(STAGE, f"{where} is no array: {error}.", hint="give one array.") from error
    if not fits(array.shape, spec.shape):
        raise InputError(
            STAGE, f"{where} has shape {list(array.shape)}, the model takes {_show(spec.shape)}."
        )
    if array.dtype != spec.dtype:
        numbers = array.dtype.kind in "fiub" and spec.dtype.kind in "fiub"
        if not numbers or (spec.dtype.kind in "iub" and array.dtype.kind == "f"):
            raise InputError(STAGE, f"{where} is {array.dtype}, the model takes {spec.dtype}.")
        with np.errstate(over="ignore"):  # what is too large is found next
            array = array.astype(spec.dtype)
    if spec.dtype.kind == "f" and not np.isfinite(array).all():
        raise InputError(STAGE, f"{where} has a NaN or an infinity (as {spec.dtype}).")
    return array


def fits(given: tuple[int, ...], shape: Shape | None) -> bool:
    """Whether an array of shape `given` can be fed to an input of `shape`."""
    if shape is None:
        return True
    return len(given) == len(shape) and all(
        want in (None, have) for have, want in zip(given, shape, strict=True)
    )


def _show(shape: Shape | None) -> str:
    return "[" + ", ".join("?" if dim is None else str(dim) for dim in shape or ()) + "]"
