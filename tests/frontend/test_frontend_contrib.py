"""Operators of com.microsoft against ONNX Runtime, or against NumPy where it has no CPU kernel."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from frontend_contrib import MICROSOFT, Case, built, check, compare, compiled
from frontend_reference import benchmark_model, imported, run_onnxruntime
from scipy import special

import graphopt
from graphopt.errors import ModelError

RNG = np.random.default_rng(3)


def f32(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def bits(*shape: int) -> np.ndarray:
    return RNG.integers(0, 2, shape).astype(np.int32)


def codes(*shape: int) -> np.ndarray:
    return RNG.integers(0, 256, shape).astype(np.uint8)


IMAGE = f32(2, 3, 9, 11)
WEIGHT = f32(5, 3, 3, 3)
FUSED = [
    *(
        Case("FusedConv", [IMAGE, WEIGHT, f32(5)], {"pads": [1] * 4, **attrs}, (1, 2))
        for attrs in (
            {"activation": "Relu"},
            {"activation": "Tanh"},
            {"activation": "Sigmoid"},
            {"activation": "LeakyRelu", "activation_params": [0.2]},
            {"activation": "Clip", "activation_params": [-0.5, 0.6]},
            {"activation": "HardSigmoid", "activation_params": [0.3, 0.4]},
        )
    ),
    Case("FusedConv", [IMAGE, WEIGHT, f32(5), f32(2, 5, 7, 9)], {"activation": "Relu"}, (1, 2)),
    Case(
        "FusedGemm",
        [f32(4, 6), f32(5, 6), f32(5)],
        {"transB": 1, "activation": "Relu", "alpha": 0.5, "beta": 2.0},
        (1, 2),
    ),
    Case(
        "FusedGemm",
        [f32(4, 6), f32(6, 5)],
        {"activation": "LeakyRelu", "activation_alpha": 0.3, "activation_beta": 0.0},
        (1,),
    ),
    Case("FusedMatMul", [f32(2, 3, 4, 6), f32(2, 3, 5, 6)], {"transB": 1, "alpha": 0.3}),
    Case(
        "FusedMatMul",
        [f32(4, 2, 3, 6), f32(6, 2, 3, 5)],
        {"transBatchA": 1, "transBatchB": 1},
    ),
    Case(
        "FusedMatMul",
        [f32(4, 2, 3, 6), f32(5, 2, 3, 6)],
        {"transBatchA": 1, "transBatchB": 1, "transB": 1},
    ),
    Case("FusedMatMul", [f32(6, 2, 3, 4), f32(2, 3, 6, 5)], {"transBatchA": 1, "transA": 1}),
    Case("TransposeMatMul", [f32(6, 4), f32(6, 5)], {"transA": 1, "alpha": 2.0}),
    Case("Gelu", [f32(3, 4, 8)]),
    Case("FastGelu", [f32(3, 4, 8)]),
    Case("FastGelu", [f32(3, 4, 8), f32(8)]),
    Case("BiasGelu", [f32(3, 4, 8), f32(8)]),
    Case("QuickGelu", [f32(3, 8)]),
    Case("QuickGelu", [f32(3, 8)], {"alpha": 1.1}),
    Case("NhwcMaxPool", [codes(2, 8, 9, 3)], {"kernel_shape": [2, 2], "strides": [2, 2]}),
    Case(
        "ConvTransposeWithDynamicPads",
        [f32(1, 2, 5, 5), f32(2, 3, 3, 3), np.array([1, 1, 1, 1])],
        {"strides": [2, 2], "output_padding": [1, 1]},
        (1, 2),
    ),
    Case("Trilu", [f32(3, 4, 5)], {"upper": 0}),
    Case("Trilu", [f32(3, 4, 5), np.array(1)], {}, (1,)),
    Case("Pad", [f32(3, 4), np.array([1, 0, 0, 2]), np.float32(3)], {}, (1, 2)),
    Case("ExpandDims", [f32(3, 4), np.array(-1, np.int32)], {}, (1,)),
    Case("GatherND", [f32(3, 4, 5), RNG.integers(0, 3, (4, 2))]),
    Case("Range", [np.float32(0), np.float32(5), np.float32(0.5)], {}, (0, 1, 2)),
    Case("CDist", [f32(5, 6), f32(7, 6)], {"metric": "euclidean"}),
    Case("CDist", [f32(5, 6), f32(7, 6)]),
]

IDS = RNG.integers(0, 20, (2, 5)).astype(np.int32)
MASK = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], np.int32)
EPSILON = {"epsilon": 1e-5}
NORMS = [
    Case(
        "SkipLayerNormalization",
        [f32(2, 3, 8), f32(2, 3, 8), f32(8), f32(8), f32(8)],
        EPSILON,
        (2, 3, 4),
        (0, 3),
    ),
    Case("SkipLayerNormalization", [f32(2, 3, 8), f32(3, 8), f32(8)], EPSILON),
    Case(
        "SkipLayerNormalization",
        [f32(2, 3, 8).astype("f2") for _ in range(2)] + [f32(8).astype("f2") for _ in range(2)],
        EPSILON,
        tolerance=2e-3,
    ),
    Case(
        "SkipSimplifiedLayerNormalization",
        [f32(2, 3, 8), f32(2, 3, 8), f32(8), f32(8)],
        EPSILON,
        outputs=(0, 3),
    ),
    Case(
        "SimplifiedLayerNormalization",
        [f32(2, 3, 8), f32(8)],
        {"epsilon": 1e-5, "axis": -1, "stash_type": 1},
        domain="",
    ),
    Case(
        "EmbedLayerNormalization",
        [IDS, IDS % 2, f32(20, 8), f32(12, 8), f32(2, 8), f32(8), f32(8), MASK],
        EPSILON,
        (2, 3, 4, 5, 6),
        (0, 1, 2),
    ),
    Case(
        "EmbedLayerNormalization",
        [IDS, None, f32(20, 8), f32(12, 8), None, f32(8), f32(8), None, IDS % 12],
        {},
        (2, 3, 4, 5, 6),
        (0, 1),
    ),
]


@pytest.mark.parametrize("case", [*FUSED, *NORMS], ids=str)
def test_fused_operators(case):
    check(case)


B, S, D, N = 2, 5, 12, 3
X, W, BIAS = f32(B, S, D), f32(D, 3 * D), f32(3 * D)
PAST = f32(2, B, N, 4, D // N)


def attentions() -> list[Case]:
    cases = []
    forms: list[tuple[list[Any], tuple[int, ...]]] = [
        ([], (0,)),
        ([np.array([3, 5], np.int32)], (0,)),
        ([np.array([4, 5, 1, 0], np.int32)], (0,)),
        ([MASK], (0,)),
        ([bits(B, S, S)], (0,)),
        ([np.array([[1], [1]], np.int32)], (0,)),
        ([None, None, f32(1, N, S, S)], (0,)),
        ([MASK, None, f32(B, N, S, S)], (0,)),
        ([bits(B, S + 4), PAST], (0, 1)),
    ]
    for index, (more, outputs) in enumerate(forms):
        attrs = {"num_heads": N, "unidirectional": index % 2}
        cases.append(Case("Attention", [X, W, BIAS, *more], attrs, (1, 2), outputs))
    attrs = {"num_heads": N, "unidirectional": 1}
    cases.append(Case("Attention", [X, W, BIAS, None, PAST], attrs, (1, 2), (0, 1)))
    cases.append(Case("Attention", [X, W, BIAS, bits(B, S, S)], attrs, (1, 2)))
    attrs = {"num_heads": N, "qkv_hidden_sizes": [12, 12, 6], "scale": 0.3}
    cases.append(Case("Attention", [X, f32(D, 30), f32(30), MASK], attrs, (1, 2)))
    attrs = {"num_heads": N, "mask_filter_value": -3.0}
    cases.append(Case("Attention", [X, W, BIAS, MASK], attrs, (1, 2)))
    return cases


T = 7
MULTI = [
    ({}, [f32(B, S, D), f32(B, S, D), f32(B, S, D), BIAS], (0,)),
    ({"unidirectional": 1}, [f32(B, S, D), f32(B, S, D), f32(B, S, D)], (0,)),
    ({}, [f32(B, S, D), f32(B, T, D), f32(B, T, 6), f32(30)], (0,)),
    ({}, [X, f32(B, T, D), f32(B, T, D), BIAS, bits(B, T), f32(B, N, S, T)], (0,)),
    ({}, [X, f32(B, T, D), f32(B, T, D), None, np.array([3, 6], np.int32)], (0,)),
    ({}, [X, f32(B, T, D), f32(B, T, D), None, bits(B, S, T), f32(1, 1, S, T)], (0,)),
    ({}, [X, f32(B, N, T, 4), f32(B, N, T, 4), BIAS], (0,)),
    (
        {"unidirectional": 1},
        [X, X, X, BIAS, bits(B, S + 3), None, f32(B, N, 3, 4), f32(B, N, 3, 4)],
        (0, 1, 2),
    ),
]
QUANTIZED_WEIGHT = RNG.integers(-99, 99, (D, 3 * D)).astype(np.int8)
INTEGER = [
    Case(
        "QAttention",
        [
            codes(B, S, D),
            QUANTIZED_WEIGHT,
            BIAS,
            np.float32(0.02),
            np.float32(0.01),
            np.array([3, 5], np.int32),
            np.uint8(120),
            np.int8(0),
        ],
        {"num_heads": N},
        (1, 2, 3, 4, 6, 7),
    ),
    Case(
        "QAttention",
        [
            codes(B, S, D),
            QUANTIZED_WEIGHT,
            BIAS,
            np.float32(0.02),
            RNG.random(3 * D).astype(np.float32) * 0.02,
            None,
            np.uint8(120),
            np.zeros(3 * D, np.int8),
            PAST,
        ],
        {"num_heads": N, "unidirectional": 1},
        (1, 2, 3, 4, 6, 7),
        (0, 1),
    ),
]


@pytest.mark.parametrize(
    "case",
    [
        *attentions(),
        *(Case("MultiHeadAttention", i, {"num_heads": N, **a}, (), o) for a, i, o in MULTI),
        *INTEGER,
    ],
    ids=str,
)
def test_attention(case):
    case.tolerance = 2e-5
    check(case)


def numpy_attention(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """(B,S,N,H) each → (B,S,N·H), in float64."""
    q, k, v = (a.astype("f8").transpose(0, 2, 1, 3) for a in (q, k, v))
    weights = special.softmax(q @ k.swapaxes(2, 3) / math.sqrt(q.shape[3]), axis=3)
    return (weights @ v).transpose(0, 2, 1, 3).reshape(q.shape[0], q.shape[2], -1)


def test_packed_projections():
    # ONNX Runtime has these forms on GPUs only.
    packed, half = f32(B, S, N, 3, 4), f32(B, T, N, 2, 4)
    got = compiled(Case("MultiHeadAttention", [packed], {"num_heads": N}))["y0"]
    want = numpy_attention(*(packed[:, :, :, i] for i in range(3)))
    np.testing.assert_allclose(got, want, atol=1e-5)
    got = compiled(Case("MultiHeadAttention", [X, half], {"num_heads": N}))["y0"]
    want = numpy_attention(X.reshape(B, S, N, 4), half[:, :, :, 0], half[:, :, :, 1])
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_attention_becomes_the_kernel_of_attention():
    case = Case("Attention", [X, W, BIAS, MASK], {"num_heads": N}, (1, 2))
    model, _ = built(case)
    assert "graphopt.attention" in imported(model).module.script()


def test_domains_are_kept_apart():
    # ai.onnx has an Attention too, of other inputs.
    case = Case("Attention", [X, W, BIAS], {"num_heads": N}, (1, 2), domain="", opset=23)
    with pytest.raises(ModelError):
        compiled(case)


@pytest.mark.parametrize(
    "case",
    [
        Case(
            "MultiHeadAttention",
            [X, f32(B, T, D), f32(B, T, D)],
            {"num_heads": N, "unidirectional": 1},
        ),
        Case("Attention", [X, W, BIAS], {"num_heads": N, "do_rotary": 1}, (1, 2)),
        Case(
            "MatMulBnb4",
            [f32(2, 32), codes(64), f32(2)],
            {"K": 32, "N": 4, "block_size": 64, "quant_type": 1},
            (1, 2),
        ),
        Case("Tokenizer", [f32(2)]),
        Case("FusedConv", [IMAGE, WEIGHT], {"activation": "Other"}, (1,)),
    ],
    ids=lambda case: case.op,
)
def test_refused(case):
    with pytest.raises(ModelError, match=case.op):
        compiled(case)


COS, SIN = f32(16, 4), f32(16, 4)
POSITIONS = np.tile(np.arange(S), (B, 1)) + 2


@pytest.mark.parametrize("interleaved", [0, 1])
@pytest.mark.parametrize(
    ("data", "positions", "attrs"),
    [
        (f32(B, S, 24), POSITIONS, {}),
        (f32(B, S, 24), np.array([3]), {}),
        (f32(B, 3, S, 8), POSITIONS, {}),
        (f32(B, S, 36), POSITIONS, {"num_heads": 3, "rotary_embedding_dim": 8}),
    ],
    ids=["flat", "offset", "heads", "partial"],
)
def test_rotary_embedding(data, positions, attrs, interleaved):
    attrs = {**attrs, "interleaved": interleaved}
    check(Case("RotaryEmbedding", [data, positions, COS, SIN], attrs, (2, 3)))


def grouped(
    new: int, past: int, lengths: list[int], total: int, bias=None, packed=False, **attrs: Any
) -> Case:
    """A GroupQueryAttention of 4 heads on 2 groups of 16 features."""
    batch, heads, groups, size = len(lengths), 4, 2, 16
    q, k, v = (f32(batch, new, n * size) for n in (heads, groups, groups))
    cache = [f32(batch, groups, past, size) for _ in range(2)] if past else [None, None]
    rotary = [f32(32, size // 2) for _ in range(2)] if attrs.get("do_rotary") else [None, None]
    first = [np.concatenate([q, k, v], 2), None, None] if packed else [q, k, v]
    inputs = [*first, *cache, np.array(lengths, np.int32), np.array(total, np.int32), *rotary]
    if bias is not None:
        inputs += [None, bias]
    attrs = {"num_heads": heads, "kv_num_heads": groups, **attrs}
    return Case("GroupQueryAttention", inputs, attrs, (6,), (0, 1, 2), tolerance=2e-5)


GROUPED = [
    grouped(5, 0, [4, 4], 5),
    grouped(5, 0, [4, 4], 5, packed=True, do_rotary=1),
    grouped(5, 0, [4], 5, local_window_size=2),
    grouped(5, 16, [4], 5, do_rotary=1),
    grouped(1, 6, [6, 6], 7, do_rotary=1),
    grouped(1, 6, [6], 7, do_rotary=1, rotary_interleaved=1),
    grouped(1, 16, [6, 3], 7, do_rotary=1),
    grouped(1, 16, [6, 6], 7, do_rotary=1, local_window_size=3),
    grouped(3, 16, [8], 9, do_rotary=1, local_window_size=4),
    grouped(4, 6, [9], 10, softcap=5.0, scale=0.2),
    grouped(1, 6, [6], 7, smooth_softmax=1),
    grouped(5, 0, [4, 4], 5, bias=f32(1, 1, 5, 5)),
    grouped(3, 6, [8], 9, bias=f32(1, 4, 3, 9)),
    grouped(1, 6, [6], 7, bias=f32(1, 4, 1, 7)),
]


@pytest.mark.parametrize("case", GROUPED, ids=str)
def test_grouped_query_attention(case):
    check(case)


def packed4(values: np.ndarray) -> np.ndarray:
    return (values[..., 0::2] | (values[..., 1::2] << 4)).astype(np.uint8)


def nbits(rows: tuple[int, ...], depth: int, columns: int, block: int, width: int, zeros: str):
    blocks = -(-depth // block)
    weight = RNG.integers(0, 1 << width, (columns, blocks * block)).astype(np.uint8)
    stored = (packed4(weight) if width == 4 else weight).reshape(columns, blocks, -1)
    inputs = [f32(*rows, depth), stored, RNG.random((columns, blocks)).astype(np.float32)]
    if zeros == "packed":
        count = blocks + blocks % 2 if width == 4 else blocks
        points = RNG.integers(0, 1 << width, (columns, count)).astype(np.uint8)
        inputs.append(packed4(points) if width == 4 else points)
    elif zeros == "float":
        inputs.append(RNG.random((columns, blocks)).astype(np.float32) * 8)
    elif zeros == "bias":
        inputs += [None, None, f32(columns)]
    attrs = {"K": depth, "N": columns, "bits": width, "block_size": block}
    return Case("MatMulNBits", inputs, attrs, range(1, len(inputs)))


@pytest.mark.parametrize(
    "case",
    [
        nbits((3,), 64, 24, 32, 4, ""),
        nbits((3,), 64, 24, 32, 4, "packed"),
        nbits((3,), 64, 24, 32, 4, "float"),
        nbits((3,), 64, 24, 32, 8, "packed"),
        nbits((2, 5), 50, 19, 16, 4, "packed"),
        nbits((2, 5), 50, 19, 16, 8, ""),
        nbits((1,), 96, 130, 32, 4, "bias"),
        nbits((70,), 128, 50, 32, 4, ""),
    ],
    ids=str,
)
def test_matmul_of_few_bits(case):
    check(case)


def test_weights_of_few_bits_stay_packed():
    model, _ = built(nbits((1,), 256, 256, 32, 4, ""))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.gopt"
        graphopt.compile(model).save(path)
        # 32 KiB of codes and 2·8 KiB of scales and zero points; 256 KiB as floats.
        assert path.stat().st_size < 160 << 10


GATHERED = [
    Case(
        "GatherBlockQuantized",
        [codes(10, 32), RNG.integers(0, 10, (2, 3)), f32(10, 4), codes(10, 2)],
        {"block_size": 16, "bits": 4},
        (0, 2, 3),
    ),
    Case(
        "GatherBlockQuantized",
        [codes(10, 32), RNG.integers(-10, 10, (3,)), f32(10, 2)],
        {"block_size": 16, "bits": 8},
        (0, 2),
    ),
]


@pytest.mark.parametrize("case", GATHERED, ids=str)
def test_gather_of_blocks(case):
    check(case)


def gelu(x: np.ndarray) -> np.ndarray:
    return x * 0.5 * (1 + special.erf(x / math.sqrt(2)))


def group_norm(x: np.ndarray, gamma: np.ndarray, beta: np.ndarray, groups: int) -> np.ndarray:
    """Channels last, then SiLU."""
    parts = x.reshape(len(x), -1, groups, x.shape[-1] // groups)
    centred = parts - parts.mean(axis=(1, 3), keepdims=True)
    normal = centred / np.sqrt((centred**2).mean(axis=(1, 3), keepdims=True) + 1e-5)
    y = normal.reshape(x.shape) * gamma + beta
    return y / (1 + np.exp(-y))


def test_operators_of_gpus_only():
    x, b, skip = f32(2, 3, 8), f32(8), f32(2, 3, 8)
    wide = x.astype("f8") + b
    cases = [
        (Case("BiasAdd", [x, b, skip]), wide + skip),
        (Case("BiasSplitGelu", [x, b]), wide[..., :4] * gelu(wide[..., 4:])),
        (Case("ComplexMul", [f32(3, 2), f32(3, 2)]), None),
    ]
    image, gamma, shift = f32(2, 4, 5, 8), f32(8), f32(8)
    attrs = {"groups": 2, "activation": 1}
    cases.append(
        (
            Case("GroupNorm", [image, gamma, shift], attrs),
            group_norm(image.astype("f8"), gamma, shift, 2),
        )
    )
    extra = f32(2, 8)
    total = image.astype("f8") + extra[:, None, None]
    cases.append(
        (
            Case("SkipGroupNorm", [image, gamma, shift, extra], attrs),
            group_norm(total, gamma, shift, 2),
        )
    )
    for case, want in cases:
        if want is None:
            a, c = (np.ascontiguousarray(v).view(np.complex64) for v in case.inputs)
            want = (a * c).view(np.float32)
        np.testing.assert_allclose(compiled(case)["y0"], want, atol=1e-5, err_msg=case.op)


@pytest.mark.parametrize("name", ["minilm_l6", "squeezenet1_1"])
def test_models_that_onnxruntime_optimised(name):
    model = benchmark_model(name)
    feeds = {}
    for value in model.graph.input:
        kind = value.type.tensor_type
        shape = tuple(dim.dim_value for dim in kind.shape.dim)
        feeds[value.name] = np.ones(shape, np.int64) if kind.elem_type == 7 else f32(*shape)
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "m.onnx", Path(folder) / "o.onnx"
        onnx.save(model, source)
        options = onnxruntime.SessionOptions()
        level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.graph_optimization_level = level
        options.optimized_model_filepath = str(target)
        options.log_severity_level = 4
        onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        model = onnx.load(target)
    assert any(node.domain == MICROSOFT for node in model.graph.node)
    want = run_onnxruntime(model.SerializeToString(), feeds)
    compare(graphopt.compile(model).run(feeds), want, 1e-5)


def test_private_layouts_are_refused_with_the_remedy():
    node = onnx.helper.make_node("Conv", ["x", "w"], ["y"], domain="com.microsoft.nchwc")
    graph = onnx.helper.make_graph(
        [node],
        "g",
        [onnx.helper.make_tensor_value_info("x", 1, (1, 16, 4, 4))],
        [onnx.helper.make_empty_tensor_value_info("y")],
        [onnx.numpy_helper.from_array(f32(16, 16, 1, 1), "w")],
    )
    imports = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("com.microsoft.nchwc", 1)]
    model = onnx.helper.make_model(graph, opset_imports=imports, ir_version=9)
    with pytest.raises(ModelError, match="ORT_ENABLE_EXTENDED"):
        graphopt.compile(model)


def test_shapes_are_known_behind_contrib_operators():
    # Reshape's target comes from the shape of what a fused operator makes.
    nodes = [
        onnx.helper.make_node("SkipLayerNormalization", ["x", "x", "g"], ["a"], domain=MICROSOFT),
        onnx.helper.make_node("FusedMatMul", ["a", "w"], ["b"], domain=MICROSOFT),
        onnx.helper.make_node("Shape", ["b"], ["s"], start=0, end=2),
        onnx.helper.make_node("Concat", ["s", "tail"], ["t"], axis=0),
        onnx.helper.make_node("Reshape", ["b", "t"], ["y"]),
    ]
    graph = onnx.helper.make_graph(
        nodes,
        "g",
        [onnx.helper.make_tensor_value_info("x", 1, ("n", 3, 8))],
        [onnx.helper.make_empty_tensor_value_info("y")],
        [
            onnx.numpy_helper.from_array(f32(8), "g"),
            onnx.numpy_helper.from_array(f32(8, 6), "w"),
            onnx.numpy_helper.from_array(np.array([2, 3]), "tail"),
        ],
    )
    imports = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid(MICROSOFT, 1)]
    model = onnx.helper.make_model(graph, opset_imports=imports, ir_version=9)
    feeds = {"x": f32(2, 3, 8)}
    want = run_onnxruntime(model.SerializeToString(), feeds)
    compare(graphopt.compile(model, shapes={"x": (2, 3, 8)}).run(feeds), want, 1e-5)
