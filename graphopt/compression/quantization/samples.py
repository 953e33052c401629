"""Calibration data while a model is quantized: read in a stream, and the first batches kept."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from graphopt.compression.quantization.feeds import Data, checked, input_specs
from graphopt.compression.quantization.graph import STAGE
from graphopt.compression.quantization.placement import Placement
from graphopt.compression.quantization.running import Run, check_same, observed
from graphopt.compression.quantization.statistics import Statistics, gather
from graphopt.errors import OptionError
from graphopt.frontend.model import Array, OnnxModel

KEPT_BATCHES = 16
KEPT_BYTES = 1 << 26
"""Batches on which models are compared, at most."""


class Samples:
    """The data of one quantization, for models that compute the same as the first one."""

    def __init__(self, prepared: OnnxModel, base: OnnxModel, data: Data | None, run: Run) -> None:
        """Args:
        prepared: the user's model, to which the canonical one, `base`, is compared once.
        """
        self._prepared, self._data, self._run = prepared, data, run
        self._specs = input_specs(base)
        self._begun = False
        self.kept: list[Mapping[str, Array]] = []

    @property
    def description(self) -> str:
        """Where they are from."""
        return "no data" if self._data is None else self._data.description

    @property
    def warning(self) -> str | None:
        """What the user should know of them."""
        return None if self._data is None else self._data.warning

    def statistics(self, base: OnnxModel, placement: Placement) -> Statistics | None:
        """Statistics of what is to be in 8 bits, and of what products read; None without data.

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
        batches = checked(self._data.batches(self._specs), self._specs)
        return gather(self._observed(base, tensors, batches), tensors, channels)

    def _observed(
        self, base: OnnxModel, tensors: Sequence[str], batches: Iterable[Mapping[str, Array]]
    ) -> Iterator[Mapping[str, Array]]:
        first = not self._begun
        self._begun = True
        for feeds in self._keeping(batches) if first else batches:
            if first:
                check_same(self._run, self._prepared, base, feeds)
                first = False
            yield from observed(self._run, base, [feeds], tensors)

    def _keeping(self, batches: Iterable[Mapping[str, Array]]) -> Iterator[Mapping[str, Array]]:
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
