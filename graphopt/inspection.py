"""inspect(): what a model contains, and what would keep it from compiling."""

from __future__ import annotations

from typing import Any

from graphopt.config import CompileConfig, ConstantsOption, ShapesOption
from graphopt.errors import OptionError
from graphopt.frontend.diagnose import Diagnosis, diagnose
from graphopt.frontend.load import load_model
from graphopt.signature import constant_arrays, signature_of


def inspect(
    model: Any,
    target: Any = "cpu",
    shapes: ShapesOption = None,
    constants: ConstantsOption = None,
) -> Diagnosis:
    """Look at an ONNX model without compiling it.

    Args:
        model: a path, the bytes of an .onnx file, or a ModelProto.
        target: what it would be compiled for; only checked, importing is the same for all.
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
    if not config.specialisations:
        return diagnose(loaded)
    ((bound, values),) = config.specialisations
    arrays = constant_arrays(signature_of(loaded), values)
    wanted = {name: shape for name, shape in bound if name not in arrays}
    return diagnose(loaded, wanted, arrays)
