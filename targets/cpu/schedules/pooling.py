"""Maxima over windows of images, as one pass: down the columns in whole vectors, then along the row.

For each row of the output, the rows of its window become one row of maxima in the first cache; the output's elements
are maxima of neighbours there. An element of the input is loaded as often as windows overlap it vertically, once for
each; along the row all is in the cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tvm import relax, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from greencc.ir import static_shape
from greencc.targets.base import RULE_ATTR
from greencc.targets.cost import OPERATIONS_ATTR
from greencc.targets.cpu.target import CpuTarget
from greencc.targets.tir import cover, i64, ramp, splat, strided_load, with_own_symbols

NEGATIVE_INFINITY = float("-inf")
_KINDS = ("float32", "uint8", "int8")


@dataclass(frozen=True)
class MaxPool:
    """Sizes of a pooling over the last two axes of NCHW data, each (rows, columns).

    `end` is how far windows reach beyond the image, where they do.
    """

    image: tuple[int, int]
    out: tuple[int, int]
    kernel: tuple[int, int]
    strides: tuple[int, int]
    begin: tuple[int, int]

    @property
    def end(self) -> tuple[int, int]:
        """Rows and columns behind the image that the last windows cover."""
        last = [(n - 1) * s + k - b for n, s, k, b in zip(self.out, self.strides, self.kernel, self.begin, strict=True)]
        rows, columns = (max(0, end - size) for end, size in zip(last, self.image, strict=True))
        return rows, columns


def find_max_pool(
    data: relax.TensorType,
    sizes: Sequence[int | None],
    kind: str,
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
) -> MaxPool | None:
    """The pooling that a kernel call stands for, or None where it is another one.

    Args:
        data: [N, C, H, W] float32, uint8 or int8.
        sizes: output sizes, pads before and pads behind, two of each; None for what is symbolic.
        kind, kernel, strides, dilations: the call's options.
    """
    shape = static_shape(relax.TensorType(list(data.shape.values)[2:], str(data.dtype))) if data.ndim == 4 else None
    if kind != "max" or str(data.dtype) not in _KINDS or shape is None or None in sizes or tuple(dilations) != (1, 1):
        return None
    known = [int(size) for size in sizes if size is not None]
    out, begin = (known[0], known[1]), (known[2], known[3])
    pool = MaxPool((shape[0], shape[1]), out, (kernel[0], kernel[1]), (strides[0], strides[1]), begin)
    windows = zip(pool.image, pool.out, pool.kernel, pool.strides, pool.begin, strict=True)
    # Every window holds an element: then one that lies outside may count as the nearest one inside.
    whole = all(b < k and (n - 1) * s - b < size for size, n, k, s, b in windows)
    return pool if whole else None


def max_pool_kernel(data: relax.TensorType, pool: MaxPool, target: CpuTarget) -> tirx.PrimFunc:
    """The kernel for data [N, C, H, W] -> [N, C, OH, OW], of the same type."""
    kind = str(data.dtype)
    (own,) = with_own_symbols([list(data.shape.values)[:2]])
    lanes = target.lanes()
    (height, width), (out_height, out_width) = pool.image, pool.out
    left, stride = pool.begin[1], pool.strides[1]
    # Vectors of the output read whole vectors of the row, also behind its end.
    room = left + width + pool.end[1] + 2 * lanes * stride
    with IRBuilder() as ib, T.prim_func(s_tir=True):
        x = T.arg("x", T.buffer((*own, i64(height), i64(width)), kind))
        out = T.arg("out", T.buffer((*own, i64(out_height), i64(out_width)), kind))
        T.func_attr({"tirx.noalias": True, RULE_ATTR: "cpu-pool"})
        # TVM looks into kernels of one operand for reshapes, and expects a block there.
        with T.sblock("root"), T.parallel(i64(0), own[0] * own[1]) as plane:
            n, c = tirx.floordiv(plane, own[1]), tirx.floormod(plane, own[1])
            row = T.alloc_buffer((room,), kind, scope="local")
            low = tirx.const(NEGATIVE_INFINITY, kind) if kind == "float32" else tirx.min_value(kind)
            with T.serial(i64(0), i64(room // lanes)) as step:
                T.buffer_store(row, splat(low, lanes), [ramp(step * i64(lanes), lanes)])
            with T.serial(i64(0), i64(out_height)) as y:
                first = y * i64(pool.strides[0]) - i64(pool.begin[0])
                rows = [tirx.max(tirx.min(first + i64(tap), i64(height - 1)), i64(0)) for tap in range(pool.kernel[0])]

                def highest(at: tirx.Expr, size: int) -> None:
                    value = tirx.BufferLoad(x, [n, c, rows[0], ramp(at, size)])
                    for other in rows[1:]:
                        value = tirx.max(value, tirx.BufferLoad(x, [n, c, other, ramp(at, size)]))
                    T.buffer_store(row, value, [ramp(at + i64(left), size)])

                def widest(at: tirx.Expr, size: int) -> None:
                    def load(first: tirx.Expr, count: int) -> tirx.Expr:
                        return tirx.BufferLoad(row, [ramp(first, count)])

                    value = strided_load(load, at * i64(stride), stride, size)
                    for tap in range(1, pool.kernel[1]):
                        value = tirx.max(value, strided_load(load, at * i64(stride) + i64(tap), stride, size))
                    T.buffer_store(out, value, [n, c, y, ramp(at, size)])

                cover(width, lanes, highest)
                cover(out_width, lanes, widest)
    operations = own[0] * own[1] * i64(out_height * out_width * pool.kernel[0] * pool.kernel[1])
    return ib.get().with_attr(OPERATIONS_ATTR, operations)
