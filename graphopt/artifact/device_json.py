"""DeviceNeeds ↔ JSON."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import Any

from graphopt.artifact import strict_json as sj
from graphopt.codegen.device_needs import KINDS, DeviceNeeds

_FIELDS = tuple(field.name for field in fields(DeviceNeeds))


def needs_to_json(needs: DeviceNeeds) -> dict[str, Any]:
    return asdict(needs)


def needs_from_json(value: Any, where: str) -> DeviceNeeds:
    """Read what a program needs of a device."""
    record = sj.record(value, where, _FIELDS)
    kind = sj.text(record["kind"], f"{where}.kind")
    if kind not in KINDS:
        raise sj.refuse(f"{where}.kind", f"unknown kind {kind!r}")
    return DeviceNeeds(
        kind=kind,
        name=sj.text(record["name"], f"{where}.name"),
        work_group=sj.integer(record["work_group"], f"{where}.work_group", low=1),
        local_bytes=sj.integer(record["local_bytes"], f"{where}.local_bytes"),
        alignment=sj.integer(record["alignment"], f"{where}.alignment", low=1),
        extensions=sj.items(record["extensions"], f"{where}.extensions", sj.text),
        architectures=sj.items(record["architectures"], f"{where}.architectures", sj.text),
    )
