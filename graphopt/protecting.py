"""sign(), check_signature() and encrypt(): who made a `.gopt`, and who can read it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from graphopt.artifact import bundle, signature
from graphopt.artifact.encryption import secret_from
from graphopt.artifact.reading import read_sealed
from graphopt.artifact.signature import key_id, signed_by, signer
from graphopt.errors import OptionError

PathOrBytes = str | os.PathLike[str] | bytes


@dataclass(frozen=True)
class SignatureCheck:
    """A signature that is valid.

    Attributes:
        key: a short name of the key that signed.
        digest: of the file without its signature, hexadecimal.
    """

    key: str
    digest: str


def sign(
    path: str | os.PathLike[str],
    key: PathOrBytes,
    output: str | os.PathLike[str] | None = None,
    *,
    passphrase: str | None = None,
) -> SignatureCheck:
    """Sign a `.gopt` with Ed25519 (RFC 8032). Every byte of the file is signed.

    Args:
        key: a private key: a PEM file (`openssl genpkey -algorithm ed25519`), or its content.
        output: where to write; None to replace the file (atomically).
        passphrase: of the private key, where it is encrypted.

    Raises:
        ArtifactError: the file is damaged, or the result cannot be written.
        OptionError: the key is unusable, or the `cryptography` package is missing.
    """
    target = path if output is None else output
    bundle.sign(path, target, signer(key, passphrase))
    return _checked(target, [])


def check_signature(
    path: str | os.PathLike[str], trusted_keys: Sequence[PathOrBytes]
) -> SignatureCheck:
    """Check that one of these public keys has signed a `.gopt`, and that no byte has changed since.

    Raises:
        ArtifactError: unsigned, signed by another key, altered, or unreadable.
        OptionError: no key is given, or one is unusable.
    """
    trusted = signature.trusted_keys(trusted_keys)
    if not trusted:
        raise OptionError("keys", "name the public keys that you trust.")
    return _checked(path, trusted)


def encrypt(
    source: PathOrBytes,
    output: str | os.PathLike[str],
    *,
    key_file: PathOrBytes | None = None,
    passphrase: str | None = None,
    weights_only: bool = False,
) -> None:
    """Encrypt the weights and the modules of a `.gopt` with AES-256-GCM. A signature is dropped.

    What stays readable is the manifest: names and shapes of inputs, outputs and layers, the report.

    Args:
        key_file: a file of at least 32 random bytes, or its content; or
        passphrase: from which the key is made by scrypt.
        weights_only: leave the modules as they are.

    Raises:
        ArtifactError: the file is damaged, or the result cannot be written.
        OptionError: neither a key file nor a passphrase is given, or both, or one is unusable; or
            the file is encrypted already.
    """
    secret = secret_from(key_file, passphrase)
    if secret is None:
        raise OptionError("keys", "give a key file or a passphrase to encrypt with.")
    artifact = bundle.read(source)
    modules = [bytes(module) for module in artifact.modules]
    bundle.save(output, artifact.manifest, modules, artifact.weights, secret, not weights_only)


def _checked(path: str | os.PathLike[str], trusted: Sequence[bytes]) -> SignatureCheck:
    sealed = read_sealed(path, trusted)
    key = signed_by(sealed.signature)
    assert key is not None  # just made, or required
    return SignatureCheck(key_id(key), sealed.digest.hex())
