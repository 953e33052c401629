"""load(): a saved program, run without a compiler."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from graphopt.artifact import bundle, signature
from graphopt.artifact.bundle import Artifact
from graphopt.artifact.encryption import secret_from
from graphopt.artifact.manifest import Manifest
from graphopt.bundling import parts, specialisations_of
from graphopt.codegen.plan import TensorSpec
from graphopt.errors import ArtifactError, GraphoptError, InputError, OptionError
from graphopt.programs import AnyProgram
from graphopt.report import Report
from graphopt.runtime.device import open_device
from graphopt.runtime.device_memory import largest_piece
from graphopt.runtime.host import physical_cores
from graphopt.runtime.library import open_module
from graphopt.runtime.profiler import Profile
from graphopt.runtime.workers import Workers
from graphopt.specialisations import (
    Key,
    OnceCache,
    describe,
    key_of,
    only_input,
    unbound,
    value_of,
)
from graphopt.staging import AnySession, open_session

Array = np.ndarray[Any, Any]

log = logging.getLogger(__name__)


def load(
    source: str | os.PathLike[str] | bytes,
    threads: int | None = None,
    *,
    trusted_keys: Sequence[str | os.PathLike[str] | bytes] = (),
    key_file: str | os.PathLike[str] | bytes | None = None,
    passphrase: str | None = None,
) -> LoadedModel:
    """Load a program saved by CompiledModel.save, from a path or from bytes. Compiles nothing.

    Args:
        threads: workers that share one run; None for as many as it was compiled for, or the
            machine's physical cores where those are fewer.
        trusted_keys: public keys (PEM files, or their content): the program is refused unless one
            of them has signed it, and before its weights are read.
        key_file, passphrase: what the program is encrypted with.

    Raises:
        ArtifactError: unreadable, truncated, altered, of a foreign version, not signed by a trusted
            key, encrypted with another, or this machine lacks a CPU feature that the code needs.
        DeviceError: no device is here that the program can run on.
        OptionError: threads is not a whole number above 0, or a key is missing or unusable. More
            threads than the program was compiled for are not used, and a warning is logged.
    """
    if not isinstance(source, (str, os.PathLike, bytes, bytearray, memoryview)):
        raise OptionError("load", f"give a path or bytes, not {type(source).__name__}.")
    if isinstance(source, (str, os.PathLike)) and os.fspath(source).endswith(".onnx"):
        raise ArtifactError(
            "load",
            f"'{os.fspath(source)}' is a model, not a compiled program.",
            hint="compile it first: graphopt compile MODEL.onnx -o FILE.gopt",
        )
    data = source if isinstance(source, (str, os.PathLike)) else bytes(source)
    keys = signature.trusted_keys(trusted_keys or ())
    return LoadedModel(bundle.load(data, keys, secret_from(key_file, passphrase)), threads)


class LoadedModel:
    """A program with the shapes it was compiled for; the same surface as CompiledModel.

    Any number of threads may call it.
    """

    def __init__(self, artifact: Artifact, threads: int | None = None) -> None:
        manifest = artifact.manifest
        _require_devices(manifest)
        self._inputs, self._outputs = manifest.inputs, manifest.outputs
        self._specialisations = {
            item.key: item for item in specialisations_of(artifact, open_module)
        }
        first = next(iter(self._specialisations.values()))
        self._bound = tuple(bound.name for bound in first.bound)
        self._workers = Workers(_threads(threads, first))
        self._sessions: OnceCache[Key, AnySession] = OnceCache(len(self._specialisations))
        self._only: AnySession | None = None
        if len(self._specialisations) == 1 and not self._bound:
            self._only = self._session(next(iter(self._specialisations)))

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The inputs; a dimension in which the specialisations differ is None."""
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The outputs; a dimension in which the specialisations differ is None."""
        return self._outputs

    @property
    def shapes(self) -> tuple[dict[str, tuple[int, ...]], ...]:
        """The input shapes that this program accepts."""
        names = [spec.name for spec in self._inputs]
        return tuple(dict(zip(names, key.shapes, strict=True)) for key in self._specialisations)

    @property
    def constants(self) -> tuple[dict[str, Array], ...]:
        """The values that are compiled in, by input name; in the order of `shapes`."""
        items = self._specialisations.values()
        return tuple({bound.name: value_of(bound) for bound in item.bound} for item in items)

    @property
    def specialisations(self) -> tuple[str, ...]:
        """What this program accepts, in words; in the order of `shapes`."""
        return tuple(describe(key, self._inputs, self._bound) for key in self._specialisations)

    @property
    def threads(self) -> int:
        """Workers that share one run."""
        return self._workers.limit

    @property
    def report(self) -> Report:
        """The account of the compilation (of the first specialisation; see `reports`)."""
        return self.reports[0]

    @property
    def reports(self) -> tuple[Report, ...]:
        """One report per specialisation, in the order of `shapes`."""
        return tuple(item.report for item in self._specialisations.values())

    def run(
        self, inputs: Mapping[str, Any], out: Mapping[str, Array] | None = None
    ) -> dict[str, Array]:
        """Outputs by name for arrays by input name.

        Args:
            out: arrays that receive the outputs instead of new ones.

        Raises:
            InputError: names, dtypes or shapes do not fit.
        """
        if self._only is not None:
            return self._only.run(inputs, out)
        session = self._session(key_of(inputs, self._inputs, self._bound))
        return session.run(unbound(inputs, self._bound), out)

    def __call__(self, value: Any) -> dict[str, Array]:
        """run() on a dict of inputs, or on the array of the only input."""
        return self.run(only_input(value, self._inputs))

    def profile(self, inputs: Mapping[str, Any], repeats: int = 20) -> Profile:
        """Time per call site, with its ONNX nodes, over `repeats` runs with these inputs."""
        if self._only is not None:
            return self._only.profile(inputs, repeats)
        session = self._session(key_of(inputs, self._inputs, self._bound))
        return session.profile(unbound(inputs, self._bound), repeats)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the same program to another file.

        Raises:
            ArtifactError: the file cannot be written; an old one stays as it was.
        """
        bundle.save(path, *parts(list(self._specialisations.values())))

    def _session(self, key: Key) -> AnySession:
        item = self._specialisations.get(key)
        if item is None:
            raise InputError(
                "run",
                f"this program has no specialisation for "
                f"{describe(key, self._inputs, self._bound)}.",
                hint=f"it has: {'; '.join(self.specialisations)}. Others need another compile().",
            )
        return self._sessions.get(key, lambda: open_session(item, self._workers))


def _require_devices(manifest: Manifest) -> None:
    """Raise DeviceError if no program of the file can run on a device that is here."""
    errors = []
    for entry in manifest.entries:
        if entry.needs is None:
            return
        try:
            open_device(entry.needs, largest_piece(entry.plan))
        except GraphoptError as error:
            errors.append(error)
        else:
            return
    if errors:
        raise errors[0]


def _threads(wanted: int | None, item: AnyProgram) -> int:
    compiled = item.threads
    if wanted is None:
        available = physical_cores()
        if available < compiled:
            log.warning(
                "compiled for %d threads; this machine grants %d cores", compiled, available
            )
        return min(compiled, available)
    if not hasattr(wanted, "__index__") or isinstance(wanted, bool) or wanted < 1:
        raise OptionError("load", f"threads must be a whole number from 1, not {wanted!r}.")
    if wanted > compiled:
        log.warning("running with %d threads, the most this program is compiled for", compiled)
        return compiled
    if wanted < compiled:
        log.warning("running with %d threads; compiled and chosen for %d", wanted, compiled)
    return int(wanted)
