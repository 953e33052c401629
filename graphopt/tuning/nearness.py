"""How much the records of one target say about another, by their keys (see TargetSpec.key())."""

from __future__ import annotations

import math
import re

_KEY = re.compile(
    r"(?P<arch>[^-]+)-(?P<vector>[^-.]+)(?P<features>[^-]*)-(?P<caches>.+)-t(?P<threads>[0-9]+)"
)


def distance(key: str, other: str) -> tuple[bool, bool, float] | None:
    """What sorts other targets by how near they are to one; None if they have nothing in common.

    Decisions are counts of vectors and of elements: they mean the same where the vectors are as
    long. Further instructions, caches and threads change how good they are, but not whether they
    fit: what needs an instruction that a target lacks is no candidate there.

    Returns:
        whether the instructions differ, whether the caches do, and the threads' ratio as |log2|.
    """
    if key == other:  # also of a device, whose key says nothing that could be near another's
        return False, False, 0.0
    one, two = _KEY.fullmatch(key), _KEY.fullmatch(other)
    if one is None or two is None or one["arch"] != two["arch"] or one["vector"] != two["vector"]:
        return None
    threads = math.log2(max(int(one["threads"]), 1)) - math.log2(max(int(two["threads"]), 1))
    return one["features"] != two["features"], one["caches"] != two["caches"], abs(threads)
