"""Builds a model's specialisations: compiled one after another, or found in the compile cache."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from graphopt.artifact import bundle
from graphopt.bundling import Specialisation, parts, specialisations_of, versions
from graphopt.cache import CompileCache, cache_key, code_version, default_cache
from graphopt.codegen.linker import Linker, find_linker, shared_library
from graphopt.codegen.plan import TensorSpec
from graphopt.compiler import Program, compile_program
from graphopt.config import CompileConfig
from graphopt.errors import CompileError, GraphoptError
from graphopt.frontend.model import OnnxModel
from graphopt.lowering.weights import WeightPool
from graphopt.runtime.library import open_module
from graphopt.specialisations import Key, value_of

Array = np.ndarray[Any, Any]

log = logging.getLogger(__name__)

# TVM's compiler keeps state per process that it does not guard against several threads.
_COMPILER = threading.Lock()


class _MachineCode:
    """Runs LLVM, which takes as long as all the rest, only when its result is needed, and once.

    Saving and running need it in different forms; what was saved first is opened for running.
    """

    def __init__(self, program: Any, linker: Callable[[], Linker]) -> None:
        self._program, self._linker = program, linker
        self._lock = threading.Lock()
        self._library: bytes | None = None

    def module(self) -> Any:
        """The module to run, from the shared library if there is one, else compiled in memory."""
        with self._lock:
            if self._library is not None:
                return open_module(self._library)
            log.info("generating machine code")
            self._program["run"]
            return self._program

    def library(self) -> bytes:
        """The module as a shared library's bytes; CompileError without a linker."""
        with self._lock:
            if self._library is None:
                log.info("generating machine code")
                self._library = shared_library(self._program, self._linker())
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
        self._cache: CompileCache | None = None
        if config.cache:
            try:
                self.linker()
                self._cache = default_cache()
            except CompileError as error:
                log.debug("the compile cache is off: %s", error)

    def linker(self) -> Linker:
        """The linker for the target; CompileError if there is none."""
        return find_linker(self._config.target.arch)

    def build(self, keys: Sequence[Key]) -> list[Specialisation]:
        """Programs for these shapes and values: from the cache if it has exactly these."""
        if not keys:
            return []
        entry = self._entry(keys)
        if entry is not None:
            found = self._find(entry, keys)
            if found is not None:
                return found
        with _COMPILER:
            items = self.share_weights([self._compile(key) for key in keys])
        if entry is not None and self._cache is not None:
            self._cache.store(entry, bundle.to_bytes(*parts(items)))
        return items

    def share_weights(self, items: Sequence[Specialisation]) -> list[Specialisation]:
        """The same programs, reading one block of weights where they were compiled here.

        The pool only grows, so its last block holds what the earlier programs need too.
        """
        last = self._weights
        return [
            item if last is None or not item.pooled else replace(item, weights=last)
            for item in items
        ]

    def _compile(self, key: Key) -> Specialisation:
        target, threads = self._config.target, self._config.threads
        inputs = tuple(
            TensorSpec(spec.name, spec.dtype, shape)
            for spec, shape in zip(self._inputs, key.shapes, strict=True)
        )
        bound = key.bound(inputs, self._bound)
        constants = {each.name: value_of(each) for each in bound}
        shapes = {
            spec.name: shape
            for spec, shape in zip(inputs, key.shapes, strict=True)
            if spec.name not in constants
        }
        program: Program = compile_program(self._model, self._config, shapes, constants, self._pool)
        weights = program.weights
        if self._weights is not None and self._weights.nbytes == weights.nbytes:
            weights = self._weights  # nothing new: equal content
        self._weights = weights
        code = _MachineCode(program.module, self.linker)
        return Specialisation(
            program.plan,
            inputs,
            bound,
            weights,
            program.report,
            target.key(threads),
            target.arch,
            tuple(sorted(target.features)),
            code.module,
            code.library,
            pooled=True,
        )

    def _entry(self, keys: Sequence[Key]) -> str | None:
        if self._cache is None:
            return None
        config, target = self._config, self._config.target
        facts = {
            "specialisations": keys,
            "bound": list(self._bound),
            "target": [target.key(config.threads), target.triple, target.mcpu, *target.mattr],
            "numerics": config.numerics,
            "tuning_log": None if config.tuning_log is None else list(config.tuning_log),
            "max_weight_growth": config.max_weight_growth,
            "versions": versions(),
            "code": code_version(),
        }
        return cache_key(self._model.digest().encode(), facts)

    def _find(self, entry: str, keys: Sequence[Key]) -> list[Specialisation] | None:
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
