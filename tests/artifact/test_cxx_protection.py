"""graphopt.hpp with OpenSSL: signed and encrypted files; and bad input, beside Python's reader."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
from artifact_parts import PEM, SPKI, Parts, contents, forged, packed, sealed
from cryptography.hazmat.primitives.asymmetric import ec
from onnx import TensorProto, helper, numpy_helper

import graphopt
from graphopt.artifact.bundle import load, read, save
from graphopt.artifact.container import SEAL_BYTES, UNSEALED_BYTES, Member, layout
from graphopt.artifact.encryption import CHUNK_BYTES
from graphopt.artifact.reading import read_sealed
from graphopt.cxx_header import cxx_header
from graphopt.errors import ArtifactError
from graphopt.protecting import encrypt, sign

README = Path(__file__).parents[2] / "README.md"
FLAGS = ["-std=c++17", "-Wall", "-Wextra", "-Wpedantic", "-Werror"]
LINK = ["-rdynamic", "-pthread", "-ldl"]
SANITIZED = ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
KEY = np.random.default_rng(5).bytes(32)  # nothing that tables have


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Has graphopt.hpp and the program that loads files with it; the README's lines in it."""
    place = tmp_path_factory.mktemp("cxx")
    lines = re.search(r"<!-- readme.inc -->\n```cpp\n(.*?)```", README.read_text(), re.DOTALL)[1]
    (place / "readme.inc").write_text(lines)
    (place / "graphopt.hpp").write_text(cxx_header())
    shutil.copy(Path(__file__).with_name("loader_check.cc"), place)
    return place


def build(folder: Path, name: str, *flags: str) -> Path:
    command = ["g++", *FLAGS, "-I.", "loader_check.cc", *flags, "-o", name, *LINK]
    if "-DGRAPHOPT_OPENSSL" in flags:
        if not Path("/usr/include/openssl/evp.h").exists():
            pytest.skip("needs OpenSSL's headers: sudo apt-get install libssl-dev")
        command.append("-lcrypto")
    subprocess.run(command, cwd=folder, check=True)
    return folder / name


@pytest.fixture(scope="module")
def check(folder) -> Path:
    """With OpenSSL and sanitizers."""
    return build(folder, "check", "-DGRAPHOPT_OPENSSL", *SANITIZED)


@pytest.fixture(scope="module")
def bare(folder) -> Path:
    """With neither."""
    return build(folder, "bare")


def lines(*words: object) -> list[str]:
    """What the program says, one line for each file; the sanitizers say nothing."""
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def counted(*words: object) -> dict[str, int]:
    """Outcome → how often, of flip and cut."""
    return {outcome: int(count) for count, outcome in (row.split("\t") for row in lines(*words))}


@pytest.fixture
def files(tmp_path, program, alice, mallory) -> Path:
    """A compiled model as it is, signed, encrypted, and both; with keys."""
    (tmp_path / "key.bin").write_bytes(KEY)
    shutil.copy(alice.public, tmp_path / "public.pem")
    sign(program, alice.private, tmp_path / "signed.gopt")
    sign(program, mallory.private, tmp_path / "foreign.gopt")
    encrypt(program, tmp_path / "secret.gopt", key_file=KEY)
    sign(tmp_path / "secret.gopt", alice.private)
    encrypt(program, tmp_path / "phrase.gopt", passphrase="pässword", weights_only=True)
    shutil.copy(program, tmp_path / "plain.gopt")
    return tmp_path


def test_the_readmes_lines_run_what_is_signed_and_encrypted(check, files) -> None:
    x = np.random.default_rng(0).standard_normal((1, 3, 12, 12), np.float32)
    (files / "x.bin").write_bytes(x.tobytes())
    expected = graphopt.load(files / "plain.gopt").run({"x": x})["y"].tobytes().hex()
    done = subprocess.run([check, "readme", "x.bin"], cwd=files, capture_output=True, text=True)
    assert (done.stderr, done.stdout) == ("", expected)
    words = ("--passphrase", "pässword", "run", files / "phrase.gopt", files / "x.bin")
    assert lines(check, *words) == [expected]


def test_only_what_a_trusted_key_has_signed_is_loaded(check, files, alice, mallory) -> None:
    paths = [files / f"{name}.gopt" for name in ("signed", "plain", "foreign")]
    said = lines(check, "--trust", alice.public, "load", *paths)
    assert said[0] == "ok"
    assert "it is not signed" in said[1]
    with pytest.raises(ArtifactError) as error:
        load(paths[2], [alice.raw])
    assert said[2].removeprefix("the file is refused: ") in error.value.reason
    both = ("--trust", alice.public, "--trust", mallory.public.read_text())
    assert lines(check, *both, "load", paths[0], paths[2]) == ["ok", "ok"]
    assert lines(check, "load", *paths) == ["ok", "ok", "ok"]


def test_keys_that_are_none(check, files, alice, tmp_path) -> None:
    (tmp_path / "long.bin").write_bytes(bytes(1 << 17))
    (tmp_path / "short.bin").write_bytes(b"0123456789")
    curve = ec.generate_private_key(ec.SECP256R1()).public_key()
    (tmp_path / "ec.pub").write_bytes(curve.public_bytes(PEM, SPKI))
    for option, value, reason in (
        ("--trust", alice.private, "is no public key in PEM form"),
        ("--trust", tmp_path / "ec.pub", "is not an Ed25519 key"),
        ("--trust", tmp_path / "gone.pem", "No such file"),
        ("--trust", "-----BEGIN nothing", "the trusted key is no public key"),
        ("--key-file", tmp_path / "long.bin", "too large"),
        ("--key-file", tmp_path / "short.bin", "10 bytes; a key file has 32 or more"),
        ("--key-file", tmp_path, "Is a directory"),
    ):
        (said,) = lines(check, option, value, "load", files / "secret.gopt")
        assert reason in said, option
    (said,) = lines(check, "--key-file", "a", "--passphrase", "b", "load", files / "secret.gopt")
    assert "not both" in said


def test_without_the_right_secret(check, files, alice) -> None:
    secret, phrase = files / "secret.gopt", files / "phrase.gopt"
    said = lines(check, "load", secret, phrase)
    assert "with a key file, which is not given" in said[0]
    assert "with a passphrase, which is not given" in said[1]
    said = lines(check, "--key-file", files / "key.bin", "load", secret, phrase)
    assert (said[0], "with a passphrase" in said[1]) == ("ok", True)
    for option, value, path in (
        ("--key-file", alice.private, secret),
        ("--passphrase", "sesame", phrase),
    ):
        (text,) = lines(check, option, value, "load", path)
        assert "does not decrypt" in text
        assert str(value) not in text


def test_every_altered_byte_of_the_manifest(check, tmp_path, tiny, alice) -> None:
    path = tmp_path / "tiny.gopt"
    save(path, tiny.manifest, tiny.modules, tiny.weights)
    sign(path, alice.private)
    stored = read_sealed(path)
    begin, manifest = stored.layout.offsets[0], stored.layout.members[0]
    words = ("flip", path, begin, begin + manifest.size, 1)
    found = counted(check, "--trust", alice.public, *words)
    (reason,) = found
    assert "is not valid; the file was altered after it was signed" in reason
    assert found[reason] == manifest.size


def test_altered_bytes_of_a_signed_program(check, files) -> None:
    signed = files / "signed.gopt"
    size = signed.stat().st_size
    trust = ("--trust", files / "public.pem")
    step = size // 150
    found = counted(check, *trust, "flip", signed, 0, size, step)
    assert sum(found.values()) == -(-size // step)
    assert all(reason.startswith("the file is refused: ") for reason in found)
    # The seal, byte for byte: magic, key, signature and digest.
    found = counted(check, *trust, "flip", signed, size - SEAL_BYTES, size, 1)
    assert sum(found.values()) == SEAL_BYTES
    assert all(reason.startswith("the file is refused: ") for reason in found)
    assert lines(check, *trust, "load", signed) == ["ok"]


def test_a_forger_who_makes_digests_fit_is_refused(check, tmp_path, tiny, alice) -> None:
    save(tmp_path / "tiny.gopt", tiny.manifest, tiny.modules, tiny.weights)
    sign(tmp_path / "tiny.gopt", alice.private)
    good = (tmp_path / "tiny.gopt").read_bytes()
    paths = []
    for at in range(0, len(good) - UNSEALED_BYTES, 13):
        bad = bytearray(good)
        bad[at] ^= 1 << at % 8
        paths.append(tmp_path / f"{at}.gopt")
        paths[-1].write_bytes(sealed(bytes(bad)))
    said = lines(check, "--trust", alice.public, "load", *paths)
    assert len(said) == len(paths)
    assert all(text.startswith("the file is refused: ") for text in said)


def test_weights_of_several_chunks_decrypt_and_moved_ones_do_not(check, tmp_path) -> None:
    size = 1500
    weights = np.random.default_rng(3).standard_normal((size, size)).astype(np.float32)
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "large",
        [info("x", TensorProto.FLOAT, [1, size])],
        [info("y", TensorProto.FLOAT, [1, size])],
        [numpy_helper.from_array(weights, "w")],
    )
    opset = [helper.make_opsetid("", 17)]
    model = graphopt.compile(helper.make_model(graph, opset_imports=opset, ir_version=9), threads=1)
    model.save(tmp_path / "plain.gopt")
    x = np.linspace(-1, 1, size, dtype=np.float32)[None]
    (tmp_path / "x.bin").write_bytes(x.tobytes())
    path = tmp_path / "large.gopt"
    encrypt(tmp_path / "plain.gopt", path, key_file=KEY)
    (tmp_path / "key.bin").write_bytes(KEY)
    key = ("--key-file", tmp_path / "key.bin")
    expected = model.run({"x": x})["y"].tobytes().hex()
    assert lines(check, *key, "run", path, tmp_path / "x.bin") == [expected]

    stored = read_sealed(path)
    members = [bytes(member) for member in stored.members()]
    names = [member.name for member in stored.layout.members]
    kept = bytes(stored.weights)
    step = CHUNK_BYTES + 16
    assert len(kept) > 2 * step
    swapped = kept[step : 2 * step] + kept[:step] + kept[2 * step :]
    cases = [kept, swapped, kept[:-1], kept[: 2 * step], kept[:7], b""]
    paths = [tmp_path / f"{i}.gopt" for i in range(len(cases))]
    for place, case in zip(paths, cases, strict=True):
        place.write_bytes(forged(list(zip(names, [*members, case], strict=True))))
    said = lines(check, *key, "load", *paths)
    assert said[0] == "ok"
    assert all("does not decrypt" in text or "cut off" in text for text in said[1:])


def test_weights_and_keys_do_not_stay_in_memory(folder, tmp_path, parts) -> None:
    """Weights are found while the program is there, and not after; the key's file never."""
    plain = build(folder, "unsanitized", "-DGRAPHOPT_OPENSSL", "-O1")
    weights = np.random.default_rng(4).integers(0, 256, parts.weights.nbytes).astype(np.uint8)
    save(tmp_path / "plain.gopt", parts.manifest, parts.modules, weights)
    encrypt(tmp_path / "plain.gopt", tmp_path / "secret.gopt", key_file=KEY)
    (tmp_path / "key.bin").write_bytes(KEY)

    def inverted(data: bytes) -> str:
        return bytes(255 - byte for byte in data).hex()

    needles = (inverted(weights[1000:1032].tobytes()), inverted(KEY))
    key = ("--key-file", tmp_path / "key.bin")
    assert lines(plain, *key, "secrets", tmp_path / "secret.gopt", *needles) == ["1 0 0 0 "]


def test_without_openssl_the_error_names_the_macro(bare, files) -> None:
    paths = [files / f"{name}.gopt" for name in ("signed", "plain", "secret", "phrase")]
    said = lines(bare, "load", *paths)
    assert said[:2] == ["ok", "ok"]
    trusting = lines(bare, "--trust", files / "public.pem", "load", paths[0])
    for text in (*said[2:], *trusting):
        assert "GRAPHOPT_OPENSSL" in text
        assert "-lcrypto" in text


def zip_tricks(tiny: Parts) -> dict[str, bytes]:
    """Files with a right digest that are not what graphopt writes."""
    manifest, module, weights = contents(tiny)
    good = packed(tiny)
    directory, local = good.index(b"PK\1\2"), good.index(b"PK\3\4", 1)
    second = good.index(b"PK\1\2", directory + 1)
    end = len(good) - SEAL_BYTES - 22

    def changed(position: int, value: bytes) -> bytes:
        return sealed(good[:position] + value + good[position + len(value) :])

    return {
        "twice": forged([manifest, module, module, weights]),
        "outside": forged([manifest, ("../evil.so", b"x"), weights]),
        "absolute": forged([manifest, ("/etc/passwd", b"x"), weights]),
        "unknown": forged([manifest, module, ("readme.txt", b"x"), weights]),
        "order": forged([module, manifest, weights]),
        "no weights": forged([manifest, module]),
        "no module": forged([manifest, weights]),
        "only weights": forged([weights]),
        "nothing": forged([]),
        "short weights": forged([manifest, module, ("weights.bin", b"")]),
        "encrypted": changed(directory + 8, b"\1\0"),
        "compressed": changed(directory + 10, b"\x08\0"),
        "locally compressed": changed(local + 8, b"\x08"),
        "other crc": changed(local + 14, b"\1\2\3\4"),
        "other local size": changed(local + 22, b"\1"),
        "other local name": changed(local + 30, b"x"),
        "huge packed": changed(directory + 20, b"\xfe\xff\xff\xff"),
        "huge": changed(directory + 20, b"\xfe\xff\xff\xff" * 2),
        "zip64 without sizes": changed(directory + 20, b"\xff\xff\xff\xff" * 2),
        "overlap": changed(second + 42, b"\0\0\0\0"),
        "long name": changed(directory + 28, b"\xff\xff"),
        "long extra": changed(directory + 30, b"\xff\xff"),
        "long comment": changed(directory + 32, b"\xff\xff"),
        "time": changed(directory + 12, b"\1"),
        "far directory": changed(end + 16, b"\xf0\xff\xff\xff"),
        "zip64 directory": changed(end + 16, b"\xff\xff\xff\xff"),
        "long directory": changed(end + 12, b"\xf0\xff\xff\xff"),
        "count": changed(end + 8, b"\xff\xff\xff\xff"),
        "two disks": changed(end + 4, b"\1"),
        "before": sealed(b"hidden" + good),
        "between": sealed(good[:local] + b"hidden" + good[local:]),
        "behind": sealed(good[:directory] + b"hidden" + good[directory:]),
        "zip64": sealed(zip64(good, directory, end)),
    }


def zip64(good: bytes, directory: int, end: int) -> bytes:
    """The same file with records that only large ones have, and numbers beyond 64 bits' half."""
    record = struct.pack(
        "<4sQHHIIQQQQ", b"PK\6\6", 44, 45, 45, 0, 0, 3, 3, end - directory, 2**63 + directory
    )
    locator = struct.pack("<4sIQI", b"PK\6\7", 0, end, 1)
    last = good[end : end + 12] + b"\xff" * 8 + good[end + 20 :]
    return good[:end] + record + locator + last


def bad_manifests(tiny: Parts) -> dict[str, bytes]:
    (name, text), module, weights = contents(tiny)

    def with_text(changed: bytes) -> bytes:
        assert changed != text
        return forged([(name, changed), module, weights])

    shape = b'"shape":[4]'
    assert shape in text
    return {
        "cut off": with_text(text[:-1]),
        "more": with_text(text + b"}"),
        "no JSON": with_text(b"{"),
        "a list": with_text(b"[]"),
        "nothing": with_text(b""),
        "deep": with_text(b"[" * 100_000),
        "twice": with_text(b'{"abi":1,' + text[1:]),
        "version": with_text(text.replace(b'"schema":', b'"schema":9')),
        "negative": with_text(text.replace(shape, b'"shape":[-4]')),
        "fraction": with_text(text.replace(shape, b'"shape":[4.5]')),
        "overflow": with_text(text.replace(shape, b'"shape":[4294967296,4294967296]')),
        "endless": with_text(text.replace(shape, b'"shape":[99999999999999999999]')),
        "text": with_text(text.replace(shape, b'"shape":["4"]')),
        "type": with_text(text.replace(b'"float32"', b'"float31"')),
        "threads": with_text(re.sub(rb'"threads":\d+', b'"threads":100000', text)),
        "arena": with_text(re.sub(rb'"arena_bytes":\d+', b'"arena_bytes":9007199254740991', text)),
        "weights": with_text(re.sub(rb'"weights_offset":0', b'"weights_offset":64', text)),
        "unaligned": with_text(re.sub(rb'"weights_offset":0', b'"weights_offset":1', text)),
        "no entry": with_text(text.replace(b'"entries":', b'"entrances":')),
    }


@pytest.mark.parametrize("make", [zip_tricks, bad_manifests])
def test_what_python_refuses_is_refused(make, check, tmp_path, tiny) -> None:
    cases = make(tiny)
    paths = [tmp_path / f"{i}.gopt" for i in range(len(cases))]
    for path, content in zip(paths, cases.values(), strict=True):
        path.write_bytes(content)
        with pytest.raises(ArtifactError):
            read(path)
    said = dict(zip(cases, lines(check, "load", *paths), strict=True))
    # Not by the system's loader: the module is no library, and must not come so far.
    accepted = {name for name, text in said.items() if text == "ok" or "system" in text}
    assert not accepted
    assert all(len(text) > 15 for text in said.values())


def test_every_length_of_a_small_file_is_refused(check, tmp_path, tiny) -> None:
    path = tmp_path / "tiny.gopt"
    path.write_bytes(packed(tiny))
    (said,) = lines(check, "load", path)
    assert "the system cannot load the program" in said  # all but its module is right
    size = path.stat().st_size
    found = counted(check, "cut", path)
    assert sum(found.values()) == size
    assert all("refused" in reason or "is empty" in reason for reason in found)


@pytest.mark.parametrize("size", [0, 5, (4 << 30) - 1, 4 << 30, (9 << 30) + 7])
@pytest.mark.parametrize("module", [10, 5 << 30])
def test_the_layout_is_pythons(size, module, check) -> None:
    members = [
        Member("manifest.json", 100, 1),
        Member("entries/0/module.so", module, 2**32 - 1),
        Member("weights.bin", size, 3),
    ]
    plan = layout(members)
    said = lines(check, "layout", *(f"{m.name}:{m.size}:{m.crc}" for m in members))
    expected = [
        word
        for offset, header in zip(plan.offsets, plan.headers, strict=True)
        for word in (str(offset), header.hex())
    ]
    assert said == [*expected, str(plan.directory_offset), plan.directory.hex()]


def test_a_program_for_a_device_is_refused(check, tmp_path, tiny) -> None:
    (name, text), module, weights = contents(tiny)
    there = text.replace(b'"device":null', b'"device":{}')
    (tmp_path / "device.gopt").write_bytes(forged([(name, there), module, weights]))
    (said,) = lines(check, "load", tmp_path / "device.gopt")
    assert "is for a device" in said
