"""CompileConfig: every option of compile(), checked before any work starts."""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from graphopt.errors import OptionError
from graphopt.runtime.host import physical_cores
from graphopt.target import TargetSpec

Shape: TypeAlias = tuple[int, ...]
Shapes: TypeAlias = tuple[tuple[str, Shape], ...]
"""One specialisation: input names with their shapes, sorted by name."""
ShapesOption: TypeAlias = (
    "Mapping[str, Sequence[int]] | Iterable[Mapping[str, Sequence[int]]] | None"
)


class Constant(NamedTuple):
    """The value that an input is bound to: elements in row-major order."""

    name: str
    shape: Shape
    values: tuple[int | float, ...]


Constants: TypeAlias = tuple[Constant, ...]
"""The values of one specialisation, sorted by name."""
ConstantsOption: TypeAlias = "Mapping[str, Any] | Iterable[Mapping[str, Any]] | None"

NUMERICS = ("default", "strict", "relaxed")
MAX_THREADS = 1024
MAX_DIM = 2**31 - 1


@dataclass(frozen=True)
class CompileConfig:
    """How to compile: the same for all specialisations of a model.

    Attributes:
        target: the processor to compile for.
        threads: workers that share one run.
        shapes: the specialisations asked for in advance; empty means "as the model says, else per
            shapes seen".
        constants: values of inputs that act as shapes, axes, counts or modes; the k-th with the
            k-th of `shapes`, one alone with all of them.
        tuning_log: logs to look into before the shipped records; None for these alone, () for none.
        numerics: "default"; "strict": no Winograd, nothing that spreads non-finite values;
            "relaxed": also Winograd's F(6×6), whose rounding error is some times larger.
        dump_ir: directory for the IR after each pass that changed it.
        max_weight_growth: packed weights may take this many times the model's weights,
            which count for a megabyte at least.
        cache: whether compiled programs are kept on disk and looked up there.
    """

    target: TargetSpec = field(default_factory=lambda: TargetSpec.parse("cpu"))
    threads: int = field(default_factory=physical_cores)
    shapes: tuple[Shapes, ...] = ()
    constants: tuple[Constants, ...] = ()
    tuning_log: tuple[Path, ...] | None = None
    numerics: str = "default"
    dump_ir: Path | None = None
    max_weight_growth: float = 2.0
    cache: bool = False

    def __post_init__(self) -> None:
        if not _is_int(self.threads) or not 1 <= self.threads <= MAX_THREADS:
            raise OptionError(
                "options",
                f"threads must be a whole number from 1 to {MAX_THREADS}, not {self.threads!r}.",
            )
        if self.numerics not in NUMERICS:
            raise OptionError(
                "options",
                f"unknown numerics {self.numerics!r}.",
                hint=suggestion(str(self.numerics), NUMERICS),
            )
        growth = self.max_weight_growth
        if isinstance(growth, bool) or not isinstance(growth, (int, float)):
            raise OptionError("options", f"max_weight_growth must be a number, not {growth!r}.")
        if not 1.0 <= growth < math.inf:
            raise OptionError(
                "options", f"max_weight_growth must be at least 1 and finite, not {growth!r}."
            )
        if len(self.shapes) > 1 < len(self.constants) != len(self.shapes):
            raise OptionError(
                "options",
                f"{len(self.shapes)} sets of shapes and {len(self.constants)} sets of constants.",
                hint="the k-th constants go with the k-th shapes: give as many, or one for all.",
            )

    @property
    def specialisations(self) -> tuple[tuple[Shapes, Constants], ...]:
        """Shapes and constants of each program that is asked for in advance."""
        shapes, constants = self.shapes or ((),), self.constants or ((),)
        if self.shapes == () == self.constants:
            return ()
        count = max(len(shapes), len(constants))
        return tuple(
            (shapes[min(k, len(shapes) - 1)], constants[min(k, len(constants) - 1)])
            for k in range(count)
        )

    @staticmethod
    def of(**options: Any) -> CompileConfig:
        """The configuration for compile()'s options as users write them; absent ones get defaults.

        Raises:
            OptionError: an option is unknown, out of range, or contradictory.
        """
        check_names(options, [f.name for f in fields(CompileConfig)])
        values = {name: value for name, value in options.items() if value is not None}
        if "target" in values:
            values["target"] = _target(values["target"])
        if "shapes" in values:
            values["shapes"] = parse_shapes(values["shapes"])
        if "constants" in values:
            values["constants"] = parse_constants(values["constants"])
        if "tuning_log" in values:
            values["tuning_log"] = _tuning_log(values["tuning_log"])
        if "dump_ir" in values:
            values["dump_ir"] = _directory(values["dump_ir"])
        if _is_int(values.get("threads")):
            values["threads"] = int(values["threads"])
        if not isinstance(values.get("cache", False), bool):
            raise OptionError("options", f"cache must be True or False, not {values['cache']!r}.")
        if values.get("cache") and "dump_ir" in values:
            raise OptionError(
                "options",
                "dump_ir and cache contradict each other: a cached program runs no passes.",
                hint="leave one of them out.",
            )
        return CompileConfig(**values)


def check_names(given: Iterable[str], known: Sequence[str]) -> None:
    """Raise OptionError for the first name in `given` that is not `known`, with close matches."""
    for name in given:
        if name not in known:
            raise OptionError("options", f"unknown option '{name}'.", hint=suggestion(name, known))


def suggestion(word: str, known: Sequence[str]) -> str:
    """A hint: the known names close to `word`, else all of them."""
    close = difflib.get_close_matches(word.lower(), known, n=3, cutoff=0.6)
    if close:
        return f"did you mean {' or '.join(repr(name) for name in close)}?"
    return f"choose from {', '.join(repr(name) for name in known)}."


def parse_shapes(option: Any) -> tuple[Shapes, ...]:
    """The specialisations that a `shapes` option asks for: one mapping or several.

    Raises:
        OptionError: something is not a name, not a shape, or given twice.
    """
    if isinstance(option, Mapping):
        return (_specialisation(option),)
    if isinstance(option, (str, bytes)) or not isinstance(option, Iterable):
        raise OptionError(
            "options",
            f"shapes must map input names to shapes, not {type(option).__name__}.",
            hint="for example shapes={'x': (1, 3, 224, 224)}, or a list of such dicts.",
        )
    found: list[Shapes] = []
    for entry in option:
        if not isinstance(entry, Mapping):
            raise OptionError(
                "options",
                f"each entry of the list of shapes must be a dict, not {entry!r}.",
                hint="for example shapes=[{'x': (1, 3)}, {'x': (8, 3)}].",
            )
        shapes = _specialisation(entry)
        if shapes in found:
            raise OptionError("options", f"shapes are given twice: {dict(shapes)}.")
        found.append(shapes)
    if not found:
        raise OptionError("options", "the list of shapes is empty.", hint="leave shapes out.")
    return tuple(found)


def parse_constants(option: Any) -> tuple[Constants, ...]:
    """The values that a `constants` option gives: one mapping or several.

    Raises:
        OptionError: something is not a name, or not a number, a bool or an array of these.
    """
    entries = [option] if isinstance(option, Mapping) else option
    if isinstance(entries, (str, bytes)) or not isinstance(entries, Iterable):
        entries = [entries]
    found = tuple(_constants(entry) for entry in entries)
    if not found:
        raise OptionError("options", "the list of constants is empty.", hint="leave it out.")
    return found


def _constants(entry: Any) -> Constants:
    if not isinstance(entry, Mapping):
        raise OptionError(
            "options",
            f"constants must map input names to values, not {type(entry).__name__}.",
            hint="for example constants={'rate': 16000}, or a list of such dicts.",
        )
    found = []
    for name, value in entry.items():
        if not isinstance(name, str):
            raise OptionError(
                "options", f"constants: an input's name must be a string, not {name!r}."
            )
        try:
            array = np.asarray(value)
        except ValueError:  # a ragged list
            array = np.asarray(None)
        if array.dtype.kind not in "iubf":
            raise OptionError(
                "options",
                f"constants: the value of '{name}' must be a number, a bool or an array of these, "
                f"not {value!r}.",
                hint="inputs of other types are data: give them when running.",
            )
        kind = float if array.dtype.kind == "f" else int
        values = tuple(kind(item) for item in array.ravel().tolist())
        found.append(Constant(name, array.shape, values))
    return tuple(sorted(found))


def _specialisation(entry: Mapping[Any, Any]) -> Shapes:
    shapes = []
    for name, dims in entry.items():
        if not isinstance(name, str):
            raise OptionError("options", f"shapes: an input's name must be a string, not {name!r}.")
        if isinstance(dims, (str, bytes, Mapping)) or not isinstance(dims, Iterable):
            raise OptionError(
                "options",
                f"shapes: the shape of '{name}' must be a sequence of whole numbers, not {dims!r}.",
            )
        dims = tuple(dims)
        for dim in dims:
            if not _is_int(dim) or not 0 <= dim <= MAX_DIM:
                raise OptionError(
                    "options",
                    f"shapes: {dim!r} in the shape of '{name}' is not a whole number from 0 to "
                    f"{MAX_DIM}.",
                    hint="leave out the inputs whose shapes should stay unbound.",
                )
        shapes.append((name, tuple(int(dim) for dim in dims)))
    return tuple(sorted(shapes))


def _is_int(value: Any) -> bool:
    # NumPy's integers count; True and False do not.
    return hasattr(value, "__index__") and not isinstance(value, bool)


def _target(option: Any) -> TargetSpec:
    if isinstance(option, TargetSpec):
        return option
    if not isinstance(option, str):
        raise OptionError(
            "options",
            f"target must be a name or a TargetSpec, not {type(option).__name__}.",
            hint="for example target='cpu'.",
        )
    return TargetSpec.parse(option)


def _tuning_log(option: Any) -> tuple[Path, ...]:
    given = option if isinstance(option, (tuple, list)) else (option,)
    if not all(isinstance(item, (str, os.PathLike)) for item in given):
        raise OptionError(
            "options",
            f"tuning_log must be a folder, or () for no records, not {option!r}.",
        )
    paths = tuple(Path(item) for item in given)
    for path in paths:
        if not path.is_dir():
            raise OptionError(
                "options",
                f"tuning_log: there is no folder '{path}'.",
                hint="graphopt tune makes one; leave the option out for the shipped records.",
            )
    return paths


def _directory(option: Any) -> Path:
    if not isinstance(option, (str, os.PathLike)):
        raise OptionError("options", f"dump_ir must be a directory's path, not {option!r}.")
    path = Path(option)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OptionError(
            "options", f"dump_ir: cannot create '{path}': {error.strerror}."
        ) from error
    return path
