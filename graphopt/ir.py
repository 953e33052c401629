"""The program between import and lowering: a Relax module and where each binding came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

IRModule = Any


@dataclass(frozen=True)
class Graph:
    """A Relax module whose "main" is one dataflow block of operator calls with static shapes.

    Every binding's variable has a unique name; `sites` maps it to the ids of the ONNX nodes that
    it computes (several after a fusion). A node id is the ONNX name, or `OpType#index`.
    Weights are Relax constants. Inputs are main's parameters, named as in ONNX; the body returns
    a tuple with one entry per name in `outputs`. `elements` names the element types of those inputs
    and outputs that are kept as codes of another type: bfloat16 as uint16, narrower ones as uint8.
    """

    module: IRModule
    sites: Mapping[str, tuple[str, ...]]
    outputs: tuple[str, ...]
    elements: Mapping[str, str] = field(default_factory=dict)
