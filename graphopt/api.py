"""compile(): an ONNX model becomes a program that runs here, or is saved to run elsewhere."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx

from graphopt.artifact import bundle
from graphopt.artifact.machine import unfit_reason
from graphopt.building import Builder
from graphopt.bundling import parts
from graphopt.codegen.plan import TensorSpec
from graphopt.compression.quantization.report import QuantizationReport
from graphopt.config import CompileConfig, ConstantsOption, ShapesOption
from graphopt.errors import InputError, OptionError
from graphopt.frontend.load import load_model, require_weights
from graphopt.frontend.model import OnnxModel
from graphopt.programs import AnyProgram, Staged
from graphopt.report import Report
from graphopt.runtime.profiler import Profile
from graphopt.runtime.workers import Workers
from graphopt.signature import Signature, bound_inputs, signature_of
from graphopt.specialisations import (
    MAX_SPECIALISATIONS,
    Key,
    OnceCache,
    describe,
    key_of,
    merge_specs,
    only_input,
    unbound,
    value_of,
)
from graphopt.staging import AnySession, complete, open_session

Array = np.ndarray[Any, Any]
ModelSource: TypeAlias = "str | os.PathLike[str] | bytes | onnx.ModelProto"

log = logging.getLogger(__name__)


def compile(  # noqa: A001 (the public contract's name)
    model: ModelSource,
    target: Any = "cpu",
    *,
    shapes: ShapesOption = None,
    constants: ConstantsOption = None,
    threads: int | None = None,
    tuning_log: Any = None,
    numerics: str = "default",
    quantization: Any = None,
    calibration: Any = None,
    dump_ir: str | os.PathLike[str] | None = None,
    max_weight_growth: float | None = None,
    cache: bool = False,
    **unknown: Any,
) -> CompiledModel:
    """Compile an ONNX model.

    A model whose input shapes are all known, by itself or by `shapes`, is compiled now; another
    one is compiled when it is first called, once for each set of input shapes. Inputs of whole
    numbers or bools that act as shapes, axes, counts or modes are compiled in with their values:
    such a model is compiled now for the values in `constants`, else once for each set of values
    seen. They remain inputs: every call gives them. Machine code is made when the program is
    first run or saved.

    Args:
        model: a path, the bytes of an .onnx file, or a ModelProto.
        target: "cpu" for this machine, "cpu:NAME" or "x86_64:NAME" or "aarch64:NAME" for another
            processor by LLVM's name, "x86-64-v3" or "riscv64" for a level, or a TargetSpec.
        shapes: input name → shape, or a list of such dicts: one specialisation each, with shared
            weights. A named dimension bound by one input is bound in the others too.
        constants: input name → value for inputs that are compiled in, such as {"rate": 16000}, or
            a list of such dicts: the k-th goes with the k-th of `shapes`, one alone with all.
        threads: workers that share one run; None for the physical cores.
        tuning_log: a folder of records that tune() wrote, or several, which are looked into before
            the shipped records; None for these alone, () for none at all.
        numerics: "default"; "strict": nothing that spreads non-finite values or reassociates
            across a tile; "relaxed": also Winograd's F(6×6), whose rounding error is some times
            larger than the default's, so that deep networks may exceed the tolerance.
        quantization: quantize the model first: "int8", another preset or a QuantizationConfig, see
            quantize(). The tolerance then holds against the quantized model.
        calibration: typical inputs, as for quantize().
        dump_ir: directory for the IR after each pass that changed it.
        max_weight_growth: packed weights may take this many times the model's weights,
            which count for a megabyte at least.
        cache: look the program up on disk first and keep it there; silently off without a linker.

    Raises:
        OptionError: an option is unknown or out of range, or the shapes or constants do not fit
            the model.
        ModelError: the model cannot be read, is invalid, or uses something unsupported.
        CompileError: a later stage failed.
    """
    config = CompileConfig.of(
        target=target,
        shapes=shapes,
        constants=constants,
        threads=threads,
        tuning_log=tuning_log,
        numerics=numerics,
        dump_ir=dump_ir,
        max_weight_growth=max_weight_growth,
        cache=cache,
        **unknown,
    )
    if calibration is not None and quantization is None:
        raise OptionError(
            "options", "calibration is for quantization.", hint="add quantization='int8'."
        )
    loaded = load_model(model)
    require_weights(loaded)
    if quantization is None:
        return CompiledModel(loaded, config)
    from graphopt.quantizing import quantize_for  # it runs models, which are compiled here

    loaded, account = quantize_for(loaded, quantization, calibration, config)
    return CompiledModel(loaded, config, account)


class CompiledModel:
    """A compiled model. Any number of threads may call it. Made by compile()."""

    def __init__(
        self,
        model: OnnxModel,
        config: CompileConfig,
        quantization: QuantizationReport | None = None,
    ) -> None:
        self._model, self._config = model, config
        self._quantization = quantization
        self._signature: Signature = signature_of(model)
        given = [constant for constants in config.constants for constant in constants]
        bound = bound_inputs(model, self._signature, given)
        self._bound = tuple(bound)
        self._static = self._signature.static and not bound
        self._builder = Builder(model, config, self._signature.inputs, self._bound)
        self._workers = Workers(config.threads)
        limit = MAX_SPECIALISATIONS + len(config.specialisations)
        self._programs: OnceCache[Key, _Ready] = OnceCache(limit)
        self._only: AnySession | None = None
        wanted = config.specialisations or (((), ()),) * self._static
        keys = list(
            dict.fromkeys(
                self._signature.key(dict(shapes), constants, bound) for shapes, constants in wanted
            )
        )
        for key, item in zip(keys, self._builder.build(keys), strict=True):
            ready = _Ready(item, config, self._workers)
            self._programs.get(key, lambda ready=ready: ready, pin=True)  # type: ignore[misc]

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The inputs; a dimension is None where the model leaves it open."""
        return self._signature.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The outputs; a dimension is None where it depends on the inputs' shapes."""
        if not self._static:
            return self._signature.outputs
        return merge_specs([ready.item.outputs for _, ready in self._programs.items()])

    @property
    def config(self) -> CompileConfig:
        """The options it was compiled with."""
        return self._config

    @property
    def model(self) -> OnnxModel:
        """The model it was compiled from."""
        return self._model

    @property
    def quantization(self) -> QuantizationReport | None:
        """What quantization cost, if compile() was asked to quantize."""
        return self._quantization

    @property
    def shapes(self) -> tuple[dict[str, tuple[int, ...]], ...]:
        """The input shapes compiled so far."""
        names = [spec.name for spec in self._signature.inputs]
        return tuple(dict(zip(names, key.shapes, strict=True)) for key, _ in self._programs.items())

    @property
    def constants(self) -> tuple[dict[str, Array], ...]:
        """The values that are compiled in, by input name; in the order of `shapes`."""
        items = [ready.item for _, ready in self._programs.items()]
        return tuple({bound.name: value_of(bound) for bound in item.bound} for item in items)

    @property
    def specialisations(self) -> tuple[str, ...]:
        """What is compiled so far, in words; in the order of `shapes`."""
        specs = self._signature.inputs
        return tuple(describe(key, specs, self._bound) for key, _ in self._programs.items())

    @property
    def report(self) -> Report:
        """What was done for the specialisation used last.

        Raises:
            OptionError: nothing is compiled yet.
        """
        return self.reports[-1]

    @property
    def reports(self) -> tuple[Report, ...]:
        """One report per specialisation, in the order of `shapes`.

        Raises:
            OptionError: nothing is compiled yet.
        """
        return tuple(item.report for item in self._compiled("report"))

    def run(
        self, inputs: Mapping[str, Any], out: Mapping[str, Array] | None = None
    ) -> dict[str, Array]:
        """Outputs by name for arrays by input name; compiles for what was not seen before.

        Args:
            out: arrays that receive the outputs instead of new ones.

        Raises:
            InputError: names, dtypes or shapes do not fit.
        """
        if self._only is not None:
            return self._only.run(inputs, out)
        return self._session(inputs).run(unbound(inputs, self._bound), out)

    def __call__(self, value: Any) -> dict[str, Array]:
        """run() on a dict of inputs, or on the array of the only input."""
        return self.run(only_input(value, self.inputs))

    def profile(self, inputs: Mapping[str, Any], repeats: int = 20) -> Profile:
        """Time per call site, with its ONNX nodes, over `repeats` runs with these inputs."""
        return self._session(inputs).profile(unbound(inputs, self._bound), repeats)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the specialisations compiled so far to one .gopt file.

        Raises:
            CompileError: there is no linker, or it fails.
            OptionError: nothing is compiled yet, because the model leaves shapes or values open.
            ArtifactError: the file cannot be written; an old one stays as it was.
        """
        items = self._compiled("save")
        self._builder.linker()  # before any work
        for item in items:
            if isinstance(item, Staged):
                complete(item)
                _check_complete(item)
        bundle.save(path, *parts(items))

    def save_c_library(
        self,
        folder: str | os.PathLike[str],
        *,
        name: str = "model",
        weights: str = "embedded",
    ) -> tuple[Path, ...]:
        """Write the only specialisation as a C library that needs libc, libm and POSIX threads.

        The files are NAME.h, which says how to use it, NAME.c, libNAME.a, libNAME.so,
        NAMEConfig.cmake and, if they are not embedded, NAME.weights. It computes what run() does,
        to the last bit.

        Args:
            folder: made if it is not there.
            name: what the names of its files and functions begin with; a C identifier.
            weights: "embedded", or "file" for a file that is mapped into memory.

        Returns:
            the files.

        Raises:
            OptionError: an option is wrong; the model is not one straight-line program, has open
                shapes, or is compiled for several.
            CompileError: there is no C compiler for the target, or it fails.
            ArtifactError: a file cannot be written; an old one stays as it was.
        """
        from graphopt.shipping import write_c_library

        items = self._compiled("save")
        return write_c_library(
            items, self.specialisations, self._model, self._config, folder, name, weights
        )

    def _compiled(self, stage: str) -> list[AnyProgram]:
        items = [ready.item for _, ready in self._programs.items()]
        if not items:
            flags = "" if self._signature.static else "shapes=… (--shape NAME=1,…)"
            if self._bound:
                flags += (" and " if flags else "") + "constants=… (--constant NAME=VALUE)"
            raise OptionError(
                stage,
                "nothing is compiled yet, because the model leaves input dimensions or values "
                "that it needs open.",
                hint=f"give {flags} to compile(), or run the model first.",
            )
        return items

    def _session(self, inputs: Mapping[str, Any]) -> AnySession:
        if self._static:
            # The session itself refuses inputs that do not fit the only specialisation.
            ((_, ready),) = self._programs.items()
            self._only = ready.session()
            return self._only
        key = key_of(inputs, self._signature.inputs, self._bound)
        return self._programs.get(key, lambda: self._specialise(key)).session()

    def _specialise(self, key: Key) -> _Ready:
        specs = self._signature.inputs
        try:
            self._signature.bind({s.name: d for s, d in zip(specs, key.shapes, strict=True)})
        except OptionError as error:
            raise InputError("run", error.reason, hint=error.hint) from error
        log.info("compiling for %s", describe(key, specs, self._bound))
        return _Ready(self._builder.build([key])[0], self._config, self._workers)


def _check_complete(item: Staged) -> None:
    """Refuse a program none of whose open parts was ever called; warn of single ones.

    Raises:
        OptionError: naming the nodes.
    """
    empty = item.empty_segments()
    if not empty:
        return
    nodes = ", ".join(segment.spec.nodes[0] for segment in empty)
    if any(segment.grows and segment.items() for segment in item.segments):
        log.warning("the saved program lacks the parts with these nodes: %s", nodes)
        return
    raise OptionError(
        "save",
        f"the parts with these nodes are not compiled yet, because their shapes depend on data: "
        f"{nodes}.",
        hint="run the model with typical inputs first.",
    )


class _Ready:
    """A specialisation and the session that runs it, opened when it is first needed."""

    def __init__(self, item: AnyProgram, config: CompileConfig, workers: Workers) -> None:
        self.item = item
        self._config = config
        self._workers = workers
        self._lock = threading.Lock()
        self._session: AnySession | None = None

    def session(self) -> AnySession:
        """The session; OptionError if the program is for another machine."""
        with self._lock:
            if self._session is None:
                self._session = self._open()
            return self._session

    def _open(self) -> AnySession:
        target = self._config.target
        if not target.is_host_compatible():
            raise OptionError(
                "run",
                f"this program is compiled for '{target.name}': "
                f"{unfit_reason(target.arch, tuple(target.features))}.",
                hint="save it and load it there.",
            )
        return open_session(self.item, self._workers)
