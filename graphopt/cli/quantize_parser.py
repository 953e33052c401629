"""The flags of `graphopt quantize`; the names are those of QuantizationConfig's fields."""

from __future__ import annotations

import argparse
from typing import Any

from graphopt.cli import options

EXAMPLES = (
    "model.onnx -o int8.onnx --calibration samples.npz --report report.html",
    "model.onnx -o int8.onnx --calibration photos/ --image-mean 0.485,0.456,0.406 "
    "--image-std 0.229,0.224,0.225",
    "model.onnx -o int8.onnx --calibration samples/ --method mse --exclude head --correct-bias",
    "model.onnx -o small.onnx --preset int4-weights",
)
PRESETS = ("int8", "int8-weights", "int4-weights", "float16", "bfloat16")


def add_flags(parser: Any) -> None:
    """Add everything but the model, the output, shapes and constants."""
    parser.add_argument(
        "--calibration",
        metavar="DATA",
        help="typical inputs: an .npz (arrays by input name, samples along the first axis), an "
        ".npy, a folder of these or of images; or the word random, to try things out",
    )
    parser.add_argument("--report", metavar="FILE", help="write the report to an .html or .json")
    parser.add_argument("--preset", choices=PRESETS, default="int8", help="(default: int8)")
    _ranges(parser)
    _weights(parser)
    _selection(parser)
    _tools(parser)
    _images(parser)


def _ranges(parser: Any) -> None:
    parser.add_argument(
        "--method",
        choices=("mse", "min-max", "moving-average", "percentile", "entropy"),
        help="how ranges of activations follow from the data (default: mse)",
    )
    parser.add_argument(
        "--percentile",
        type=float,
        metavar="P",
        help="percent of the values that --method percentile keeps in range (default: 99.999)",
    )
    parser.add_argument("--activations", choices=("uint8", "int8"), help="(default: uint8)")
    parser.add_argument("--io-type", choices=("uint8", "int8"), help="integer inputs and outputs")


def _weights(parser: Any) -> None:
    parser.add_argument("--weight-bits", type=int, metavar="N", help="2 to 8 (default: 8)")
    parser.add_argument(
        "--weights",
        choices=("linear", "k-means", "power-of-two", "float16", "bfloat16"),
        help="others than linear are for weights only",
    )
    parser.add_argument(
        "--granularity", choices=("channel", "tensor", "group"), help="one weight scale per …"
    )
    parser.add_argument(
        "--group-size", type=options.positive, metavar="N", help="weights per scale"
    )


def _selection(parser: Any) -> None:
    for name, text in (
        ("exclude", "leave this node, or all nodes of this operator, in float; may be repeated"),
        ("only", "quantize this node or operator and no others; may be repeated"),
    ):
        parser.add_argument(f"--{name}", action="append", metavar="NODE|OP", help=text)


def _tools(parser: Any) -> None:
    parser.add_argument(
        "--equalize", action="store_true", default=None, help="equalise ranges across layers first"
    )
    parser.add_argument(
        "--smooth", type=float, metavar="A", help="SmoothQuant for transformers, A from 0 to 1"
    )
    parser.add_argument(
        "--correct-bias", action="store_true", default=None, help="correct the mean of each layer"
    )
    parser.add_argument(
        "--rounding",
        choices=("nearest", "adaround", "gptq"),
        help="how each weight is rounded (default: nearest)",
    )
    parser.add_argument(
        "--min-sqnr",
        type=float,
        metavar="DB",
        help="leave the fewest layers in float with which the outputs keep this SQNR",
    )
    parser.add_argument(
        "--min-layer-sqnr",
        type=float,
        metavar="DB",
        help="leave layers in float whose input changes in level so much that some samples, and "
        "the outputs, keep less than this (default: 20; 0: no limit)",
    )


def _images(parser: Any) -> None:
    numbers = {"type": _numbers, "metavar": "N[,N,N]"}
    parser.add_argument("--image-mean", help="of pixels from 0 to 1, for all or each", **numbers)
    parser.add_argument("--image-std", help="likewise", **numbers)
    parser.add_argument("--image-size", type=_size, metavar="HxW", help="(default: the model's)")
    parser.add_argument("--image-color", choices=("rgb", "bgr", "gray"), help="(default: rgb)")
    parser.add_argument("--image-layout", choices=("nchw", "nhwc"), help="(default: nchw)")
    parser.add_argument(
        "--image-crop", action="store_true", default=None, help="cut out the middle, do not stretch"
    )


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(word) for word in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not like 0.5 or 0.485,0.456,0.406") from None


def _size(text: str) -> tuple[int, int]:
    try:
        height, width = (int(word) for word in text.split("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not like 224x224") from None
    return height, width
