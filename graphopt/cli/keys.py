"""Keys and passphrases that flags name."""

from __future__ import annotations

import argparse
import getpass
import sys
from pathlib import Path

import graphopt
from graphopt.errors import OptionError


def loaded(program: str, args: argparse.Namespace) -> graphopt.LoadedModel:
    """The program, with the keys that the flags name."""
    return graphopt.load(
        program, threads=args.threads, trusted_keys=args.trusted_key, **secret(args)
    )


def secret(args: argparse.Namespace) -> dict[str, str]:
    """The arguments key_file or passphrase of API functions."""
    if args.key_file:
        return {"key_file": args.key_file}
    if not args.passphrase_file:
        return {}
    if args.passphrase_file == "-":
        return {"passphrase": getpass.getpass("passphrase: ", sys.stderr)}
    try:
        lines = Path(args.passphrase_file).read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise OptionError("keys", f"cannot read '{args.passphrase_file}': {reason}.") from error
    if len(lines) != 1 or not lines[0]:
        raise OptionError("keys", f"'{args.passphrase_file}' is not one line with a passphrase.")
    return {"passphrase": lines[0]}
