"""Reads and validates ONNX files: whatever is wrong with the file itself is found here, before anything is built.

Weights are never copied: initializers are views of the protobuf's bytes or of memory-mapped external files.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx.inliner
from google.protobuf.message import DecodeError
from onnx import numpy_helper

from greencc.errors import ModelError

# More elements than any tensor that fits a machine; a declaration beyond it is a damaged or hostile file.
MAX_ELEMENTS = 1 << 40
MAX_DIM = 1 << 31
MAX_RANK = 64
# Protobuf refuses messages over 2 GiB; beyond it weights have to be external data.
MAX_PROTO_BYTES = (1 << 31) - 1


@dataclass(frozen=True)
class OnnxFile:
    """A parsed and validated model.

    Attributes:
        path: the file.
        model: the model, local functions inlined, nodes of every graph in topological order.
        opsets: version by domain; the default domain is "".
        sha256: hash of the file (external data not included).
        nodes: number of operator nodes, Constants excluded and nested graphs counted.
        edges: number of uses of values that are not constants.
    """

    path: Path
    model: onnx.ModelProto
    opsets: dict[str, int]
    sha256: str
    nodes: int
    edges: int


def read_onnx(path: Path) -> OnnxFile:
    """Parse and validate `path`. Raises ModelError with one line on any defect of the file."""
    data = _read_bytes(path)
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError as error:
        raise ModelError(f"{path}: not an ONNX model, or truncated; export it again") from error
    if not model.HasField("graph") or not model.graph.output or not model.opset_import:
        raise ModelError(f"{path}: not an ONNX model: it has no graph, no outputs or no operator set")
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    opsets = {("" if o.domain == "ai.onnx" else o.domain): o.version for o in model.opset_import}
    _check_graph(path, model.graph, outer=frozenset())
    nodes, edges = _count(model.graph, constants=frozenset())
    return OnnxFile(path, model, opsets, hashlib.sha256(data).hexdigest(), nodes, edges)


def tensor_array(path: Path, tensor: onnx.TensorProto) -> np.ndarray:
    """Values of an initializer or attribute tensor, without a copy where the encoding allows."""
    where = f"{path}: tensor '{tensor.name}'"
    shape = _checked_dims(where, tensor.dims)
    try:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    except (KeyError, TypeError) as error:
        raise ModelError(f"{where} has the unknown element type {tensor.data_type}") from error
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        return _external_array(path, tensor, shape, dtype)
    try:
        array = numpy_helper.to_array(tensor)
    except (ValueError, TypeError) as error:
        raise ModelError(f"{where}: its data don't fill its shape {list(shape)}; the file is damaged") from error
    return np.asarray(array)


def node_label(node: onnx.NodeProto) -> str:
    """The name by which greencc speaks of a node: its own, or its first output's."""
    return str(node.name or next((name for name in node.output if name), node.op_type))


def subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """Graphs nested in a node's attributes."""
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g
        elif attribute.type == onnx.AttributeProto.GRAPHS:
            yield from attribute.graphs


def free_names(graph: onnx.GraphProto) -> list[str]:
    """Names that a nested graph uses from outside, in order of first use."""
    defined = {i.name for i in graph.input} | {t.name for t in graph.initializer}
    free: dict[str, None] = {}
    for node in graph.node:
        used = [*node.input, *(name for sub in subgraphs(node) for name in free_names(sub))]
        for name in used:
            if name and name not in defined:
                free.setdefault(name)
        defined.update(node.output)
    for output in graph.output:
        if output.name not in defined:
            free.setdefault(output.name)
    return list(free)


def _read_bytes(path: Path) -> bytes:
    if not path.exists():
        raise ModelError(f"{path}: no such file")
    if not path.is_file():
        raise ModelError(f"{path}: not a file")
    try:
        size = path.stat().st_size
        if size > MAX_PROTO_BYTES:
            raise ModelError(f"{path}: {size} bytes exceed protobuf's 2 GiB; export with external data")
        return path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path}: can't be read: {error.strerror}") from error


def _checked_dims(where: str, dims: Sequence[int]) -> tuple[int, ...]:
    if len(dims) > MAX_RANK:
        raise ModelError(f"{where} declares {len(dims)} dimensions; at most {MAX_RANK} are possible")
    if any(dim < 0 or dim > MAX_DIM for dim in dims) or math.prod(dims) > MAX_ELEMENTS:
        raise ModelError(f"{where} declares the absurd shape {list(dims)}")
    return tuple(dims)


def _external_array(path: Path, tensor: onnx.TensorProto, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    where = f"{path}: tensor '{tensor.name}'"
    entries = {entry.key: entry.value for entry in tensor.external_data}
    folder = path.parent.resolve()
    location = entries.get("location", "")
    target = (folder / location).resolve()
    if not location or not target.is_relative_to(folder):
        raise ModelError(f"{where}: its external data '{location}' lie outside the model's folder")
    if not target.is_file():
        raise ModelError(f"{where}: its external data file '{location}' is missing")
    try:
        offset = int(entries.get("offset", "0"))
        length = int(entries.get("length", "-1"))
    except ValueError as error:
        raise ModelError(f"{where}: its external data offset or length is no number") from error
    wanted = math.prod(shape) * dtype.itemsize
    size = target.stat().st_size
    if offset < 0 or offset + wanted > size or length not in (-1, wanted):
        raise ModelError(
            f"{where}: needs {wanted} bytes at {offset} of '{location}', which holds {size} (stated length {length})"
        )
    if wanted == 0:
        return np.zeros(shape, dtype)
    return np.memmap(target, dtype, "r", offset, shape)


def _check_graph(path: Path, graph: onnx.GraphProto, outer: frozenset[str]) -> None:
    """Unique definitions, every used name defined, nodes sorted (a valid but unsorted graph is sorted in place)."""
    for info in (*graph.input, *graph.output, *graph.value_info):
        if info.type.HasField("tensor_type") and info.type.tensor_type.HasField("shape"):
            dims = [d.dim_value for d in info.type.tensor_type.shape.dim if d.HasField("dim_value")]
            _checked_dims(f"{path}: value '{info.name}'", [max(dim, 0) for dim in dims])
    defined = {i.name for i in graph.input} | {t.name for t in graph.initializer}
    defined |= {t.values.name for t in graph.sparse_initializer}
    for node in graph.node:
        for name in filter(None, node.output):
            if name in defined:
                raise ModelError(f"{path}: value '{name}' is defined twice (again by '{node_label(node)}')")
            defined.add(name)
    known = defined | outer
    available = {*outer, *(i.name for i in graph.input), *(t.name for t in graph.initializer)}
    available.update(t.values.name for t in graph.sparse_initializer)
    pending = list(graph.node)
    ordered: list[onnx.NodeProto] = []
    is_sorted = True
    while pending:
        waiting: list[onnx.NodeProto] = []
        for node in pending:
            uses = [*filter(None, node.input), *(n for sub in subgraphs(node) for n in free_names(sub))]
            for name in uses:
                if name not in known:
                    raise ModelError(f"{path}: node '{node_label(node)}' uses '{name}', which nothing defines")
            if all(name in available for name in uses):
                ordered.append(node)
                available.update(filter(None, node.output))
            else:
                waiting.append(node)
                is_sorted = False
        if len(waiting) == len(pending):
            names = ", ".join(f"'{node_label(node)}'" for node in waiting[:4])
            raise ModelError(f"{path}: the graph has a cycle through {names}")
        pending = waiting
    if not is_sorted:
        copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in ordered]
        del graph.node[:]
        graph.node.extend(copies)
    for output in graph.output:
        if output.name not in available:
            raise ModelError(f"{path}: output '{output.name}' is computed by no node")
    for node in graph.node:
        for sub in subgraphs(node):
            _check_graph(path, sub, frozenset(available))


def _count(graph: onnx.GraphProto, constants: frozenset[str]) -> tuple[int, int]:
    constants |= {t.name for t in graph.initializer}
    constants |= {name for node in graph.node if node.op_type == "Constant" for name in node.output}
    nodes = edges = 0
    for node in graph.node:
        if node.op_type == "Constant":
            continue
        nodes += 1
        edges += sum(bool(name) and name not in constants for name in node.input)
        for sub in subgraphs(node):
            inner_nodes, inner_edges = _count(sub, constants)
            nodes += inner_nodes
            edges += inner_edges
    edges += sum(output.name not in constants for output in graph.output)
    return nodes, edges
