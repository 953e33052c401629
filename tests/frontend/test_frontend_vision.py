"""Operators on images, compiled by graphopt, against ONNX Runtime: many nodes in one model each."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

import graphopt
from graphopt.errors import GraphoptError
from graphopt.frontend.resampling import AxisResize

RNG = np.random.default_rng(11)
Array = np.ndarray[Any, Any]


def f32(*shape: int) -> Array:
    return RNG.standard_normal(shape).astype(np.float32)


@dataclass
class Node:
    """One node: names of the model's inputs, or arrays for its constants, or None."""

    op: str
    inputs: list[str | Array | None]
    attrs: dict[str, Any] = field(default_factory=dict)


def model_of(nodes: list[Node], feeds: dict[str, Array], opset: int) -> onnx.ModelProto:
    """All nodes side by side, each with an output of its own."""
    made, constants = [], []
    for number, node in enumerate(nodes):
        names = []
        for place, value in enumerate(node.inputs):
            if isinstance(value, np.ndarray):
                constants.append(numpy_helper.from_array(value, f"c{number}_{place}"))
                value = f"c{number}_{place}"
            names.append(value or "")
        made.append(helper.make_node(node.op, names, [f"y{number}"], f"n{number}", **node.attrs))
    inputs = [
        helper.make_tensor_value_info(k, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape)
        for k, v in feeds.items()
    ]
    first = [next(n for n in node.inputs if isinstance(n, str)) for node in nodes]
    outputs = [
        helper.make_tensor_value_info(
            f"y{i}", helper.np_dtype_to_tensor_dtype(feeds[name].dtype), None
        )
        for i, name in enumerate(first)
    ]
    graph = helper.make_graph(made, "vision", inputs, outputs, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def compare(nodes: list[Node], feeds: dict[str, Array], opset: int, tolerance: float) -> None:
    model = model_of(nodes, feeds, opset)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    expected = session.run(None, feeds)
    found = graphopt.compile(model).run(feeds)
    for i, (node, want) in enumerate(zip(nodes, expected, strict=True)):
        got = found[f"y{i}"]
        assert got.dtype == want.dtype
        limit = tolerance * max(1.0, float(np.abs(want.astype(np.float64)).max()))
        np.testing.assert_allclose(
            got.astype(np.float64), want.astype(np.float64), rtol=0, atol=limit, err_msg=str(node)
        )


def sizes(*values: int) -> Array:
    return np.array(values, np.int64)


def floats(*values: float) -> Array:
    return np.array(values, np.float32)


NONE = np.zeros(0, np.float32)
COORDINATES = ["half_pixel", "pytorch_half_pixel", "asymmetric", "align_corners"]


@pytest.mark.parametrize("opset", [11, 13, 19])
def test_resize_of_images(opset: int) -> None:
    coordinates = [*COORDINATES, *(["half_pixel_symmetric"] if opset == 19 else [])]
    coordinates += ["tf_half_pixel_for_nn"] if opset == 11 else []
    nodes = []
    for coordinate, size in itertools.product(coordinates, [(13, 5), (1, 18)]):
        for mode in ("nearest", "linear", "cubic"):
            if mode != "nearest" and coordinate == "tf_half_pixel_for_nn":
                continue
            attrs: dict[str, Any] = {"mode": mode, "coordinate_transformation_mode": coordinate}
            if mode == "cubic":
                attrs |= {"cubic_coeff_a": -0.5, "exclude_outside": size[0] % 2}
            inputs: list[Any] = ["x", NONE, NONE, sizes(2, 3, *size)]
            nodes.append(Node("Resize", inputs, attrs))
    for rounding in ("round_prefer_ceil", "floor", "ceil"):
        attrs = {"mode": "nearest", "nearest_mode": rounding}
        nodes.append(Node("Resize", ["x", NONE, floats(1, 1, 1.7, 0.6)], attrs))
    compare(nodes, {"x": f32(2, 3, 7, 9)}, opset, 2e-5)


def test_resize_by_tables() -> None:
    nodes = []
    for mode, size, outside in itertools.product(("linear", "cubic"), [(3, 5), (20, 4)], (0, 1)):
        attrs = {"mode": mode, "antialias": 1, "axes": [2, 3], "exclude_outside": outside}
        nodes.append(Node("Resize", ["x", None, None, sizes(*size)], attrs))
    for mode, policy in (("nearest", "not_larger"), ("linear", "not_smaller")):
        attrs = {"mode": mode, "axes": [3, 2], "keep_aspect_ratio_policy": policy}
        nodes.append(Node("Resize", ["x", None, None, sizes(13, 12)], attrs))
    region = floats(0, 0, 0.2, -0.3, 1, 1, 1.3, 0.8)
    for mode, value in (("nearest", 0.0), ("linear", 2.5)):
        attrs = {
            "mode": mode,
            "coordinate_transformation_mode": "tf_crop_and_resize",
            "extrapolation_value": value,
        }
        nodes.append(Node("Resize", ["x", region, None, sizes(2, 3, 8, 5)], attrs))
    compare(nodes, {"x": f32(2, 3, 7, 9)}, 18, 2e-5)


def test_resize_along_other_axes_and_types() -> None:
    feeds = {
        "volume": f32(1, 2, 5, 6, 7),
        "line": f32(2, 3, 11),
        "plane": f32(5, 7),
        "bytes": RNG.integers(0, 255, (1, 3, 9, 11)).astype(np.uint8),
        "signed": RNG.integers(-128, 127, (1, 3, 9, 11)).astype(np.int8),
    }
    wanted = {
        "volume": sizes(1, 2, 8, 4, 9),
        "line": sizes(2, 3, 23),
        "plane": sizes(9, 4),
        "bytes": sizes(1, 3, 6, 17),
        "signed": sizes(1, 3, 18, 5),
    }
    nodes = [
        Node("Resize", [name, None, None, size], {"mode": mode})
        for name, size in wanted.items()
        for mode in ("nearest", "linear")
    ]
    compare(nodes, feeds, 18, 2e-5)


def test_antialiased_weights_of_a_halved_line() -> None:
    axis = AxisResize(6, 3, 0.5, "half_pixel")
    positions, weights = axis.weighted("linear", True, -0.75, True)
    line = np.arange(6.0)
    # Triangles of half-width 2 around 0.5, 2.5 and 4.5, cut off at the ends.
    ends = (0 * 0.75 + 1 * 0.75 + 2 * 0.25) / 1.75
    np.testing.assert_allclose((weights * line[positions]).sum(0), [ends, 2.5, 5 - ends])


@pytest.mark.parametrize("opset", [7, 9, 10])
def test_upsample(opset: int) -> None:
    nodes = []
    for mode, scales in itertools.product(("nearest", "linear"), [(1, 1, 2, 3), (1, 1, 1.5, 2.3)]):
        stated = floats(*scales)
        if opset == 7:
            nodes.append(Node("Upsample", ["x"], {"mode": mode, "scales": stated.tolist()}))
        else:
            op = "Upsample" if opset == 9 else "Resize"
            nodes.append(Node(op, ["x", stated], {"mode": mode}))
    if opset == 10:
        shrinking = floats(1, 1, 0.7, 0.45)
        nodes.append(Node("Resize", ["x", shrinking], {"mode": "nearest"}))
    compare(nodes, {"x": f32(2, 3, 7, 9)}, opset, 2e-5)


def test_ambiguous_resize_is_refused() -> None:
    attrs = {"mode": "linear", "coordinate_transformation_mode": "align_corners"}
    node = Node("Resize", ["x", None, floats(1, 1, 1.3, 1)], attrs)
    with pytest.raises(GraphoptError, match="ambiguous"):
        graphopt.compile(model_of([node], {"x": f32(1, 1, 5, 5)}, 18))


@pytest.mark.parametrize("opset", [16, 20])
def test_grid_sample(opset: int) -> None:
    old = {"linear": "bilinear", "cubic": "bicubic", "nearest": "nearest"}
    grid = RNG.uniform(-1.4, 1.4, (2, 5, 9, 2)).astype(np.float32)
    grid[0, 0, :2] = [[-1, 1], [1, -1]]
    feeds = {"x": f32(2, 5, 7, 9), "grid": grid}
    nodes = []
    paddings = ("zeros", "border", "reflection")
    for i, (mode, padding) in enumerate(itertools.product(old, paddings)):
        if opset == 16 and padding != "border":
            continue  # the same kernels as the names of operator set 20 give
        name = old[mode] if opset == 16 else mode
        attrs = {"mode": name, "padding_mode": padding, "align_corners": (i + opset // 4) % 2}
        nodes.append(Node("GridSample", ["x", "grid"], attrs))
    if opset == 20:
        feeds |= {
            "volume": f32(1, 3, 4, 5, 6),
            "places": RNG.uniform(-1.3, 1.3, (1, 3, 4, 5, 3)).astype(np.float32),
        }
        for mode, padding in (("linear", "reflection"), ("nearest", "zeros")):
            attrs = {"mode": mode, "padding_mode": padding}
            nodes.append(Node("GridSample", ["volume", "places"], attrs))
    compare(nodes, feeds, opset, 1e-4)


def test_grid_sample_survives_any_coordinate() -> None:
    grid = floats(np.nan, np.inf, -np.inf, 3e38, -3e38, 1e10, -1e10, 0).reshape(1, 2, 2, 2)
    feeds = {"x": f32(1, 2, 3, 4), "grid": grid}
    nodes = [
        Node("GridSample", ["x", "grid"], {"mode": mode, "padding_mode": padding})
        for mode in ("nearest", "bilinear")
        for padding in ("zeros", "border", "reflection")
    ]
    found = graphopt.compile(model_of(nodes, feeds, 16)).run(feeds)
    assert all(value.shape == (1, 2, 2, 2) for value in found.values())


@pytest.mark.parametrize(
    ("groups", "offsets", "kernel", "attrs", "bias", "mask"),
    [
        (2, 3, (3, 3), {"strides": [2, 1], "pads": [1, 1, 1, 1]}, True, True),
        (1, 1, (3, 2), {"pads": [1, 0, 2, 1], "dilations": [2, 1]}, False, True),
        (6, 2, (1, 3), {"pads": [0, 1, 0, 1]}, True, False),
    ],
)
def test_deformable_convolution(
    groups: int,
    offsets: int,
    kernel: tuple[int, int],
    attrs: dict[str, Any],
    bias: bool,
    mask: bool,
) -> None:
    strides, dilations = attrs.get("strides", [1, 1]), attrs.get("dilations", [1, 1])
    out = [
        (size + attrs["pads"][i] + attrs["pads"][2 + i] - dilations[i] * (kernel[i] - 1) - 1)
        // strides[i]
        + 1
        for i, size in enumerate((9, 11))
    ]
    taps = kernel[0] * kernel[1]
    feeds = {"x": f32(2, 6, 9, 11), "offset": f32(2, offsets * 2 * taps, *out) * 1.5}
    inputs: list[Any] = ["x", f32(6, 6 // groups, *kernel), "offset", f32(6) if bias else None]
    if mask:
        feeds["mask"] = RNG.random((2, offsets * taps, *out)).astype(np.float32)
        inputs.append("mask")
    attrs = {**attrs, "group": groups, "offset_group": offsets, "kernel_shape": kernel}
    compare([Node("DeformConv", inputs, attrs)], feeds, 19, 1e-4)


def regions(count: int) -> Array:
    low, high = RNG.uniform(-6, 20, (count, 2)), RNG.uniform(14, 44, (count, 2))
    return np.concatenate([low, high], 1).astype(np.float32)


@pytest.mark.parametrize("opset", [10, 16])
def test_roi_align(opset: int) -> None:
    feeds = {"x": f32(2, 19, 13, 17), "rois": regions(7), "batch": RNG.integers(0, 2, 7)}
    nodes = []
    for mode, ratio, size in itertools.product(("avg", "max"), (0, 2), [(3, 5), (1, 1)]):
        attrs: dict[str, Any] = {"mode": mode, "sampling_ratio": ratio, "spatial_scale": 0.5}
        attrs |= {"output_height": size[0], "output_width": size[1]}
        if opset == 16 and ratio:
            attrs["coordinate_transformation_mode"] = "output_half_pixel"
        if opset == 16 and mode == "max" and ratio == 0:
            continue  # ONNX Runtime refuses it where corners are half pixels
        nodes.append(Node("RoiAlign", ["x", "rois", "batch"], attrs))
    compare(nodes, feeds, opset, 1e-4)


def test_max_roi_pool() -> None:
    rois = np.concatenate([RNG.integers(0, 2, (9, 1)), regions(9)], 1).astype(np.float32)
    nodes = [
        Node("MaxRoiPool", ["x", "rois"], {"pooled_shape": shape, "spatial_scale": 0.5})
        for shape in ([2, 3], [6, 6], [1, 1])
    ]
    compare(nodes, {"x": f32(2, 19, 13, 17), "rois": rois}, 16, 0)


def test_col2im() -> None:
    feeds = {"a": f32(2, 18, 42), "b": f32(1, 18, 9), "c": f32(1, 12, 6), "d": f32(1, 24, 72)}
    strided = {"strides": [2, 3], "pads": [1, 2, 0, 1], "dilations": [1, 2]}
    nodes = [
        Node("Col2Im", ["a", sizes(7, 9), sizes(2, 3)]),
        Node("Col2Im", ["b", sizes(6, 8), sizes(3, 3)], strided),
        Node("Col2Im", ["c", sizes(12), sizes(3)], {"strides": [2], "pads": [1, 1]}),
        Node("Col2Im", ["d", sizes(4, 5, 6), sizes(2, 2, 3)], {"pads": [0, 0, 0, 0, 0, 2]}),
    ]
    compare(nodes, feeds, 18, 1e-5)


@pytest.mark.parametrize("dtype", ["float32", "float16", "int64", "uint8", "bool"])
def test_pad(dtype: str) -> None:
    widths = {
        "reflect": [(0, 0, 2, 3, 0, 0, 4, 1), (1, 0, 0, 3, 1, 2, 0, 0)],
        "edge": [(0, 0, 2, 3, 0, 0, 9, 1), (1, 0, 0, 7, 1, 2, 0, 0), (0, 0, -1, 2, 0, 0, 3, -1)],
        "wrap": [(0, 0, 2, 3, 0, 0, 4, 1), (1, 0, 0, 3, 1, 2, 0, 0)],
        "constant": [(0, 0, 2, 3, 0, 0, 4, 1), (1, -1, 0, -2, 1, 2, -3, 0)],
    }
    nodes = [
        Node("Pad", ["x", sizes(*pads)], {"mode": mode})
        for mode, cases in widths.items()
        for pads in cases
    ]
    nodes.append(Node("Pad", ["x", sizes(1, 2, 3, 4), "value", sizes(-1, 1)]))
    nodes.append(Node("Pad", ["x", sizes(1, 2, 3, 4), None, sizes(-1, 1)], {"mode": "edge"}))
    feeds = {"x": (f32(2, 3, 5, 4) * 3).astype(dtype), "value": np.array(1).astype(dtype)}
    compare(nodes, feeds, 19, 0)


def test_pad_with_a_value_that_no_float_holds() -> None:
    value = np.int64(2**62 + 1)
    feeds = {"x": np.arange(3)}
    model = model_of([Node("Pad", ["x", sizes(1, 0), np.array(value)])], feeds, 18)
    assert graphopt.compile(model).run(feeds)["y0"].tolist() == [value, 0, 1, 2]


def test_pooling() -> None:
    feeds = {"line": f32(2, 3, 17), "image": f32(2, 3, 11, 13), "volume": f32(1, 3, 7, 9, 8)}
    nodes = []
    for name, rank in (("line", 1), ("image", 2), ("volume", 3)):
        base: dict[str, Any] = {"kernel_shape": [3, 2, 3][:rank], "strides": [2, 1, 2][:rank]}
        pads = {"pads": [1] * (2 * rank), "kernel_shape": [3] * rank}
        nodes += [
            Node("MaxPool", [name], {**base, "ceil_mode": 1}),
            Node("MaxPool", [name], {**base, **pads, "dilations": [2] * rank}),
            Node("MaxPool", [name], {**base, "auto_pad": "SAME_LOWER"}),
            Node("AveragePool", [name], {**base, **pads, "ceil_mode": 1, "count_include_pad": 1}),
            Node("AveragePool", [name], {**base, **pads, "ceil_mode": 1}),
            Node("AveragePool", [name], {**base, "dilations": [2] * rank}),
            Node("AveragePool", [name], {**base, **pads, "count_include_pad": 1}),
            Node("LpPool", [name], {**base, **pads, "p": 3}),
            Node("LpPool", [name], {**base, "p": 1, "auto_pad": "SAME_UPPER"}),
            Node("GlobalLpPool", [name], {"p": 4}),
            Node("GlobalMaxPool", [name]),
            Node("GlobalAveragePool", [name]),
        ]
    compare(nodes, feeds, 19, 1e-5)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "float64"])
def test_max_pool_types(dtype: str) -> None:
    x = (RNG.random((1, 3, 9, 10, 7)) * 100).astype(dtype)
    attrs = {"kernel_shape": [3, 3, 2], "pads": [1, 1, 1, 0, 1, 0], "strides": [2, 1, 2]}
    compare([Node("MaxPool", ["x"], attrs)], {"x": x}, 12, 0)


@pytest.mark.parametrize(
    ("weight", "attrs"),
    [
        ((8, 6, 3, 3, 3), {"pads": [1] * 6}),
        ((8, 3, 3, 2, 3), {"group": 2, "strides": [2, 1, 2], "pads": [1, 0, 2, 0, 1, 1]}),
        ((12, 1, 3, 3, 3), {"group": 6, "pads": [1] * 6}),
        ((8, 6, 1, 3, 3), {"pads": [0, 1, 1, 0, 1, 1]}),
        ((8, 6, 3, 1, 1), {"pads": [1, 0, 0, 1, 0, 0], "strides": [2, 1, 1]}),
        ((8, 6, 2, 2, 2), {"dilations": [2, 1, 3], "auto_pad": "VALID"}),
        ((8, 6, 3, 3, 3), {"auto_pad": "SAME_UPPER", "strides": [2, 2, 2]}),
    ],
)
@pytest.mark.parametrize("constant", [True, False])
def test_convolution_of_volumes(
    weight: tuple[int, ...], attrs: dict[str, Any], constant: bool
) -> None:
    w, b = f32(*weight), f32(weight[0])
    feeds = {"x": f32(2, 6, 7, 9, 8)}
    if constant:
        node = Node("Conv", ["x", w, b], attrs)
    else:
        feeds |= {"w": w, "b": b}
        node = Node("Conv", ["x", "w", "b"], attrs)
    compare([node], feeds, 18, 2e-5)


def test_transposed_convolution() -> None:
    feeds = {"line": f32(2, 6, 7), "image": f32(2, 6, 5, 6), "volume": f32(1, 6, 4, 5, 3)}
    nodes = []
    for name, rank in (("line", 1), ("image", 2), ("volume", 3)):
        w, b = f32(6, 4, *[3, 2, 3][:rank]), f32(4)
        strides = {"strides": [2, 2, 2][:rank]}
        nodes += [
            Node("ConvTranspose", [name, w, b], {}),
            Node("ConvTranspose", [name, w, b], {**strides, "output_padding": [1] * rank}),
            Node("ConvTranspose", [name, w], {**strides, "pads": [1] * (2 * rank)}),
            Node("ConvTranspose", [name, w], {**strides, "auto_pad": "SAME_UPPER"}),
            Node("ConvTranspose", [name, w], {**strides, "auto_pad": "SAME_LOWER"}),
            Node("ConvTranspose", [name, w], {"dilations": [2] * rank}),
            Node("ConvTranspose", [name, f32(6, 2, *[3] * rank), b], {**strides, "group": 2}),
        ]
    compare(nodes, feeds, 18, 2e-5)
