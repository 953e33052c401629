"""Whole programs, signed and encrypted, in Python and on the command line."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

import graphopt
from graphopt.artifact.signature import key_id
from graphopt.cli.main import main
from graphopt.errors import ArtifactError


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
