"""A small convolutional network for scikit-learn's 8×8 digits, trained here with NumPy."""

from __future__ import annotations

import gzip
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Array = np.ndarray[Any, Any]

TRAINED_ON = 700
"""Images; the other 1,097 are for testing."""

_LAYERS = (("conv", 1, 12, 3), ("depthwise", 12, 12, 3), ("conv", 12, 24, 1), ("conv", 24, 24, 3))


def load() -> tuple[Array, Array] | None:
    """Images (1797, 1, 8, 8) from 0 to 1 in a fixed order, and digits; None if not installed."""
    spec = importlib.util.find_spec("sklearn")
    if spec is None or not spec.submodule_search_locations:
        return None
    path = Path(spec.submodule_search_locations[0]) / "datasets" / "data" / "digits.csv.gz"
    with gzip.open(path, "rt") as file:
        rows = np.loadtxt(file, delimiter=",", dtype=np.float32)
    order = np.random.default_rng(0).permutation(len(rows))
    rows = rows[order]
    return rows[:, :-1].reshape(-1, 1, 8, 8) / 16, rows[:, -1].astype(np.int64)


def _patches(x: Array, kernel: int) -> Array:
    """x (N, C, H, W) as (N, C, k², H, W), zeros around."""
    pad = kernel // 2
    wide = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    height, width = x.shape[2:]
    cuts = [wide[:, :, i : i + height, j : j + width] for i in range(kernel) for j in range(kernel)]
    return np.stack(cuts, axis=2)


def _unpatched(patches: Array, kernel: int) -> Array:
    """The adjoint of _patches()."""
    count, channels, _, height, width = patches.shape
    pad = kernel // 2
    wide = np.zeros((count, channels, height + 2 * pad, width + 2 * pad), np.float32)
    for place in range(kernel * kernel):
        i, j = divmod(place, kernel)
        wide[:, :, i : i + height, j : j + width] += patches[:, :, place]
    return wide[:, :, pad : pad + height, pad : pad + width]


def _initial(rng: np.random.Generator) -> list[Array]:
    found = []
    for kind, cin, cout, kernel in _LAYERS:
        inputs = 1 if kind == "depthwise" else cin
        size = np.sqrt(2 / (inputs * kernel * kernel))
        found += [rng.standard_normal((cout, inputs, kernel * kernel)) * size, np.zeros(cout)]
    found += [rng.standard_normal((24 * 16, 10)) * 0.05, np.zeros(10)]
    return [array.astype(np.float32) for array in found]


def _forward(x: Array, weights: list[Array]) -> tuple[Array, list[Any]]:
    """Logits, and what the backward pass needs."""
    kept: list[Any] = []
    for place, (kind, _, _, kernel) in enumerate(_LAYERS):
        weight, bias = weights[2 * place], weights[2 * place + 1]
        patches = _patches(x, kernel)
        form = "nckhw,ck->nchw" if kind == "depthwise" else "nckhw,ock->nohw"
        w = weight[:, 0] if kind == "depthwise" else weight
        y = np.einsum(form, patches, w, optimize=True) + bias[:, None, None]
        x = np.maximum(y, 0)
        kept.append((patches, x))
    pooled = x.reshape(len(x), 24, 4, 2, 4, 2).mean(axis=(3, 5)).reshape(len(x), -1)
    kept.append(pooled)
    return pooled @ weights[-2] + weights[-1], kept


def _backward(error: Array, weights: list[Array], kept: list[Any]) -> list[Array]:
    pooled = kept[-1]
    grads = [pooled.T @ error, error.sum(axis=0)]
    pooled_flow = (error @ weights[-2].T).reshape(-1, 24, 4, 1, 4, 1) / 4
    wide = np.broadcast_to(pooled_flow, (len(error), 24, 4, 2, 4, 2))
    flow = wide.reshape(kept[-2][1].shape)
    for place in range(len(_LAYERS) - 1, -1, -1):
        kind, _, _, kernel = _LAYERS[place]
        patches, y = kept[place]
        flow = flow * (y > 0)
        if kind == "depthwise":
            grad = np.einsum("nckhw,nchw->ck", patches, flow, optimize=True)[:, None]
            back = np.einsum("nchw,ck->nckhw", flow, weights[2 * place][:, 0], optimize=True)
        else:
            grad = np.einsum("nckhw,nohw->ock", patches, flow, optimize=True)
            back = np.einsum("nohw,ock->nckhw", flow, weights[2 * place], optimize=True)
        grads = [grad, flow.sum(axis=(0, 2, 3)), *grads]
        flow = _unpatched(back, kernel)
    return grads


def train(images: Array, digits: Array, seed: int = 0, epochs: int = 40) -> list[Array]:
    """Weights after Adam (Kingma and Ba, 2015) with shifted and noisy copies of the images."""
    rng = np.random.default_rng(seed)
    weights = _initial(rng)
    first = [np.zeros_like(w) for w in weights]
    second = [np.zeros_like(w) for w in weights]
    step, batch = 0, 50
    for epoch in range(epochs):
        rate = 0.01 * 0.5 * (1 + np.cos(np.pi * epoch / epochs))
        for chosen in rng.permutation(len(images)).reshape(-1, batch):
            x = np.roll(images[chosen], rng.integers(-1, 2, 2), axis=(2, 3))
            x = (x + rng.normal(0, 0.1, x.shape)).astype(np.float32)
            logits, kept = _forward(x, weights)
            odds = np.exp(logits - logits.max(axis=1, keepdims=True))
            error = odds / odds.sum(axis=1, keepdims=True)
            error[np.arange(batch), digits[chosen]] -= 1
            step += 1
            for place, grad in enumerate(_backward(error / batch, weights, kept)):
                first[place] += 0.1 * (grad - first[place])
                second[place] += 0.01 * (grad**2 - second[place])
                mean = first[place] / (1 - 0.9**step)
                size = np.sqrt(second[place] / (1 - 0.99**step))
                weights[place] -= (rate * mean / (size + 1e-8)).astype(np.float32)
    return weights


def export(weights: list[Array]) -> onnx.ModelProto:
    """The network as ONNX: image (batch, 1, 8, 8) → logits (batch, 10)."""
    nodes, tensors, x = [], [], "image"
    for place, (kind, cin, _, kernel) in enumerate(_LAYERS):
        weight, bias = weights[2 * place], weights[2 * place + 1]
        shape = (*weight.shape[:2], kernel, kernel)
        tensors.append(numpy_helper.from_array(weight.reshape(shape), f"w{place}"))
        tensors.append(numpy_helper.from_array(bias, f"b{place}"))
        group = cin if kind == "depthwise" else 1
        nodes.append(
            helper.make_node(
                "Conv",
                [x, f"w{place}", f"b{place}"],
                [f"c{place}"],
                f"conv{place}",
                pads=[kernel // 2] * 4,
                group=group,
            )
        )
        nodes.append(helper.make_node("Relu", [f"c{place}"], [f"r{place}"], f"relu{place}"))
        x = f"r{place}"
    tensors += [
        numpy_helper.from_array(w, n) for w, n in zip(weights[-2:], ("wh", "bh"), strict=True)
    ]
    nodes.append(
        helper.make_node(
            "AveragePool", [x], ["pooled"], "pool", kernel_shape=[2, 2], strides=[2, 2]
        )
    )
    nodes.append(helper.make_node("Flatten", ["pooled"], ["flat"], "flatten"))
    nodes.append(helper.make_node("Gemm", ["flat", "wh", "bh"], ["logits"], "head"))
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, 8, 8])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 10])
    graph = helper.make_graph(nodes, "digits", [image], [logits], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
