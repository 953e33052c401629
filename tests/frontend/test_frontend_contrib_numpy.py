"""Operators of com.microsoft against their documents' formulas in NumPy, in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from frontend_contrib import Case, built, check, compare, compiled
from frontend_reference import run_onnxruntime
from scipy import signal, special

from graphopt.errors import ModelError

RNG = np.random.default_rng(11)


def f32(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def agree(case: Case, want: np.ndarray) -> None:
    got = compiled(case)["y0"]
    assert (got.dtype, got.shape) == (np.asarray(case.inputs[0]).dtype, want.shape)
    gap = np.abs(got.astype("f8") - want).max(initial=0)
    assert gap <= case.tolerance * np.abs(want).max(initial=0)


ACTIVATIONS = {
    "Tanh": ({}, np.tanh),
    "LeakyRelu": ({"activation_alpha": 0.3}, lambda x: np.where(x < 0, 0.3 * x, x)),
    "Elu": ({"activation_alpha": 0.7}, lambda x: np.where(x < 0, 0.7 * np.expm1(x), x)),
    "HardSigmoid": (
        {"activation_alpha": 0.1, "activation_beta": 0.4},
        lambda x: np.clip(0.1 * x + 0.4, 0, 1),
    ),
}


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_matmul_with_an_activation(kind):
    attrs, function = ACTIVATIONS[kind]
    a, b = f32(2, 6, 5), f32(2, 7, 6)
    case = Case(
        "FusedMatMulActivation",
        [a, b],
        {"transA": 1, "transB": 1, "alpha": 0.5, "activation": kind, **attrs},
    )
    product = a.astype("f8").swapaxes(1, 2) @ b.astype("f8").swapaxes(1, 2)
    agree(case, function(0.5 * product))


def test_matmul_with_an_activation_over_an_axis_is_refused():
    attrs = {"activation": "Softmax", "activation_axis": -1}
    with pytest.raises(ModelError, match="activation 'Softmax'"):
        compiled(Case("FusedMatMulActivation", [f32(3, 4), f32(4, 5)], attrs))


def biased_softmax(x: np.ndarray, bias: np.ndarray, axis: int, inner: int) -> np.ndarray:
    """Rows of the bias are repeated one by one where `inner`, else all of them in turn."""
    lead = int(np.prod(x.shape[:axis]))
    rows = bias.astype("f8").reshape(-1, x.size // lead)
    share = lead // len(rows)
    rows = np.repeat(rows, share, 0) if inner else np.tile(rows, (share, 1))
    return special.softmax(x.astype("f8").reshape(lead, -1) + rows, 1).reshape(x.shape)


@pytest.mark.parametrize(
    ("bias", "axis", "inner"),
    [
        ((2, 1, 1, 5), 3, 1),
        ((2, 1, 4, 5), -2, 1),
        ((4, 5), 3, 0),
        ((1, 3, 4, 5), 1, 0),
        ((2, 3, 4, 5), 3, 0),
    ],
    ids=str,
)
def test_softmax_of_a_biased_input(bias, axis, inner):
    x, b = f32(2, 3, 4, 5), f32(*bias)
    attrs = {"axis": axis, "is_inner_broadcast": inner}
    agree(Case("BiasSoftmax", [x, b], attrs), biased_softmax(x, b, axis % 4, inner))


@pytest.mark.parametrize(
    ("bias", "inner"),
    [((4, 5), 1), ((2, 1, 4, 5), 0), ((2, 1, 4, 5), 1), ((2, 3, 4, 1), 0), ((2, 1, 1, 5), 0)],
    ids=str,
)
def test_softmax_of_a_bias_that_contradicts_its_attribute_is_refused(bias, inner):
    attrs = {"axis": 3, "is_inner_broadcast": inner}
    with pytest.raises(ModelError, match="bias"):
        compiled(Case("BiasSoftmax", [f32(2, 3, 4, 5), f32(*bias)], attrs))


def convolved(x: np.ndarray, w: np.ndarray, bias: np.ndarray, groups: int, pads: list[int]):
    """Correlation of images (N,H,W,C) with w (M,C/groups,kh,kw), in strides of 2 and 1."""
    top, left, bottom, right = pads
    x = np.pad(x.astype("f8"), ((0, 0), (top, bottom), (left, right), (0, 0)))
    size, each = w.shape[1], len(w) // groups
    images = []
    for image in x:
        maps = []
        for m, kernel in enumerate(w.astype("f8")):
            first = m // each * size
            channels = [
                signal.correlate2d(image[..., first + c], kernel[c], "valid") for c in range(size)
            ]
            maps.append(sum(channels)[::2] + float(bias[m]))
        images.append(np.stack(maps, 2))
    return np.stack(images)


PADS = [1, 0, 2, 1]


@pytest.mark.parametrize("groups", [1, 2])
def test_fused_convolution_of_channels_last(groups):
    x, w, bias = f32(2, 9, 7, 4), f32(6, 4 // groups, 3, 2), f32(6)
    attrs: dict[str, Any] = {"pads": PADS, "strides": [2, 1], "group": groups}
    want = convolved(x, w, bias, groups, PADS)
    agree(Case("NhwcFusedConv", [x, w, bias], attrs, (1, 2)), want)
    agree(Case("NhwcFusedConv", [x, w], attrs, (1,)), want - bias.astype("f8"))
    z = f32(*want.shape)
    attrs |= {"activation": "LeakyRelu", "activation_params": [0.2]}
    total = want + z
    leaky = np.where(total < 0, 0.2 * total, total)
    agree(Case("NhwcFusedConv", [x, w, bias, z], attrs, (1, 2)), leaky)


def test_convolution_of_unclear_layout_is_refused():
    with pytest.raises(ModelError, match="NhwcConv"):
        compiled(Case("NhwcConv", [f32(1, 4, 4, 4), f32(4, 4, 1, 1)], {}, (1,)))


@pytest.mark.parametrize("shape", [(3, 4, 2), (1, 4, 2), (2,)], ids=str)
@pytest.mark.parametrize("conjugate", [False, True])
def test_complex_products(conjugate, shape):
    a, b = f32(3, 4, 2), f32(*shape)
    left, right = (v[..., 0].astype("f8") + 1j * v[..., 1] for v in (a, b))
    product = left * (right.conj() if conjugate else right)
    want = np.stack([product.real, product.imag], 2)
    agree(Case("ComplexMulConj" if conjugate else "ComplexMul", [a, b]), want)


@pytest.mark.parametrize("shape", [(3, 1, 2), (3, 4, 1)], ids=str)
def test_complex_products_of_other_shapes_are_refused(shape):
    with pytest.raises(ModelError, match="not supported"):
        compiled(Case("ComplexMulConj", [f32(3, 4, 2), f32(*shape)]))


def test_product_with_gelu():
    x, w, bias = f32(2, 3, 8), f32(8, 5), f32(5)
    for inputs in ([x, w], [x, w, bias]):
        v = x.astype("f8") @ w.astype("f8") + sum(inputs[2:], np.zeros(5))
        want = 0.5 * v * (1 + np.tanh(np.sqrt(2 / np.pi) * (v + 0.044715 * v**3)))
        agree(Case("GemmFastGelu", inputs), want)


HEADS, GROUPS, SIZE = 4, 2, 16


def grouped(new: int, past: int, more: dict[int, np.ndarray], **attrs: Any) -> Case:
    """A GroupQueryAttention of 2 sequences with the optional inputs of `more`."""
    q, k, v = (f32(2, new, n * SIZE) for n in (HEADS, GROUPS, GROUPS))
    cache = [f32(2, GROUPS, past, SIZE) if past else None for _ in range(2)]
    total = np.array(past + new, np.int32)
    inputs = [q, k, v, *cache, np.full(2, total - 1, np.int32), total]
    inputs += [more.get(i) for i in range(len(inputs), max(more) + 1)]
    attrs = {"num_heads": HEADS, "kv_num_heads": GROUPS, **attrs}
    return Case("GroupQueryAttention", inputs, attrs, (6,), (0, 1, 2), tolerance=2e-5)


@pytest.mark.parametrize(
    ("new", "past", "attrs"),
    [(5, 0, {}), (1, 6, {}), (5, 0, {"softcap": 2.0, "local_window_size": 3})],
    ids=str,
)
def test_attention_with_sinks(new, past, attrs):
    check(grouped(new, past, {11: 3 * f32(HEADS)}, **attrs))


def rms_normalised(x: np.ndarray, weight: np.ndarray, epsilon: float) -> np.ndarray:
    heads = x.astype("f8").reshape(*x.shape[:2], -1, SIZE)
    scale = np.sqrt((heads**2).mean(3, keepdims=True) + epsilon)
    return (heads / scale * weight).reshape(x.shape).astype(np.float32)


@pytest.mark.parametrize(("new", "past", "rotary"), [(5, 0, 0), (1, 6, 1)])
def test_attention_with_normalised_heads(new, past, rotary):
    # ONNX Runtime's CPU kernel refuses these inputs: it is given the normalised heads.
    weights = {14: f32(SIZE), 15: f32(SIZE)}
    tables = {7: f32(16, SIZE // 2), 8: f32(16, SIZE // 2)} if rotary else {}
    case = grouped(new, past, weights | tables, do_rotary=rotary, qk_norm_epsilon=0.1)
    got = compiled(case)
    q, k, *others = case.inputs
    plain = [rms_normalised(q, weights[14], 0.1), rms_normalised(k, weights[15], 0.1), *others[:7]]
    case.inputs = plain
    del case.attrs["qk_norm_epsilon"]
    model, feeds = built(case)
    compare(got, run_onnxruntime(model.SerializeToString(), feeds), 2e-5)


@pytest.mark.parametrize("index", [14, 15])
def test_one_norm_weight_alone_is_refused(index):
    with pytest.raises(ModelError, match="norm_weight"):
        compiled(grouped(5, 0, {index: f32(SIZE)}))


def test_weights_in_groups_are_refused():
    stored = RNG.integers(0, 256, (24, 4, 8)).astype(np.uint8)
    inputs = [f32(3, 64), stored, f32(24, 4), None, (np.arange(64) // 16).astype(np.int32)]
    attrs = {"K": 64, "N": 24, "bits": 4, "block_size": 16}
    with pytest.raises(ModelError, match="g_idx"):
        compiled(Case("MatMulNBits", inputs, attrs, (1, 2, 4)))
