"""The wheel is built, installed into a clean place and used there: it has all that it needs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import onnx
import pytest

import graphopt

ROOT = Path(__file__).parents[1]
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "graphopt", "schedules", "tuning_logs")

SCRIPT = """
import json, sys
import numpy as np
import graphopt, schedules
model = graphopt.compile(sys.argv[1], threads=1)
x = np.ones((1, 3, 12, 12), np.float32)
y = model.run({"x": x})["y"]
model.save("m.gopt")
loaded = graphopt.load("m.gopt").run({"x": x})["y"]
print(json.dumps({
    "files": [graphopt.__file__, schedules.__file__], "equal": bool((y == loaded).all()),
    "origins": model.report.origins(),
}))
"""


DEVICE_SCRIPT = """
import sys
import numpy as np
import graphopt
from graphopt.runtime.opencl import loader
x = np.ones((1, 3, 12, 12), np.float32)
print(loader.SOURCES)
graphopt.compile(sys.argv[1], "opencl").save("device.gopt")
found = graphopt.load("device.gopt").run({"x": x})["y"]
expected = graphopt.compile(sys.argv[1], threads=1).run({"x": x})["y"]
np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
"""


def call(*words: object, folder: Path, **more: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL"))}
    environment.update(more)
    command = [str(word) for word in words]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory, tiny_cnn: onnx.ModelProto) -> Path:
    """The wheel, built from a copy, with records of a model in it: building leaves files beside the
    sources."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in SOURCES:
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, source / name, ignore=ignored)
        elif (ROOT / name).is_file():
            shutil.copy(ROOT / name, source / name)
    graphopt.tune(tiny_cnn, threads=1, trials=4, log=source / "tuning_logs", fresh=True)
    words = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder)
    done = call(*words, source, folder=folder)
    if "No matching distribution" in done.stderr:
        pytest.skip("pip cannot get setuptools, which builds the wheel")
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def place(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment with the wheel in it."""
    folder = tmp_path_factory.mktemp("installed")
    place = folder / "env"
    venv.create(place, symlinks=True)
    python = place / "bin" / "python"
    # A line of a .pth file is a folder to import from; the .pth files in that are not read, so
    # the dependencies are found there and an editable graphopt is not.
    (packages,) = place.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    install = ("install", "--quiet", "--no-deps", "--no-index")
    done = call(sys.executable, "-m", "pip", "--python", python, *install, wheel, folder=folder)
    assert done.returncode == 0, done.stderr
    return place


def test_an_installed_wheel_compiles(
    place: Path, tiny_cnn: onnx.ModelProto, tmp_path: Path
) -> None:
    python = place / "bin" / "python"
    (packages,) = place.glob("lib/python*/site-packages")
    for package in ("graphopt", "schedules"):
        assert (packages / package / "py.typed").is_file()
    for file in ("cxx/loader.hpp", "codegen/c_library/library.c", "codegen/c_library/blake2b.inc"):
        assert (packages / "graphopt" / file).is_file()
    shipped = {path.relative_to(packages) for path in packages.rglob("*.py")}
    for package in ("graphopt", "schedules"):
        ours = {path.relative_to(ROOT) for path in (ROOT / package).rglob("*.py")}
        assert ours <= shipped
    plugin = ROOT / "graphopt" / "runtime" / "opencl"
    for source in (*plugin.glob("*.cc"), *plugin.glob("*.h")):
        assert (packages / source.relative_to(ROOT)).is_file()

    onnx.save(tiny_cnn, tmp_path / "model.onnx")
    done = call(python, "-c", SCRIPT, "model.onnx", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["equal"]
    assert result["origins"]["tuned"] >= 1
    assert all(Path(file).is_relative_to(packages) for file in result["files"])
    done = call(place / "bin" / "graphopt", "verify", "model.onnx", folder=tmp_path)
    assert (done.returncode, "all outputs agree" in done.stdout) == (0, True), done.stderr


def test_an_installed_wheel_builds_its_plugin_for_devices(
    opencl: object, place: Path, tiny_cnn: onnx.ModelProto, tmp_path: Path
) -> None:
    onnx.save(tiny_cnn, tmp_path / "model.onnx")
    words = (place / "bin" / "python", "-c", DEVICE_SCRIPT, "model.onnx")
    done = call(*words, folder=tmp_path, GRAPHOPT_CACHE=str(tmp_path / "cache"))
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).is_relative_to(place)
    assert list((tmp_path / "cache" / "plugins").glob("graphopt-opencl-*.so"))
