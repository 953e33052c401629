"""graphopt compile --emit c-library."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest

from graphopt.cli.main import main


def test_it_writes_a_library_named_like_the_model(tmp_path, tiny_cnn, capsys):
    onnx.save(tiny_cnn, tmp_path / "tiny-cnn.onnx")
    words = ["compile", tmp_path / "tiny-cnn.onnx", "-o", tmp_path / "new/lib"]
    options = ["--emit", "c-library", "--weights", "file", "--threads", "1", "--json"]
    assert main([*map(str, words), *options]) == 0
    files = {Path(file).name for file in json.loads(capsys.readouterr().out)["files"]}
    assert files == {path.name for path in (tmp_path / "new/lib").iterdir()}
    assert files == {
        *("tiny_cnn.h", "tiny_cnn.c", "libtiny_cnn.a", "libtiny_cnn.so", "tiny_cnnConfig.cmake"),
        "tiny_cnn.weights",
    }


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["-o", "m.onnx", "--emit", "c-library"], "is no folder"),
        (["-o", "lib", "--emit", "c-library", "--name", "int main"], "cannot be the name"),
        (["-o", "m.gopt", "--weights", "file"], "--weights is for C libraries"),
        (["-o", "m.gopt", "--name", "net"], "--name is for C libraries"),
        (["-o", "lib", "--emit", "c-library"], "--shape"),
    ],
)
def test_wrong_words_are_refused(words, said, tmp_path, dynamic_mlp, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    onnx.save(dynamic_mlp, "m.onnx")
    assert main(["compile", "m.onnx", *words]) == 2
    assert said in capsys.readouterr().err.replace("\n", " ")
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]
