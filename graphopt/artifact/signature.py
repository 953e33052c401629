"""Signatures of a `.gopt`: Ed25519 over the digests of its parts, in the seal at the file's end.

    public key (32) | signature (64)

What is signed is a short message: a name of the purpose, the digests of the head (manifest and
modules), of the directory, and of the whole file. The first two are cheap to compute, so a file of
another author, or with an altered head, is refused before its weights are read; the third covers
the weights, and is compared when they have been. (Ed25519 is RFC 8032.)
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from hashlib import blake2b, sha256

from graphopt.artifact.container import SIGNATURE_BYTES
from graphopt.artifact.keys import has_cryptography, read_key, require_cryptography
from graphopt.errors import ArtifactError, OptionError

PURPOSE = b"graphopt .gopt signature 1\0"
_KEY_BYTES = 32
UNSIGNED = bytes(SIGNATURE_BYTES)

Sign = Callable[[bytes], bytes]
"""Makes the 96 bytes of a signature for a message."""


def message(head: memoryview, directory: memoryview, digest: bytes) -> bytes:
    """What is signed.

    Args:
        head: manifest and modules with their headers.
        directory: everything behind the weights, up to the signature.
        digest: of all bytes before the signature, as the file states it.
    """
    return PURPOSE + blake2b(head).digest() + blake2b(directory).digest() + digest


def require_signature(field: bytes, signed: bytes, trusted: Sequence[bytes]) -> None:
    """Refuse a file whose signature is not by one of the `trusted` keys (32 bytes each).

    With no trusted keys, a signature that is there must still be one by the key beside it, where
    the `cryptography` package is installed to tell: the file is damaged otherwise.

    Raises:
        ArtifactError: unsigned, signed by another key, or altered since.
    """
    if field == UNSIGNED:
        if trusted:
            raise ArtifactError(
                "load",
                "The file is refused: it is not signed, and trusted keys are given.",
                hint="sign it with: graphopt sign FILE.gopt --key PRIVATE.pem",
            )
        return
    key, signature = field[:_KEY_BYTES], field[_KEY_BYTES:]
    if trusted and key not in trusted:
        raise ArtifactError(
            "load",
            f"The file is refused: it is signed by key {key_id(key)}, which is not among the "
            f"trusted ones ({', '.join(map(key_id, trusted))}).",
        )
    if not trusted and not has_cryptography():
        return
    require_cryptography()
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, signed)
    except (InvalidSignature, ValueError) as error:
        raise ArtifactError(
            "load",
            f"The file is refused: its signature by key {key_id(key)} is not valid; the file was "
            "altered after it was signed.",
        ) from error


def key_id(key: bytes) -> str:
    """A short name of a public key (32 bytes) to compare by eye."""
    return sha256(key).hexdigest()[:16]


def trusted_keys(
    sources: Sequence[str | os.PathLike[str] | bytes] | str | os.PathLike[str] | bytes,
) -> list[bytes]:
    """trusted_key() of each; one given alone counts as a list of one.

    Raises:
        OptionError: as trusted_key().
    """
    if isinstance(sources, (str, bytes, os.PathLike)):
        sources = [sources]
    return [trusted_key(source) for source in sources]


def trusted_key(source: str | os.PathLike[str] | bytes) -> bytes:
    """The 32 bytes of a public key.

    Args:
        source: a PEM file (as `openssl pkey -pubout` writes it), its content, or the 32 bytes.

    Raises:
        OptionError: unreadable, or no public Ed25519 key.
    """
    if isinstance(source, bytes) and len(source) == _KEY_BYTES:
        return source
    require_cryptography()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    text, name = read_key(source, "trusted key")
    try:
        key = serialization.load_pem_public_key(text)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        hint = None
        if b"PRIVATE KEY" in text:
            hint = "this is a private key; its public half: openssl pkey -in KEY -pubout -out PUB"
        raise OptionError("keys", f"{name} is no public key in PEM form.", hint=hint) from error
    if not isinstance(key, Ed25519PublicKey):
        raise OptionError("keys", f"{name} is not an Ed25519 key.", hint=_HINT)
    return key.public_bytes_raw()


def signer(source: str | os.PathLike[str] | bytes, passphrase: str | None = None) -> Sign:
    """Signs with a private key.

    Args:
        source: a PEM file (PKCS 8) or its content.
        passphrase: of an encrypted PEM file.

    Raises:
        OptionError: unreadable, no private Ed25519 key, or the wrong passphrase.
    """
    require_cryptography()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    text, name = read_key(source, "private key")
    secret = None if passphrase is None else passphrase.encode()
    try:
        key = serialization.load_pem_private_key(text, password=secret)
    except TypeError as error:
        wanted = "needs" if secret is None else "is not encrypted and takes no"
        raise OptionError("keys", f"{name} {wanted} a passphrase.") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        reason = "is no private key in PEM form" + (
            ", or the passphrase is wrong" if secret else ""
        )
        raise OptionError("keys", f"{name} {reason}.", hint=_HINT) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise OptionError("keys", f"{name} is not an Ed25519 key.", hint=_HINT)
    public = key.public_key().public_bytes_raw()
    return lambda signed: public + key.sign(signed)


def signed_by(field: bytes) -> bytes | None:
    """The public key in a file's signature; None if it is unsigned."""
    return None if field == UNSIGNED else field[:_KEY_BYTES]


_HINT = "make one with: openssl genpkey -algorithm ed25519 -out private.pem"
