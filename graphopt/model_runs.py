"""Runs models and anything inside them by compiling them: how quantize() calibrates."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import ValueInfoProto

from graphopt.api import CompiledModel
from graphopt.compression.quantization.graph import Graph
from graphopt.compression.quantization.running import KernelTime
from graphopt.config import CompileConfig
from graphopt.frontend.model import OnnxModel

Array = np.ndarray[Any, Any]

_PROGRAMS = 4
"""Compiled models that are kept: the float one and the quantized one, each with its outputs and
with what is inside it."""


class CompiledRuns:
    """Runs models by compiling them; a model with the same wanted tensors is compiled once."""

    def __init__(self, threads: int | None = None) -> None:
        self._config = CompileConfig.of(threads=threads)
        # Programs that give what is inside a model run a few times only: they compile in less
        # time, and nearer to exact arithmetic, without Winograd's algorithm.
        self._observing = CompileConfig.of(threads=threads, numerics="strict")
        self._programs: OrderedDict[tuple[int, tuple[str, ...]], _Program] = OrderedDict()

    def __call__(
        self, model: OnnxModel, feeds: Mapping[str, Array], wanted: Sequence[str]
    ) -> Mapping[str, Array]:
        """The tensors `wanted` of a model, any that it computes."""
        return self._program(model, wanted).run(feeds)

    def profile(
        self, model: OnnxModel, feeds: Mapping[str, Array], wanted: Sequence[str]
    ) -> list[KernelTime]:
        """The kernels of the program that gives `wanted`: their nodes, and seconds per run."""
        rows = self._program(model, wanted).profile(feeds).rows
        return [(row.nodes, row.seconds) for row in rows]

    def _program(self, model: OnnxModel, wanted: Sequence[str]) -> CompiledModel:
        key = (id(model), tuple(wanted))
        if key not in self._programs:
            plain = set(wanted) <= {value.name for value in model.proto.graph.output}
            config = self._config if plain else self._observing
            program = CompiledModel(with_outputs(model, wanted), config)
            self._programs[key] = _Program(model, program)
            if len(self._programs) > _PROGRAMS:
                self._programs.popitem(last=False)
        self._programs.move_to_end(key)
        return self._programs[key].program


@dataclass(frozen=True, eq=False)
class _Program:
    """`source` is held so that its id stays its own."""

    source: OnnxModel
    program: CompiledModel


def with_outputs(model: OnnxModel, names: Sequence[str]) -> OnnxModel:
    """A prepared model whose outputs are the given tensors."""
    types = Graph(model).types
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    del proto.graph.output[:]
    for name in names:
        kind = types.get(name)
        value = ValueInfoProto(name=name) if kind is None else ValueInfoProto(name=name, type=kind)
        proto.graph.output.append(value)
    return OnnxModel(proto, model.base_dir)
