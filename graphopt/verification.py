"""Compares a program's outputs with ONNX Runtime's, optimisations off, run in a child process."""

from __future__ import annotations

import importlib.util
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx

from graphopt.api import CompiledModel
from graphopt.api import compile as compile_model
from graphopt.bench.accuracy import output_errors
from graphopt.bench.inputs import sample_inputs
from graphopt.bench.process import EngineProcess
from graphopt.bench.worker import load_arrays, save_arrays
from graphopt.config import ConstantsOption, ShapesOption, parse_constants, parse_shapes
from graphopt.errors import InputError, ModelError, OptionError
from graphopt.frontend.load import load_model
from graphopt.frontend.model import OnnxModel, all_tensors
from graphopt.loaded import LoadedModel, load
from graphopt.signature import bound_inputs, constant_arrays, require_values, signature_of
from graphopt.tolerance import usual_tolerance

Array = np.ndarray[Any, Any]
Source = Any  # path, bytes or onnx.ModelProto


class Program(Protocol):
    """What a CompiledModel and a LoadedModel share."""

    @property
    def shapes(self) -> tuple[dict[str, tuple[int, ...]], ...]: ...

    @property
    def constants(self) -> tuple[dict[str, Array], ...]: ...

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Array]: ...


@dataclass(frozen=True)
class OutputCheck:
    """One output: `error` is max|y − ref| / max|ref|, infinite where non-finite values differ."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    error: float
    ok: bool


@dataclass(frozen=True)
class Verification:
    """The result of `verify`. `inputs` says what the program was fed, in words."""

    outputs: tuple[OutputCheck, ...]
    tolerance: float
    inputs: str

    @property
    def ok(self) -> bool:
        """Whether every output is within the tolerance."""
        return all(check.ok for check in self.outputs)

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values."""
        return {"ok": self.ok, **asdict(self)}


def verify(
    model: Source,
    against: Source | None = None,
    *,
    inputs: Mapping[str, Array] | None = None,
    shapes: ShapesOption = None,
    constants: ConstantsOption = None,
    target: Any = "cpu",
    threads: int | None = None,
    numerics: str = "default",
    tolerance: float | None = None,
    seed: int = 0,
) -> Verification:
    """Run `model` and the reference on the same inputs and compare every output.

    Args:
        model: an ONNX model (compiled here with `target`, `threads` and `numerics`), a .gopt file
            or its bytes, a CompiledModel or a LoadedModel.
        against: the ONNX model that gives the reference; needed unless `model` is one.
        inputs: values by name. Inputs left out get seeded data: floats are standard normal,
            integers small and not negative (token ids stay inside their table), masks all ones.
        shapes: shapes for the model's open dimensions.
        constants: values of inputs that are compiled in.
        tolerance: max|y − reference| / max|reference| of an output; by default 1e-4, or 2e-2 for a
            model that quantizes what it computes.

    Raises:
        OptionError: no reference is given, or ONNX Runtime is not installed.
        GraphoptError: the model does not compile, load or run.
    """
    if importlib.util.find_spec("onnxruntime") is None:
        raise OptionError(
            "verify",
            "ONNX Runtime, which gives the reference, is not installed.",
            hint="pip install 'graphopt[verify]'",
        )
    if tolerance is not None and not 0 < tolerance < 1:
        raise OptionError("verify", f"tolerance must be between 0 and 1, not {tolerance!r}.")
    program = _program(model, threads)
    reference_source = against
    if reference_source is None:
        if program is not None and not isinstance(program, CompiledModel):
            raise OptionError(
                "verify",
                "a saved program does not contain the model it was compiled from.",
                hint="name the ONNX file: --against model.onnx (against='model.onnx').",
            )
        reference_source = program.model if isinstance(program, CompiledModel) else model
    reference = _as_model(reference_source)
    given = {**_values(reference, constants), **(inputs or {})}
    feeds = _feeds(reference, program, given, shapes, seed)
    if program is None:
        # What is still open is compiled for the feeds when it runs.
        program = compile_model(model, target, threads=threads, numerics=numerics)
    results = program.run(feeds)
    expected = _reference(reference, reference_source, feeds, threads or 1)
    errors = output_errors(results, expected)
    limit = usual_tolerance(reference.proto) if tolerance is None else tolerance
    checks = tuple(
        OutputCheck(name, str(ref.dtype), ref.shape, errors[name], errors[name] <= limit)
        for name, ref in expected.items()
    )
    return Verification(checks, limit, _describe(feeds, given, seed))


def _program(model: Source, threads: int | None) -> Program | None:
    """`model` if it is a program already, or as loaded from an artifact; None for an ONNX model."""
    if isinstance(model, (CompiledModel, LoadedModel)):
        return model
    if isinstance(model, (str, os.PathLike)) and Path(model).suffix == ".gopt":
        return load(model, threads=threads)
    if isinstance(model, (bytes, bytearray)) and bytes(model[:2]) == b"PK":
        return load(bytes(model), threads=threads)
    return None


def _as_model(source: Source) -> OnnxModel:
    return source if isinstance(source, OnnxModel) else load_model(source)


def _feeds(
    model: OnnxModel,
    program: Program | None,
    given: Mapping[str, Array],
    shapes: ShapesOption,
    seed: int,
) -> dict[str, Array]:
    wanted = {name: tuple(np.shape(value)) for name, value in given.items()}
    if shapes is not None:
        options = parse_shapes(shapes)
        if len(options) > 1:
            raise OptionError("verify", "give one set of shapes, not several.")
        wanted = {**dict(options[0]), **wanted}
    if program is not None:
        for bound, values in zip(program.shapes, program.constants, strict=True):
            if wanted.items() <= bound.items() and _agree(values, given):
                wanted, given = {**bound, **wanted}, {**values, **given}
                break
    signature = signature_of(model)
    unknown = [name for name in wanted if name not in {spec.name for spec in signature.inputs}]
    if unknown:
        raise InputError(
            "verify",
            f"the reference model has no input named '{unknown[0]}'.",
            hint=f"its inputs: {', '.join(spec.name for spec in signature.inputs)}.",
        )
    require_values(bound_inputs(model, signature, ()), given)
    return sample_inputs(model.proto, signature.bind(wanted), given=given, seed=seed)


def _values(model: OnnxModel, constants: ConstantsOption) -> dict[str, Array]:
    options = () if constants is None else parse_constants(constants)
    if len(options) > 1:
        raise OptionError("verify", "give one set of constants, not several.")
    return constant_arrays(signature_of(model), options[0]) if options else {}


def _agree(values: Mapping[str, Array], given: Mapping[str, Array]) -> bool:
    return all(
        np.array_equal(given[name], value) for name, value in values.items() if name in given
    )


def _reference(
    model: OnnxModel, source: Source, feeds: Mapping[str, Array], threads: int
) -> dict[str, Array]:
    with tempfile.TemporaryDirectory(prefix="graphopt-verify-") as name:
        folder = Path(name)
        # A path is given as it is: external data lies beside it.
        path = Path(source) if isinstance(source, (str, os.PathLike)) else folder / "model.onnx"
        if path.parent == folder:
            _write(model, path)
        names = save_arrays(folder / "inputs.npz", feeds)
        with EngineProcess("reference", threads) as process:
            process.ask(
                "open",
                engine="reference",
                model=str(path),
                threads=threads,
                outputs=[value.name for value in model.proto.graph.output],
                settings={},
                inputs=str(folder / "inputs.npz"),
                input_names=names,
            )
            process.ask("run", iterations=1)
            outputs = process.ask("outputs", path=str(folder / "outputs.npz"))["names"]
        return load_arrays(folder / "outputs.npz", outputs)


def _write(model: OnnxModel, path: Path) -> None:
    proto, external = model.proto, False
    if model.base_dir is not None and any(
        tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in all_tensors(proto)
    ):
        proto, external = onnx.ModelProto(), True
        proto.CopyFrom(model.proto)
        onnx.load_external_data_for_model(proto, str(model.base_dir))
    try:
        onnx.save(proto, path, save_as_external_data=external, location="weights.bin")
    except ValueError as error:  # protobuf's limit of 2 GB
        raise ModelError(
            "verify", "the model is too large to be handed over.", hint="give its path."
        ) from error


def _describe(feeds: Mapping[str, Array], given: Mapping[str, Array], seed: int) -> str:
    made = [name for name in feeds if name not in given]
    if not made:
        return "the given values"
    whole = [n for n in made if np.issubdtype(feeds[n].dtype, np.integer)]
    text = f"seeded random values (seed {seed}) for {', '.join(made)}"
    return text + (f"; {', '.join(whole)}: small integers ≥ 0" if whole else "")
