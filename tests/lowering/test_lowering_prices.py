"""The static price table ranks convolutions as they were measured inside networks."""

from __future__ import annotations

from dataclasses import replace
from math import prod

import numpy as np
import pytest
from lowering_run import lowered
from relax_graph import make_graph
from tvm import relax
from tvm.relax import op

from graphopt.lowering.prices import Offer, price
from schedules.interface import Cost, Op, TargetTraits, TensorSig, Workload
from schedules.registry import FAMILIES

SERVER = TargetTraits(
    "x86_64", vector_bytes=64, vector_registers=32, l1_bytes=48 << 10, l2_bytes=2 << 20, threads=2
)
SMALL, LARGE = 5e6, 47e6  # bytes of constants of SqueezeNet and ResNet-18


def fastest(channels, size, filters, constant_bytes, threads):
    """Name of the cheapest candidate of a 3 × 3 convolution."""
    x, w = TensorSig((1, channels, size, size)), TensorSig((filters, channels, 3, 3))
    attrs = (("strides", (1, 1)), ("padding", (1,) * 4), ("dilation", (1, 1)), ("groups", 1))
    out = TensorSig((1, filters, size, size))
    workload = Workload(Op("conv2d", (x, w), out, attrs, (False, True)))
    traits = replace(SERVER, threads=threads)
    found = [c for family in FAMILIES for c in family(workload, traits)]

    def seconds(candidate):
        packing = candidate.layouts[1]
        if not hasattr(packing, "packed_shape"):
            return float("inf")
        packed = 4 * prod(packing.packed_shape(w.shape))
        return price(candidate.cost, traits, packed, constant_bytes)

    return min(found, key=seconds).name


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    ("channels", "size", "filters", "constant_bytes", "expected"),
    [
        (64, 56, 64, LARGE, "conv2d.winograd4"),
        (128, 28, 128, LARGE, "conv2d.winograd4"),
        (256, 14, 256, LARGE, "conv2d.winograd2"),  # weights of F(4×4) cost more than they save
        (512, 7, 512, LARGE, "conv2d.winograd2"),
        (16, 55, 64, SMALL, "conv2d.winograd4"),
        (48, 13, 192, SMALL, "conv2d.winograd4"),
    ],
)
def test_three_by_three_layers_get_what_was_measured_fastest(
    channels, size, filters, constant_bytes, expected, threads
):
    assert fastest(channels, size, filters, constant_bytes, threads) == expected


def test_cores_share_the_bandwidth_of_memory_but_not_of_their_caches():
    cost = Cost(1e6, 1e8, 0.9)

    def gain(weight_bytes):
        one, many = (price(cost, replace(SERVER, threads=n), weight_bytes, 1e9) for n in (1, 32))
        return one / many

    assert gain(0.0) > 2 * gain(1e8)


def test_bytes_that_one_price_per_byte_leaves_are_spent():
    rng = np.random.default_rng(0)
    weights = [rng.standard_normal((128, 128, 3, 3)).astype(np.float32) for _ in range(4)]

    def body(b, x):
        for w in weights:
            x = b.emit(op.nn.relu(b.emit(op.nn.conv2d(x, relax.const(w), padding=1))))
        return x

    # F(2×2) takes 16 ninths of the bytes of its weights, F(4×4) four times: all four layers fit as
    # F(2×2), and one of them, equal to the others, as F(4×4).
    emitted, pool = lowered(make_graph({"x": (1, 128, 28, 28)}, body), weight_limit=2.6)
    names = [use.candidate for use in emitted.uses]
    assert names.count("conv2d.winograd4") == 1
    assert names.count("conv2d.winograd2") == 3
    assert pool.nbytes <= 2.6 * sum(w.nbytes for w in weights)


def test_small_weights_may_grow_but_not_where_growth_is_forbidden():
    graph = make_graph({"x": (1, 32, 28, 28)}, one_conv)
    for limit, expected in ((2.0, "conv2d.winograd4"), (1.0, "conv2d.direct[blocked]")):
        emitted, _ = lowered(graph, weight_limit=limit)
        assert expected in [use.candidate for use in emitted.uses]


def one_conv(b, x):
    w = np.random.default_rng(0).standard_normal((32, 32, 3, 3)).astype(np.float32)
    return b.emit(op.nn.relu(b.emit(op.nn.conv2d(x, relax.const(w), padding=1))))


def measured(**seconds):
    """An advisor that has measured candidates of these names."""

    def advisor(_workload, candidates):
        return tuple(
            Offer(c, seconds.get(c.name.split(".")[1]), "tuned" if c.name in seconds else "default")
            for c in candidates
        )

    return advisor


def test_a_measured_time_counts_for_more_than_the_table():
    graph = make_graph({"x": (1, 32, 28, 28)}, one_conv)
    unmeasured, _ = lowered(graph)
    assert "conv2d.lines" not in [use.candidate for use in unmeasured.uses]
    others = {"winograd4": 1.0, "winograd2": 1.0, "direct[blocked]": 1.0}
    emitted, _ = lowered(graph, advisor=measured(lines=1e-6, **others))
    assert "conv2d.lines" in [use.candidate for use in emitted.uses]


def test_layout_changes_are_priced_on_the_scale_of_what_was_measured():
    graph = make_graph({"x": (1, 32, 28, 28)}, one_conv)
    # All is a thousand times slower than the table says: a plain kernel nine times as slow as a
    # blocked one loses, but not by so much that changes at the table's times would not matter.
    found = measured(lines=0.9, winograd4=0.1, winograd2=0.3, **{"direct[blocked]": 0.3})
    emitted, _ = lowered(graph, advisor=found)
    assert "conv2d.winograd4" in [use.candidate for use in emitted.uses]


def test_the_origin_of_a_kernel_is_reported():
    def advisor(_workload, candidates):
        return tuple(Offer(c, 1e-3, "tuned") for c in candidates)

    emitted, _ = lowered(make_graph({"x": (1, 32, 28, 28)}, one_conv), advisor=advisor)
    origins = {use.candidate: (use.origin, use.group) for use in emitted.uses}
    assert {o for name, o in origins.items() if name.startswith("conv2d")} == {("tuned", 0)}
    changes = [o for name, o in origins.items() if name.startswith("layout_change")]
    assert set(changes) <= {("default", -1)}
