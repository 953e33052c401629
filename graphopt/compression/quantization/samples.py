"""Calibration data while a model is quantized: read in a stream, and the first batches kept."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator

from graphopt.compression.quantization.feeds import Data, checked, input_specs
from graphopt.compression.quantization.graph import STAGE, Graph
from graphopt.compression.quantization.placement import Placement
from graphopt.compression.quantization.probe import FloatProbe, float_probe
from graphopt.compression.quantization.running import Feeds, Run, check_same
from graphopt.compression.quantization.statistics import Statistics, gather
from graphopt.errors import OptionError
from graphopt.frontend.model import OnnxModel

log = logging.getLogger(__name__)

KEPT_BATCHES = 16
KEPT_BYTES = 1 << 26
"""Batches on which models are compared, at most."""
_SAYING = 1.0
"""Seconds between two words about progress."""


class Samples:
    """The data of one quantization, for models that compute the same as the first one."""

    def __init__(self, prepared: OnnxModel, base: OnnxModel, data: Data | None, run: Run) -> None:
        """Args:
        prepared: the user's model, to which the canonical one, `base`, is compared once.
        """
        self.prepared, self._data, self._run = prepared, data, run
        self._specs = input_specs(base)
        self._begun = False
        self.kept: list[Feeds] = []

    @property
    def description(self) -> str:
        """Where they are from."""
        return "no data" if self._data is None else self._data.description

    @property
    def warning(self) -> str | None:
        """What the user should know of them."""
        return None if self._data is None else self._data.warning

    def statistics(
        self, base: OnnxModel, placement: Placement
    ) -> tuple[Statistics, FloatProbe] | None:
        """Statistics of what is to be in 8 bits, and of what products read; None without data.

        With them comes the model that gave them, which later comparisons need too.

        Raises:
            InputError: the data does not fit the model, or there is none.
            OptionError: the data was read already, and cannot be read again.
        """
        if self._data is None:
            return None
        if self._begun and not self._data.repeatable:
            raise OptionError(
                STAGE,
                "the calibration data is an iterator, which can be read only once, and the chosen "
                "options need it again.",
                hint="give a list, or a file or folder.",
            )
        channels = _channels(placement)
        tensors = list(dict.fromkeys([*placement.tensors, *channels]))
        probe = float_probe(base, placement.groups, tensors)
        batches = checked(self._data.batches(self._specs), self._specs)
        return gather(self._observed(base, probe, batches), tensors, channels), probe

    def _observed(
        self, base: OnnxModel, probe: FloatProbe, batches: Iterable[Feeds]
    ) -> Iterator[Feeds]:
        first = not self._begun
        self._begun = True
        said = time.monotonic()
        for place, feeds in enumerate(self._keeping(batches) if first else batches):
            values = self._run(probe.model, probe.feeds(feeds, {}, {}), probe.wanted)
            if first:
                outputs = Graph(self.prepared).float_outputs
                exact = self._run(self.prepared, feeds, outputs) if outputs else {}
                check_same(exact, {**feeds, **values}, base.opsets.get("", 13))
                first = False
            if time.monotonic() - said > _SAYING:
                log.info("calibrating: %d batches", place + 1)
                said = time.monotonic()
            yield {**feeds, **values}

    def _keeping(self, batches: Iterable[Feeds]) -> Iterator[Feeds]:
        nbytes = 0
        for feeds in batches:
            nbytes += sum(array.nbytes for array in feeds.values())
            if not self.kept or (len(self.kept) < KEPT_BATCHES and nbytes <= KEPT_BYTES):
                self.kept.append(feeds)
            yield feeds


def _channels(placement: Placement) -> dict[str, int]:
    """Axes of the channels of what products read."""
    return {
        name: group.channels
        for group in placement.groups
        if group.kind == "product"
        for name in group.inputs
    }
