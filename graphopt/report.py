"""What compile() did: passes, kernels, and everything a user should know about."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any


@dataclass(frozen=True)
class PassRow:
    """One pass: what it rewrote, and why it refused what it matched."""

    name: str
    rewrites: int
    refusals: tuple[str, ...]
    seconds: float
    before: int  # bindings
    after: int


@dataclass(frozen=True)
class KernelRow:
    """One kernel call: the candidate that was chosen and where its schedule comes from."""

    site: str
    kernel: str
    candidate: str
    origin: str  # "default", later "tuned" or "borrowed"
    nodes: tuple[str, ...]


@dataclass(frozen=True)
class FloatRow:
    """A convolution or product with quantized operands that is computed in floats, and why."""

    nodes: tuple[str, ...]
    reason: str


@dataclass(frozen=True)
class Report:
    """The account of one compiled program. Counts are of this specialisation.

    Attributes:
        shapes: of all inputs. constants: the values of inputs that are compiled in, as (nested
            lists of) whole numbers and bools.
        seconds: time per stage.
        nodes: ONNX nodes of the prepared model; operations: after the passes; groups: after
            fusion; kernels: distinct ones.
        weight_bytes, constant_bytes: packed weights, and the model's own.
        floats: what a quantized model has computed in floats all the same.
    """

    target: str
    threads: int
    shapes: Mapping[str, tuple[int, ...]]
    constants: Mapping[str, Any]
    seconds: Mapping[str, float]
    nodes: int
    operations: int
    groups: int
    kernels: int
    layout_changes: int
    arena_bytes: int
    weight_bytes: int
    constant_bytes: int
    passes: tuple[PassRow, ...]
    calls: tuple[KernelRow, ...]
    warnings: tuple[str, ...]
    floats: tuple[FloatRow, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The report as plain JSON values."""
        plain = asdict(self)
        plain["shapes"] = {name: list(shape) for name, shape in self.shapes.items()}
        return plain

    @staticmethod
    def from_dict(plain: Mapping[str, Any]) -> Report:
        """The report of which to_dict() gave `plain`; TypeError or KeyError for anything else."""
        fields = dict(plain)
        fields["shapes"] = {name: tuple(shape) for name, shape in plain["shapes"].items()}
        fields["passes"] = tuple(
            PassRow(**{**row, "refusals": tuple(row["refusals"])}) for row in plain["passes"]
        )
        fields["calls"] = tuple(
            KernelRow(**{**row, "nodes": tuple(row["nodes"])}) for row in plain["calls"]
        )
        fields["warnings"] = tuple(plain["warnings"])
        fields["floats"] = tuple(
            FloatRow(**{**row, "nodes": tuple(row["nodes"])}) for row in plain.get("floats", ())
        )
        return Report(**fields)

    def origins(self) -> dict[str, int]:
        """How many calls are tuned, borrowed, or on default schedules."""
        return dict(Counter(row.origin for row in self.calls))


def merged(whole: Report, parts: Sequence[tuple[str, Report]]) -> Report:
    """The account of a program with its parts, whose call sites are marked by their names."""
    seconds = Counter(whole.seconds)
    passes = {row.name: row for row in whole.passes}
    for _, part in parts:
        seconds.update(part.seconds)
        for row in part.passes:
            passes[row.name] = _both(passes[row.name], row) if row.name in passes else row
    reports = [part for _, part in parts]
    return replace(
        whole,
        seconds=dict(seconds),
        operations=sum(part.operations for part in reports),
        groups=sum(part.groups for part in reports),
        kernels=sum(part.kernels for part in reports),
        layout_changes=sum(part.layout_changes for part in reports),
        arena_bytes=sum(part.arena_bytes for part in reports),
        weight_bytes=max((part.weight_bytes for part in reports), default=0),
        constant_bytes=sum(part.constant_bytes for part in reports),
        passes=tuple(passes.values()),
        calls=tuple(
            replace(row, site=f"{name}/{row.site}") for name, part in parts for row in part.calls
        ),
        floats=tuple(row for part in reports for row in part.floats),
        warnings=tuple(
            dict.fromkeys((*whole.warnings, *(text for part in reports for text in part.warnings)))
        ),
    )


def _both(a: PassRow, b: PassRow) -> PassRow:
    return PassRow(
        a.name,
        a.rewrites + b.rewrites,
        a.refusals + b.refusals,
        a.seconds + b.seconds,
        a.before + b.before,
        a.after + b.after,
    )
