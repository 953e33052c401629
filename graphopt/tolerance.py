"""How far a program's outputs may be from the reference's."""

from __future__ import annotations

from collections.abc import Iterable

import onnx

FLOAT = 1e-4
"""max|y − reference| / max|reference| of a model that computes with floats."""
QUANTIZED = 2e-2
"""The same of one that rounds to integers on the way: a value near the middle between two of them
may be rounded to either, as the order of a float sum decides, and a step is 1/255 of a range."""


def usual_tolerance(model: onnx.ModelProto) -> float:
    """The tolerance for `model`: does it quantize what it computes?"""
    nodes = [model.graph.node, *(function.node for function in model.functions)]
    return QUANTIZED if any(_quantizes(each) for each in nodes) else FLOAT


def _quantizes(nodes: Iterable[onnx.NodeProto]) -> bool:
    for node in nodes:
        if node.op_type in ("QuantizeLinear", "DynamicQuantizeLinear"):
            return True
        if node.op_type.startswith("QLinear") or node.op_type == "DynamicQuantizeMatMul":
            return True
        bodies = [body for attr in node.attribute for body in (attr.g, *attr.graphs)]
        if any(_quantizes(body.node) for body in bodies):
            return True
    return False
