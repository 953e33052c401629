"""Evaluates single ONNX nodes on constants, for folding."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
from onnx import NodeProto, helper
from onnx.reference import ReferenceEvaluator

from graphopt.frontend.model import CONTROL_FLOW, LISTS, Array, is_standard

logger = logging.getLogger(__name__)

# Never folded. Random results must differ per run; Q/DQ mark what becomes integer work; sequences
# and optionals are no tensors; the rest is too slow in the reference evaluator to be worth it.
_NEVER = frozenset(
    [
        "RandomNormal",
        "RandomUniform",
        "RandomNormalLike",
        "RandomUniformLike",
        "Bernoulli",
        "Multinomial",
        "Dropout",
        "QuantizeLinear",
        "DequantizeLinear",
        "DynamicQuantizeLinear",
        *CONTROL_FLOW,
        "SequenceMap",
        *LISTS,
        "Conv",
        "ConvTranspose",
        "ConvInteger",
        "QLinearConv",
        "QLinearMatMul",
        "DeformConv",
        "LSTM",
        "GRU",
        "RNN",
        "MaxPool",
        "AveragePool",
        "LpPool",
        "MaxRoiPool",
        "RoiAlign",
        "Resize",
        "Upsample",
        "GridSample",
        "STFT",
        "DFT",
        "StringNormalizer",
        "TfIdfVectorizer",
        "StringConcat",
        "StringSplit",
        "RegexFullMatch",
    ]
)

# A result larger than this and than its inputs together would swell the artifact: keep the node.
_MAX_GROWTH_ELEMENTS = 1 << 16


def foldable(node: NodeProto) -> bool:
    """Whether a node may be replaced by its value when its inputs are constants."""
    return (
        is_standard(node)
        and node.op_type not in _NEVER
        and not any(attribute.HasField("g") for attribute in node.attribute)
    )


def worth_folding(shapes: Sequence[tuple[int, ...] | None], input_elements: int) -> bool:
    """Whether outputs of these shapes are small enough to be stored as constants."""
    elements = sum(prod(shape) for shape in shapes if shape is not None)
    return elements <= max(_MAX_GROWTH_ELEMENTS, input_elements)


def evaluate(
    node: NodeProto, inputs: Mapping[str, Array], opsets: Mapping[str, int]
) -> dict[str, Array] | None:
    """Values of a node's outputs, or None if the reference evaluator cannot compute them."""
    known = [name for name in node.input if name]
    names = [name for name in node.output if name]
    # The evaluator honours operator set versions for models only, not for single nodes.
    graph = helper.make_graph(
        [node],
        "node",
        [helper.make_empty_tensor_value_info(name) for name in dict.fromkeys(known)],
        [helper.make_empty_tensor_value_info(name) for name in names],
    )
    imports = [helper.make_opsetid(domain, version) for domain, version in opsets.items()]
    try:
        model = helper.make_model(graph, opset_imports=imports)
        with np.errstate(all="ignore"):
            results: list[Any] = ReferenceEvaluator(model).run(None, dict(inputs))
    except Exception as error:
        # The evaluator raises whatever its NumPy code runs into. Not folding is always right.
        logger.debug("%s (%s) is not folded: %s", node.name, node.op_type, error)
        return None
    if len(names) != len(results):
        return None
    values = {}
    for name, result in zip(names, results, strict=True):
        if not isinstance(result, (np.ndarray, np.generic)):
            return None
        array = np.asarray(result)
        if array.dtype.kind in "OUS":
            return None
        values[name] = array
    return values
