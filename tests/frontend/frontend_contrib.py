"""One-node models of quantized and vendors' operators, compiled and compared with ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from frontend_reference import run_onnxruntime
from onnx import helper, numpy_helper

import graphopt

MICROSOFT = "com.microsoft"


@dataclass
class Case:
    """A node; `const` are the inputs that are initializers, `outputs` those that are asked for."""

    op: str
    inputs: Sequence[Any]
    attrs: dict[str, Any] = field(default_factory=dict)
    const: Sequence[int] = ()
    outputs: Sequence[int] = (0,)
    domain: str = MICROSOFT
    opset: int = 18
    tolerance: float = 1e-5  # of floats, relative to the largest
    steps: int = 0  # of integers

    def __str__(self) -> str:
        shapes = "x".join(str(np.shape(a)) for a in self.inputs if a is not None)
        attrs = ",".join(f"{k}={v}" for k, v in self.attrs.items())
        return f"{self.op}[{attrs}]{shapes}c{len(self.const)}".replace(" ", "")


def built(case: Case) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """The model of a case, and its feeds."""
    names, feeds, weights, inputs = [], {}, [], []
    for i, value in enumerate(case.inputs):
        names.append("" if value is None else f"x{i}")
        if value is None:
            continue
        array = np.asarray(value)
        if i in case.const:
            weights.append(numpy_helper.from_array(array, names[-1]))
            continue
        kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        inputs.append(helper.make_tensor_value_info(names[-1], kind, array.shape))
        feeds[names[-1]] = array
    outputs = [f"y{i}" if i in case.outputs else "" for i in range(max(case.outputs) + 1)]
    node = helper.make_node(case.op, names, outputs, name="n", domain=case.domain, **case.attrs)
    kinds = [helper.make_empty_tensor_value_info(name) for name in outputs if name]
    graph = helper.make_graph([node], "g", inputs, kinds, weights)
    imports = [helper.make_opsetid("", case.opset), helper.make_opsetid(MICROSOFT, 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=10), feeds


def compiled(case: Case) -> dict[str, np.ndarray]:
    """Results of graphopt."""
    model, feeds = built(case)
    return graphopt.compile(model).run(feeds)


def compare(
    got: dict[str, np.ndarray], want: dict[str, np.ndarray], tolerance: float, steps: int = 0
) -> None:
    """Floats within `tolerance` of the largest, integers within `steps`; types and shapes equal."""
    assert list(got) == list(want)
    for name, expected in want.items():
        actual = got[name]
        assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape), name
        gap = np.abs(actual.astype("f8") - expected.astype("f8"))
        if expected.dtype.kind == "f":
            assert gap.max() <= tolerance * np.abs(expected.astype("f8")).max(), name
        else:
            assert gap.max(initial=0) <= steps, name


def check(case: Case) -> None:
    """graphopt against ONNX Runtime without optimisations."""
    model, feeds = built(case)
    want = run_onnxruntime(model.SerializeToString(), feeds)
    compare(graphopt.compile(model).run(feeds), want, case.tolerance, case.steps)
