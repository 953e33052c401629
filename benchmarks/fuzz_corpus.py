"""What the fuzzer damages: pieces cut out of real models, and the models of the ONNX suite."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import conformance
import numpy as np
import onnx
from catalogue import Model, select
from isolation import Limits, run_one
from onnx import GraphProto, ModelProto, NodeProto, helper, numpy_helper

from graphopt.bench import sample_inputs

MAX_NODES = 12
MAX_CONSTANT_BYTES = 2 << 20
MAX_ELEMENTS = 1 << 19
SMALL = 64
"""Integer tensors of so few elements are shapes, axes and the like: a piece keeps their values."""

REDUCED = {
    "ppocr_rec": {"x": (1, 3, 48, 64)},
    "ppocr_det": {"x": (1, 3, 64, 64)},
    "ppocr_cls": {"x": (1, 3, 48, 96)},
    "resnet18": {"input": (1, 3, 64, 64)},
    "mobilenet_v2": {"input": (1, 3, 64, 64)},
}
MODELS = (
    *("ppocr_rec", "ppocr_det", "ppocr_cls", "silero_vad", "magika", "resnet18", "mobilenet_v2"),
    *("squeezenet1_1", "vit_tiny", "minilm_l6", "bilstm", "cnn_bn", "cnn_dynamic"),
)


@dataclass(frozen=True)
class Real:
    """A real model and what flows in it at small shapes.

    kinds: value → (ONNX element type, shape). values: those of small integer tensors.
    """

    name: str
    proto: ModelProto
    kinds: Mapping[str, tuple[int, tuple[int, ...]]]
    values: Mapping[str, np.ndarray[Any, Any]]


@dataclass(frozen=True)
class Corpus:
    """reals: models to cut pieces from. operators: whole small models, by name."""

    reals: tuple[Real, ...]
    operators: tuple[tuple[str, ModelProto], ...]

    def sample(self, rng: random.Random) -> tuple[str, ModelProto]:
        """A piece of a real model or an operator model, and where it comes from."""
        if self.operators and (not self.reals or rng.random() < 0.5):
            name, model = rng.choice(self.operators)
            copy = ModelProto()
            copy.CopyFrom(model)
            return name, copy
        while True:
            real = rng.choice(self.reals)
            piece = cut(real, rng)
            if piece is not None:
                return real.name, piece


def build(models: Sequence[str] = MODELS, suite: bool = True) -> Corpus:
    """The corpus; models whose package is not installed are left out."""
    with tempfile.TemporaryDirectory() as folder:
        found = [_real(model, Path(folder)) for model in select(list(models))]
    operators: list[tuple[str, ModelProto]] = []
    if suite:
        for case in conformance.cases(("node", "simple")):
            proto = conformance.load(case)
            if not conformance.is_exotic(proto):
                operators.append((case.name, proto))
    return Corpus(tuple(real for real in found if real is not None), tuple(operators))


def _real(model: Model, folder: Path) -> Real | None:
    path = model.provide(folder)
    if path is None:
        return None
    proto = onnx.load(path)
    for node in _every_node(proto.graph):
        for attribute in node.attribute:
            attribute.doc_string = ""
    shapes = {**model.shapes, **REDUCED.get(model.name, {})}
    for value in proto.graph.input:
        if value.name in shapes:
            kind = value.type.tensor_type
            value.CopyFrom(
                helper.make_tensor_value_info(value.name, kind.elem_type, shapes[value.name])
            )
    del proto.graph.value_info[:]
    outcome = run_one(lambda: _observe(proto, model, shapes), Limits(seconds=120, gigabytes=16))
    if outcome.ended != "returned":
        raise RuntimeError(f"{model.name}: ONNX Runtime does not run it: {outcome.detail}")
    kinds, values = outcome.value
    return Real(model.name, proto, kinds, values)


def _observe(proto: ModelProto, model: Model, shapes: Mapping[str, tuple[int, ...]]) -> Any:
    """Runs in a child: types, shapes and small integer values of everything in the main graph."""
    import onnxruntime

    names = [name for node in proto.graph.node for name in node.output if name]
    watched = ModelProto()
    watched.CopyFrom(proto)
    declared = {value.name for value in proto.graph.output}
    watched.graph.output.extend(onnx.ValueInfoProto(name=n) for n in names if n not in declared)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(watched.SerializeToString(), options)
    inputs = sample_inputs(proto, shapes, limits=model.limits, given=model.inputs())
    wanted = [output.name for output in session.get_outputs()]
    found = dict(zip(wanted, session.run(wanted, inputs), strict=True)) | inputs
    arrays = {name: value for name, value in found.items() if isinstance(value, np.ndarray)}
    kinds = {
        name: (helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
        for name, value in arrays.items()
    }
    values = {
        name: value
        for name, value in arrays.items()
        if value.dtype.kind in "iub" and value.size <= SMALL
    }
    return kinds, values


def cut(real: Real, rng: random.Random) -> ModelProto | None:
    """1 to 12 connected nodes as a model of their own; None where values are unknown or large."""
    graph = real.proto.graph
    nodes = list(graph.node)
    chosen = {rng.randrange(len(nodes))}
    for _ in range(rng.choice((0, 1, 2, 3, 4, 6, 8, MAX_NODES - 1))):
        near = sorted(_neighbours(nodes, chosen))
        if not near:
            break
        chosen.add(rng.choice(near))
    kept = [nodes[index] for index in sorted(chosen)]
    made = {name for node in kept for name in node.output if name}
    read = dict.fromkeys(name for node in kept for name in reads(node) if name not in made)
    constants = {tensor.name: tensor for tensor in graph.initializer}
    initializers, inputs = [], []
    for name in read:
        if name in constants:
            initializers.append(constants[name])
        elif name in real.values and rng.random() < 0.8:
            initializers.append(numpy_helper.from_array(real.values[name], name))
        elif name in real.kinds:
            inputs.append(helper.make_tensor_value_info(name, *real.kinds[name]))
        else:
            return None
    elsewhere = {name for i, node in enumerate(nodes) if i not in chosen for name in reads(node)}
    elsewhere |= {value.name for value in graph.output}
    inside = {name for node in kept for name in reads(node)}
    results = [n for n in sorted(made) if n in real.kinds and (n in elsewhere or n not in inside)]
    sizes = [int(np.prod(real.kinds[name][1])) for name in (*made, *read) if name in real.kinds]
    weights = sum(tensor.ByteSize() for tensor in initializers)
    if not results or max(sizes, default=0) > MAX_ELEMENTS or weights > MAX_CONSTANT_BYTES:
        return None
    outputs = [helper.make_tensor_value_info(name, *real.kinds[name]) for name in results[:4]]
    piece = helper.make_graph(kept, "piece", inputs, outputs, initializers)
    return helper.make_model(
        piece,
        opset_imports=real.proto.opset_import,
        ir_version=real.proto.ir_version,
        functions=real.proto.functions,
    )


def _neighbours(nodes: Sequence[NodeProto], chosen: set[int]) -> set[int]:
    made = {name for index in chosen for name in nodes[index].output if name}
    read = {name for index in chosen for name in reads(nodes[index])}
    return {
        index
        for index, node in enumerate(nodes)
        if index not in chosen and (made & set(reads(node)) or read & set(node.output))
    }


def reads(node: NodeProto) -> list[str]:
    """Names that a node reads, those that its bodies take from outside too."""
    names = [name for name in node.input if name]
    for attribute in node.attribute:
        for body in (attribute.g, *attribute.graphs):
            inner = {value.name for value in body.input} | {t.name for t in body.initializer}
            for child in body.node:
                names += [name for name in reads(child) if name not in inner]
                inner |= set(child.output)
    return names


def _every_node(graph: GraphProto) -> Iterator[NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs):
                yield from _every_node(body)
