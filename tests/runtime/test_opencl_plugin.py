"""The OpenCL plug-in: built once, kept, checked; and what is said where something is missing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from graphopt.cache import default_cache
from graphopt.errors import DeviceError
from graphopt.runtime.opencl import loader
from graphopt.runtime.opencl.devices import OpenclDevice, devices

LIST = """
import sys
from graphopt.errors import GraphoptError
from graphopt.runtime.opencl.devices import devices, require_devices
try:
    print("devices:", len(require_devices()))
except GraphoptError as error:
    print(error)
assert "tvm" not in sys.modules
"""


def python(script: str, cache: Path, **environment: str) -> subprocess.Popen[str]:
    """A new process that runs `script` with its plug-ins in `cache`."""
    env = {**os.environ, "GRAPHOPT_CACHE": str(cache), **environment}
    env["PYTHONPATH"] = str(Path(__file__).parents[2])
    command = [sys.executable, "-c", script]
    return subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def output(process: subprocess.Popen[str]) -> str:
    found, _ = process.communicate(timeout=300)
    assert process.returncode == 0, found
    return found


@pytest.fixture
def built(opencl: tuple[OpenclDevice, ...], tmp_path: Path) -> Path:
    """A cache of its own with the plug-in, built before."""
    folder = tmp_path / "cache"
    shutil.copytree(default_cache().plugins, folder / "plugins")
    return folder


def plugin_file(cache: Path) -> Path:
    return cache / "plugins" / f"graphopt-opencl-{loader.plugin_key()}.so"


def test_devices_are_described(opencl: tuple[OpenclDevice, ...]) -> None:
    assert devices() == opencl
    for index, device in enumerate(opencl):
        assert device.index == index
        assert device.name
        assert device.type in ("cpu", "gpu", "accelerator")
        assert device.max_work_group >= 1
        assert 0 < device.max_alloc_bytes <= device.global_bytes
        assert device.base_align_bytes & (device.base_align_bytes - 1) == 0
        assert device.fp16 == ("cl_khr_fp16" in device.extensions)


def test_another_process_takes_the_plugin_that_is_there(built: Path) -> None:
    # There is nothing to build with.
    assert "devices:" in output(python(LIST, built, PATH="/nonexistent", CXX=""))


def test_processes_that_find_a_torn_plugin_build_one_anew(built: Path, tmp_path: Path) -> None:
    compiler = loader.find_compiler()
    assert compiler is not None
    log, counting = tmp_path / "log", tmp_path / "c++"
    counting.write_text(f'#!/bin/sh\necho called >> {log}\nexec {compiler[0]} "$@"\n')
    counting.chmod(0o755)
    whole = plugin_file(built).read_bytes()
    plugin_file(built).write_bytes(whole[:-1000])
    processes = [python(LIST, built, CXX=str(counting)) for _ in range(2)]
    for process in processes:
        said = output(process)
        assert "devices:" in said
        assert "is damaged" in said
    assert log.read_text().split() == ["called"]
    assert len(plugin_file(built).read_bytes()) == len(whole)


def test_a_prebuilt_plugin_is_used(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = plugin_file(built).read_bytes()
    monkeypatch.setattr(loader, "PREBUILT", plugin_file(built).parent)
    monkeypatch.setenv("GRAPHOPT_CACHE", str(tmp_path / "empty"))
    monkeypatch.setenv("PATH", "/nonexistent")
    assert loader.plugin() == whole


def test_the_key_follows_the_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in loader.SOURCES.iterdir():
        if path.suffix in (".cc", ".h"):
            shutil.copy(path, tmp_path)
    before = loader.plugin_key()
    monkeypatch.setattr(loader, "SOURCES", tmp_path)
    assert loader.plugin_key() == before
    with (tmp_path / "cl.h").open("a") as file:
        file.write("// more\n")
    assert loader.plugin_key() != before


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (None, "there is no C++ compiler"),
        ("echo 'fatal error: no headers' >&2; exit 1", "no headers"),
    ],
)
def test_what_is_missing_to_build_is_said(
    script: str | None, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("GRAPHOPT_CACHE", str(tmp_path / "empty"))
    monkeypatch.setenv("PATH", str(tmp_path))
    if script is not None:
        (tmp_path / "g++").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "g++").chmod(0o755)
    with pytest.raises(DeviceError, match=r"C\+\+") as caught:
        loader.plugin()
    assert reason in caught.value.reason


def test_a_cache_that_cannot_be_written_is_no_obstacle(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GRAPHOPT_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(loader, "build", lambda: b"library")
    assert bytes(loader.plugin())[:7] == b"library"


def test_a_machine_without_driver_has_no_devices(built: Path, tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    said = output(python(LIST, built, OCL_ICD_VENDORS=str(tmp_path / "none")))
    assert "no OpenCL driver is installed" in said
    assert "pocl-opencl-icd" in said


def test_a_machine_without_libopencl_has_no_devices(built: Path, tmp_path: Path) -> None:
    for name in ("libOpenCL.so.1", "libOpenCL.so"):
        (tmp_path / name).write_text("this is no library")
    said = output(python(LIST, built, LD_LIBRARY_PATH=str(tmp_path)))
    assert "there is no OpenCL device: " in said
    assert "libOpenCL.so.1" in said


def test_another_runtime_is_left_alone(built: Path) -> None:
    script = f"""
from graphopt.runtime.library import load_runtime
load_runtime().register_global_func("device_api.opencl", lambda: None)
{LIST}"""
    assert "another OpenCL runtime" in output(python(script, built))
