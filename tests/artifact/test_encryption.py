"""Encrypted programs: what is right decrypts, and everything else is refused."""

from __future__ import annotations

import hashlib
import zlib

import numpy as np
import pytest
from artifact_parts import same
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.artifact import reading
from graphopt.artifact.bundle import load
from graphopt.artifact.container import SEAL_MAGIC, SIGNATURE_BYTES, Member, layout
from graphopt.artifact.digest import tree_digest
from graphopt.artifact.encryption import (
    CHUNK_BYTES,
    TAG_BYTES,
    Cipher,
    Encryption,
    Secret,
    plain_size,
    secret_from,
)
from graphopt.errors import ArtifactError, OptionError
from graphopt.protecting import encrypt

KEY = bytes(range(32))


@pytest.mark.parametrize("weights_only", [False, True])
@pytest.mark.parametrize("words", [{"key_file": KEY}, {"passphrase": "pässword"}], ids=str)
def test_an_encrypted_file_shows_neither_weights_nor_code(
    tmp_path, path, parts, words, weights_only
) -> None:
    secret = tmp_path / "secret.gopt"
    encrypt(path, secret, weights_only=weights_only, **words)
    stored = secret.read_bytes()
    weights, code = parts.weights.tobytes(), parts.modules[0]
    assert weights[:32] in path.read_bytes()
    assert weights[:32] not in stored
    assert (code[:64] in stored) == weights_only
    assert KEY not in stored
    assert "pässword".encode() not in stored
    assert same(
        load(secret, secret=secret_from(words.get("key_file"), words.get("passphrase"))), parts
    )
    encrypt(path, tmp_path / "again.gopt", weights_only=weights_only, **words)
    assert (tmp_path / "again.gopt").read_bytes() != stored  # another salt


def test_without_the_right_secret(tmp_path, path) -> None:
    secret = tmp_path / "secret.gopt"
    encrypt(path, secret, key_file=KEY)
    with pytest.raises(OptionError, match="key file"):
        load(secret)
    with pytest.raises(OptionError, match="key file"):
        load(secret, secret=secret_from(None, "a passphrase"))
    with pytest.raises(ArtifactError, match="does not decrypt"):
        load(secret, secret=secret_from(KEY + b"x", None))
    load(secret, secret=secret_from(KEY, None))


def test_secrets_that_are_none(tmp_path, path) -> None:
    short = tmp_path / "short.bin"
    short.write_bytes(b"0123456789")
    out = tmp_path / "out.gopt"
    for words, reason in (
        ({"key_file": short}, "10 bytes"),
        ({"key_file": tmp_path / "missing"}, "No such file"),
        ({"passphrase": ""}, "empty"),
        ({"passphrase": "x", "key_file": KEY}, "not both"),
        ({}, "give a key file"),
    ):
        with pytest.raises(OptionError, match=reason):
            encrypt(path, out, **words)
    encrypt(path, out, key_file=KEY)
    with pytest.raises(OptionError, match="encrypted"):
        encrypt(out, tmp_path / "twice.gopt", key_file=KEY)


def test_a_secret_is_not_shown() -> None:
    assert "sesame" not in repr(secret_from(None, "sesame")) + str(secret_from(None, "sesame"))


def test_encrypted_bytes_that_moved_do_not_decrypt(tmp_path, path, parts) -> None:
    """Whoever makes digests fit, but has no key, cannot take parts of one file for another's."""
    encrypt(path, tmp_path / "a.gopt", key_file=KEY)
    encrypt(path, tmp_path / "b.gopt", key_file=KEY)
    a, b = ((tmp_path / f"{name}.gopt").read_bytes() for name in "ab")
    sealed = reading.read_sealed(tmp_path / "a.gopt")
    at = sealed.layout.offsets[-1]
    size = sealed.layout.members[-1].size

    def forged(weights: bytes) -> bytes:
        members = [
            *sealed.layout.members[:-1],
            Member("weights.bin", len(weights), zlib.crc32(weights)),
        ]
        plan = layout(members)
        head = bytearray(a[:at])
        data = bytes(head[: at - len(sealed.layout.headers[-1])]) + plan.headers[-1] + weights
        data += plan.directory + SEAL_MAGIC
        return data + bytes(SIGNATURE_BYTES) + tree_digest([memoryview(data)], 1)

    secret = secret_from(KEY, None)
    assert same(load(forged(a[at : at + size]), secret=secret), parts)
    for other in (b[at : at + size], a[at : at + size - 1], a[at : at + size] + bytes(1), b""):
        with pytest.raises(ArtifactError):
            load(forged(other), secret=secret)


@given(st.integers(0, 5 * (CHUNK_BYTES + TAG_BYTES)))
def test_the_size_of_plain_bytes_follows_from_that_of_stored_ones(size: int) -> None:
    stored = size + TAG_BYTES * max(1, -(-size // CHUNK_BYTES))
    assert plain_size(stored) == size


@settings(max_examples=10, deadline=None)
@given(st.sampled_from([0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 2 * CHUNK_BYTES + 7]))
def test_members_of_all_sizes_come_back(size: int) -> None:
    plain = np.random.default_rng(size).integers(0, 256, size, np.uint8)
    cipher = Cipher(Secret("key-file", KEY), Encryption("key-file", bytes(16), True), b"{}")
    stored = cipher.encrypted(3, plain.data)
    np.testing.assert_array_equal(cipher.decrypted(3, memoryview(stored)), plain)
    with pytest.raises(ArtifactError):
        cipher.decrypted(4, memoryview(stored))
    if size > CHUNK_BYTES:  # chunks that changed places
        step = CHUNK_BYTES + TAG_BYTES
        swapped = stored[step : 2 * step] + stored[:step] + stored[2 * step :]
        with pytest.raises(ArtifactError):
            cipher.decrypted(3, memoryview(swapped))


def test_a_known_key_file_gives_the_key_of_rfc_5869() -> None:
    """HKDF by the library, for the file's one block."""
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    salt = bytes(range(16))
    key = HKDF(hashes.SHA256(), 32, salt, b"graphopt .gopt encryption 1").derive(KEY)
    cipher = Cipher(Secret("key-file", KEY), Encryption("key-file", salt, True), b"{}")
    stored = cipher.encrypted(0, memoryview(b"plain"))
    extra = hashlib.blake2b(b"{}", digest_size=32).digest() + (5).to_bytes(8, "little")
    assert AESGCM(key).decrypt(bytes(12), bytes(stored), extra) == b"plain"
