"""The schemes of images on GPUs: their extremes, found in parts by many workgroups, and what follows from those.

What quantises an image then is elementwise, and no matter of a kernel of its own.
"""

from __future__ import annotations

import math

from tvm import relax, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from greencc.targets.base import RULE_ATTR
from greencc.targets.cost import OPERATIONS_ATTR
from greencc.targets.gpu.capabilities import Capabilities
from greencc.targets.gpu.schedules.launch import power_of_two
from greencc.targets.gpu.schedules.quantize_rows import Value, combined
from greencc.targets.gpu.schedules.threads import at, launch, local, put
from greencc.targets.int8.levels import Levels, store_scheme
from greencc.targets.tir import as_int, i64, with_own_symbols

# Elements of an image that a workgroup finds the range of.
PART = 1 << 14


def range_kernel(x: relax.TensorType, gpu: Capabilities) -> tirx.PrimFunc:
    """The kernel for x [N, ...] float32, of known sizes but for N: the extremes of parts of each image, and 0.

    It writes ranges [N, parts, 2] float32, see `parts_of`.
    """
    ((batch,),) = with_own_symbols([list(x.shape.values)[:1]])
    inner = [int(size) for size in list(x.shape.values)[1:]]
    size, parts = math.prod(inner), parts_of(x)
    threads = min(gpu.max_threads, 256)
    with IRBuilder() as ib, T.prim_func(s_tir=True):
        source = T.arg("x", T.buffer((batch, *inner), "float32"))
        ranges = T.arg("ranges", T.buffer((batch, parts, 2), "float32"))
        T.func_attr({"tirx.noalias": True, RULE_ATTR: "gpu-quantize-images"})
        with T.sblock("root"), launch([batch, i64(parts)], threads) as ((image, part), thread):
            first = part * i64(PART)
            count = i64(size) if parts == 1 else tirx.min(i64(PART), i64(size) - first)

            def value(place: tirx.Expr) -> tirx.Expr:
                return at(source, image * i64(size) + first + place)

            low, high = extremes(value, count, threads, thread)
            with T.If(thread < i64(1)), T.Then():
                for i, found in enumerate((low, high)):
                    put(ranges, found, (image * i64(parts) + part) * i64(2) + i64(i))
    return ib.get().with_attr(OPERATIONS_ATTR, batch * i64(2 * size))


def scheme_kernel(batch: tirx.Expr, parts: int, gpu: Capabilities, levels: Levels) -> tirx.PrimFunc:
    """The kernel for ranges [N, parts, 2] float32: what every image's levels are computed with and are worth.

    It writes numbers [N, 2] float32, see `levels_of`, scale [N, 1, 1, 1] float32 and zero [N, 1, 1, 1] int32.
    """
    ((own,),) = with_own_symbols([[batch]])
    threads = min(gpu.max_threads, max(32, power_of_two(min(parts, 256))))
    with IRBuilder() as ib, T.prim_func(s_tir=True):
        ranges = T.arg("ranges", T.buffer((own, parts, 2), "float32"))
        numbers = T.arg("numbers", T.buffer((own, 2), "float32"))
        scale = T.arg("scale", T.buffer((own, 1, 1, 1), "float32"))
        zero = T.arg("zero", T.buffer((own, 1, 1, 1), "int32"))
        T.func_attr({"tirx.noalias": True, RULE_ATTR: "gpu-quantize-images"})
        with T.sblock("root"), launch([own], threads) as ((image,), thread):

            def value(place: tirx.Expr) -> tirx.Expr:
                return at(ranges, image * i64(2 * parts) + place)

            low, high = extremes(value, i64(2 * parts), threads, thread)
            with T.If(thread < i64(1)), T.Then():
                place = [image, i64(0), i64(0), i64(0)]
                store_scheme(low, high - low, levels, (numbers, [image]), (scale, zero, place))
    return ib.get().with_attr(OPERATIONS_ATTR, own * i64(4 * parts))


def parts_of(x: relax.TensorType) -> int:
    """Parts that an image of x [N, ...] is searched in."""
    return -(-math.prod([int(size) for size in list(x.shape.values)[1:]]) // PART)


def extremes(value: Value, count: tirx.Expr, threads: int, thread: tirx.Expr) -> tuple[tirx.Expr, tirx.Expr]:
    """Emit the search for the least and the largest of `count` values and 0, by all threads of a workgroup.

    The number of threads is a power of 2. All threads get to know the result.
    """
    found = local(2, "float32")
    combine = (tirx.min, tirx.max)
    for i in range(2):
        T.buffer_store(found, tirx.const(0.0, "float32"), [i64(i)])
    steps = tirx.floordiv(count - thread + i64(threads - 1), i64(threads))
    known = as_int(count)
    if known is not None and known % threads == 0:
        steps = i64(known // threads)
    with T.serial(i64(0), steps) as step:
        read = local(1, "float32")
        T.buffer_store(read, value(step * i64(threads) + thread), [i64(0)])
        for i in range(2):
            one = tirx.BufferLoad(read, [i64(0)])
            T.buffer_store(found, combine[i](tirx.BufferLoad(found, [i64(i)]), one), [i64(i)])
    own = [tirx.BufferLoad(found, [i64(i)]) for i in range(2)]
    low, high = combined(own, combine, threads, thread)
    return low, high
