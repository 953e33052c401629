"""The models that are measured: where their files are, and the shapes and inputs they get."""

from __future__ import annotations

import importlib.util
import runpy
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx

FOLDER = Path(__file__).parent / "models"


@dataclass(frozen=True)
class Model:
    """A model of the catalogue.

    path: a stripped graph in benchmarks/models if `package` is None (its weights are made up when
        it is materialised), else a file inside that installed package.
    limits: exclusive upper bound of an integer input; `constants` fixes a whole input.
    """

    name: str
    path: str
    package: str | None = None
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    limits: Mapping[str, int] = field(default_factory=dict)
    constants: Mapping[str, Any] = field(default_factory=dict)

    def locate(self) -> Path | None:
        """Return the file, or None if its package is not installed. Imports no package."""
        if self.package is None:
            path = FOLDER / self.path
        else:
            spec = importlib.util.find_spec(self.package)
            if spec is None or not spec.submodule_search_locations:
                return None
            path = Path(spec.submodule_search_locations[0]) / self.path
        return path if path.is_file() else None

    def provide(self, folder: Path) -> Path | None:
        """Return a complete model file, written to `folder` if it had to be materialised."""
        source = self.locate()
        if source is None or self.package is not None:
            return source
        return materialised(source, folder)

    def inputs(self) -> dict[str, np.ndarray[Any, Any]]:
        """Return the inputs that the catalogue fixes."""
        return {name: np.asarray(value) for name, value in self.constants.items()}


def materialised(source: Path, folder: Path) -> Path:
    """Return `source` itself, or a copy in `folder` with weights if it is a stripped graph."""
    model = onnx.load(source)
    if not any(tensor.doc_string == "stripped" for tensor in model.graph.initializer):
        return source
    materialize = runpy.run_path(str(FOLDER / "materialize.py"))["materialize"]
    out = folder / source.name
    onnx.save(materialize(source), out)
    return out


MODELS: tuple[Model, ...] = (
    Model("resnet18", "resnet18.onnx"),
    Model("resnet50", "resnet50.onnx"),
    Model("mobilenet_v2", "mobilenet_v2.onnx"),
    Model("squeezenet1_1", "squeezenet1_1.onnx"),
    Model("vit_tiny", "vit_tiny.onnx"),
    Model("minilm_l6", "minilm_l6.onnx"),
    Model("bilstm", "bilstm.onnx"),
    Model("cnn_bn", "cnn_bn.onnx"),
    Model("cnn_dynamic", "cnn_dynamic.onnx", shapes={"input": (4, 3, 96, 96)}),
    Model(
        "ppocr_det",
        "models/PP-OCRv6_det_small.onnx",
        package="rapidocr",
        shapes={"x": (1, 3, 640, 640)},
    ),
    Model(
        "ppocr_rec",
        "models/PP-OCRv6_rec_small.onnx",
        package="rapidocr",
        shapes={"x": (1, 3, 48, 320)},
    ),
    Model(
        "ppocr_cls",
        "models/ch_ppocr_mobile_v2.0_cls_mobile.onnx",
        package="rapidocr",
        shapes={"x": (1, 3, 48, 192)},
    ),
    Model(
        "silero_vad",
        "data/silero_vad_16k_op15.onnx",
        package="silero_vad",
        shapes={"input": (1, 576), "state": (2, 1, 128)},
        constants={"sr": np.int64(16000)},
    ),
    Model(
        "magika",
        "models/standard_v3_3/model.onnx",
        package="magika",
        shapes={"bytes": (1, 2048)},
        limits={"bytes": 256},
    ),
)


def select(names: list[str] | None) -> tuple[Model, ...]:
    """Return the models called `names` (all if none are given).

    Raises:
        KeyError: a name is unknown.
    """
    known = {model.name: model for model in MODELS}
    return MODELS if not names else tuple(known[name] for name in names)
