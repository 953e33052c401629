"""graphopt sign, check-signature and encrypt."""

from __future__ import annotations

import argparse
import getpass
import sys
from pathlib import Path

import graphopt
from graphopt.cli import keys, options
from graphopt.cli.verbs import FAILED, OK, Screen
from graphopt.errors import ArtifactError


def sign(args: argparse.Namespace, screen: Screen) -> int:
    """graphopt sign"""
    output = options.writable(args.output or args.program)
    done = graphopt.sign(args.program, args.key, output, passphrase=_key_passphrase(args.key))
    result = {"output": str(output), "key": done.key, "digest": done.digest}
    screen.show(result, f"signed {output} with key {done.key}")
    return OK


def check_signature(args: argparse.Namespace, screen: Screen) -> int:
    """graphopt check-signature"""
    try:
        done = graphopt.check_signature(args.program, args.trusted_key)
    except ArtifactError as error:
        screen.show({"ok": False, "reason": error.reason}, f"{args.program}: {error.reason}")
        return FAILED
    result = {"ok": True, "key": done.key, "digest": done.digest}
    screen.show(result, f"{args.program} is signed by key {done.key}, and unaltered")
    return OK


def encrypt(args: argparse.Namespace, screen: Screen) -> int:
    """graphopt encrypt"""
    output = options.writable(args.output)
    graphopt.encrypt(args.program, output, weights_only=args.weights_only, **keys.secret(args))
    what = "weights" if args.weights_only else "weights and modules"
    screen.show({"output": str(output)}, f"wrote {output}, {what} encrypted")
    return OK


def _key_passphrase(path: str) -> str | None:
    """Asked for where the private key is encrypted."""
    try:
        encrypted = b"ENCRYPTED" in Path(path).read_bytes()[:64]
    except OSError:
        return None  # sign() says what is wrong
    return getpass.getpass("passphrase of the private key: ", sys.stderr) if encrypted else None
