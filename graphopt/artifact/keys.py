"""Reading keys, and whether there is a library to use them with."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from graphopt.errors import OptionError

_MAX_BYTES = 1 << 16


def has_cryptography() -> bool:
    """Whether the `cryptography` package is installed."""
    return importlib.util.find_spec("cryptography") is not None


def require_cryptography() -> None:
    """Raises OptionError if the `cryptography` package is missing."""
    if not has_cryptography():
        raise OptionError(
            "keys",
            "signatures and encryption need the package 'cryptography', which is not installed.",
            hint="pip install 'graphopt[signing]'",
        )


def read_key(source: str | os.PathLike[str] | bytes, kind: str) -> tuple[bytes, str]:
    """The bytes of a key, given as a file or as they are, and what to call it in messages.

    Raises:
        OptionError: the file cannot be read or is too large for a key.
    """
    if isinstance(source, bytes):
        return source, f"the {kind}"
    path = Path(source)
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise OptionError("keys", f"cannot read the {kind} '{path}': {error.strerror}.") from error
    if len(content) > _MAX_BYTES:
        raise OptionError("keys", f"'{path}' is too large for a {kind}.")
    return content, f"'{path}'"
