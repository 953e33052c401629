"""graphopt devices: what this machine can run programs on."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from graphopt.cli import render
from graphopt.errors import ArtifactError, DeviceError
from graphopt.runtime.host import host_arch, host_features, physical_cores

if TYPE_CHECKING:
    from graphopt.cli.verbs import Screen
    from graphopt.runtime.cuda import Gpu
    from graphopt.runtime.opencl.devices import OpenclDevice


def devices(args: argparse.Namespace, screen: Screen) -> int:
    """graphopt devices"""
    opencl, no_opencl = _opencl()
    cuda, no_cuda = _cuda()
    processor = {
        "target": "cpu",
        "architecture": host_arch(),
        "cores": physical_cores(),
        "features": sorted(host_features()),
    }
    result = {
        "cpu": processor,
        "opencl": [{"target": f"opencl:{each.name}", **asdict(each)} for each in opencl],
        "cuda": [{"target": f"cuda:{each.architecture}", **asdict(each)} for each in cuda],
        "missing": {"opencl": no_opencl, "cuda": no_cuda},
    }
    tables = [_processor(processor)]
    tables += [_opencl_table(each) for each in opencl] or [_none("opencl", no_opencl)]
    tables += [_cuda_table(each) for each in cuda] or [_none("cuda", no_cuda)]
    screen.show(result, *tables)
    return 0


def _opencl() -> tuple[tuple[OpenclDevice, ...], str | None]:
    """The OpenCL devices, or why there are none."""
    from graphopt.runtime.opencl.devices import require_devices

    try:
        return require_devices(), None
    except (ArtifactError, DeviceError) as error:
        return (), _why(error)


def _cuda() -> tuple[tuple[Gpu, ...], str | None]:
    """The NVIDIA GPUs, or why there are none."""
    from graphopt.runtime.cuda import gpus

    try:
        found = gpus()
    except (ArtifactError, DeviceError) as error:
        return (), _why(error)
    return found, None if found else "NVIDIA's driver finds no GPU."


def _why(error: ArtifactError | DeviceError) -> str:
    return f"{error.reason} {error.hint}" if error.hint else error.reason


def _processor(facts: dict[str, Any]) -> Table:
    return _table(
        "cpu",
        ("architecture", facts["architecture"]),
        ("cores", str(facts["cores"])),
        ("features", " ".join(facts["features"])),
    )


def _opencl_table(device: OpenclDevice) -> Table:
    sizes = " × ".join(map(str, device.work_item_sizes))
    memory = f"{render.size(device.global_bytes)}, {render.size(device.max_alloc_bytes)} at once"
    precisions = [name for name in ("fp16", "fp64") if getattr(device, name)]
    return _table(
        "opencl",
        ("device", f"{device.index}: {device.name} ({device.type}, {device.vendor})"),
        ("driver", f"{device.version}, {device.platform} {device.driver}"),
        ("compute units", str(device.compute_units)),
        ("work-group", f"{device.max_work_group} work-items, at most {sizes}"),
        ("memory", f"{memory}; {render.size(device.local_bytes)} local"),
        ("alignment", f"{device.base_align_bytes} bytes"),
        ("precisions", ", ".join(["fp32", *precisions])),
        ("extensions", " ".join(device.extensions)),
    )


def _cuda_table(gpu: Gpu) -> Table:
    return _table(
        "cuda",
        ("device", f"{gpu.index}: {gpu.name} ({gpu.architecture})"),
        ("driver", f"CUDA {gpu.driver}"),
        ("multiprocessors", str(gpu.multiprocessors)),
        ("block", f"{gpu.max_threads} threads, {render.size(gpu.shared_bytes)} shared"),
        ("memory", render.size(gpu.memory_bytes)),
    )


def _none(kind: str, reason: str | None) -> Table:
    return _table(kind, ("none", str(reason)))


def _table(kind: str, *rows: tuple[str, str]) -> Table:
    table = render.plain_table()
    table.add_row(Text(kind, style="bold"), "")
    for name, value in rows:
        table.add_row(f"  {name}", Text(value))
    return table
