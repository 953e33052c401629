"""Signed programs: what a trusted key has signed loads, and everything else is refused."""

from __future__ import annotations

import pytest
from artifact_parts import PEM, PKCS8, SPKI, make_parts, same
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from graphopt.artifact import reading
from graphopt.artifact.bundle import load, save
from graphopt.artifact.container import UNSEALED_BYTES
from graphopt.artifact.digest import DIGEST_BYTES, tree_digest
from graphopt.artifact.signature import key_id
from graphopt.errors import ArtifactError, OptionError
from graphopt.protecting import check_signature, sign

PLAIN = serialization.NoEncryption()


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
