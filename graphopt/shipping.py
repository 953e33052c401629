"""Writes a compiled model as a C library."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from graphopt.artifact.atomic import replacing
from graphopt.codegen.c_library.build import Machine, library_files, symbols
from graphopt.codegen.c_library.interface import interface_of
from graphopt.codegen.c_library.names import library_name
from graphopt.codegen.c_library.toolchain import Toolchain, find_toolchain
from graphopt.codegen.host_program import TENSOR
from graphopt.compiler import c_control
from graphopt.config import CompileConfig
from graphopt.errors import ArtifactError, OptionError
from graphopt.frontend.model import OnnxModel
from graphopt.frontend.partition import host_reasons
from graphopt.frontend.prepare import prepare
from graphopt.programs import AnyProgram, Specialisation
from graphopt.specialisations import value_of
from graphopt.target import TargetSpec

EMBEDDED, FILE = WEIGHTS = ("embedded", "file")
"""Where the weights of a C library are: in the library, or in a file beside it."""

_SHOWN = 10
_MAX_EMBEDDED = 1 << 30
"""Bytes of weights that machine code can reach with short addresses, wherever it is linked."""


def write_c_library(
    programs: Sequence[AnyProgram],
    describe: Sequence[str],
    model: OnnxModel,
    config: CompileConfig,
    folder: str | os.PathLike[str],
    name: str,
    weights: str,
) -> tuple[Path, ...]:
    """Write the only one of `programs`; the files, as CompiledModel.save_c_library() says.

    Args:
        describe: the programs in words.
        model, config: what they were compiled from, and how.
    """
    toolchain = check_options(config.target, name, weights)
    program = _only(programs, describe)
    if not isinstance(program, Specialisation):
        raise _refusal(program, model)
    if not program.kernels:
        raise OptionError(
            "save",
            "the program was found in the compile cache, which keeps linked programs only.",
            hint="compile with cache=False (on the command line --no-cache).",
        )
    if weights == EMBEDDED and program.plan.weight_bytes > _MAX_EMBEDDED:
        raise OptionError(
            "save",
            f"weights of {program.plan.weight_bytes / 2**30:.1f} GiB cannot be embedded; "
            "1 GiB can.",
            hint="put them into a file: weights='file' (--weights file).",
        )
    interface = interface_of(name, program.plan)
    control = c_control(program.plan, config, symbols(name, program.plan.threads))
    target = config.target
    files = library_files(
        interface,
        Machine(f"{target.arch} ({target.mcpu})", target.arch, program.features),
        (control, *program.kernels),
        np.ascontiguousarray(program.weights()[: program.plan.weight_bytes]).data,
        weights == FILE,
        f"the ONNX graph '{model.proto.graph.name}' as a C library",
        _version(),
        toolchain,
    )
    return _write(Path(folder), files)


def check_options(target: TargetSpec, name: str, weights: str) -> Toolchain:
    """The C compiler, if the other options are right; to be called before any work.

    Raises:
        OptionError: `name` or `weights` is no valid choice, or the target is a device.
        CompileError: there is no C compiler for the target.
    """
    if target.device is not None:
        raise OptionError(
            "options",
            f"a C library runs on processors only, and the target is '{target.name}'.",
            hint="compile for 'cpu', or save a .gopt.",
        )
    library_name(name)
    if weights not in WEIGHTS:
        raise OptionError(
            "options", f"unknown weights {weights!r}.", hint=f"choose {' or '.join(WEIGHTS)}."
        )
    return find_toolchain(target.arch)


def _only(programs: Sequence[AnyProgram], describe: Sequence[str]) -> AnyProgram:
    if len(programs) == 1:
        return programs[0]
    raise OptionError(
        "save",
        f"a C library holds one program, and there are {len(programs)}: {'; '.join(describe)}.",
        hint="compile for one set of shapes at a time, and give each library a name of its own.",
    )


def _refusal(program: AnyProgram, model: OnnxModel) -> OptionError:
    """Why a program that is run step by step cannot be a C library, by node."""
    values = {bound.name: value_of(bound) for bound in program.bound}
    shapes = {
        spec.name: tuple(dim or 0 for dim in spec.shape)
        for spec in program.inputs
        if spec.kind == TENSOR and spec.name not in values
    }
    found = host_reasons(prepare(model, shapes, values))
    lines = [f"{node} ({reason})" for node, reason in found[:_SHOWN]]
    more = f", and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return OptionError(
        "save",
        "a C library holds one straight-line program, without control flow, sequences and shapes "
        f"that depend on data; not possible here: {', '.join(lines)}{more}.",
        node=found[0][0] if found else None,
        hint="save a .gopt, or cut the model there.",
    )


def _write(folder: Path, files: Mapping[str, bytes]) -> tuple[Path, ...]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArtifactError(
            "save", f"Cannot make the folder '{folder}': {error.strerror or error}."
        ) from error
    for name, contents in files.items():
        with replacing(folder / name, "save") as file:
            file.write(contents)
    return tuple(folder / name for name in files)


def _version() -> str:
    try:
        return version("graphopt")
    except PackageNotFoundError:
        return "unknown"
