"""OnnxModel: an ONNX proto together with the folder that its external data lies in."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from onnx import AttributeProto, GraphProto, ModelProto, TensorProto, helper, numpy_helper

from graphopt.errors import ModelError

Array = np.ndarray[Any, Any]

_HASH_CHUNK = 1 << 22


@dataclass(frozen=True)
class OnnxModel:
    """An ONNX model. Treat `proto` as read-only: stages return a new OnnxModel.

    Attributes:
        proto: the model; tensors with external data stay external, so that weights over 2 GB
            are neither copied nor pushed through protobuf.
        base_dir: folder that external data is relative to; None for a model given as bytes.
        shared: initializers by name that are kept outside of `proto`, so that the parts a model
            is cut into do not copy them.
    """

    proto: ModelProto
    base_dir: Path | None = None
    shared: Mapping[str, TensorProto] = field(default_factory=dict)

    @property
    def opsets(self) -> dict[str, int]:
        """Version of each operator set by its domain, see domain_of."""
        return {domain_of(opset): opset.version for opset in self.proto.opset_import}

    def array(self, tensor: TensorProto) -> Array:
        """Values of one of the model's tensors; external ones are mapped, not read.

        Raises ModelError if the tensor has not the amount of data that its shape needs.
        """
        return tensor_array(tensor, self.base_dir)

    def digest(self) -> str:
        """Hex SHA-256 of everything the model computes with, external data included.

        Hashes field by field: a model over 2 GB cannot be serialised in one piece. Two models
        with equal digests are the same model; the same model saved by another writer may differ.
        """
        hasher = hashlib.sha256()
        _hash_message(hasher, self.proto, depth=0)
        for tensor in all_tensors(self.proto):
            if tensor.data_location == TensorProto.EXTERNAL:
                data = np.ascontiguousarray(self.array(tensor)).reshape(-1).view(np.uint8)
                for start in range(0, data.size, _HASH_CHUNK):
                    hasher.update(data[start : start + _HASH_CHUNK].tobytes())
        return hasher.hexdigest()


def _hash_message(hasher: Any, message: Any, depth: int) -> None:
    # Two levels suffice: a model's fields and a graph's, whose elements are nodes and tensors.
    for descriptor, value in message.ListFields():
        hasher.update(f"{depth}:{descriptor.name};".encode())
        items = value if isinstance(value, (list, tuple)) or hasattr(value, "add") else [value]
        for item in items:
            if depth == 0 and isinstance(item, GraphProto):
                _hash_message(hasher, item, depth + 1)
                continue
            if hasattr(item, "SerializeToString"):
                blob = item.SerializeToString(deterministic=True)
            else:
                blob = repr(item).encode()
            hasher.update(len(blob).to_bytes(8, "little"))
            hasher.update(blob)


CONTROL_FLOW = ("If", "Loop", "Scan")

LISTS = frozenset(
    (
        "SequenceEmpty",
        "SequenceConstruct",
        "SequenceInsert",
        "SequenceErase",
        "SequenceAt",
        "SequenceLength",
        "SplitToSequence",
        "ConcatFromSequence",
        "Optional",
        "OptionalHasElement",
        "OptionalGetElement",
    )
)
"""Operators on sequences and optionals."""


def subgraphs(node: Any) -> Iterator[GraphProto]:
    """The graphs in a node's attributes (If, Loop, Scan)."""
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g
        elif attribute.type == AttributeProto.GRAPHS:
            yield from attribute.graphs


def domain_of(named: Any) -> str:
    """The domain of a node or an operator set, "" for ONNX's own, which has two names."""
    return "" if named.domain == "ai.onnx" else str(named.domain)


def is_standard(named: Any) -> bool:
    """Whether a node or an operator set is of ONNX's main domain."""
    return domain_of(named) == ""


def captured_names(node: Any) -> set[str]:
    """Names from outside that the subgraphs of a node read."""
    return set().union(*[_free_names(graph) for graph in subgraphs(node)])


def _free_names(graph: GraphProto) -> set[str]:
    known = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    known |= {sparse.values.name for sparse in graph.sparse_initializer}
    known |= {name for node in graph.node for name in node.output}
    read = {value.name for value in graph.output}
    for node in graph.node:
        read |= set(node.input) | captured_names(node)
    return read - known - {""}


def _node_tensors(nodes: Any) -> Iterator[TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.TENSOR:
                yield attribute.t
            elif attribute.type == AttributeProto.TENSORS:
                yield from attribute.tensors
        for graph in subgraphs(node):
            yield from graph.initializer
            yield from _node_tensors(graph.node)


def all_tensors(proto: ModelProto) -> Iterator[TensorProto]:
    """Every tensor of a model: initializers and attributes, in subgraphs and functions too."""
    yield from proto.graph.initializer
    yield from _node_tensors(proto.graph.node)
    for function in proto.functions:
        yield from _node_tensors(function.node)


def tensor_label(tensor: TensorProto) -> str:
    """How errors call a tensor."""
    return f"initializer '{tensor.name}'" if tensor.name else "a tensor attribute"


def tensor_nbytes(tensor: TensorProto) -> int:
    """Bytes a tensor occupies when unpacked; 0 for strings."""
    try:
        dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
    except KeyError:
        raise ModelError(
            "load", f"{tensor_label(tensor)} has unknown element type {tensor.data_type}."
        ) from None
    return 0 if dtype.kind == "O" else int(prod(tensor.dims) * dtype.itemsize)


def _packed_nbytes(tensor: TensorProto) -> int:
    bits = {
        TensorProto.INT4: 4,
        TensorProto.UINT4: 4,
        TensorProto.FLOAT4E2M1: 4,
        TensorProto.FLOAT6E2M3: 6,
        TensorProto.FLOAT6E3M2: 6,
        TensorProto.INT2: 2,
        TensorProto.UINT2: 2,
    }.get(tensor.data_type)
    if bits is None:
        return tensor_nbytes(tensor)
    return int((prod(tensor.dims) * bits + 7) // 8)


def external_fields(tensor: TensorProto) -> tuple[str, int, int | None]:
    """Location, offset and length (None: not stated) of a tensor's external data."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    try:
        length = int(entries["length"]) if "length" in entries else None
        return entries.get("location", ""), int(entries.get("offset", 0)), length
    except ValueError:
        raise ModelError(
            "load", f"{tensor_label(tensor)} states an external offset or length that is no number."
        ) from None


def external_path(tensor: TensorProto, base_dir: Path | None) -> Path:
    """File of a tensor's external data. Raises ModelError if it lies outside `base_dir`.

    A model is untrusted input: without this check it could read any file of the user's.
    """
    location, _, _ = external_fields(tensor)
    if base_dir is None:
        raise ModelError(
            "load",
            f"{tensor_label(tensor)} has external data ('{location}'), but no folder is known.",
            hint="Give the path of the .onnx file instead of bytes or a ModelProto.",
        )
    base = base_dir.resolve()
    path = (base / location).resolve()
    if not location or Path(location).is_absolute() or not path.is_relative_to(base):
        raise ModelError(
            "load",
            f"{tensor_label(tensor)} refers to external data outside the model's folder: "
            f"'{location}'.",
            hint="Re-save the model with its data files beside it.",
        )
    return path


def check_external(tensor: TensorProto, base_dir: Path | None) -> None:
    """Raise ModelError unless a tensor's external data is there and large enough."""
    path = external_path(tensor, base_dir)
    location, offset, length = external_fields(tensor)
    if not path.is_file():
        raise ModelError(
            "load",
            f"{tensor_label(tensor)} needs the external data file '{location}', which is missing.",
            hint="Keep the data files of a model beside its .onnx file.",
        )
    needed = _packed_nbytes(tensor)
    if length is not None and length != needed:
        raise ModelError(
            "load",
            f"{tensor_label(tensor)} states {length} bytes of data, its shape needs {needed}.",
        )
    if offset < 0 or path.stat().st_size < offset + needed:
        raise ModelError(
            "load",
            f"{tensor_label(tensor)} needs bytes {offset} to {offset + needed} of '{location}', "
            f"which has only {path.stat().st_size}.",
            hint="The data file is truncated or belongs to another model.",
        )


def tensor_array(tensor: TensorProto, base_dir: Path | None = None) -> Array:
    """Values of a tensor; external data is memory-mapped read-only."""
    if tensor.data_location == TensorProto.EXTERNAL:
        check_external(tensor, base_dir)
        path = external_path(tensor, base_dir)
        _, offset, _ = external_fields(tensor)
        packed = _packed_nbytes(tensor)
        if packed == 0:
            return np.zeros(tuple(tensor.dims), helper.tensor_dtype_to_np_dtype(tensor.data_type))
        raw = np.memmap(path, np.uint8, "r", offset, (packed,))
        if packed == tensor_nbytes(tensor):
            dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type).newbyteorder("<")
            mapped: Array = np.asarray(raw).view(dtype).reshape(tuple(tensor.dims))
            return mapped
        tensor = TensorProto(
            dims=tensor.dims, data_type=tensor.data_type, name=tensor.name, raw_data=raw.tobytes()
        )
    if tensor.HasField("raw_data") and len(tensor.raw_data) != _packed_nbytes(tensor):
        raise ModelError(
            "load",
            f"{tensor_label(tensor)} has {len(tensor.raw_data)} bytes of data, "
            f"its shape {list(tensor.dims)} needs {_packed_nbytes(tensor)}.",
        )
    try:
        return np.asarray(numpy_helper.to_array(tensor))
    except (ValueError, TypeError) as error:
        raise ModelError(
            "load",
            f"{tensor_label(tensor)} does not have the data for {list(tensor.dims)}: {error}.",
        ) from error
