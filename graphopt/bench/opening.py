"""What opening a model in an engine takes and gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Feeds = Mapping[str, Array]


@dataclass(frozen=True)
class Engine:
    """A loaded model. `run` is what is timed; `named` turns its result into arrays by name."""

    version: str
    run: Callable[[Feeds], Any]
    named: Callable[[Any], dict[str, Array]]


@dataclass(frozen=True)
class Opening:
    """What an engine is told. `outputs` are the ONNX output names, in order."""

    model: str
    threads: int
    outputs: Sequence[str]
    settings: Mapping[str, Any]
