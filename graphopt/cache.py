"""The compile cache: finished artifacts on disk, found again by everything that went into them.

Entries are .gopt files named by their key. They are written to a temporary file and renamed, so a
reader in another process sees a whole entry or none; whether its bytes are still what was written
is for the artifact's own digest to say. The oldest entries (by last use) go first when the cache
grows over its limit.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from graphopt.errors import OptionError

DEFAULT_LIMIT = 4 << 30
_SUFFIX = ".gopt"
_ORPHAN_SECONDS = 3600

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CacheEntry:
    """One cached artifact: its key, size in bytes, and when it was last used (seconds, Unix)."""

    key: str
    nbytes: int
    used: float


@dataclass(frozen=True)
class CompileCache:
    """A folder of artifacts that stays below `limit` bytes; safe with concurrent processes.

    Nothing here raises for the state of the disk except `clear`: a cache that cannot be read or
    written is one that finds and keeps nothing.
    """

    folder: Path
    limit: int = DEFAULT_LIMIT

    @property
    def plugins(self) -> Path:
        """The folder of the runtime's plug-ins, which are built where they are missing."""
        return self.folder / "plugins"

    def find(self, key: str) -> Path | None:
        """The file of `key`, marked as used now; None if there is none."""
        path = self._path(key)
        try:
            os.utime(path)
        except OSError:
            return None
        return path

    def store(self, key: str, data: bytes) -> None:
        """Keep `data` under `key`; if that is too much, forget what was not used for longest."""
        if len(data) > self.limit:
            log.debug("not cached: %d bytes are more than the limit", len(data))
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            descriptor, name = tempfile.mkstemp(prefix=".new-", dir=self.folder)
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(data)
                Path(name).replace(self._path(key))
            except BaseException:
                with contextlib.suppress(OSError):
                    Path(name).unlink()
                raise
        except OSError as error:
            log.debug("not cached: %s", error)
            return
        self._shrink(keep=key)

    def discard(self, key: str) -> None:
        """Forget `key`, for instance because its file turned out to be damaged."""
        with contextlib.suppress(OSError):
            self._path(key).unlink()

    def entries(self) -> tuple[CacheEntry, ...]:
        """What is kept, least recently used first."""
        found = []
        with contextlib.suppress(OSError):
            for path in self.folder.glob(f"*{_SUFFIX}"):
                with contextlib.suppress(OSError):  # another process may remove it meanwhile
                    status = path.stat()
                    found.append(CacheEntry(path.stem, status.st_size, status.st_mtime))
        return tuple(sorted(found, key=lambda entry: (entry.used, entry.key)))

    def clear(self) -> int:
        """Remove every entry, and the plug-ins; returns how many entries there were.

        Raises:
            OptionError: the system refuses to remove one.
        """
        count = 0
        for entry in self.entries():
            try:
                self._path(entry.key).unlink(missing_ok=True)
            except OSError as error:
                reason = f"cannot remove '{self._path(entry.key)}': {error.strerror}."
                raise OptionError("cache", reason) from error
            count += 1
        self._remove_orphans(0.0)
        with contextlib.suppress(OSError):
            for path in self.plugins.glob("*.so"):
                path.unlink(missing_ok=True)
        return count

    def _shrink(self, keep: str) -> None:
        self._remove_orphans(_ORPHAN_SECONDS)
        entries = self.entries()
        total = sum(entry.nbytes for entry in entries)
        for entry in entries:
            if total <= self.limit:
                return
            if entry.key != keep:
                self.discard(entry.key)
                total -= entry.nbytes

    def _remove_orphans(self, age: float) -> None:
        """Remove temporary files that killed processes left behind, at least `age` seconds old."""
        now = time.time()
        with contextlib.suppress(OSError):
            for path in self.folder.glob(".new-*"):
                with contextlib.suppress(OSError):
                    if now - path.stat().st_mtime >= age:
                        path.unlink()

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}{_SUFFIX}"


def cache_key(content: bytes, facts: Mapping[str, Any]) -> str:
    """The key of what is compiled from a model with digest `content` under `facts`.

    Args:
        facts: everything else the result depends on (options, target, versions), as JSON values.
    """
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(content + b"\0" + text.encode(), digest_size=20).hexdigest()


def default_cache(environment: Mapping[str, str] | None = None) -> CompileCache:
    """The user's cache: GRAPHOPT_CACHE, else graphopt/ in XDG_CACHE_HOME, else in ~/.cache.

    GRAPHOPT_CACHE_LIMIT sets its size: a number of bytes, or one with K, M or G.

    Raises:
        OptionError: GRAPHOPT_CACHE_LIMIT is not a size.
    """
    env = os.environ if environment is None else environment
    if env.get("GRAPHOPT_CACHE"):
        folder = Path(env["GRAPHOPT_CACHE"])
    elif env.get("XDG_CACHE_HOME"):
        folder = Path(env["XDG_CACHE_HOME"], "graphopt")
    else:
        folder = Path("~/.cache/graphopt").expanduser()
    return CompileCache(folder, _limit(env.get("GRAPHOPT_CACHE_LIMIT")))


def _limit(text: str | None) -> int:
    if not text:
        return DEFAULT_LIMIT
    match = re.fullmatch(r"(\d+)([KMG]?)", text.strip().upper())
    if match is None:
        raise OptionError(
            "cache",
            f"GRAPHOPT_CACHE_LIMIT is '{text}', which is not a size.",
            hint="for example 500M or 4G.",
        )
    return int(match[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[match[2]]


@cache
def code_version() -> str:
    """A digest of the compiler's own source files, by size and time of change.

    An edited checkout has the version of the release it is based on; its programs may differ.
    """
    root = Path(__file__).parent
    sources = [*root.rglob("*.py"), *root.parent.joinpath("schedules").rglob("*.py")]
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(sources):
        status = path.stat()
        line = f"{path.relative_to(root.parent)} {status.st_size} {status.st_mtime_ns}\n"
        digest.update(line.encode())
    return digest.hexdigest()
