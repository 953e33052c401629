"""Reads a model from a path, bytes or a proto, and refuses what is not a complete ONNX model."""

from __future__ import annotations

import os
from pathlib import Path

import onnx
from google.protobuf.descriptor import FieldDescriptor  # type: ignore[import-untyped]
from google.protobuf.message import DecodeError, Message  # type: ignore[import-untyped]

from graphopt.errors import ModelError
from graphopt.frontend.model import OnnxModel, all_tensors, check_external, tensor_label

_DATA_FIELDS = (
    "raw_data",
    "float_data",
    "int32_data",
    "int64_data",
    "double_data",
    "uint64_data",
    "string_data",
)

# First byte of every ONNX file: protobuf's tag of field 1 (ir_version), a varint.
_ONNX_FIRST_BYTE = 0x08


def load_model(source: str | os.PathLike[str] | bytes | onnx.ModelProto) -> OnnxModel:
    """Load an ONNX model.

    Args:
        source: a path, the bytes of an .onnx file, or a ModelProto (not copied).

    Raises:
        ModelError: no such file, not ONNX, truncated, or external data missing or outside the
            model's folder.
    """
    if isinstance(source, onnx.ModelProto):
        model = OnnxModel(source)
    elif isinstance(source, (bytes, bytearray, memoryview)):
        model = OnnxModel(_parse(bytes(source), "the given bytes"))
    else:
        path = Path(source)
        model = OnnxModel(_parse(_read(path), f"'{path}'"), path.resolve().parent)
    _check_complete(model)
    return model


def require_weights(model: OnnxModel) -> None:
    """Refuse a graph whose weights were stripped; such a graph can only be inspected.

    Raises:
        ModelError: naming one of the initializers that have no data.
    """
    empty = [
        tensor
        for tensor in model.proto.graph.initializer
        if tensor.data_location != onnx.TensorProto.EXTERNAL
        and all(tensor.dims)
        and not any(getattr(tensor, name) for name in _DATA_FIELDS)
    ]
    if empty:
        others = f" and {len(empty) - 1} others have" if len(empty) > 1 else " has"
        raise ModelError(
            "load",
            f"The model is incomplete: {tensor_label(empty[0])}{others} no data.",
            hint="Its weights were stripped; get the whole model.",
        )


def _read(path: Path) -> bytes:
    try:
        # A pipe or a device has no end.
        if path.exists() and not path.is_file() and not path.is_dir():
            raise ModelError("load", f"'{path}' is no regular file.")
        return path.read_bytes()
    except FileNotFoundError:
        raise ModelError(
            "load", f"There is no file '{path}'.", hint="Check the path of the model."
        ) from None
    except IsADirectoryError:
        raise ModelError(
            "load", f"'{path}' is a directory.", hint="Give the path of the .onnx file inside it."
        ) from None
    except OSError as error:
        raise ModelError("load", f"'{path}' cannot be read: {error.strerror or error}.") from error


def _parse(data: bytes, name: str) -> onnx.ModelProto:
    if not data:
        raise ModelError("load", f"{name} is empty.")
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except DecodeError as error:
        if "depth" in str(error).lower():
            raise ModelError(
                "load", f"{name} nests subgraphs deeper than protobuf reads (about 30 levels)."
            ) from error
        if data[0] == _ONNX_FIRST_BYTE:
            raise ModelError(
                "load",
                f"{name} is a truncated or damaged ONNX model.",
                hint="Download or export it again; a model over 2 GB must use external data.",
            ) from error
        raise _not_onnx(name) from error
    if not proto.HasField("graph"):
        if proto.ir_version and data[0] == _ONNX_FIRST_BYTE:
            raise ModelError("load", f"{name} is a truncated ONNX model: it has no graph.")
        raise _not_onnx(name)
    return proto


def _has_damaged_text(message: Message) -> bool:
    """Whether a text in a message is not valid UTF-8: protobuf then gives its bytes."""
    for field, value in message.ListFields():
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            items = (value,) if isinstance(value, Message) else value
            if any(_has_damaged_text(item) for item in items):
                return True
        elif field.type == FieldDescriptor.TYPE_STRING:
            texts = value if not isinstance(value, (str, bytes)) else (value,)
            if any(isinstance(text, bytes) for text in texts):
                return True
    return False


def _not_onnx(name: str) -> ModelError:
    return ModelError(
        "load", f"{name} is not an ONNX model.", hint="Export the model to ONNX (.onnx) first."
    )


def _check_complete(model: OnnxModel) -> None:
    proto = model.proto
    if _has_damaged_text(proto):
        raise ModelError(
            "load",
            "The model is damaged: a name in it is not valid UTF-8.",
            hint="Download or export it again.",
        )
    if not proto.opset_import:
        raise ModelError("load", "The model imports no operator set (opset_import is empty).")
    if not proto.graph.output:
        raise ModelError("load", "The model has no outputs.")
    for tensor in all_tensors(proto):
        if any(dim < 0 for dim in tensor.dims):
            raise ModelError(
                "load", f"{tensor_label(tensor)} has a negative dimension: {list(tensor.dims)}."
            )
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            check_external(tensor, model.base_dir)
