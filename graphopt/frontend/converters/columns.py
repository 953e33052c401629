"""Col2Im: overlapping blocks added up into an image, one axis after another."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import Any

from graphopt.frontend.converters.windows import read_window
from graphopt.frontend.emit import Expr, NodeContext, Unsupported, dtype_of, shape_of
from graphopt.ops.overlap import overlap_add


def col2im(node: NodeContext) -> Expr:
    """Col2Im for any number of spatial axes."""
    x = node.input(0)
    image, block = node.ints(1, "image_shape"), node.ints(2, "block_shape")
    if dtype_of(x) == "bool":
        raise Unsupported("there is no sum of booleans")
    if len(image) != len(block) or len(shape_of(x)) != 3:
        raise Unsupported(f"image_shape {image} and block_shape {block} do not fit")
    window = read_window(node, tuple(block), tuple(image))
    windows = window.outputs(tuple(image))
    batch, rows, columns = shape_of(x)
    if rows % prod(block) or columns != prod(windows):
        raise Unsupported(f"{shape_of(x)} are not blocks of {block} from an image of {image}")
    channels = rows // prod(block)
    for axis, size in enumerate(image):
        # (blocks behind, axes done) lie between this axis' taps and its windows.
        between = prod(block[axis + 1 :]) * prod(image[:axis])
        view = (batch * channels, block[axis], between, windows[axis], prod(windows[axis + 1 :]))
        x = node.emit(
            overlap_add(
                node.reshape(x, view),
                window_first=True,
                size=size,
                stride=window.strides[axis],
                before=window.before[axis],
                dilation=window.dilations[axis],
            )
        )
    return node.reshape(x, (batch, channels, *image))


def decode_image(node: NodeContext) -> Expr:
    """ImageDecoder: always refused."""
    del node
    raise Unsupported(
        "compressed images cannot be decoded by compiled kernels",
        "Decode the image before the model and start the model behind this node.",
    )


CONVERTERS: Mapping[tuple[str, str], Callable[[NodeContext], Any]] = {
    ("", "Col2Im"): col2im,
    ("", "ImageDecoder"): decode_image,
}
