"""The compile cache on disk."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from graphopt.cache import CompileCache, cache_key, code_version, default_cache
from graphopt.errors import OptionError


def age(cache: CompileCache, key: str, seconds: float) -> None:
    path = cache.folder / f"{key}.gopt"
    then = time.time() - seconds
    os.utime(path, (then, then))


def test_stores_finds_and_discards(tmp_path: Path) -> None:
    cache = CompileCache(tmp_path / "deep" / "folder")
    assert cache.find("a") is None
    assert cache.entries() == ()
    cache.store("a", b"abc")
    path = cache.find("a")
    assert path is not None
    assert path.read_bytes() == b"abc"
    assert [(entry.key, entry.nbytes) for entry in cache.entries()] == [("a", 3)]
    cache.discard("a")
    cache.discard("a")
    assert cache.find("a") is None


def test_least_recently_used_goes_first(tmp_path: Path) -> None:
    cache = CompileCache(tmp_path, limit=100)
    for index, key in enumerate("abc"):
        cache.store(key, bytes(30))
        age(cache, key, 100 - index)
    assert cache.find("a") is not None  # used now, so "b" is the oldest
    cache.store("d", bytes(30))
    assert {entry.key for entry in cache.entries()} == {"a", "c", "d"}


def test_what_is_larger_than_the_limit_is_not_kept(tmp_path: Path) -> None:
    cache = CompileCache(tmp_path, limit=10)
    cache.store("small", bytes(10))
    cache.store("large", bytes(11))
    assert [entry.key for entry in cache.entries()] == ["small"]


def test_clear_removes_orphans_too(tmp_path: Path) -> None:
    cache = CompileCache(tmp_path)
    cache.store("a", b"1")
    cache.store("b", b"2")
    (tmp_path / ".new-killed").write_bytes(b"half")
    (tmp_path / "mine.txt").write_text("kept")
    assert cache.clear() == 2
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_an_unusable_folder_is_an_empty_cache(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    cache = CompileCache(tmp_path / "file" / "sub")
    cache.store("a", b"1")
    assert cache.find("a") is None
    assert cache.entries() == ()
    assert cache.clear() == 0


def test_concurrent_processes_see_whole_entries(tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "from graphopt.cache import CompileCache\n"
        "cache = CompileCache(Path(sys.argv[1]), limit=200_000)\n"
        "for i in range(60):\n"
        "    cache.store(f'k{i % 5}', bytes([i % 5]) * 50_000)\n"
        "    path = cache.find(f'k{(i + 2) % 5}')\n"
        "    try:\n"
        "        data = path.read_bytes() if path else b''\n"
        "    except FileNotFoundError:\n"
        "        data = b''\n"  # evicted by the other process: a miss
        "    assert len(data) in (0, 50_000), len(data)\n"
        "    assert len(set(data)) <= 1\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    running = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    for process in running:
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said
    assert not list(tmp_path.glob(".new-*"))
    cache = CompileCache(tmp_path, limit=200_000)
    assert sum(entry.nbytes for entry in cache.entries()) <= 200_000


def test_keys_depend_on_every_fact() -> None:
    key = cache_key(b"model", {"a": 1, "b": [1, 2]})
    assert key == cache_key(b"model", {"b": (1, 2), "a": 1})
    assert key != cache_key(b"model2", {"a": 1, "b": [1, 2]})
    assert key != cache_key(b"model", {"a": 2, "b": [1, 2]})
    assert key != cache_key(b"model", {"a": 1})


def test_code_version_is_stable() -> None:
    assert code_version() == code_version()


@pytest.mark.parametrize(
    ("environment", "folder"),
    [
        ({"GRAPHOPT_CACHE": "/a/b", "XDG_CACHE_HOME": "/x"}, "/a/b"),
        ({"XDG_CACHE_HOME": "/x"}, "/x/graphopt"),
    ],
)
def test_location(environment: dict[str, str], folder: str) -> None:
    assert default_cache(environment).folder == Path(folder)


def test_default_location_is_in_the_home_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    assert default_cache({}).folder == Path("/home/someone/.cache/graphopt")


def test_limit_from_the_environment() -> None:
    assert default_cache({"GRAPHOPT_CACHE_LIMIT": "12M"}).limit == 12 << 20
    assert default_cache({"GRAPHOPT_CACHE_LIMIT": "7"}).limit == 7
    with pytest.raises(OptionError, match="not a size"):
        default_cache({"GRAPHOPT_CACHE_LIMIT": "lots"})
