"""Builds a model's specialisations: compiled one after another, or found in the compile cache."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from graphopt.artifact import bundle
from graphopt.bundling import parts, specialisations_of, versions
from graphopt.cache import cache_key, code_version, default_cache
from graphopt.codegen.embedding import library_section
from graphopt.codegen.host_program import TENSOR
from graphopt.codegen.linker import Linker, find_linker, shared_library
from graphopt.codegen.plan import TensorSpec
from graphopt.compiler import CutModel, Preparation, Program, compile_model
from graphopt.config import CompileConfig
from graphopt.errors import CompileError, GraphoptError
from graphopt.frontend.model import OnnxModel
from graphopt.frontend.partition import Segment as Part
from graphopt.frontend.prepare import prepare, prepare_segment
from graphopt.lowering.weights import WeightPool
from graphopt.programs import AnyProgram, Segment, Specialisation, Staged, key_for
from graphopt.report import Report
from graphopt.runtime.library import open_module
from graphopt.specialisations import Key, describe, value_of
from graphopt.tuning.library import advice

Array = np.ndarray[Any, Any]

log = logging.getLogger(__name__)

# TVM's compiler keeps state per process that it does not guard against several threads.
_COMPILER = threading.Lock()


class _MachineCode:
    """A program's machine code in the forms that running and saving need, each made once."""

    def __init__(self, program: Program, linker: Linker) -> None:
        assert program.code is not None
        code, needs = program.code, program.needs
        self._objects, self._linker = code.objects, linker
        self._section = library_section(needs.kind, code.device) if needs and code.device else b""
        self._lock = threading.Lock()
        self._library: bytes | None = None

    def module(self) -> Any:
        """The module to run."""
        return open_module(self.library())

    def library(self) -> bytes:
        """The shared library's bytes; CompileError if the linker fails."""
        with self._lock:
            if self._library is None:
                self._library = shared_library(self._objects, self._linker, self._section)
                self._section = b""
            return self._library


class Builder:
    """Makes a model's specialisations, one after another, with shared weights."""

    def __init__(
        self,
        model: OnnxModel,
        config: CompileConfig,
        inputs: tuple[TensorSpec, ...],
        bound: Sequence[str],
    ) -> None:
        """Args:
        inputs: the model's, in its order.
        bound: names of those whose values are compiled in.
        """
        self._model, self._config = model, config
        self._inputs, self._bound = inputs, bound
        self._pool = WeightPool()
        self._weights: Array | None = None
        self._linked = self._has_linker()
        self._cache = default_cache() if config.cache and self._linked else None
        target = config.target.key(config.threads)
        self._advice = advice(target, config.tuning_log)

    def linker(self) -> Linker:
        """The linker for the target; CompileError if there is none."""
        return find_linker(self._config.target.arch)

    def _has_linker(self) -> bool:
        try:
            self.linker()
        except CompileError as error:
            log.debug("compiling in memory, without the compile cache: %s", error)
            return False
        return True

    def build(self, keys: Sequence[Key]) -> list[AnyProgram]:
        """Programs for these shapes and values: from the cache if it has exactly these."""
        if not keys:
            return []
        entry = self._entry(keys)
        if entry is not None:
            found = self._find(entry, keys)
            if found is not None:
                return found
        with self._compiling():
            items = [
                self._make(self._model, self._inputs, self._bound, key, prepare) for key in keys
            ]
        complete = not any(isinstance(item, Staged) and item.grows for item in items)
        if entry is not None and self._cache is not None and complete:
            self._cache.store(entry, bundle.to_bytes(*parts(items)))
        return items

    @contextmanager
    def _compiling(self) -> Iterator[None]:
        """Compile alone; then the block of weights, which all programs share, is brought up."""
        with _COMPILER:
            yield
            if self._weights is None or self._weights.nbytes != self._pool.nbytes:
                self._weights = self._pool.block()

    def _latest_weights(self) -> Array:
        assert self._weights is not None
        return self._weights

    def _make(
        self,
        model: OnnxModel,
        specs: Sequence[TensorSpec],
        names: Sequence[str],
        key: Key,
        preparation: Preparation,
    ) -> AnyProgram:
        """Compile `model`, or a part of it, with the inputs `names` compiled in."""
        target, threads = self._config.target, self._config.threads
        inputs = tuple(
            replace(spec, shape=shape) if spec.kind == TENSOR else spec
            for spec, shape in zip(specs, key.shapes, strict=True)
        )
        bound = key.bound(inputs, names)
        constants = {each.name: value_of(each) for each in bound}
        shapes = {
            spec.name: shape
            for spec, shape in zip(inputs, key.shapes, strict=True)
            if spec.name not in constants and spec.kind == TENSOR
        }
        result = compile_model(
            model,
            self._config,
            shapes,
            constants,
            self._pool,
            self._linked,
            preparation,
            self._advice,
        )
        if isinstance(result, CutModel):
            parts = result.parts
            segments = tuple(self._segment(part) for part in parts.segments)
            return Staged(parts.program, inputs, bound, result.report, segments)
        module, library = self._machine_code(result)
        return Specialisation(
            result.plan,
            inputs,
            bound,
            self._latest_weights,
            result.report,
            target.key(threads),
            target.arch,
            tuple(sorted(target.needed(_uses_tiles(result.report)))),
            module,
            library,
            result.needs,
            () if result.code is None or result.needs else result.code.objects[1:],
        )

    def _segment(self, part: Part) -> Segment:
        """A segment, compiled already where its shapes are known."""
        spec = part.spec

        def make(key: Key) -> AnyProgram:
            return self._make(part.model, spec.inputs, spec.bound, key, prepare_segment)

        def build(key: Key) -> AnyProgram:
            log.info("compiling %s for %s", spec.nodes[0], describe(key, spec.inputs, spec.bound))
            with self._compiling():
                return make(key)

        segment = Segment(spec, build, grows=not part.static)
        if part.static:
            key = key_for(spec.inputs, ())
            segment.programs.get(key, lambda: make(key), pin=True)
        return segment

    def _machine_code(self, program: Program) -> tuple[Callable[[], Any], Callable[[], bytes]]:
        """How to get the module to run and the library to save."""
        if self._linked:
            code = _MachineCode(program, self.linker())
            return code.module, code.library

        def unlinked() -> bytes:
            self.linker()  # raises
            raise CompileError("link", "the linker appeared after the program was compiled.")

        return lambda: program.module, unlinked

    def _entry(self, keys: Sequence[Key]) -> str | None:
        if self._cache is None:
            return None
        config, target = self._config, self._config.target
        facts = {
            "specialisations": keys,
            "bound": list(self._bound),
            "target": [target.key(config.threads), target.triple, target.mcpu, *target.mattr],
            "numerics": config.numerics,
            "advice": self._advice.digest(),
            "max_weight_growth": config.max_weight_growth,
            "versions": versions(),
            "code": code_version(),
        }
        return cache_key(self._model.digest().encode(), facts)

    def _find(self, entry: str, keys: Sequence[Key]) -> list[AnyProgram] | None:
        assert self._cache is not None
        path = self._cache.find(entry)
        if path is None:
            return None
        try:
            items = specialisations_of(bundle.load(path), open_module)
        except GraphoptError as error:
            log.debug("dropped a cached program: %s", error)
            self._cache.discard(entry)
            return None
        if [item.key for item in items] != list(keys):
            self._cache.discard(entry)
            return None
        log.info("found in the compile cache")
        return items


def _uses_tiles(report: Report) -> bool:
    """Whether a kernel computes in tile registers."""
    return any(".tiles" in call.candidate for call in report.calls)
