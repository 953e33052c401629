"""The grammar of sign, check-signature and encrypt, and of loading with keys."""

from __future__ import annotations

from typing import Any


def add_verbs(verbs: Any, verb: Any) -> None:
    """Add the three verbs, each made by `verb`."""
    parser = verb(
        verbs,
        "sign",
        "sign a .gopt file",
        "Sign a .gopt file with an Ed25519 key. Every byte of it is signed.",
        "model.gopt --key private.pem        (openssl genpkey -algorithm ed25519 -out private.pem)",
    )
    parser.add_argument("program", metavar="FILE.gopt")
    parser.add_argument("--key", required=True, metavar="PRIVATE.pem")
    parser.add_argument("-o", "--output", metavar="FILE.gopt", help="default: the file itself")
    parser = verb(
        verbs,
        "check-signature",
        "check who signed a .gopt file",
        "Check that a trusted key signed a .gopt file and that no byte has changed since.\n"
        "Exits with 1 if not.",
        "model.gopt --trusted-key public.pem   (openssl pkey -in private.pem -pubout > public.pem)",
    )
    parser.add_argument("program", metavar="FILE.gopt")
    _trusted_key_flag(parser, "a public key", required=True)
    parser = verb(
        verbs,
        "encrypt",
        "encrypt a .gopt file",
        "Encrypt the weights and the machine code of a .gopt file with AES-256-GCM. Names and\n"
        "shapes of inputs, outputs and layers stay readable. A signature is dropped: sign after.",
        "model.gopt -o secret.gopt --key-file key.bin        (openssl rand -out key.bin 32)",
        "model.gopt -o secret.gopt --passphrase-file -",
    )
    parser.add_argument("program", metavar="FILE.gopt")
    parser.add_argument("-o", "--output", required=True, metavar="FILE.gopt")
    parser.add_argument(
        "--weights-only", action="store_true", help="leave the machine code as it is"
    )
    _secret_flags(parser, "to encrypt with", required=True)


def add_loading_flags(parser: Any) -> None:
    """The flags of verbs that load a program."""
    _trusted_key_flag(parser, "refuse the program unless this key has signed it")
    _secret_flags(parser, "the program is encrypted with")


def _trusted_key_flag(parser: Any, what: str, required: bool = False) -> None:
    parser.add_argument(
        "--trusted-key",
        action="append",
        default=[],
        required=required,
        metavar="PUBLIC.pem",
        help=what + "; may be given several times",
    )


def _secret_flags(parser: Any, what: str, required: bool = False) -> None:
    secret = parser.add_mutually_exclusive_group(required=required)
    secret.add_argument("--key-file", metavar="FILE", help=f"the key file {what}")
    secret.add_argument(
        "--passphrase-file",
        metavar="FILE",
        help=f"a file with the passphrase {what}; - asks for it",
    )
