"""Plan ↔ JSON. Reading checks every offset, because compiled code trusts them blindly."""

from __future__ import annotations

import math
from typing import Any

from graphopt.artifact import strict_json as sj
from graphopt.codegen.host_program import KINDS, TENSOR
from graphopt.codegen.plan import BoundInput, Buffer, Call, Plan, TensorSpec

ITEM_BYTES = {
    "bool": 1,
    "int8": 1,
    "uint8": 1,
    "int16": 2,
    "uint16": 2,
    "float16": 2,
    "bfloat16": 2,
    "int32": 4,
    "uint32": 4,
    "float32": 4,
    "int64": 8,
    "uint64": 8,
    "float64": 8,
    **dict.fromkeys(
        (
            "float8_e4m3fn",
            "float8_e4m3fnuz",
            "float8_e5m2",
            "float8_e5m2fnuz",
            "float8_e8m0fnu",
            "float6_e2m3fn",
            "float6_e3m2fn",
            "float4_e2m1fn",
            "int4",
            "uint4",
            "int2",
            "uint2",
        ),
        1,
    ),
}
"""Element types of inputs and outputs, and their sizes in bytes."""

VALUE_RANGES = {
    "bool": (0, 1),
    **{
        f"{kind}{bits}": (0, 2**bits - 1)
        if kind == "uint"
        else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        for kind in ("int", "uint")
        for bits in (8, 16, 32, 64)
    },
    **{f"float{bits}": (0, 2**bits - 1) for bits in (16, 32, 64)},
}
"""Element types of inputs whose values are compiled in, and the least and greatest value.

Floats are kept by their bit patterns, so that equality is exact and NaN equals itself.
"""

MAX_THREADS = 1024
MAX_BYTES = 2**47  # the user half of a 48-bit address space


def spec_to_json(spec: TensorSpec) -> dict[str, Any]:
    return {
        "name": spec.name,
        "dtype": spec.dtype,
        "shape": list(spec.shape),
        "kind": spec.kind,
    }


def spec_from_json(value: Any, where: str) -> TensorSpec:
    """Read a TensorSpec; unbound dimensions are null."""
    fields = sj.record(value, where, ("name", "dtype", "shape", "kind"))
    dtype = sj.text(fields["dtype"], f"{where}.dtype")
    kind = sj.text(fields["kind"], f"{where}.kind")
    if kind not in KINDS:
        raise sj.refuse(f"{where}.kind", f"unknown kind {kind!r}")
    if dtype not in ITEM_BYTES:
        raise sj.refuse(f"{where}.dtype", f"unknown element type {dtype!r}")

    def dimension(item: Any, at: str) -> int | None:
        return None if item is None else sj.integer(item, at)

    return TensorSpec(
        name=sj.text(fields["name"], f"{where}.name"),
        dtype=dtype,
        shape=sj.items(fields["shape"], f"{where}.shape", dimension),
        kind=kind,
    )


def bound_to_json(bound: BoundInput) -> dict[str, Any]:
    return {
        "name": bound.name,
        "dtype": bound.dtype,
        "shape": list(bound.shape),
        "values": list(bound.values),
    }


def bound_from_json(value: Any, where: str) -> BoundInput:
    """Read an input whose value is compiled in. Values of 64 bits are JSON integers too."""
    fields = sj.record(value, where, ("name", "dtype", "shape", "values"))
    dtype = sj.text(fields["dtype"], f"{where}.dtype")
    if dtype not in VALUE_RANGES:
        raise sj.refuse(f"{where}.dtype", f"values of {dtype!r} cannot be compiled in")
    low, high = VALUE_RANGES[dtype]

    def element(item: Any, at: str) -> int:
        return sj.integer(item, at, low=low, high=high)

    bound = BoundInput(
        name=sj.text(fields["name"], f"{where}.name"),
        dtype=dtype,
        shape=sj.items(fields["shape"], f"{where}.shape", sj.integer),
        values=sj.items(fields["values"], f"{where}.values", element),
    )
    if len(bound.values) != math.prod(bound.shape):
        raise sj.refuse(
            where, f"{len(bound.values)} values for a tensor of shape {list(bound.shape)}"
        )
    return bound


def plan_to_json(plan: Plan) -> dict[str, Any]:
    return {
        "inputs": [spec_to_json(spec) for spec in plan.inputs],
        "outputs": [spec_to_json(spec) for spec in plan.outputs],
        # Buffers are many and alike, so they are stored without names.
        "buffers": [[buffer.space, buffer.offset, buffer.nbytes] for buffer in plan.buffers],
        "calls": [
            {
                "site": call.site,
                "kernel": call.kernel,
                "args": list(call.args),
                "nodes": list(call.nodes),
                "serial": call.serial,
                "flops": float(call.flops),
                "bytes": float(call.bytes),
            }
            for call in plan.calls
        ],
        "arena_bytes": plan.arena_bytes,
        "weight_bytes": plan.weight_bytes,
        "threads": plan.threads,
    }


def plan_from_json(value: Any, where: str) -> Plan:
    """Read a Plan whose every buffer lies inside its space.

    Raises:
        ArtifactError: with the place and the reason.
    """
    fields = sj.record(
        value,
        where,
        ("inputs", "outputs", "buffers", "calls", "arena_bytes", "weight_bytes", "threads"),
    )
    inputs = sj.items(fields["inputs"], f"{where}.inputs", spec_from_json)
    outputs = sj.items(fields["outputs"], f"{where}.outputs", spec_from_json)
    for kind, specs in (("inputs", inputs), ("outputs", outputs)):
        if len({spec.name for spec in specs}) != len(specs):
            raise sj.refuse(f"{where}.{kind}", "two have the same name")
        if any(spec.kind != TENSOR for spec in specs):
            raise sj.refuse(f"{where}.{kind}", "a plan knows tensors only")
        if any(None in spec.shape for spec in specs):
            raise sj.refuse(f"{where}.{kind}", "a dimension is unbound")
    arena_bytes = sj.integer(fields["arena_bytes"], f"{where}.arena_bytes", high=MAX_BYTES)
    weight_bytes = sj.integer(fields["weight_bytes"], f"{where}.weight_bytes", high=MAX_BYTES)

    def buffer(item: Any, at: str) -> Buffer:
        if not isinstance(item, list) or len(item) != 3:
            raise sj.refuse(at, "expected [space, offset, bytes]")
        read = Buffer(
            space=sj.text(item[0], f"{at}[0]"),
            offset=sj.integer(item[1], f"{at}[1]"),
            nbytes=sj.integer(item[2], f"{at}[2]"),
        )
        _check_buffer(read, at, inputs, outputs, arena_bytes, weight_bytes)
        return read

    buffers = sj.items(fields["buffers"], f"{where}.buffers", buffer)

    def call(item: Any, at: str) -> Call:
        parts = sj.record(item, at, ("site", "kernel", "args", "nodes", "serial", "flops", "bytes"))

        def argument(index: Any, place: str) -> int:
            return sj.integer(index, place, high=len(buffers) - 1)

        return Call(
            site=sj.text(parts["site"], f"{at}.site"),
            kernel=sj.text(parts["kernel"], f"{at}.kernel"),
            args=sj.items(parts["args"], f"{at}.args", argument),
            nodes=sj.items(parts["nodes"], f"{at}.nodes", sj.text),
            serial=sj.flag(parts["serial"], f"{at}.serial"),
            flops=sj.amount(parts["flops"], f"{at}.flops"),
            bytes=sj.amount(parts["bytes"], f"{at}.bytes"),
        )

    calls = sj.items(fields["calls"], f"{where}.calls", call)
    if len({item.site for item in calls}) != len(calls):
        raise sj.refuse(f"{where}.calls", "two have the same site")
    return Plan(
        inputs=inputs,
        outputs=outputs,
        buffers=buffers,
        calls=calls,
        arena_bytes=arena_bytes,
        weight_bytes=weight_bytes,
        threads=sj.integer(fields["threads"], f"{where}.threads", low=1, high=MAX_THREADS),
    )


def tensor_bytes(spec: TensorSpec) -> int:
    """Size in bytes of a tensor whose dimensions are all bound."""
    return math.prod(size for size in spec.shape if size is not None) * ITEM_BYTES[spec.dtype]


def _check_buffer(
    buffer: Buffer,
    at: str,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    arena_bytes: int,
    weight_bytes: int,
) -> None:
    if buffer.space in ("input", "output"):
        specs = inputs if buffer.space == "input" else outputs
        if buffer.offset >= len(specs):
            raise sj.refuse(at, f"there is no {buffer.space} {buffer.offset}")
        held = tensor_bytes(specs[buffer.offset])
        if buffer.nbytes != held:
            raise sj.refuse(at, f"{buffer.nbytes} bytes for a tensor of {held}")
    elif buffer.space in ("arena", "weight"):
        size = arena_bytes if buffer.space == "arena" else weight_bytes
        if buffer.offset % 64:
            raise sj.refuse(at, f"offset {buffer.offset} is not a multiple of 64")
        if buffer.offset + buffer.nbytes > size:
            raise sj.refuse(
                at,
                f"bytes {buffer.offset} … {buffer.offset + buffer.nbytes} "
                f"lie outside the {buffer.space} of {size} bytes",
            )
    else:
        raise sj.refuse(at, f"unknown space {buffer.space!r}")
