"""`.gopt` files: what is saved runs again, and nothing altered is ever accepted."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
import textwrap
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from artifact_parts import Parts, contents, forged, make_parts, packed, sealed
from toy_program import toy_expected, toy_inputs

from graphopt.artifact.bundle import load, save, to_bytes
from graphopt.artifact.container import SEAL_BYTES, UNSEALED_BYTES
from graphopt.errors import ArtifactError
from graphopt.runtime.library import open_module
from graphopt.runtime.session import Session


def test_a_saved_program_runs_again(parts: Parts, tmp_path: Path) -> None:
    path = tmp_path / "model.gopt"
    digest = save(path, parts.manifest, parts.modules, parts.weights)
    for artifact in (load(path), load(str(path)), load(path.read_bytes())):
        assert artifact.manifest == parts.manifest
        assert artifact.digest == digest
        assert artifact.weights.ctypes.data % 64 == 0
        assert not artifact.weights.flags.writeable
        np.testing.assert_array_equal(artifact.weights, parts.weights)
        assert bytes(artifact.module(0)) == parts.modules[0]
        session = Session(
            artifact.manifest.entries[0].plan,
            open_module(artifact.module(0)),
            artifact.entry_weights(0),
        )
        with session:
            results = session.run(toy_inputs(3))
        for name, value in toy_expected(toy_inputs(3)).items():
            np.testing.assert_array_equal(results[name], value)


def test_saving_twice_gives_the_same_bytes(parts: Parts, tmp_path: Path) -> None:
    first, second = tmp_path / "a.gopt", tmp_path / "b.gopt"
    save(first, parts.manifest, parts.modules, parts.weights)
    save(second, parts.manifest, parts.modules, parts.weights)
    assert first.read_bytes() == second.read_bytes() == packed(parts)


def test_other_tools_can_read_it(parts: Parts, tmp_path: Path) -> None:
    path = tmp_path / "model.gopt"
    save(path, parts.manifest, parts.modules, parts.weights)
    with zipfile.ZipFile(path) as file:
        assert file.testzip() is None
        assert file.namelist() == ["manifest.json", "entries/0/module.so", "weights.bin"]
        assert file.read("weights.bin") == parts.weights.tobytes()
        info = file.getinfo("weights.bin")
        assert info.compress_type == zipfile.ZIP_STORED
    data = path.read_bytes()
    assert data[data.index(parts.weights.tobytes()) :][:1] == parts.weights[:1].tobytes()
    assert data.index(parts.weights.tobytes()) % 4096 == 0


def test_entries_may_share_weights(tmp_path: Path) -> None:
    parts = make_parts(16)
    entry = parts.manifest.entries[0]
    manifest = replace(parts.manifest, entries=(entry, replace(entry, weights_offset=64)))
    weights = np.arange(128, dtype=np.uint8)
    path = tmp_path / "two.gopt"
    save(path, manifest, [*parts.modules, b"other"], weights)
    artifact = load(path)
    np.testing.assert_array_equal(artifact.entry_weights(0), weights[:64])
    np.testing.assert_array_equal(artifact.entry_weights(1), weights[64:])
    assert bytes(artifact.modules[1]) == b"other"


def test_no_weights_at_all(tmp_path: Path) -> None:
    parts = make_parts(0)
    path = tmp_path / "none.gopt"
    save(path, parts.manifest, parts.modules, b"")
    assert load(path).weights.size == load(path.read_bytes()).weights.size == 0


def test_every_changed_byte_is_refused(tiny: Parts) -> None:
    good = packed(tiny)
    assert load(good).manifest == tiny.manifest
    for position in range(len(good)):
        bad = bytearray(good)
        bad[position] ^= 1 << position % 8
        with pytest.raises(ArtifactError):
            load(bytes(bad))


def test_every_length_but_the_right_one_is_refused(tiny: Parts) -> None:
    good = packed(tiny)
    for length in range(len(good)):
        with pytest.raises(ArtifactError):
            load(good[:length])
    for added in (b"\0", b"x" * 100, good):
        with pytest.raises(ArtifactError):
            load(good + added)
        with pytest.raises(ArtifactError):
            load(added + good)
    for position in range(0, len(good), 97):
        with pytest.raises(ArtifactError):
            load(good[:position] + b"\0" + good[position:])
        with pytest.raises(ArtifactError):
            load(good[:position] + good[position + 1 :])


def test_changed_bytes_of_a_file_on_disk_are_refused(parts: Parts, tmp_path: Path) -> None:
    path = tmp_path / "model.gopt"
    save(path, parts.manifest, parts.modules, parts.weights)
    good = path.read_bytes()
    for position in (*range(0, len(good), 499), len(good) - 1):
        bad = bytearray(good)
        bad[position] ^= 0x80
        path.write_bytes(bad)
        with pytest.raises(ArtifactError):
            load(path)
    path.write_bytes(good[:-1])
    with pytest.raises(ArtifactError, match="truncated"):
        load(path)
    path.write_bytes(good)
    load(path)


def test_what_is_loaded_is_not_the_callers_memory(tiny: Parts) -> None:
    data = bytearray(packed(tiny))
    artifact = load(data)  # type: ignore[arg-type]
    data[:] = bytes(len(data))
    assert bytes(artifact.modules[0]) == tiny.modules[0]
    np.testing.assert_array_equal(artifact.weights, tiny.weights)


def test_what_is_no_artifact_is_refused(tmp_path: Path) -> None:
    for content in (b"", b"PK", b"x" * 5000):
        path = tmp_path / "file"
        path.write_bytes(content)
        with pytest.raises(ArtifactError, match=r"truncated|not a \.gopt"):
            load(path)
        with pytest.raises(ArtifactError):
            load(content)
    other = tmp_path / "other.zip"
    with zipfile.ZipFile(other, "w") as file:
        file.writestr("manifest.json", "{}" * 400)
    with pytest.raises(ArtifactError, match=r"not a \.gopt"):
        load(other)
    os.mkfifo(tmp_path / "fifo")
    for path, reason in (
        (tmp_path / "absent", "No such file"),
        (tmp_path, "not a regular file|Is a directory"),
        (tmp_path / "fifo", "not a regular file"),
    ):
        with pytest.raises(ArtifactError, match=reason):
            load(path)


def test_forged_files_with_a_right_digest(tiny: Parts) -> None:
    manifest, module, weights = contents(tiny)
    assert load(forged([manifest, module, weights])).manifest == tiny.manifest
    cases: list[tuple[list[tuple[str, bytes]], str]] = [
        ([manifest, module, module, weights], "there twice"),
        ([manifest, ("../evil.so", b"x"), weights], "outside"),
        ([manifest, ("/etc/passwd", b"x"), weights], "outside"),
        ([manifest, ("entries/../../evil", b"x"), weights], "outside"),
        ([manifest, ("entries\\0\\module.so", b"x"), weights], "outside"),
        ([manifest, module, ("readme.txt", b"x"), weights], "does not belong"),
        ([manifest, ("entries/00/module.so", b"x"), weights], "does not belong"),
        ([module, manifest, weights], "its members are"),
        ([manifest, weights], "0 modules for 1 entries"),
        ([manifest, module], "its members are"),
        ([manifest, ("entries/1/module.so", b"x"), weights], "its members are"),
        ([manifest, module, ("entries/1/module.so", b"x"), weights], "2 modules for 1 entries"),
        ([("manifest.json", b"{"), module, weights], "not readable JSON"),
        ([manifest, module, ("weights.bin", b"")], "needs more weights"),
    ]
    for members, reason in cases:
        with pytest.raises(ArtifactError, match=reason):
            load(forged(members))


def test_forged_zip_structures_with_a_right_digest(tiny: Parts) -> None:
    good = packed(tiny)
    directory = good.index(b"PK\1\2")
    local = good.index(b"PK\3\4", 1)

    def changed(position: int, value: bytes) -> bytes:
        return sealed(good[:position] + value + good[position + len(value) :])

    cases = [
        (directory + 8, b"\1\0", "encrypted"),
        (directory + 10, b"\x08\0", "compressed"),  # a bomb would need this
        (directory + 20, b"\xff\xff\xff\0", "claims"),
        (directory + 14, b"\1", "time|directory"),
        (directory + 42, b"\7", "directory"),
        (local + 8, b"\x08", "header"),
        (local + 14, b"\1\2\3\4", "header"),
        (len(good) - SEAL_BYTES - 2, b"\0\0", "end record"),
        (len(good) - UNSEALED_BYTES, b"signature", "signature"),
    ]
    for position, value, reason in cases:
        with pytest.raises(ArtifactError, match=reason):
            load(changed(position, value))
    for insertion in (0, local, directory):  # hidden bytes before, between and behind members
        with pytest.raises(ArtifactError):
            load(sealed(good[:insertion] + b"hidden" + good[insertion:]))


def test_another_machines_programs_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.gopt"
    for changes, reason in (
        ({"features": ("avx1024",)}, "this CPU lacks avx1024"),
        ({"architecture": "sparc"}, "compiled for sparc"),
    ):
        parts = make_parts(4, [b"module"], **changes)
        save(path, parts.manifest, parts.modules, parts.weights)
        with pytest.raises(ArtifactError, match=reason):
            load(path)


def test_one_entry_that_fits_is_enough(tmp_path: Path) -> None:
    parts = make_parts(4)
    entry = parts.manifest.entries[0]
    manifest = replace(parts.manifest, entries=(replace(entry, features=("avx1024",)), entry))
    artifact = load(to_bytes(manifest, parts.modules * 2, parts.weights))
    artifact.module(1)
    with pytest.raises(ArtifactError, match="avx1024"):
        artifact.module(0)


def test_contradictory_parts_are_not_saved(parts: Parts, tmp_path: Path) -> None:
    path = tmp_path / "model.gopt"
    with pytest.raises(ArtifactError, match="0 modules for 1 entries"):
        save(path, parts.manifest, [], parts.weights)
    with pytest.raises(ArtifactError, match="needs more weights"):
        save(path, parts.manifest, parts.modules, parts.weights[:-1])
    with pytest.raises(ArtifactError, match="not contiguous"):
        save(path, parts.manifest, parts.modules, np.zeros(8000, np.uint8)[::2])
    with pytest.raises(ArtifactError, match="not plain JSON"):
        save(path, replace(parts.manifest, report={"x": {1, 2}}), parts.modules, parts.weights)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_the_old_file(parts: Parts, tmp_path: Path) -> None:
    path = tmp_path / "model.gopt"
    save(path, parts.manifest, parts.modules, parts.weights)
    old = path.read_bytes()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            # The file may grow to half its size: writing fails midway, as on a full disk.
            resource.setrlimit(resource.RLIMIT_FSIZE, (len(old) // 2,) * 2)
            try:
                save(path, parts.manifest, parts.modules, parts.weights)
            except ArtifactError as error:
                cause = error.__cause__
                if isinstance(cause, OSError) and cause.errno == errno.EFBIG:
                    code = 0
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    assert path.read_bytes() == old
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.gopt"]


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_really_full_disk(parts: Parts, tmp_path: Path) -> None:
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this container may not mount")
    try:
        path = tmp_path / "model.gopt"
        save(path, parts.manifest, parts.modules, parts.weights)
        old = path.read_bytes()
        big: Any = np.zeros(1 << 20, np.uint8)
        with pytest.raises(ArtifactError, match="No space left on device"):
            save(path, parts.manifest, parts.modules, big)
        assert path.read_bytes() == old
        assert [entry.name for entry in tmp_path.iterdir()] == ["model.gopt"]
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_unwritable_places(parts: Parts, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for folder in (tmp_path / "absent", tmp_path / "file", Path("/proc")):
        with pytest.raises(ArtifactError, match="Cannot write"):
            save(folder / "m.gopt", parts.manifest, parts.modules, parts.weights)
    taken = tmp_path / "folder.gopt"
    taken.mkdir()
    with pytest.raises(ArtifactError, match="Cannot write"):
        save(taken, parts.manifest, parts.modules, parts.weights)
    # A rename would put a file in place of a device such as /dev/null, if root asks for it.
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(ArtifactError, match="a device, a pipe or a socket"):
        save(pipe, parts.manifest, parts.modules, parts.weights)
    assert pipe.is_fifo()
    names = sorted(entry.name for entry in tmp_path.iterdir())
    assert names == ["file", "folder.gopt", "pipe"]


def test_saving_through_a_link_keeps_the_link_and_honours_the_umask(
    parts: Parts, tmp_path: Path
) -> None:
    target, link = tmp_path / "target.gopt", tmp_path / "link.gopt"
    link.symlink_to(target)
    save(link, parts.manifest, parts.modules, parts.weights)
    assert link.is_symlink()
    umask = os.umask(0)
    os.umask(umask)
    assert target.stat().st_mode & 0o777 == 0o666 & ~umask


def test_loading_in_a_fresh_process_imports_no_compiler(parts: Parts, tmp_path: Path) -> None:
    path = tmp_path / "model.gopt"
    save(path, parts.manifest, parts.modules, parts.weights)
    np.save(tmp_path / "x.npy", toy_inputs(3)["x"])
    code = f"""
        import sys
        import numpy as np
        from graphopt.artifact.bundle import load
        from graphopt.runtime.library import open_module
        from graphopt.runtime.session import Session
        artifact = load({str(path)!r})
        entry = artifact.manifest.entries[0]
        session = Session(entry.plan, open_module(artifact.module(0)), artifact.entry_weights(0))
        x = np.load({str(tmp_path / "x.npy")!r})
        print(float(session.run({{"x": x, "k": np.array(3, np.int32)}})["s"][0]))
        print(sorted({{"tvm", "torch", "onnx"}} & set(sys.modules)))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=60,
    )
    expected = float(toy_expected(toy_inputs(3))["s"][0])
    assert done.stdout == f"{expected}\n[]\n", done.stderr
