"""The text of a C library's source: library.c with this library's names, numbers and tensors."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import cache
from importlib.resources import files

from graphopt.codegen import abi
from graphopt.codegen.c_library.blake2b import blake2b_source
from graphopt.codegen.c_library.header import string
from graphopt.codegen.c_library.interface import Interface, Tensor
from graphopt.codegen.c_library.processor import needs

_SLOTS = (
    "NUM_TASKS", "BARRIER", "SEMAPHORES", "STOP", "ARENA", "WEIGHTS", "SOLO_BARRIER", "FIRST_IO",
)  # fmt: skip


def source(
    interface: Interface, arch: str, features: Sequence[str], weights_digest: bytes | None
) -> str:
    """The text of NAME.c.

    Args:
        arch, features: LLVM's names of the architecture and of what the code may use.
        weights_digest: BLAKE2b of 32 bytes of the weights, if they are in a file of their own.
    """
    tensors = (*interface.inputs, *interface.outputs)
    text = _template()
    text = re.sub(r"\bmodel(?=[_.])", interface.name, text)
    text = re.sub(r"\blibmodel\b", f"lib{interface.name}", text)
    text = re.sub(r"\bMODEL(?=_)", interface.name.upper(), text)
    constants = {
        **{name: getattr(abi, name) for name in _SLOTS},
        "SLOT_COUNT": abi.FIRST_IO + len(tensors),
        "TENSOR_COUNT": len(tensors),
        "THREADS": interface.threads,
        "HANDLE_BYTES": interface.handle_bytes,
        "ARENA_BYTES": interface.arena_bytes,
        "STAGING_OFFSETS": _braces(interface.staging),
        "WEIGHT_BYTES": interface.weight_bytes,
        "WEIGHTS_IN_FILE": int(weights_digest is not None),
        "WEIGHTS_DIGEST": _braces(weights_digest or b""),
        "TILES": int("amx-tile" in features),
        "NEEDS": _braces(_braces(f"{number}u" for number in row) for row in needs(arch, features)),
        "FEATURES": string(", ".join(features) or "nothing"),
    }
    lines = "\n".join(f"#define {name} {value}" for name, value in constants.items())
    return text.replace("@CONSTANTS@", lines).replace(
        "@TENSORS@", _tensors(interface.name, tensors)
    )


@cache
def _template() -> str:
    text = files("graphopt.codegen.c_library").joinpath("library.c").read_text("utf-8")
    return text.replace('#include "blake2b.inc"\n', blake2b_source("static"))


def _tensors(name: str, tensors: Sequence[Tensor]) -> str:
    shapes, rows = [], []
    for index, tensor in enumerate(tensors):
        if tensor.shape:
            dims = _braces(tensor.shape)
            shapes.append(f"static const int64_t shape_{index}[] = {dims};")
        shape = f"shape_{index}" if tensor.shape else "NULL"
        dtype = f"{name.upper()}_{tensor.dtype.upper()}"
        rows.append(
            f"    {{{string(tensor.name)}, {dtype}, {len(tensor.shape)}, {shape}, "
            f"{tensor.elements}, {tensor.nbytes}}},"
        )
    table = "\n".join([f"static const {name}_tensor tensors[] = {{", *rows, "};"])
    return "\n".join([*shapes, table])


def _braces(items: Iterable[object]) -> str:
    return "{" + ", ".join(map(str, items)) + "}"
