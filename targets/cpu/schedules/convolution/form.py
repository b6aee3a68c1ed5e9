"""Recognises a two-dimensional convolution in a fused PrimFunc, and reads its sizes off the index expressions."""

from __future__ import annotations

from dataclasses import dataclass

import tvm
from tvm import ir, s_tir, sym, tirx

from greencc.targets.cpu.intrinsics.dot import dot_product
from greencc.targets.cpu.schedules.convolution.taps import DotTaps, FloatTaps, Taps
from greencc.targets.cpu.target import CpuTarget
from greencc.targets.kernel import (
    InlineError,
    Tail,
    inline_side_blocks,
    inline_tail,
    is_const_zero,
    is_reduction,
    widened,
)
from greencc.targets.tir import as_int, substitute


@dataclass(frozen=True)
class Convolution:
    """in[n, c, y*sy + r*dy - top, x*sx + q*dx - left] * w[k, c, r, q], zero outside of the input.

    Attributes:
        taps: the arithmetic.
        data, weight: the operands, [N, C, H, W] or, in words of bytes, [N, words, H, W, depth]; [K, depth, KH, KW].
        zero: of bytes, the level [N, 1, 1, 1] int32 that stands for 0; None where nothing is padded.
        depth: channels of a group, C / groups.
        height, width: H and W.
        out_channels, out_height, out_width: of the result.
        kernel, stride, dilation: (rows, columns).
        top, left: rows and columns of padding before the input.
        groups: channels fall into as many groups.
        unpadded: nothing is padded behind the input either.
    """

    taps: Taps
    data: tirx.Var
    weight: tirx.Var
    zero: tirx.Var | None
    depth: int
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
    def group_words(self) -> int:
        """Words of a group's channels."""
        return -(-self.depth // self.taps.depth)

    @property
    def steps(self) -> int:
        """Steps of a sum."""
        return self.group_words * self.kernel[0] * self.kernel[1]

    @property
    def words(self) -> int:
        """Words of all channels."""
        return self.groups * self.group_words

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


def match_convolution(func: tirx.PrimFunc, target: CpuTarget) -> tuple[Tail, Convolution] | str:
    """The convolution that a kernel computes, with what follows it, or why it is none."""
    schedule = s_tir.Schedule(tvm.IRModule({"main": func}))
    try:
        found = inline_side_blocks(schedule)
    except InlineError:
        return "what precedes can't be inlined"
    padding: s_tir.SBlock | None = None
    if len(found) > 1 and not is_reduction(schedule.get(found[0])) and is_reduction(schedule.get(found[1])):
        padding = schedule.get(found[0])
        tail = inline_tail(func, skip=1)
    else:
        tail = inline_tail(func)
    if isinstance(tail, str):
        return tail
    conv = _read(tail.producer, padding, target)
    if isinstance(conv, str):
        return conv
    operands = [conv.data] if conv.zero is None else [conv.data, conv.zero]
    if not all(any(param.same_as(operand) for param in func.params) for operand in operands):
        return "the input is computed in the kernel"
    return tail, conv


def _read(block: s_tir.SBlock, padding: s_tir.SBlock | None, target: CpuTarget) -> Convolution | str:
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
    if not isinstance(product, tirx.Mul):
        return "not a sum of products"
    data, weight = widened(product.a), widened(product.b)
    if not isinstance(data, ir.TensorLoad) or not isinstance(weight, ir.TensorLoad):
        return "not a sum of products"
    taps = _taps([str(value.ty.dtype) for value in (data, weight, store.value)], len(data.indices), target)
    if isinstance(taps, str):
        return taps
    if len(weight.indices) != 4 or not all(i.same_as(v) for i, v in zip(weight.indices, (k, c, r, q), strict=True)):
        return "the weights aren't [k, c, r, q]"
    dims = [*data.source.ty.shape[1:4], *weight.source.ty.shape, *store.buffer.ty.shape[1:]]
    sizes = [size for size in map(as_int, dims) if size is not None]
    if len(sizes) != len(dims):
        return "a size is symbolic"
    words, padded_height, padded_width, out_channels, depth, *kernel = sizes[:7]
    rows, columns = _linear(data.indices[2], (y, r)), _linear(data.indices[3], (x, q))
    if rows is None or columns is None or not data.indices[0].same_as(n):
        return "the input isn't read at y * stride + r * dilation"
    groups = words // -(-depth // taps.depth)
    if not _reads_channel([data.indices[1], *data.indices[4:]], k, c, (out_channels, groups), depth, taps.depth):
        return "the channels are read in another order"
    source, zero, top, left, height, width = data.source, None, 0, 0, padded_height, padded_width
    if padding is not None:
        inner = _padding(padding, data.source)
        if inner is None:
            return "what precedes is no padding with zeros"
        source, zero, top, left, height, width = inner
    return Convolution(
        taps, source, weight.source, zero, depth, height, width, out_channels, sizes[8], sizes[9],
        (kernel[0], kernel[1]), (rows[0], columns[0]), (rows[1], columns[1]), top, left, groups,
        (height, width) == (padded_height, padded_width),
    )  # fmt: skip


def _taps(kinds: list[str], rank: int, target: CpuTarget) -> Taps | str:
    """The arithmetic for data of some rank, by the element types of data, weights and sums."""
    dot = dot_product(target)
    if kinds == ["float32"] * 3 and rank == 4:
        return FloatTaps()
    if kinds == [dot.activation, "int8", "int32"] and rank == 5:
        return DotTaps(dot)
    return f"not float32, nor words of {dot.activation} times int8 in int32"


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


def _reads_channel(
    indices: list[tirx.Expr], k: tirx.Var, c: tirx.Var, filters: tuple[int, int], depth: int, size: int
) -> bool:
    """Whether filter k, of `filters` (number, groups), reads channel c of its group, one of `depth`.

    Indices are [c] or, in words of `size` channels, [word, place in the word].
    """
    analyzer = sym.Analyzer()
    analyzer.bind(k, ir.Range(0, filters[0]))
    analyzer.bind(c, ir.Range(0, depth))
    group = tirx.floordiv(k, tirx.const(filters[0] // filters[1], "int64"))
    first = group * tirx.const(-(-depth // size), "int64")
    wanted = [first + tirx.floordiv(c, tirx.const(size, "int64")), tirx.floormod(c, tirx.const(size, "int64"))]
    return all(bool(analyzer.can_prove_equal(index, want)) for index, want in zip(indices, wanted, strict=False))


def _padding(block: s_tir.SBlock, padded: tirx.Var) -> tuple[tirx.Var, tirx.Var | None, int, int, int, int] | None:
    """(input, zero points, top, left, height, width) of a block that pads rows and columns of an image.

    Floats are padded with 0, bytes with their image's zero point.
    """
    store = block.body
    axes = [axis.var for axis in block.iter_vars]
    if not isinstance(store, tirx.BufferStore) or not store.buffer.same_as(padded) or len(axes) not in (4, 5):
        return None
    if not all(index.same_as(axis) for index, axis in zip(store.indices, axes, strict=True)):
        return None
    inside, condition, outside = store.value, None, None
    if isinstance(inside, ir.Call) and inside.op.name.endswith(".if_then_else"):
        condition, inside, outside = inside.args
    if not isinstance(inside, ir.TensorLoad) or len(inside.indices) != len(axes):
        return None
    zero = None
    if outside is not None and not (len(axes) == 4 and is_const_zero(outside)):
        zero = _zero_point(outside, axes[0]) if len(axes) == 5 else None
        if zero is None:
            return None
    analyzer = sym.Analyzer()
    found = [as_int(analyzer.simplify(a - i)) for a, i in zip(axes, inside.indices, strict=True)]
    offsets = [offset for offset in found if offset is not None]
    size = [extent for extent in map(as_int, inside.source.ty.shape[2:4]) if extent is not None]
    if len(offsets) != len(axes) or len(size) != 2 or any(offsets[:2] + offsets[4:]) or min(offsets[2:4]) < 0:
        return None
    height, width = size
    if condition is not None and not _is_inside(condition, axes[2:4], padded, offsets[2:4], (height, width)):
        return None
    return inside.source, zero, offsets[2], offsets[3], height, width


def _zero_point(value: tirx.Expr, n: tirx.Var) -> tirx.Var | None:
    """The int32 [N, 1, 1, 1] of which a value is the element of image n, narrowed."""
    load = value.value if isinstance(value, tirx.Cast) else None
    if not isinstance(load, ir.TensorLoad) or len(load.indices) != 4 or str(load.ty.dtype) != "int32":
        return None
    is_own = load.indices[0].same_as(n) or as_int(load.source.ty.shape[0]) == 1
    return load.source if is_own and all(as_int(size) == 1 for size in load.source.ty.shape[1:]) else None


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
