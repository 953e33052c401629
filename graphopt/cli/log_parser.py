"""The grammar of `graphopt logs` and its help."""

from __future__ import annotations

import argparse
from typing import Any

from graphopt.cli import options

EXAMPLES = (
    "list tuning_logs/",
    "merge other/ more/ --into tuning_logs/",
    "prune tuning_logs/ --keep 4",
    "export tuning_logs/ -o records.jsonl.gz",
    "import records.jsonl.gz --into tuning_logs/",
)


def add_actions(parser: Any) -> None:
    """Add what can be done with logs to the parser of the verb; args.action is what was chosen."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    _list(actions)
    _merge(actions)
    _prune(actions)
    _export(actions)
    _import(actions)


def _action(actions: Any, name: str, summary: str, description: str, *examples: str) -> Any:
    parser = actions.add_parser(
        name,
        help=summary,
        description=description,
        epilog="examples:\n" + "\n".join(f"  graphopt logs {name} {e}" for e in examples),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    # Without defaults, which would undo what was given before the action's name.
    flags = {"action": "store_true", "default": argparse.SUPPRESS}
    parser.add_argument("--json", help="print the result as JSON", **flags)
    parser.add_argument("--verbose", help="show what the library logs", **flags)
    parser.add_argument("--debug", help="show tracebacks and debug messages", **flags)
    return parser


def _into_flag(parser: Any) -> None:
    parser.add_argument(
        "--into", required=True, metavar="LOG", help="the log to add to; made if there is none"
    )


def _list(actions: Any) -> None:
    parser = _action(
        actions,
        "list",
        "say what a log holds",
        "Say what a log holds of each target key: records, failures, distinct workloads and\n"
        "kernels, when they were measured, and lines that are no records.",
        "tuning_logs/",
        "tuning_logs/ --json",
    )
    parser.add_argument("log", metavar="LOG", help="a folder that graphopt tune made")


def _merge(actions: Any) -> None:
    parser = _action(
        actions,
        "merge",
        "add the records of logs to another log",
        "Add the records that the other log does not have yet. The sources stay as they are.",
        "other/ more/ --into tuning_logs/",
    )
    parser.add_argument("logs", nargs="+", metavar="LOG", help="where to take records from")
    _into_flag(parser)


def _prune(actions: Any) -> None:
    parser = _action(
        actions,
        "prune",
        "drop records that hardly matter",
        "Keep the records of the best kernels of each workload, and drop the others for good,\n"
        "with lines that are no records. Tuning may go on in the same log meanwhile.",
        "tuning_logs/",
        "tuning_logs/ --keep 4 --keep-failures",
        "tuning_logs/ --current",
    )
    parser.add_argument("log", metavar="LOG")
    parser.add_argument(
        "--keep",
        type=options.positive,
        metavar="N",
        help="kernels of each candidate of a workload (default: 8)",
    )
    parser.add_argument(
        "--keep-failures",
        action="store_true",
        help="keep what failed, so that tuning does not try it again",
    )
    parser.add_argument(
        "--current",
        action="store_true",
        help="drop also what was made with other versions of TVM or of the schedules",
    )


def _export(actions: Any) -> None:
    parser = _action(
        actions,
        "export",
        "write a log to one file",
        "Write the records of a log to one file, to send or to keep.",
        "tuning_logs/ -o records.jsonl.gz",
        "tuning_logs/ -o records.jsonl --target x86_64-avx512-l1.32k-l2.1024k-t2",
    )
    parser.add_argument("log", metavar="LOG")
    parser.add_argument("-o", "--output", required=True, metavar="FILE.jsonl[.gz]")
    parser.add_argument(
        "--target", metavar="KEY", help="only the records of this target key (see logs list)"
    )


def _import(actions: Any) -> None:
    parser = _action(
        actions,
        "import",
        "add the records of an exported file to a log",
        "Add the records of an exported file that the log does not have yet.",
        "records.jsonl.gz --into tuning_logs/",
    )
    parser.add_argument("file", metavar="FILE.jsonl[.gz]")
    _into_flag(parser)
