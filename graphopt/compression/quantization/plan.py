"""The plan: every scale, zero point and decision, before anything is changed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from graphopt.compression.quantization.config import QuantizationConfig
from graphopt.compression.quantization.groups import Group, Refusal
from graphopt.compression.quantization.scheme import Array, Format

_ARRAYS = ("scale", "zero", "table", "codes")


@dataclass(frozen=True)
class ActivationPlan:
    """One tensor in 8 bits. `low` and `high`: the range that calibration chose."""

    tensor: str
    scale: float
    zero: int
    form: Format
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class WeightPlan:
    """The weights of one product.

    Attributes:
        node, tensor: the product and its constant.
        kind: "linear"; "table" (values that each weight is one of); "float16", "bfloat16".
        form: the integers; of a table, how many bits index it.
        axis: of the channels with a scale each, None for one scale.
        depth, group: the axis that groups with a scale each divide, and their size; 0 for none.
        scale, zero: arrays, see weight_parameters(); of a table, () and ().
        table: the values, sorted; empty for other kinds.
        packed: stored as INT4, two in a byte.
        codes: the integers themselves in the weights' shape, where they are not simply rounded.
    """

    node: str
    tensor: str
    kind: str
    form: Format
    axis: int | None
    depth: int | None
    group: int
    scale: Array
    zero: Array
    table: Array
    packed: bool
    codes: Array | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        arrays = {name: _listed(getattr(self, name)) for name in _ARRAYS}
        own = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {**own, "form": asdict(self.form), **arrays}

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> WeightPlan:
        """The inverse of to_dict()."""
        arrays = {name: _array(values[name]) for name in _ARRAYS}
        return WeightPlan(**{**values, "form": Format(**values["form"]), **arrays})


@dataclass(frozen=True, eq=False)
class Plan:
    """Everything that apply() does to a canonical float model.

    Attributes:
        groups: the integer kernels (weight-only: the products with narrow weights).
        refusals: what stays in float, and why.
        corrections: added to products' results per channel, float32, by node.
    """

    config: QuantizationConfig
    groups: tuple[Group, ...]
    refusals: tuple[Refusal, ...]
    activations: tuple[ActivationPlan, ...]
    weights: tuple[WeightPlan, ...]
    corrections: Mapping[str, Array] = field(default_factory=dict)

    def to_json(self) -> str:
        """A JSON object; numbers keep all their digits."""
        return json.dumps(
            {
                "config": asdict(self.config),
                "groups": [asdict(group) for group in self.groups],
                "refusals": [asdict(refusal) for refusal in self.refusals],
                "activations": [asdict(each) for each in self.activations],
                "weights": [each.to_dict() for each in self.weights],
                "corrections": {name: _listed(each) for name, each in self.corrections.items()},
            }
        )

    @staticmethod
    def from_json(text: str) -> Plan:
        """The inverse of to_json()."""
        values = json.loads(text)
        return Plan(
            QuantizationConfig.of(**values["config"]),
            tuple(_group(each) for each in values["groups"]),
            tuple(Refusal(**each) for each in values["refusals"]),
            tuple(
                ActivationPlan(**{**each, "form": Format(**each["form"])})
                for each in values["activations"]
            ),
            tuple(WeightPlan.from_dict(each) for each in values["weights"]),
            {name: _array(each) for name, each in values["corrections"].items()},
        )

    def activation(self, tensor: str) -> ActivationPlan | None:
        """The plan of a tensor, if it is in 8 bits."""
        return next((each for each in self.activations if each.tensor == tensor), None)

    def weight(self, node: str) -> WeightPlan | None:
        """The plan of a product's weights."""
        return next((each for each in self.weights if each.node == node), None)


def _listed(array: Array | None) -> list[Any] | None:
    """An array as dtype, shape and elements; float32 in full."""
    if array is None:
        return None
    return [str(array.dtype), list(array.shape), array.reshape(-1).tolist()]


def _array(listed: list[Any] | None) -> Any:
    if listed is None:
        return None
    return np.asarray(listed[2], listed[0]).reshape(listed[1])


def _group(values: Mapping[str, Any]) -> Group:
    tuples = {name: tuple(values[name]) for name in ("nodes", "inputs", "outputs")}
    return Group(**{**values, **tuples})
