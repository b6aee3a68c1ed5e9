"""Recognises a two-dimensional convolution in a fused PrimFunc, and reads its sizes off the index expressions."""

from __future__ import annotations

from dataclasses import dataclass

import tvm
from tvm import ir, s_tir, sym, tirx

from greencc.targets.cpu.schedules.kernel import Tail, blocks, inline_tail, is_const_zero, is_reduction
from greencc.targets.tir import as_int, loads, substitute


@dataclass(frozen=True)
class Convolution:
    """in[n, c, y*sy + r*dy - top, x*sx + q*dx - left] * w[k, c, r, q], zero outside of the input.

    Attributes:
        data, weight: the operands, [N, C, H, W] and [K, C / groups, KH, KW].
        in_channels, height, width: C, H and W.
        out_channels, out_height, out_width: of the result.
        kernel, stride, dilation: (rows, columns).
        top, left: rows and columns of padding before the input.
        groups: channels fall into as many groups.
        unpadded: nothing is padded behind the input either.
    """

    data: tirx.Var
    weight: tirx.Var
    in_channels: int
    height: int
    width: int
    out_channels: int
    out_height: int
    out_width: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    top: int
    left: int
    groups: int
    unpadded: bool

    @property
    def phases(self) -> tuple[int, int]:
        """Into how many phases rows and columns of the padded input fall; a tap of a 1 x 1 filter meets one only."""
        return tuple(s if k > 1 else 1 for s, k in zip(self.stride, self.kernel, strict=True))  # type: ignore[return-value]

    @property
    def source_height(self) -> int:
        """Rows that one phase of the padded input needs."""
        return self.out_height + (self.kernel[0] - 1) * self.dilation[0] // self.stride[0]

    @property
    def source_width(self) -> int:
        """Columns that one phase of the padded input needs."""
        return self.out_width + (self.kernel[1] - 1) * self.dilation[1] // self.stride[1]


def match_convolution(func: tirx.PrimFunc) -> tuple[Tail, Convolution] | str:
    """The convolution that a kernel computes, with what follows it, or why it is none."""
    schedule = s_tir.Schedule(tvm.IRModule({"main": func}))
    found = blocks(schedule)
    padding: s_tir.SBlock | None = None
    if len(found) > 1 and not is_reduction(schedule.get(found[0])) and is_reduction(schedule.get(found[1])):
        padding = schedule.get(found[0])
        tail = inline_tail(func, skip=1)
    else:
        tail = inline_tail(func)
    if isinstance(tail, str):
        return tail
    conv = _read(tail.producer, padding)
    if isinstance(conv, str):
        return conv
    if not any(param.same_as(conv.data) for param in func.params):
        return "the input is computed in the kernel"
    return tail, conv


def _read(block: s_tir.SBlock, padding: s_tir.SBlock | None) -> Convolution | str:
    kept = [axis.var for axis in block.iter_vars if int(axis.iter_type) == 0]
    reduced = [axis.var for axis in block.iter_vars if int(axis.iter_type) != 0]
    store = block.body
    if not is_reduction(block) or (len(kept), len(reduced)) != (4, 3) or not isinstance(store, tirx.BufferStore):
        return "not a reduction over a channel and two axes"
    n, k, y, x = kept
    c, r, q = reduced
    if not all(index.same_as(axis) for index, axis in zip(store.indices, kept, strict=True)):
        return "the result isn't written in the order of its axes"
    if not is_const_zero(block.init.value) or not isinstance(store.value, tirx.Add):
        return "not a sum"
    product = store.value.b
    if not isinstance(product, tirx.Mul) or not all(isinstance(f, ir.TensorLoad) for f in (product.a, product.b)):
        return "not a sum of products"
    data, weight = product.a, product.b
    if any(str(load.ty.dtype) != "float32" for load in (data, weight)):
        return "not float32"
    if len(weight.indices) != 4 or not all(i.same_as(v) for i, v in zip(weight.indices, (k, c, r, q), strict=True)):
        return "the weights aren't [k, c, r, q]"
    dims = [*data.source.ty.shape[1:], *weight.source.ty.shape, *store.buffer.ty.shape[1:]]
    sizes = [size for size in map(as_int, dims) if size is not None]
    if len(data.indices) != 4 or len(sizes) != len(dims):
        return "a size is symbolic"
    channels, padded_height, padded_width, out_channels, depth, *kernel = sizes[:7]
    rows, columns = _linear(data.indices[2], (y, r)), _linear(data.indices[3], (x, q))
    if rows is None or columns is None or not data.indices[0].same_as(n):
        return "the input isn't read at y * stride + r * dilation"
    groups = channels // depth
    if not _reads_group(data.indices[1], k, c, groups, out_channels, depth):
        return "the channels are read in another order"
    source, top, left, height, width = data.source, 0, 0, padded_height, padded_width
    if padding is not None:
        inner = _padding(padding, data.source)
        if inner is None:
            return "what precedes is no padding with zeros"
        source, top, left, height, width = inner
    return Convolution(
        source, weight.source, channels, height, width, out_channels, sizes[8], sizes[9],
        (kernel[0], kernel[1]), (rows[0], columns[0]), (rows[1], columns[1]), top, left, groups,
        (height, width) == (padded_height, padded_width),
    )  # fmt: skip


def _linear(index: tirx.Expr, axes: tuple[tirx.Var, tirx.Var]) -> tuple[int, int] | None:
    """(a, b) of an index a * axes[0] + b * axes[1], both at least 1."""
    analyzer = sym.Analyzer()
    zero, one = tirx.const(0, "int64"), tirx.const(1, "int64")

    def at(first: tirx.Expr, second: tirx.Expr) -> int | None:
        return as_int(analyzer.simplify(substitute(index, {axes[0]: first, axes[1]: second})))

    origin, a, b = at(zero, zero), at(one, zero), at(zero, one)
    if origin != 0 or a is None or b is None or min(a, b) < 1:
        return None
    same = analyzer.can_prove_equal(index, axes[0] * tirx.const(a, "int64") + axes[1] * tirx.const(b, "int64"))
    return (a, b) if same else None


def _reads_group(
    index: tirx.Expr, k: tirx.Var, c: tirx.Var, groups: int, out_channels: int, depth: int
) -> bool:
    """Whether channel k reads input channels k // (K / groups) * depth + c."""
    if groups == 1:
        return bool(index.same_as(c))
    analyzer = sym.Analyzer()
    analyzer.bind(k, ir.Range(0, out_channels))
    group = tirx.floordiv(k, tirx.const(out_channels // groups, "int64"))
    return bool(analyzer.can_prove_equal(index, group * tirx.const(depth, "int64") + c))


def _padding(block: s_tir.SBlock, padded: tirx.Var) -> tuple[tirx.Var, int, int, int, int] | None:
    """(input, top, left, height, width) of a block that pads rows and columns of an NCHW array with zeros."""
    store = block.body
    axes = [axis.var for axis in block.iter_vars]
    if not isinstance(store, tirx.BufferStore) or not store.buffer.same_as(padded) or len(axes) != 4:
        return None
    if not all(index.same_as(axis) for index, axis in zip(store.indices, axes, strict=True)):
        return None
    read = list(loads(store.value))
    value = store.value
    if len(read) != 1 or len(read[0].indices) != 4:
        return None
    if isinstance(value, ir.Call) and value.op.name.endswith(".if_then_else"):
        if not value.args[1].same_as(read[0]) or not is_const_zero(value.args[2]):
            return None
        condition = value.args[0]
    elif value.same_as(read[0]):
        condition = None
    else:
        return None
    analyzer = sym.Analyzer()
    found = [as_int(analyzer.simplify(a - i)) for a, i in zip(axes, read[0].indices, strict=True)]
    offsets = [offset for offset in found if offset is not None]
    size = [extent for extent in map(as_int, read[0].source.ty.shape[2:]) if extent is not None]
    if len(offsets) != 4 or len(size) != 2 or offsets[:2] != [0, 0] or min(offsets[2:]) < 0:
        return None
    height, width = size
    if condition is not None and not _is_inside(condition, axes[2:], padded, offsets[2:], (height, width)):
        return None
    return read[0].source, offsets[2], offsets[3], height, width


def _is_inside(
    condition: tirx.Expr, axes: list[tirx.Var], padded: tirx.Var, offsets: list[int], sizes: tuple[int, int]
) -> bool:
    """Whether a condition holds exactly inside of the input: tried along a row and a column through its middle."""
    analyzer = sym.Analyzer()
    middle = [offset + size // 2 for offset, size in zip(offsets, sizes, strict=True)]
    for axis in (0, 1):
        for at in range(int(padded.ty.shape[2 + axis])):
            point = [at if i == axis else middle[i] for i in (0, 1)]
            values = {var: tirx.const(value, "int64") for var, value in zip(axes, point, strict=True)}
            holds = as_int(analyzer.simplify(substitute(condition, values)))
            if holds is None or bool(holds) != (0 <= at - offsets[axis] < sizes[axis]):
                return False
    return True
