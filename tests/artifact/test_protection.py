"""Signed and encrypted programs: what is right loads, and everything else is refused."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from artifact_parts import Parts, make_parts
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

import graphopt
from graphopt.artifact import reading
from graphopt.artifact.bundle import load, save
from graphopt.artifact.container import (
    SEAL_MAGIC,
    SIGNATURE_BYTES,
    UNSEALED_BYTES,
    Member,
    layout,
)
from graphopt.artifact.digest import DIGEST_BYTES, tree_digest
from graphopt.artifact.encryption import (
    CHUNK_BYTES,
    TAG_BYTES,
    Cipher,
    Encryption,
    Secret,
    plain_size,
    secret_from,
)
from graphopt.artifact.signature import key_id, trusted_key
from graphopt.cli.main import main
from graphopt.errors import ArtifactError, OptionError
from graphopt.protecting import check_signature, encrypt, sign

PEM = serialization.Encoding.PEM
PKCS8 = serialization.PrivateFormat.PKCS8
SPKI = serialization.PublicFormat.SubjectPublicKeyInfo
PLAIN = serialization.NoEncryption()
KEY = bytes(range(32))


@dataclass(frozen=True)
class Pair:
    """A key pair in PEM files."""

    private: Path
    public: Path

    @property
    def raw(self) -> bytes:
        return trusted_key(self.public)


def make_pair(folder: Path, name: str) -> Pair:
    key = Ed25519PrivateKey.generate()
    pair = Pair(folder / f"{name}.pem", folder / f"{name}.pub.pem")
    pair.private.write_bytes(key.private_bytes(PEM, PKCS8, PLAIN))
    pair.public.write_bytes(key.public_key().public_bytes(PEM, SPKI))
    return pair


@pytest.fixture(scope="module")
def alice(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return make_pair(tmp_path_factory.mktemp("keys"), "alice")


@pytest.fixture(scope="module")
def mallory(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return make_pair(tmp_path_factory.mktemp("keys"), "mallory")


@pytest.fixture(scope="module")
def parts() -> Parts:
    return make_parts()


@pytest.fixture
def path(tmp_path: Path, parts: Parts) -> Path:
    save(tmp_path / "model.gopt", parts.manifest, parts.modules, parts.weights)
    return tmp_path / "model.gopt"


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory, tiny_cnn) -> Path:
    """A compiled model; the other files of these tests have no report that load() takes."""
    path = tmp_path_factory.mktemp("program") / "model.gopt"
    graphopt.compile(tiny_cnn, threads=2).save(path)
    return path


def same(artifact, parts: Parts) -> bool:
    return (
        [bytes(module) for module in artifact.modules] == parts.modules
        and np.array_equal(artifact.weights, parts.weights)
        and not artifact.weights.flags.writeable
        and artifact.weights.ctypes.data % 64 == 0
    )


# Signatures


def test_a_signed_file_loads_for_those_who_trust_its_key(path, parts, alice, mallory) -> None:
    unsigned = path.read_bytes()
    done = sign(path, alice.private)
    assert done.key == key_id(alice.raw)
    assert check_signature(path, [alice.public]) == done
    for trusted in ([alice.raw], [mallory.raw, alice.raw], []):
        assert same(load(path, trusted), parts)
    signed = path.read_bytes()
    seal = slice(-UNSEALED_BYTES, -DIGEST_BYTES)
    assert len(signed) == len(unsigned)
    assert [i for i in range(len(signed)) if signed[i] != unsigned[i]] == [
        i for i in range(len(signed))[seal] if signed[i] != 0
    ]


def test_unsigned_and_foreign_files_are_refused(path, alice, mallory) -> None:
    with pytest.raises(ArtifactError, match="it is not signed"):
        load(path, [alice.raw])
    sign(path, mallory.private)
    with pytest.raises(ArtifactError, match=key_id(mallory.raw)):
        load(path, [alice.raw])
    sign(path, alice.private)  # replaces the other signature
    load(path, [alice.raw])


def test_a_signature_of_another_file_is_refused(tmp_path, path, alice) -> None:
    other = make_parts(999)
    save(tmp_path / "other.gopt", other.manifest, other.modules, other.weights)
    sign(tmp_path / "other.gopt", alice.private)
    sign(path, alice.private)
    stolen = (tmp_path / "other.gopt").read_bytes()[-UNSEALED_BYTES:-DIGEST_BYTES]
    forged = path.read_bytes()
    forged = forged[:-UNSEALED_BYTES] + stolen + forged[-DIGEST_BYTES:]
    for trusted in ([alice.raw], []):
        with pytest.raises(ArtifactError, match="not valid"):
            load(forged, trusted)


def test_every_changed_byte_of_a_signed_file_is_refused(tmp_path, alice) -> None:
    tiny = make_parts(16, modules=[b"\x7fELF"])
    path = tmp_path / "tiny.gopt"
    save(path, tiny.manifest, tiny.modules, tiny.weights)
    sign(path, alice.private)
    good = path.read_bytes()
    for position in range(len(good)):
        bad = bytearray(good)
        bad[position] ^= 1 << position % 8
        with pytest.raises(ArtifactError):
            load(bytes(bad), [alice.raw])
        if position >= len(good) - DIGEST_BYTES:
            continue
        # A forger would make the digest fit.
        digest = tree_digest([memoryview(bad)[:-UNSEALED_BYTES]], 1)
        with pytest.raises(ArtifactError):
            load(bytes(bad[:-DIGEST_BYTES]) + digest, [alice.raw])


def test_what_is_not_trusted_is_refused_before_weights_are_read(path, alice, monkeypatch) -> None:
    digests = []

    def counted(*args):
        digests.append(args)
        return tree_digest(*args)

    sign(path, alice.private)
    monkeypatch.setattr(reading, "tree_digest", counted)
    load(path, [alice.raw])
    assert len(digests) == 1
    digests.clear()
    manifest = bytearray(path.read_bytes())
    manifest[manifest.index(b'"versions"') + 3] ^= 1
    for bad, trusted in ((path.read_bytes(), [bytes(32)]), (bytes(manifest), [alice.raw])):
        with pytest.raises(ArtifactError):
            load(bad, trusted)
    assert not digests


def test_keys_that_are_none(tmp_path, path, alice) -> None:
    curve = ec.generate_private_key(ec.SECP256R1())
    wrong = {
        "private.pem": alice.private.read_bytes(),
        "text.pem": b"no key at all",
        "ec.pem": curve.public_key().public_bytes(PEM, SPKI),
        "long.pem": b"x" * (1 << 17),
    }
    for name, content in wrong.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(OptionError, match=name):
            check_signature(path, [tmp_path / name])
    with pytest.raises(OptionError, match="openssl pkey"):
        check_signature(path, [tmp_path / "private.pem"])
    with pytest.raises(OptionError, match="No such file"):
        check_signature(path, [tmp_path / "missing.pem"])
    with pytest.raises(OptionError, match="trust"):
        check_signature(path, [])
    (tmp_path / "ec.key").write_bytes(curve.private_bytes(PEM, PKCS8, PLAIN))
    for key in (tmp_path / "ec.key", tmp_path / "text.pem", alice.public):
        with pytest.raises(OptionError):
            sign(path, key)


def test_a_private_key_may_be_encrypted(tmp_path, path) -> None:
    key = Ed25519PrivateKey.generate()
    locked = key.private_bytes(PEM, PKCS8, serialization.BestAvailableEncryption(b"open sesame"))
    for passphrase in (None, "wrong"):
        with pytest.raises(OptionError, match="passphrase"):
            sign(path, locked, passphrase=passphrase)
    sign(path, locked, passphrase="open sesame")
    check_signature(path, [key.public_key().public_bytes(PEM, SPKI)])


def test_signing_a_damaged_file_is_refused(path, alice) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ArtifactError):
        sign(path, alice.private)
    assert path.read_bytes() == data


# Encryption


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


# Whole programs


def test_a_program_that_is_encrypted_and_signed(tmp_path, program, alice, mallory, caplog) -> None:
    x = {"x": np.random.default_rng(0).standard_normal((1, 3, 12, 12), np.float32)}
    path = tmp_path / "model.gopt"
    with caplog.at_level("DEBUG"):
        graphopt.encrypt(program, path, passphrase="correct horse")
        graphopt.sign(path, alice.private)
        loaded = graphopt.load(path, trusted_keys=alice.public, passphrase="correct horse")
    assert "correct horse" not in caplog.text
    np.testing.assert_array_equal(loaded.run(x)["y"], graphopt.load(program).run(x)["y"])
    with pytest.raises(ArtifactError, match="trusted"):
        graphopt.load(path, trusted_keys=[mallory.public], passphrase="correct horse")
    with pytest.raises(ArtifactError, match="not signed"):
        graphopt.load(program, trusted_keys=[alice.public])


def test_the_command_line(tmp_path, program, alice, mallory, capsys) -> None:
    def run(*words: object) -> tuple[int, str]:
        code = main([str(word) for word in words])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.out + captured.err
        return code, captured.out + captured.err

    phrase = tmp_path / "phrase"
    phrase.write_text("open sesame\n")
    secret = tmp_path / "secret.gopt"
    assert run("encrypt", program, "-o", secret, "--passphrase-file", phrase)[0] == 0
    code, text = run("sign", secret, "--key", alice.private, "--json")
    assert (code, json.loads(text)["key"]) == (0, key_id(alice.raw))
    assert run("check-signature", secret, "--trusted-key", alice.public)[0] == 0
    code, text = run("check-signature", secret, "--trusted-key", mallory.public)
    assert code == 1
    assert key_id(alice.raw) in text
    assert run("check-signature", program, "--trusted-key", alice.public)[0] == 1
    code, text = run("profile", secret, "--trusted-key", alice.public)
    assert code == 2
    assert "passphrase" in text
    keys = ("--trusted-key", alice.public, "--passphrase-file", phrase)
    assert run("profile", secret, "--repeats", 1, *keys)[0] == 0
    code, text = run("sign", secret, "--key", tmp_path / "none.pem")
    assert code == 2
    assert "none.pem" in text


def test_without_the_package_the_error_says_what_to_install(program, alice) -> None:
    code = (
        "import sys; sys.modules['cryptography'] = None\n"
        "import graphopt\n"
        f"graphopt.load({str(program)!r})\n"
        f"graphopt.load({str(program)!r}, trusted_keys=[{str(alice.public)!r}])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "graphopt[signing]" in done.stderr
