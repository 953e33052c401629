"""inspect(): what a model contains, and what would keep it from compiling."""

from __future__ import annotations

from typing import Any

from graphopt.config import CompileConfig, ShapesOption
from graphopt.errors import OptionError
from graphopt.frontend.diagnose import Diagnosis, diagnose
from graphopt.frontend.load import load_model


def inspect(model: Any, target: Any = "cpu", shapes: ShapesOption = None) -> Diagnosis:
    """Look at an ONNX model without compiling it.

    Args:
        model: a path, the bytes of an .onnx file, or a ModelProto.
        target: what it would be compiled for; only checked, importing is the same for all.
        shapes: input name → shape, for inputs that the model leaves open.

    Raises:
        OptionError: the target is unknown or the shapes do not fit the model.
        ModelError: the model cannot be read or is invalid.
    """
    config = CompileConfig.of(target=target, shapes=shapes)
    if len(config.shapes) > 1:
        raise OptionError("inspect", "give one set of shapes, not several.")
    return diagnose(load_model(model), dict(config.shapes[0]) if config.shapes else None)
