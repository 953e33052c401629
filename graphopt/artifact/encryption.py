"""Encrypted members of a `.gopt`: AES-256-GCM, in chunks.

The key is made from a passphrase (scrypt, RFC 7914) or a key file (HKDF-SHA256, RFC 5869) and a
salt that is new in each file. So no two files share a key, and the nonce can be a plain count:
number of the member (4 bytes) | number of the chunk (8). A chunk's tag also covers the manifest,
which holds everything about the file that is not encrypted, and the member's number of chunks:
members of other files, and chunks that moved or are missing, do not decrypt.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from graphopt.artifact.aligned import empty_aligned
from graphopt.artifact.keys import read_key, require_cryptography
from graphopt.errors import ArtifactError, OptionError

CHUNK_BYTES = 4 << 20
TAG_BYTES = 16
SALT_BYTES = 16
CIPHER = "AES-256-GCM"
_KEY_BYTES = 32
KEY_FILE_BYTES = 32  # at least
SCRYPT = {"n": 1 << 15, "r": 8, "p": 3}
SCRYPT_MEMORY = 64 << 20
INFO = b"graphopt .gopt encryption 1"

Kind = Literal["passphrase", "key-file"]


@dataclass(frozen=True)
class Encryption:
    """How a file is encrypted, as its manifest tells everybody.

    Attributes:
        key: what the key is made from.
        salt: 16 random bytes.
        modules: whether the modules are encrypted, or only the weights.
    """

    key: Kind
    salt: bytes
    modules: bool


@dataclass(frozen=True)
class Secret:
    """A passphrase, or the content of a key file. Its repr shows neither."""

    kind: Kind
    data: bytes = field(repr=False)


def secret_from(
    key_file: str | os.PathLike[str] | bytes | None, passphrase: str | None
) -> Secret | None:
    """The one that is given, if one is.

    Args:
        key_file: a file of at least 32 random bytes, or its content.

    Raises:
        OptionError: both are given, or one is unusable.
    """
    if key_file is not None and passphrase is not None:
        raise OptionError("keys", "give a key file or a passphrase, not both.")
    if passphrase is not None:
        if not passphrase:
            raise OptionError("keys", "the passphrase is empty.")
        return Secret("passphrase", passphrase.encode())
    if key_file is None:
        return None
    content, name = read_key(key_file, "key file")
    if len(content) < KEY_FILE_BYTES:
        raise OptionError(
            "keys",
            f"{name} has {len(content)} bytes; a key file has {KEY_FILE_BYTES} or more.",
            hint="make one with: openssl rand -out key.bin 32",
        )
    return Secret("key-file", content)


def new_encryption(secret: Secret, modules: bool) -> Encryption:
    """For a new file."""
    return Encryption(secret.kind, secrets.token_bytes(SALT_BYTES), modules)


class Cipher:
    """Encrypts and decrypts the members of one file."""

    def __init__(self, secret: Secret | None, encryption: Encryption, manifest: bytes) -> None:
        """
        Args:
            manifest: the bytes of the manifest member.

        Raises:
            OptionError: no secret, or one of the other kind, or `cryptography` is missing.
        """
        if secret is None or secret.kind != encryption.key:
            wanted = {"passphrase": "a passphrase", "key-file": "a key file"}[encryption.key]
            raise OptionError(
                "load",
                f"the file is encrypted with {wanted}, which is not given.",
                hint="load(…, passphrase=…) or load(…, key_file=…).",
            )
        require_cryptography()
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        self._cipher: Any = AESGCM(_derived(secret, encryption.salt))
        self._manifest = hashlib.blake2b(manifest, digest_size=32).digest()

    def encrypted(self, member: int, plain: memoryview) -> bytearray:
        """A member's bytes as they are stored."""
        result = bytearray(len(plain) + TAG_BYTES * _chunks(len(plain)))
        out = memoryview(result)
        for nonce, extra, low, high in self._pieces(member, len(plain)):
            at = low + TAG_BYTES * (low // CHUNK_BYTES)
            sealed = self._cipher.encrypt(nonce, plain[low:high], extra)
            out[at : at + len(sealed)] = sealed
        return result

    def decrypted(self, member: int, stored: memoryview) -> NDArray[np.uint8]:
        """What was encrypted: uint8, in memory of its own, 64-byte aligned, read-only.

        Raises:
            ArtifactError: the key is another one, or the bytes are not those that were encrypted.
        """
        from cryptography.exceptions import InvalidTag

        size = plain_size(len(stored))
        result = empty_aligned(size)
        for nonce, extra, low, high in self._pieces(member, size):
            at = low + TAG_BYTES * (low // CHUNK_BYTES)
            piece = stored[at : at + high - low + TAG_BYTES]
            try:
                opened = self._cipher.decrypt(nonce, piece, extra)
            except InvalidTag as error:
                raise ArtifactError(
                    "load",
                    "The file does not decrypt: the key or passphrase is another one, or the file "
                    "is altered.",
                ) from error
            result[low:high] = np.frombuffer(opened, np.uint8)
        result.flags.writeable = False
        return result

    def _pieces(self, member: int, size: int) -> Iterator[tuple[bytes, bytes, int, int]]:
        """Nonce, further authenticated bytes, begin and end of each chunk of plain bytes."""
        extra = self._manifest + struct.pack("<Q", size)
        for index in range(_chunks(size)):
            low = index * CHUNK_BYTES
            nonce = struct.pack("<IQ", member, index)
            yield nonce, extra, low, min(low + CHUNK_BYTES, size)


def plain_size(stored: int) -> int:
    """Size of a member before it was encrypted, from that which is stored.

    Raises:
        ArtifactError: no member has this size.
    """
    size = stored - TAG_BYTES * max(1, -(-stored // (CHUNK_BYTES + TAG_BYTES)))
    if size < 0 or size + TAG_BYTES * _chunks(size) != stored:
        raise ArtifactError("load", "The file is refused: an encrypted member is cut off.")
    return size


def _chunks(size: int) -> int:
    """An empty member has one chunk too, so that its being empty is vouched for."""
    return max(1, -(-size // CHUNK_BYTES))


def _derived(secret: Secret, salt: bytes) -> bytes:
    if secret.kind == "passphrase":
        return hashlib.scrypt(
            secret.data, salt=salt, dklen=_KEY_BYTES, maxmem=SCRYPT_MEMORY, **SCRYPT
        )
    # One block of HKDF's output is the whole key.
    extracted = hmac.digest(salt, secret.data, "sha256")
    return hmac.digest(extracted, INFO + b"\1", "sha256")
