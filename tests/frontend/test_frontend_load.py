"""Loading: what is accepted, and what the user is told about the rest."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from frontend_reference import benchmark_model
from onnx import TensorProto, external_data_helper, helper, numpy_helper

from graphopt.errors import ModelError
from graphopt.frontend.load import load_model


def small_model(weight: TensorProto | None = None) -> onnx.ModelProto:
    if weight is None:
        weight = numpy_helper.from_array(np.arange(8, dtype=np.float32).reshape(2, 4), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])],
        [weight],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def external_weight(location: str, length: int = 32, offset: int = 0) -> TensorProto:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2, 4])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def test_path_bytes_and_proto_give_the_same_model(tmp_path: Path) -> None:
    proto = small_model()
    path = tmp_path / "m.onnx"
    onnx.save(proto, path)
    digests = {load_model(s).digest() for s in (path, str(path), path.read_bytes(), proto)}
    assert len(digests) == 1


def test_digest_sees_every_weight_and_node() -> None:
    base = load_model(small_model()).digest()
    other = small_model()
    other.graph.initializer[0].raw_data = bytes(32)
    assert load_model(other).digest() != base
    other = small_model()
    other.graph.node[0].op_type = "Add"
    assert load_model(other).digest() != base


def test_missing_file_and_directory(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="There is no file"):
        load_model(tmp_path / "absent.onnx")
    with pytest.raises(ModelError, match="is a directory"):
        load_model(tmp_path)


@pytest.mark.parametrize("data", [b"\x89PNG\r\n\x1a\n" * 9, b"hello, world", b"PK\x03\x04" * 20])
def test_other_files_are_not_onnx(data: bytes) -> None:
    with pytest.raises(ModelError, match="not an ONNX model"):
        load_model(data)


def test_empty_and_truncated_files() -> None:
    data = small_model().SerializeToString()
    with pytest.raises(ModelError, match="is empty"):
        load_model(b"")
    for size in (3, len(data) // 2, len(data) - 1):
        with pytest.raises(ModelError, match=r"truncated|not an ONNX"):
            load_model(data[:size])


def test_external_data_is_mapped_and_part_of_the_digest(tmp_path: Path) -> None:
    weight = np.arange(8, dtype=np.float32).reshape(2, 4)
    (tmp_path / "w.bin").write_bytes(bytes(64) + weight.tobytes())
    onnx.save(small_model(external_weight("w.bin", offset=64)), tmp_path / "m.onnx")
    model = load_model(tmp_path / "m.onnx")
    array = model.array(model.proto.graph.initializer[0])
    np.testing.assert_array_equal(array, weight)
    assert isinstance(array.base, np.memmap) or isinstance(array.base.base, np.memmap)
    before = model.digest()
    (tmp_path / "w.bin").write_bytes(bytes(64) + (weight + 1).tobytes())
    assert load_model(tmp_path / "m.onnx").digest() != before


def test_what_onnx_saves_as_external_data_can_be_read(tmp_path: Path) -> None:
    proto = benchmark_model("squeezenet1_1")
    want = numpy_helper.to_array(proto.graph.initializer[0])
    external_data_helper.convert_model_to_external_data(proto, location="data.bin")
    onnx.save(proto, tmp_path / "m.onnx")
    model = load_model(tmp_path / "m.onnx")
    np.testing.assert_array_equal(model.array(model.proto.graph.initializer[0]), want)


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/passwd", "link.bin", "a/../../x"])
def test_external_data_outside_the_folder_is_refused(tmp_path: Path, location: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret.bin").write_bytes(bytes(32))
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    onnx.save(small_model(external_weight(location)), folder / "m.onnx")
    with pytest.raises(ModelError, match="outside the model's folder"):
        load_model(folder / "m.onnx")


def test_missing_short_and_folderless_external_data(tmp_path: Path) -> None:
    onnx.save(small_model(external_weight("w.bin")), tmp_path / "m.onnx")
    with pytest.raises(ModelError, match=r"'w.bin', which is missing"):
        load_model(tmp_path / "m.onnx")
    (tmp_path / "w.bin").write_bytes(bytes(31))
    with pytest.raises(ModelError, match="has only 31"):
        load_model(tmp_path / "m.onnx")
    with pytest.raises(ModelError, match="no folder is known"):
        load_model((tmp_path / "m.onnx").read_bytes())
    onnx.save(small_model(external_weight("w.bin", length=16)), tmp_path / "m.onnx")
    with pytest.raises(ModelError, match="states 16 bytes"):
        load_model(tmp_path / "m.onnx")


def test_weight_without_its_data() -> None:
    model = load_model(small_model(TensorProto(name="w", data_type=1, dims=[2, 4], raw_data=b"12")))
    with pytest.raises(ModelError, match="needs 32"):
        model.array(model.proto.graph.initializer[0])
