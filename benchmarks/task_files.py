"""Magika on the files of this machine: what kind each is, judged by its name's suffix."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from catalogue import select
from quantization_tasks import CALIBRATION, Feeds, Predict, Sample

_FOLDERS = ("/usr/share", "/usr/lib", "/usr/include", "/etc", "/opt")
"""Of Debian."""
_EACH = 60
"""Files of one suffix, at most."""
_OTHERWISE = (".pth", ".pyc", ".txt")
"""Suffixes that mean another thing in Debian, or anything, and of files that come and go."""
_CALIBRATION_EACH = 3
"""Every third file of a suffix is for calibration, the others are held out."""
_BYTES = 1024
"""From each end of a file."""
_BLOCK = 4096
_LEAST = 64
"""Bytes of a file."""
_NONE = 256
"""Stands where there is no byte."""


@dataclass(frozen=True)
class FileTypes:
    """Files whose suffix says what they are."""

    name: str = "magika"
    unit: str = "labels"
    constants: Mapping[str, Any] = field(default_factory=dict)
    shapes: Mapping[str, tuple[int, ...]] | None = None

    def model(self, folder: Path) -> Path | None:
        """The model of the package magika."""
        (entry,) = select(["magika"])
        return entry.locate()

    def calibration(self, seed: int) -> list[Feeds]:
        """Some files."""
        found = [path for place, path in _files() if place % _CALIBRATION_EACH == 0]
        chosen = np.random.default_rng((seed, 0)).choice(len(found), CALIBRATION, replace=False)
        return [_features(found[k]) for k in chosen]

    def samples(self, count: int) -> Sequence[Sample]:
        """Other files."""
        found = [path for place, path in _files() if place % _CALIBRATION_EACH]
        order = np.random.default_rng((0, 1)).permutation(len(found))[:count]
        return [
            Sample(_features(path), _labels()[path.suffix]) for path in (found[k] for k in order)
        ]

    def decide(self, predict: Predict, sample: Sample) -> Any:
        """The kind's number."""
        return int(predict(sample.feeds)["target_label"].argmax())


@cache
def _labels() -> dict[str, list[int]]:
    """The numbers of the kinds that a suffix may stand for."""
    (entry,) = select(["magika"])
    path = entry.locate()
    assert path is not None
    names = json.loads((path.parent / "config.min.json").read_text())["target_labels_space"]
    kinds = json.loads((path.parents[2] / "config" / "content_types_kb.min.json").read_text())
    found: dict[str, list[int]] = {}
    for number, name in enumerate(names):
        for suffix in kinds[name].get("extensions", ()):
            found.setdefault(f".{suffix}", []).append(number)
    more = {".h": ("c", "cpp"), ".c": ("c", "cpp"), ".so": ("elf",), ".crt": ("crt", "pem")}
    found.update({suffix: [names.index(name) for name in kinds] for suffix, kinds in more.items()})
    return {suffix: labels for suffix, labels in found.items() if suffix not in _OTHERWISE}


@cache
def _files() -> tuple[tuple[int, Path], ...]:
    """Files of known kinds, each with its place among those of its suffix."""
    kinds: dict[str, set[str]] = {}
    for root in _FOLDERS:
        for folder, _, names in os.walk(root):
            for name in names:
                suffix = os.path.splitext(name)[1]  # noqa: PTH122 (a million names)
                if suffix in _labels():
                    kinds.setdefault(suffix, set()).add(f"{folder}/{name}")
    found = []
    for _, paths in sorted(kinds.items()):
        rng = np.random.default_rng(2)  # anew: a file that comes changes its own kind only
        several = sorted(paths)
        usable = (path for k in rng.permutation(len(several)) if _usable(path := Path(several[k])))
        found += list(enumerate(itertools.islice(usable, _EACH)))
    return tuple(found)


def _usable(path: Path) -> bool:
    try:
        return path.is_file() and not path.is_symlink() and path.stat().st_size >= _LEAST
    except OSError:
        return False


def _features(path: Path) -> Feeds:
    """The first and the last 1,024 bytes without the blanks around, as the model wants them."""
    with path.open("rb") as file:
        begin = file.read(_BLOCK).lstrip()[:_BYTES]
        file.seek(max(path.stat().st_size - _BLOCK, 0))
        end = file.read(_BLOCK).rstrip()[-_BYTES:]
    values = np.full((1, 2 * _BYTES), _NONE, np.int32)
    values[0, : len(begin)] = np.frombuffer(begin, np.uint8)
    if end:
        values[0, 2 * _BYTES - len(end) :] = np.frombuffer(end, np.uint8)
    return {"bytes": values}
