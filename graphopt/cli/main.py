"""The entry point of the command `graphopt`."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import traceback
from collections.abc import Sequence

from graphopt.cli import device_verb, key_verbs, log_verbs, quantize_verb, tune_verb, verbs
from graphopt.cli.parser import make_parser
from graphopt.cli.progress import logged
from graphopt.errors import GraphoptError

WRONG_USAGE, DEFECT, INTERRUPTED = 2, 3, 130

_VERBS = {
    "bench": verbs.bench,
    "cache": verbs.cache,
    "check-signature": key_verbs.check_signature,
    "compile": verbs.compile,
    "cxx-header": verbs.cxx_header,
    "devices": device_verb.devices,
    "encrypt": key_verbs.encrypt,
    "inspect": verbs.inspect,
    "logs": log_verbs.logs,
    "profile": verbs.profile,
    "quantize": quantize_verb.quantize,
    "run": verbs.run,
    "sign": key_verbs.sign,
    "tune": tune_verb.tune,
    "rpc-server": tune_verb.rpc_server,
    "verify": verbs.verify,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code (argparse exits with 2 by itself)."""
    args = make_parser().parse_args(argv)
    screen = verbs.Screen(args.json)
    level = logging.DEBUG if args.debug else logging.INFO if args.verbose else logging.WARNING
    try:
        with logged(screen.err, level):
            code = _VERBS[args.verb](args, screen)
        sys.stdout.flush()
        return code
    except GraphoptError as error:
        return _fail(screen, args.debug, WRONG_USAGE, str(error), error)
    except KeyboardInterrupt:
        screen.err.print("interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        # The reader has gone; keep the interpreter from complaining when it flushes.
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return WRONG_USAGE
    except MemoryError as error:
        return _fail(screen, args.debug, WRONG_USAGE, "out of memory", error)
    except Exception as error:
        kind = type(error).__name__
        first = (str(error).strip().splitlines() or [""])[0]
        text = f"a defect of graphopt: {kind}: {first} (--debug shows where)"
        return _fail(screen, args.debug, DEFECT, text, error)


def _fail(screen: verbs.Screen, debug: bool, code: int, text: str, error: BaseException) -> int:
    if debug:
        screen.err.print("".join(traceback.format_exception(error)), markup=False, highlight=False)
    screen.err.print(f"error: {text}", markup=False, highlight=False)
    if screen.as_json:
        fields = {"message": text}
        if isinstance(error, GraphoptError):
            found = {"stage": error.stage, "reason": error.reason, "node": error.node}
            fields |= {k: v for k, v in {**found, "hint": error.hint}.items() if v is not None}
        print(json.dumps({"error": fields}))
    return code


if __name__ == "__main__":
    sys.exit(main())
