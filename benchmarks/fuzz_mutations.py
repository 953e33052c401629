"""Ways to damage a model: nodes, attributes, shapes, types, bytes. Each is drawn from one `rng`."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import numpy as np
import onnx
from onnx import AttributeProto, ModelProto, TensorProto, helper, numpy_helper

DTYPES = (
    *(TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.INT64),
    *(TensorProto.INT32, TensorProto.INT8, TensorProto.UINT8, TensorProto.BOOL),
)
INTEGERS = (0, 1, -1, 2, 3, 7, 255, 2**31 - 1, -(2**31), 2**62, -(2**63))
FLOATS = (0.0, 1.0, -1.0, 0.5, 1e-30, 1e30, math.inf, -math.inf, math.nan)
SIZES = (0, 1, 2, 3, 5, 17)
HOSTILE_SIZES = (-1, 2**31, 2**40, 2**62)


def damage(model: ModelProto, rng: random.Random) -> tuple[bytes, tuple[str, ...]]:
    """The model's file after 0 to 3 mutations, and their names; the model itself is changed."""
    names = []
    for _ in range(rng.choice((0, 1, 1, 1, 1, 2, 2, 3))):
        mutation = rng.choice(MUTATIONS)
        if mutation(model, rng):
            names.append(mutation.__name__)
    data = model.SerializeToString()
    if rng.random() < 0.1:
        names.append("flip_bytes")
        data = flip_bytes(data, rng)
    return data, tuple(names)


def flip_bytes(data: bytes, rng: random.Random) -> bytes:
    """The file with a few bytes changed, dropped or repeated, or its end cut off."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        if not changed:
            break
        # The first bytes are structure more often than weights.
        place = rng.randrange(min(len(changed), rng.choice((64, 512, len(changed)))))
        action = rng.randrange(8)
        if action < 5:
            changed[place] = rng.randrange(256) if action < 2 else changed[place] ^ 1 << action
        elif action == 5:
            del changed[place]
        elif action == 6:
            changed[place:place] = changed[place : place + 4]
        else:
            del changed[place:]
    return bytes(changed)


def remove_node(model: ModelProto, rng: random.Random) -> bool:
    """Its readers get its first input instead."""
    nodes = model.graph.node
    if len(nodes) < 2:
        return False
    node = nodes.pop(rng.randrange(len(nodes)))
    source = node.input[0] if node.input else ""
    for other in nodes:
        for place, name in enumerate(other.input):
            if name in node.output:
                other.input[place] = source
    return True


def duplicate_node(model: ModelProto, rng: random.Random) -> bool:
    """A copy under other output names, which a reader may take."""
    nodes = list(model.graph.node)
    if not nodes:
        return False
    index = rng.randrange(len(nodes))
    copy = onnx.NodeProto()
    copy.CopyFrom(nodes[index])
    renamed = {name: f"{name}_copy" for name in copy.output if name}
    if rng.random() < 0.9:  # else the same names are bound twice
        for place, name in enumerate(copy.output):
            copy.output[place] = renamed.get(name, "")
        for node in nodes[index + 1 :]:
            for place, name in enumerate(node.input):
                if name in renamed and rng.random() < 0.5:
                    node.input[place] = renamed[name]
    del model.graph.node[:]
    model.graph.node.extend([*nodes[: index + 1], copy, *nodes[index + 1 :]])
    return True


def swap_nodes(model: ModelProto, rng: random.Random) -> bool:
    """Two nodes change places in the file, or only their operators do."""
    nodes = list(model.graph.node)
    if len(nodes) < 2:
        return False
    a, b = rng.sample(range(len(nodes)), 2)
    if rng.random() < 0.5:
        nodes[a], nodes[b] = nodes[b], nodes[a]
        del model.graph.node[:]
        model.graph.node.extend(nodes)
    else:
        nodes[a].op_type, nodes[b].op_type = nodes[b].op_type, nodes[a].op_type
    return True


def replace_operator(model: ModelProto, rng: random.Random) -> bool:
    """Another operator of as many inputs."""
    if not model.graph.node:
        return False
    node = rng.choice(model.graph.node)
    others = OPERATORS.get(len(node.input))
    if not others:
        return False
    node.op_type, node.domain = rng.choice(others), ""
    if rng.random() < 0.5:
        del node.attribute[:]
    return True


def rewire_input(model: ModelProto, rng: random.Random) -> bool:
    """An input reads another value of the model, or nothing."""
    graph = model.graph
    readers = [node for node in graph.node if node.input]
    if not readers:
        return False
    node = rng.choice(readers)
    names = [value.name for value in graph.input] + [tensor.name for tensor in graph.initializer]
    names += [name for other in graph.node for name in other.output]
    place = rng.randrange(len(node.input))
    action = rng.random()
    if action < 0.7:
        node.input[place] = rng.choice(names)
    elif action < 0.9:
        node.input[place] = ""
    else:
        node.input.pop(place)
    return True


def perturb_attribute(model: ModelProto, rng: random.Random) -> bool:
    """Another value, mostly of the same type."""
    nodes = [node for node in model.graph.node if node.attribute]
    if not nodes:
        return False
    node = rng.choice(nodes)
    index = rng.randrange(len(node.attribute))
    attribute = node.attribute[index]
    action = rng.random()
    if action < 0.15:
        node.attribute.pop(index)
    elif action < 0.25:
        value = rng.choice((1, 1.5, "x", [1, 2], [0.5]))
        attribute.CopyFrom(helper.make_attribute(attribute.name, value))
    elif attribute.type == AttributeProto.INT:
        attribute.i = _integer(attribute.i, rng)
    elif attribute.type == AttributeProto.FLOAT:
        attribute.f = rng.choice((*FLOATS, attribute.f * 2, -attribute.f))
    elif attribute.type == AttributeProto.STRING:
        words = (b"", b"linear", b"SAME_UPPER", b"nearest", b"reflect", b"\xff")
        attribute.s = rng.choice((*words, attribute.s[:-1]))
    elif attribute.type == AttributeProto.INTS:
        _perturb_list(attribute.ints, rng)
    elif attribute.type == AttributeProto.TENSOR:
        _perturb_tensor(attribute.t, rng)
    else:
        return False
    return True


def _integer(value: int, rng: random.Random) -> int:
    near = (value + 1, value - 1, -value, 2 * value)
    return max(-(2**63), min(rng.choice((*near, *near, *INTEGERS)), 2**63 - 1))


def _perturb_list(values: list[int], rng: random.Random) -> None:
    if values and rng.random() < 0.7:
        place = rng.randrange(len(values))
        values[place] = _integer(values[place], rng)
    elif values and rng.random() < 0.5:
        values.pop(rng.randrange(len(values)))
    else:
        values.append(rng.choice((0, 1, 2)))


def _perturb_tensor(tensor: TensorProto, rng: random.Random) -> None:
    try:
        array = numpy_helper.to_array(tensor).copy()
    except Exception:
        return  # damaged before
    if array.size and array.dtype.kind in "iu":
        limits = np.iinfo(array.dtype)
        place = rng.randrange(array.size)
        value = _integer(int(array.flat[place]), rng)
        array.flat[place] = max(int(limits.min), min(value, int(limits.max)))
    elif array.size and array.dtype.kind == "f":
        array.flat[rng.randrange(array.size)] = rng.choice(FLOATS)
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def perturb_constant(model: ModelProto, rng: random.Random) -> bool:
    """Another value in an initializer; those that act as shapes or axes first."""
    tensors = list(model.graph.initializer)
    small = [tensor for tensor in tensors if tensor.data_type == TensorProto.INT64]
    tensors = small or tensors
    if not tensors:
        return False
    _perturb_tensor(rng.choice(tensors), rng)
    return True


def reshape_constant(model: ModelProto, rng: random.Random) -> bool:
    """An initializer of another shape; the data fits, or does not."""
    tensors = model.graph.initializer
    if not tensors:
        return False
    tensor = rng.choice(tensors)
    if rng.random() < 0.3:
        dims = list(tensor.dims) or [1]
        dims[rng.randrange(len(dims))] = rng.choice((*SIZES, *HOSTILE_SIZES))
        del tensor.dims[:]
        tensor.dims.extend(dims)
        return True
    try:
        array = numpy_helper.to_array(tensor)
    except Exception:
        return False
    part = array[..., :1] if array.ndim else array
    changed = rng.choice((array.T, array.ravel(), array[None], part, array.ravel()[:0], array))
    if array.ndim and rng.random() < 0.3:
        axis = rng.randrange(array.ndim)
        changed = np.take(array, range(min(array.shape[axis], rng.choice(SIZES))), axis)
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(changed), tensor.name))
    return True


def reshape_input(model: ModelProto, rng: random.Random) -> bool:
    """An input with another, an open or a hostile dimension, or another rank."""
    if not model.graph.input:
        return False
    kind = rng.choice(model.graph.input).type.tensor_type
    dims = kind.shape.dim
    action = rng.random()
    if action < 0.1 or not dims:
        dims.add().dim_value = rng.choice(SIZES)
    elif action < 0.2:
        dims.pop(rng.randrange(len(dims)))
    elif action < 0.4:
        rng.choice(dims).dim_param = rng.choice(("n", "m"))
    elif action < 0.45:
        rng.choice(dims).dim_value = rng.choice(HOSTILE_SIZES)
    else:
        rng.choice(dims).dim_value = rng.choice(SIZES)
    return True


def restate_output(model: ModelProto, rng: random.Random) -> bool:
    """An output that declares another shape or type than it has."""
    if not model.graph.output:
        return False
    kind = rng.choice(model.graph.output).type.tensor_type
    if kind.shape.dim and rng.random() < 0.6:
        rng.choice(kind.shape.dim).dim_value = rng.choice(SIZES)
    elif rng.random() < 0.5:
        kind.ClearField("shape")
    else:
        kind.elem_type = rng.choice(DTYPES)
    return True


def retype(model: ModelProto, rng: random.Random) -> bool:
    """Another element type: of an input, or of an initializer and its data."""
    target = rng.choice(DTYPES)
    tensors = model.graph.initializer
    if tensors and rng.random() < 0.5:
        tensor = rng.choice(tensors)
        if rng.random() < 0.2:
            tensor.data_type = target  # the data stays as it is
            return True
        try:
            with np.errstate(all="ignore"):
                array = numpy_helper.to_array(tensor).astype(
                    helper.tensor_dtype_to_np_dtype(target)
                )
        except Exception:
            return False
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
        return True
    if not model.graph.input:
        return False
    rng.choice(model.graph.input).type.tensor_type.elem_type = target
    return True


def insert_cast(model: ModelProto, rng: random.Random) -> bool:
    """A Cast in front of one input of one node, there and sometimes back."""
    nodes = list(model.graph.node)
    places = [(i, j) for i, node in enumerate(nodes) for j, name in enumerate(node.input) if name]
    if not places:
        return False
    index, place = rng.choice(places)
    node = nodes[index]
    name = node.input[place]
    fresh = f"{name}_cast{len(nodes)}"
    node.input[place] = fresh
    cast = helper.make_node("Cast", [name], [fresh], to=rng.choice(DTYPES))
    added = [cast]
    if rng.random() < 0.5:
        node.input[place] = f"{fresh}_back"
        added.append(helper.make_node("Cast", [fresh], [node.input[place]], to=TensorProto.FLOAT))
    del model.graph.node[:]
    model.graph.node.extend([*nodes[:index], *added, *nodes[index:]])
    return True


def restamp(model: ModelProto, rng: random.Random) -> bool:
    """Another operator set version, or none."""
    if not model.opset_import or rng.random() < 0.1:
        del model.opset_import[:]
        return True
    stamp = rng.choice(model.opset_import)
    stamp.version = rng.choice((0, 1, 7, 9, 11, 13, 17, 18, 20, 21, 99, stamp.version + 1))
    return True


Mutation = Callable[[ModelProto, random.Random], bool]
_OFTEN: tuple[Mutation, ...] = (replace_operator, rewire_input, perturb_attribute, perturb_constant)
MUTATIONS: tuple[Mutation, ...] = (
    *_OFTEN * 3,
    *(remove_node, duplicate_node, swap_nodes, reshape_constant, reshape_input, restate_output),
    *(retype, insert_cast, insert_cast, restamp),
)


def _operators() -> dict[int, tuple[str, ...]]:
    """Operators of the standard by a number of inputs they may have."""
    # What is random gives no answer to compare; functions of text are not compiled.
    skipped = ("Random", "Multinomial", "Bernoulli", "String", "Regex", "TfIdf", "Label", "Image")
    found: dict[int, list[str]] = {}
    for schema in onnx.defs.get_all_schemas():
        if schema.domain or schema.deprecated or schema.name.startswith(skipped):
            continue
        for count in range(max(schema.min_input, 1), min(schema.max_input, 6) + 1):
            found.setdefault(count, []).append(schema.name)
    return {count: tuple(sorted(names)) for count, names in found.items()}


OPERATORS = _operators()
