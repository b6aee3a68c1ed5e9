"""Gathering and scattering by index tensors; negative indices count from the end."""

from __future__ import annotations

from collections.abc import Sequence

from tvm import te, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from greencc.kernels.base import Kernel
from greencc.kernels.shapes import compute, element_type, product, sequence, wrapped


def gather_elements(data: te.Tensor, indices: te.Tensor, *, dims: list[tirx.Expr], axis: int) -> te.Tensor:
    """out[i, j, k] = data[indices[i, j, k], j, k] for axis 0, and so on."""

    def element(index: Sequence[tirx.Expr]) -> tirx.Expr:
        position = list(index)
        position[axis] = wrapped(indices(*index), data.shape[axis])
        return data(*position)

    return compute(indices.shape, element, "gather_elements")


def gather_nd(data: te.Tensor, indices: te.Tensor, *, dims: list[tirx.Expr], batch_dims: int) -> te.Tensor:
    """The last axis of `indices` [..., n] holds n coordinates of `data`, after `batch_dims` common ones."""
    width = int(indices.shape[-1])
    outer = len(indices.shape) - 1
    shape = [*indices.shape[:-1], *data.shape[batch_dims + width :]]

    def element(index: Sequence[tirx.Expr]) -> tirx.Expr:
        row = index[:outer]
        picked = [wrapped(indices(*row, n), data.shape[batch_dims + n]) for n in range(width)]
        return data(*index[:batch_dims], *picked, *index[outer:])

    return compute(shape, element, "gather_nd")


def combine(reduction: str, old: tirx.Expr, new: tirx.Expr) -> tirx.Expr:
    """What an update makes of an element, for ONNX's reductions (none, add, mul, max, min)."""
    if reduction == "add":
        return old + new
    if reduction == "mul":
        return old * new
    if reduction == "max":
        return tirx.max(old, new)
    if reduction == "min":
        return tirx.min(old, new)
    return new


def scatter_elements(
    data: te.Tensor,
    indices: te.Tensor,
    updates: te.Tensor,
    *,
    dims: list[tirx.Expr],
    axis: int,
    reduction: str,
) -> te.Tensor:
    """A copy of data with out[indices[i, j, k], j, k] = updates[i, j, k] for axis 0; later updates win."""
    strides = [product(data.shape[n + 1 :]) for n in range(len(data.shape))]

    def generate(
        data_buf: tirx.Buffer, indices_buf: tirx.Buffer, updates_buf: tirx.Buffer, out_buf: tirx.Buffer
    ) -> tirx.Stmt:
        source, where = T.buffer_proxy(data_buf), T.buffer_proxy(indices_buf)
        values, out = T.buffer_proxy(updates_buf), T.buffer_proxy(out_buf)
        with IRBuilder() as builder:
            with sequence():
                with T.serial(0, product(data.shape)) as i:
                    out[i] = source[i]
                with T.serial(0, product(indices.shape)) as i:
                    offset: tirx.Expr = tirx.IntImm("int64", 0)
                    rest = i
                    for n in reversed(range(len(indices.shape))):
                        coordinate = wrapped(where[i], data.shape[n]) if n == axis else rest % indices.shape[n]
                        rest = rest // indices.shape[n]
                        offset = offset + coordinate * strides[n]
                    out[offset] = combine(reduction, out[offset], values[i])
            return builder.get()

    return _flat_extern(data, [data, indices, updates], generate, "scatter_elements")


def scatter_nd(
    data: te.Tensor, indices: te.Tensor, updates: te.Tensor, *, dims: list[tirx.Expr], reduction: str
) -> te.Tensor:
    """A copy of data with the slices at the coordinates in `indices` [..., n] replaced or combined."""
    width = int(indices.shape[-1])
    strides = [product(data.shape[n + 1 :]) for n in range(width)]
    rows, row_size = product(indices.shape[:-1]), product(data.shape[width:])

    def generate(
        data_buf: tirx.Buffer, indices_buf: tirx.Buffer, updates_buf: tirx.Buffer, out_buf: tirx.Buffer
    ) -> tirx.Stmt:
        source, where = T.buffer_proxy(data_buf), T.buffer_proxy(indices_buf)
        values, out = T.buffer_proxy(updates_buf), T.buffer_proxy(out_buf)
        with IRBuilder() as builder:
            with sequence():
                with T.serial(0, product(data.shape)) as i:
                    out[i] = source[i]
                with T.serial(0, rows) as i, T.serial(0, row_size) as j:
                    offset: tirx.Expr = j
                    for n in range(width):
                        offset = offset + wrapped(where[i * width + n], data.shape[n]) * strides[n]
                    out[offset] = combine(reduction, out[offset], values[i * row_size + j])
            return builder.get()

    return _flat_extern(data, [data, indices, updates], generate, "scatter_nd")


def _flat_extern(like: te.Tensor, inputs: list[te.Tensor], generate: object, name: str) -> te.Tensor:
    """An imperative kernel over compact buffers whose result has the shape and type of `like`."""
    buffers = [tirx.decl_buffer(tensor.shape, element_type(tensor), f"{name}_in{n}") for n, tensor in enumerate(inputs)]
    out = tirx.decl_buffer(like.shape, element_type(like), f"{name}_out")
    return te.extern(
        [like.shape],
        inputs,
        lambda ins, outs: generate(*ins, outs[0]),  # type: ignore[operator]
        dtype=element_type(like),
        in_buffers=buffers,
        out_buffers=[out],
        name=name,
        tag=name,
    )


def one_hot(indices: te.Tensor, values: te.Tensor, *, dims: list[tirx.Expr], axis: int) -> te.Tensor:
    """Values [off, on]; the new axis of size dims[0] is on at the index, off where that is out of range."""
    depth = dims[0]
    shape = [*indices.shape[:axis], depth, *indices.shape[axis:]]

    def element(index: Sequence[tirx.Expr]) -> tirx.Expr:
        wanted = tirx.Cast("int64", indices(*index[:axis], *index[axis + 1 :]))
        wanted = tirx.Select(wanted < 0, wanted + depth, wanted)
        return tirx.Select(index[axis] == wanted, values(1), values(0))

    return compute(shape, element, "one_hot")


def reverse_sequence(
    data: te.Tensor, lengths: te.Tensor, *, dims: list[tirx.Expr], batch_axis: int, time_axis: int
) -> te.Tensor:
    """The first lengths[b] steps of each batch entry in reverse order."""

    def element(index: Sequence[tirx.Expr]) -> tirx.Expr:
        position = list(index)
        length = tirx.Cast("int64", lengths(index[batch_axis]))
        time = index[time_axis]
        position[time_axis] = tirx.Select(time < length, tirx.max(length - 1 - time, tirx.IntImm("int64", 0)), time)
        return data(*position)

    return compute(data.shape, element, "reverse_sequence")


KERNELS: dict[str, Kernel] = {
    "gather_elements": gather_elements,
    "gather_nd": gather_nd,
    "one_hot": one_hot,
    "reverse_sequence": reverse_sequence,
    "scatter_elements": scatter_elements,
    "scatter_nd": scatter_nd,
}
