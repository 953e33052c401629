"""Device: a GPU, or what else runs OpenCL or CUDA kernels, named as in "opencl" or "cuda:sm_80"."""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import lcm
from typing import Any

from tvm.target import Target

from graphopt.codegen.device_kernel import LaunchLimits
from graphopt.codegen.device_program import DeviceTarget
from graphopt.errors import OptionError
from schedules.interface import GpuTraits, TargetTraits

OPENCL, CUDA = DEVICES = ("opencl", "cuda")

_MOST_THREADS = 256
_MOST_SHARED = 32 << 10
_CUDA_SHARED = 48 << 10
"""What a block gets on every architecture without asking for more at run time."""
_FIRST_SM, _DP4A_SM, _TENSOR_CORES_SM = 50, 61, 70


@dataclass(frozen=True)
class Device:
    """What runs kernels.

    Attributes:
        kind: "opencl" or "cuda".
        name: the OpenCL device's as its driver gives it; of CUDA the architectures.
        index: of an OpenCL device, among this machine's.
        architectures: of CUDA, for which machine code is made, oldest first: "sm_80".
        gpu: its limits and abilities.
        vector_bytes: how much one thread should read or write at once.
        alignment: in bytes, of where a buffer may begin.
    """

    kind: str
    name: str
    index: int
    architectures: tuple[str, ...]
    gpu: GpuTraits
    vector_bytes: int
    alignment: int = 64

    def target(self, host: Any) -> DeviceTarget:
        """What code is compiled for; `host` is the tvm Target of what launches it."""
        gpu = self.gpu
        spec: dict[str, Any] = {
            "kind": self.kind,
            "max_num_threads": gpu.max_threads,
            "max_threads_per_block": gpu.max_threads,
            "max_shared_memory_per_block": gpu.shared_bytes,
            "thread_warp_size": gpu.warp,
        }
        if self.architectures:
            spec["arch"] = self.architectures[0]
        limits = LaunchLimits(gpu.max_threads, gpu.max_blocks)
        name = self.name if self.kind == OPENCL else ""
        # CUDA has these types on every GPU, if slow ones on some.
        known = {"float16": gpu.fp16 or self.kind == CUDA, "float64": gpu.fp64}
        lacking = tuple(dtype for dtype, there in known.items() if not there)
        device = Target(spec)
        return DeviceTarget(device, host, name, self.architectures, limits, self.alignment, lacking)

    @staticmethod
    def from_dict(fields: dict[str, Any]) -> Device:
        """The device of which dataclasses.asdict() gave these, also after a trip through JSON."""
        given = {**fields, "gpu": GpuTraits(**fields["gpu"])}
        return Device(**{**given, "architectures": tuple(fields["architectures"])})

    def traits(self) -> TargetTraits:
        """What schedules need to know of it."""
        return TargetTraits(
            arch=self.kind,
            vector_bytes=self.vector_bytes,
            vector_registers=32,
            gpu=self.gpu,
            alignment=self.alignment,
        )

    def key(self) -> str:
        """What tuning records of this device have in common; a valid file name."""
        name = re.sub(r"[^a-z0-9_]+", "-", self.name.lower()).strip("-")
        if self.kind == CUDA:
            return f"cuda-{name}"
        return f"opencl-{name}-u{self.gpu.units}-g{self.gpu.max_threads}"


def find_device(text: str, vector_bytes: int) -> Device:
    """The device named `text`.

    Args:
        vector_bytes: width of this machine's vector registers, for a device that is its processor.
    Raises:
        OptionError, DeviceError: there is none.
    """
    kind, _, name = text.partition(":")
    if kind == OPENCL:
        return _opencl(text, name.strip(), vector_bytes)
    return _cuda(text, name.strip())


def _opencl(text: str, name: str, vector_bytes: int) -> Device:
    # Only now: it loads the OpenCL runtime.
    from graphopt.runtime.opencl.devices import require_devices

    found = require_devices()
    for each in found:
        if name.lower() not in each.name.lower():
            continue
        gpu = GpuTraits(
            max_threads=min(each.max_work_group, _MOST_THREADS),
            shared_bytes=min(each.local_bytes, _MOST_SHARED),
            units=each.compute_units,
            loops=each.type == "cpu",
            fp16=each.fp16,
            fp64=each.fp64,
            dp4a="cl_khr_integer_dot_product" in each.extensions,
        )
        vector = vector_bytes if gpu.loops else 16
        alignment = lcm(64, each.base_align_bytes)
        return Device(OPENCL, each.name, each.index, (), gpu, vector, alignment)
    raise OptionError(
        "target",
        f"'{text}': no OpenCL device has '{name}' in its name.",
        hint=f"there is {', '.join(repr(each.name) for each in found)}.",
    )


def _cuda(text: str, name: str) -> Device:
    if name:
        architectures = tuple(dict.fromkeys(part.strip() for part in name.split(",")))
        for part in architectures:
            if not re.fullmatch(r"sm_\d\d\d?[af]?", part) or _sm(part) < _FIRST_SM:
                raise OptionError(
                    "target",
                    f"'{text}': '{part}' is no architecture of NVIDIA's GPUs from sm_50 on.",
                    hint="write for example 'cuda:sm_80' or 'cuda:sm_75,sm_90'.",
                )
        units = 1
    else:
        from graphopt.runtime.cuda import probe

        present = probe()
        if present is None:
            raise OptionError(
                "target",
                "this machine has no NVIDIA GPU with a driver.",
                hint="name what to compile for, as in 'cuda:sm_80'.",
            )
        architectures, units = (present.architecture,), present.multiprocessors
    architectures = tuple(sorted(architectures, key=_sm))
    gpu = GpuTraits(
        max_threads=1024,
        shared_bytes=_CUDA_SHARED,
        warp=32,
        units=max(units, 32),
        fp16=_sm(architectures[0]) >= 60,
        fp64=True,
        dp4a=_sm(architectures[0]) >= _DP4A_SM,
        tensor_cores=_sm(architectures[0]) >= _TENSOR_CORES_SM,
    )
    return Device(CUDA, ".".join(architectures), 0, architectures, gpu, 16)


def _sm(architecture: str) -> int:
    return int(re.sub(r"\D", "", architecture))
