"""inspect(): what a model contains, and what would keep it from compiling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from graphopt.config import CompileConfig, ConstantsOption, ShapesOption
from graphopt.errors import OptionError
from graphopt.extensions import Extension, extensions, float_operations_per_cycle
from graphopt.forecast import Forecast, forecast
from graphopt.frontend.diagnose import Diagnosis, diagnose
from graphopt.frontend.load import load_model
from graphopt.frontend.model import Array, OnnxModel
from graphopt.signature import constant_arrays, signature_of


@dataclass(frozen=True)
class Inspection(Diagnosis):
    """What is known of a model, and of the target that it would be compiled for.

    Attributes:
        target: the target's key.
        extensions: the instruction sets of its architecture, and what they bring.
        float_operations_per_cycle: float32 operations per cycle and vector unit of a core.
        memory_bytes: packed weights and activations, estimated; None if a shape is unknown.
        int8: what quantizing would gain on the target, foretold; None if nothing can be.
        no_int8: why not, None if there is a forecast.
    """

    target: str
    extensions: tuple[Extension, ...]
    float_operations_per_cycle: int
    memory_bytes: int | None
    int8: Forecast | None
    no_int8: str | None


def inspect(
    model: Any,
    target: Any = "cpu",
    shapes: ShapesOption = None,
    constants: ConstantsOption = None,
) -> Inspection:
    """Look at an ONNX model without compiling it.

    Args:
        model: a path, the bytes of an .onnx file, or a ModelProto.
        target: what it would be compiled for; importing is the same for all.
        shapes: input name → shape, for inputs that the model leaves open.
        constants: input name → value, for inputs that are compiled in.

    Raises:
        OptionError: the target is unknown or the shapes or constants do not fit the model.
        ModelError: the model cannot be read or is invalid.
    """
    config = CompileConfig.of(target=target, shapes=shapes, constants=constants)
    if len(config.specialisations) > 1:
        raise OptionError("inspect", "give one set of shapes and constants, not several.")
    loaded = load_model(model)
    wanted, arrays = None, None
    if config.specialisations:
        ((bound, values),) = config.specialisations
        arrays = constant_arrays(signature_of(loaded), values)
        wanted = {name: shape for name, shape in bound if name not in arrays}
    found = diagnose(loaded, wanted, arrays, config.max_weight_growth)
    activations = found.activation_bytes
    foretold = _forecast(loaded, config, found, wanted, arrays)
    return Inspection(
        **{field.name: getattr(found, field.name) for field in fields(Diagnosis)},
        target=config.target.key(config.threads),
        extensions=extensions(config.target),
        float_operations_per_cycle=float_operations_per_cycle(config.target),
        memory_bytes=None if activations is None else found.packed_bytes + activations,
        int8=foretold if isinstance(foretold, Forecast) else None,
        no_int8=foretold if isinstance(foretold, str) else None,
    )


def _forecast(
    model: OnnxModel,
    config: CompileConfig,
    found: Diagnosis,
    shapes: Mapping[str, Sequence[int]] | None,
    constants: Mapping[str, Array] | None,
) -> Forecast | str:
    if not found.compiles:
        return "the model does not import"
    if found.unbound or found.values:
        return "shapes or values of inputs are open"
    return forecast(model, config, shapes, constants)
