"""The accuracy benchmark: counting mistakes, paired intervals, and the share in integers."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
words = st.text("abc", max_size=8)


@pytest.fixture(autouse=True, scope="module")
def scripts() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
        yield


@given(words, words, words)
def test_the_edit_distance_is_a_metric(a: str, b: str, c: str) -> None:
    from quantization_tasks import edit_distance

    assert (edit_distance(a, b) == 0) == (a == b)
    assert edit_distance(a, b) == edit_distance(b, a)
    assert edit_distance(a, c) <= edit_distance(a, b) + edit_distance(b, c)
    assert abs(len(a) - len(b)) <= edit_distance(a, b) <= max(len(a), len(b))


def test_mistakes_are_counted_by_what_is_decided() -> None:
    from quantization_tasks import mistakes

    assert mistakes("kitten", "sitting") == (3, 7)
    assert mistakes([1, 0, 1], [1, 1, 1]) == (1, 3)
    assert mistakes(4, [4, 5]) == (0, 1)
    assert mistakes(6, [4, 5]) == (1, 1)
    assert mistakes(6, 4) == (1, 1)


def test_intervals_are_paired_by_sample() -> None:
    from paired import difference, error_rate

    rng = np.random.default_rng(0)
    hard = rng.random(2000) < 0.3  # wrong for both, which says nothing of their difference
    first = [[(int(h or k % 50 == 0), 1) for k, h in enumerate(hard)] for _ in range(3)]
    second = [[(int(h), 1) for h in hard]]
    assert error_rate(second) == pytest.approx(30, abs=4)
    found = difference(first, second)
    extra = 100 * np.mean(~hard[::50]) / 50
    assert found.mean == pytest.approx(extra)
    assert 0 < found.low < extra < found.high < 3
    same = difference(first, first[:1])
    assert (same.mean, same.low, same.high) == (0, 0, 0)


def test_decisions_count_not_samples() -> None:
    from paired import difference, error_rate

    long, short = [[(1, 9), (1, 1)]], [[(0, 9), (1, 1)]]
    assert error_rate(long) == 20
    assert difference(long, short).mean == 10


def products(depth: int) -> Any:
    """A convolution and two matrix products, one of them of two activations."""
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], "conv", pads=[1, 1, 1, 1]),
        helper.make_node("MatMul", ["c", "m"], ["d"], "dense"),
        helper.make_node("MatMul", ["d", "d"], ["y"], "attention"),
    ]
    arrays = {"w": rng.standard_normal((2, depth, 3, 3)), "m": rng.standard_normal((6, 6))}
    tensors = [numpy_helper.from_array(a.astype(np.float32), n) for n, a in arrays.items()]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, depth, 6, 6])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "products", [x], [y], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_the_share_in_integers_is_that_of_the_multiplications() -> None:
    from quantized_share import Share, quantized_share

    import graphopt

    model = products(4)
    feeds = {"x": np.random.default_rng(1).standard_normal((1, 4, 6, 6)).astype(np.float32)}
    macs = {"conv": 2 * 36 * 4 * 9, "dense": 2 * 36 * 6, "attention": 2 * 36 * 6}
    total = sum(macs.values())
    assert quantized_share(model, feeds) == Share(0, 3, 0.0)
    both = graphopt.quantize(model, [feeds], threads=1).model
    share = (macs["conv"] + macs["dense"]) / total
    assert quantized_share(both, feeds) == Share(2, 3, pytest.approx(share))
    weights = graphopt.quantize(model, config="int8-weights", exclude=["dense"]).model
    assert quantized_share(weights, feeds) == Share(0, 3, 0.0)
    alone = quantized_share(weights, feeds, weights_only=True)
    assert alone == Share(1, 3, pytest.approx(macs["conv"] / total))


def test_synthesised_voices_are_decided_both_ways(tmp_path: Path) -> None:
    from quantization_accuracy import predictor
    from task_voice import Voice

    task = Voice()
    model = task.model(tmp_path)
    if model is None:
        pytest.skip("needs silero_vad")
    predict = predictor(model, task.constants)
    samples = task.samples(64)
    decided = np.array([task.decide(predict, sample) for sample in samples])
    assert decided.shape == (16, 32)
    assert 0.1 < decided.mean() < 0.6
    again = [task.decide(predict, sample) for sample in task.samples(64)]
    np.testing.assert_array_equal(decided, again)
