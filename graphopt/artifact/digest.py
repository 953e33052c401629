"""A tree digest over a whole file, computed by several threads.

BLAKE2b in its own tree mode (RFC 7693 and section 2.10 of the BLAKE2 paper: two levels, unlimited
fan-out): leaves of 4 MiB, numbered, the last one marked, so that no two files of different length
or order share a tree. One pass of a single thread over a large model's weights would take longer
than everything else in loading it.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from hashlib import blake2b
from itertools import accumulate

DIGEST_BYTES = 32
LEAF_BYTES = 4 << 20
PERSON = b"graphopt.gopt.v1"


def tree_digest(parts: Sequence[memoryview], threads: int) -> bytes:
    """The digest of the concatenated `parts` (flat byte views); `threads` does not change it."""
    ends = list(accumulate(len(part) for part in parts))
    total = ends[-1] if ends else 0
    count = max(1, -(-total // LEAF_BYTES))
    leaves = [b""] * count
    todo = deque(range(count))

    def leaf(index: int) -> bytes:
        state = blake2b(
            digest_size=DIGEST_BYTES,
            fanout=0,
            depth=2,
            leaf_size=LEAF_BYTES,
            node_offset=index,
            node_depth=0,
            inner_size=DIGEST_BYTES,
            last_node=index == count - 1,
            person=PERSON,
        )
        low, high = index * LEAF_BYTES, min((index + 1) * LEAF_BYTES, total)
        for part, end in zip(parts, ends, strict=True):
            start = end - len(part)
            if start < high and end > low:
                state.update(part[max(low - start, 0) : high - start])
        return state.digest()

    def work() -> None:
        while True:
            try:
                index = todo.popleft()
            except IndexError:
                return
            leaves[index] = leaf(index)  # hashlib releases the GIL

    helpers = [threading.Thread(target=work) for _ in range(min(threads, count) - 1)]
    for helper in helpers:
        helper.start()
    work()
    for helper in helpers:
        helper.join()
    if not all(leaves):
        raise RuntimeError("a thread failed to hash its part of the file")
    root = blake2b(
        digest_size=DIGEST_BYTES,
        fanout=0,
        depth=2,
        leaf_size=LEAF_BYTES,
        node_offset=0,
        node_depth=1,
        inner_size=DIGEST_BYTES,
        last_node=True,
        person=PERSON,
    )
    for value in leaves:
        root.update(value)
    return root.digest()
