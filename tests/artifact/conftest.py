"""Fixtures of the artifact's tests: the parts of a small but complete `.gopt`, and keys."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from artifact_parts import Pair, Parts, make_pair, make_parts

import graphopt
from graphopt.artifact.bundle import save


@pytest.fixture
def parts() -> Parts:
    return make_parts()


@pytest.fixture
def tiny() -> Parts:
    """With a module of a few bytes, for tests that try every byte of the file."""
    made = make_parts(4, [b"\x7fELF, not really"])
    return Parts(made.manifest, made.modules, np.arange(16, dtype=np.uint8))


@pytest.fixture
def path(tmp_path: Path, parts: Parts) -> Path:
    """The file of the parts."""
    save(tmp_path / "model.gopt", parts.manifest, parts.modules, parts.weights)
    return tmp_path / "model.gopt"


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory, tiny_cnn: onnx.ModelProto) -> Path:
    """A compiled model; the parts have no report that load() takes."""
    path = tmp_path_factory.mktemp("program") / "model.gopt"
    graphopt.compile(tiny_cnn, threads=2).save(path)
    return path


@pytest.fixture(scope="session")
def alice(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return make_pair(tmp_path_factory.mktemp("keys"), "alice")


@pytest.fixture(scope="session")
def mallory(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return make_pair(tmp_path_factory.mktemp("keys"), "mallory")
