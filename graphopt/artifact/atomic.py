"""Replaces a file by a new one all at once, or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from graphopt.errors import ArtifactError


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str], stage: str) -> Iterator[BinaryIO]:
    """A writable, readable binary file that takes `path`'s place when the block ends well.

    The bytes go to a temporary file in the same folder, reach the disk (fsync) and are then
    renamed over `path`. If anything fails, a full disk included, an old file at `path` stays as
    it was and the temporary one is removed.

    Raises:
        ArtifactError: with `stage` and the reason, for any OSError in the block or here, and if
            `path` is there and no regular file: root would replace a device such as /dev/null.
    """
    target = Path(os.path.realpath(os.fspath(path)))  # write through links, do not replace them
    temporary = target.with_name(f".{target.name[:100]}.{secrets.token_hex(8)}.tmp")
    try:
        if target.exists() and not target.is_file():
            kind = "a directory" if target.is_dir() else "a device, a pipe or a socket"
            raise ArtifactError(
                stage, f"Cannot write {os.fspath(path)}: it is {kind}.", hint="Name a file."
            )
        with contextlib.ExitStack() as cleanup:
            # os.open, unlike tempfile, gives the mode that the user's umask asks for.
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            handle = os.open(temporary, flags, 0o666)
            cleanup.callback(_remove, temporary)
            with open(handle, "w+b") as file:  # noqa: PTH123 (a descriptor, not a path)
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(target)
            cleanup.pop_all()
            _sync_folder(target.parent)
    except OSError as error:
        raise ArtifactError(
            stage,
            f"Cannot write {os.fspath(path)}: {error.strerror or error}. "
            "A file that was there before is unchanged.",
            hint="Check that the folder exists, is writable and has room.",
        ) from error


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()


def _sync_folder(folder: Path) -> None:
    # The rename itself must survive a crash; some file systems cannot sync folders.
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
