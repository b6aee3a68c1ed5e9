"""Stable sorting along an axis, of which a number of places is wanted: a merge sort of indices, level by level.

At each level, sorted runs of a width become sorted runs of twice that. An element's place in the new run is its place
in its own run plus how many elements of the other run come before it, which a binary search tells: so all elements
move at once. Of equal elements those of the first run come first, which keeps their order.

    a line that fits into shared memory   one launch, a workgroup for each line
    a longer or a symbolic one            a launch for each level, the levels' indices in memory

NaN counts as larger than all else, as numpy and ONNX Runtime have it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tvm import relax, tirx
from tvm.tirx.script import builder as T

from greencc.kernels import kernel_options
from greencc.targets.emitted import EmittedKernels
from greencc.targets.gpu.capabilities import Capabilities, GpuTarget
from greencc.targets.gpu.kernels.emit import Lines, emitted_kernel, for_each, form, get, put, register, strided
from greencc.targets.gpu.schedules.launch import barrier, grid, power_of_two, when
from greencc.targets.tir import as_int, i64, split_index

Load = Callable[[tirx.Expr], tirx.Expr]

_MOST_THREADS = 256
# Levels of the longest line that there can be.
_LEVELS = 31


def lower_top_k(
    builder: relax.BlockBuilder, call: relax.Call, target: GpuTarget, kernels: EmittedKernels
) -> relax.Expr:
    """`top_k`: values, indices and room for indices."""
    data, options = call.args[0], kernel_options(call)
    values, indices, _ = call.ty.fields
    lines = Lines(list(data.ty.shape.values), int(options["axis"]))
    room = [i64(1)] if fits_shared(lines.size, str(data.ty.dtype), target.gpu) else [i64(2), lines.count, lines.size]
    work = relax.TensorType(room, "int64")
    gv = kernels.add(builder, "top_k", top_k_kernel, data.ty, values, work, options, target)
    return relax.call_tir(gv, [data], [values, indices, work])


def fits_shared(size: tirx.Expr, dtype: str, gpu: Capabilities) -> bool:
    """Whether a workgroup can sort a line of `size` elements in its shared memory."""
    known = as_int(size)
    return known is not None and known * (bytes_of(dtype) + 8) <= gpu.shared_bytes


def bytes_of(dtype: str) -> int:
    """Bytes of an element."""
    return 1 if dtype == "bool" else int("".join(filter(str.isdigit, dtype))) // 8


def top_k_kernel(
    data: relax.TensorType,
    values: relax.TensorType,
    work: relax.TensorType,
    options: dict[str, object],
    target: GpuTarget,
) -> tirx.PrimFunc:
    """The first places of every line in order: values, int64 indices, int64 [2, lines, size] or [1] to work in."""
    axis, largest = int(str(options["axis"])), bool(options["largest"])
    dtype = str(data.dtype)

    def body(x: tirx.Var, best: tirx.Var, where: tirx.Var, room: tirx.Var) -> None:
        lines, wanted = Lines(list(x.ty.shape), axis), Lines(list(best.ty.shape), axis)
        order = _Order(dtype, largest)

        def store(line: tirx.Expr, place: tirx.Expr, value: tirx.Expr, index: tirx.Expr) -> None:
            T.buffer_store(best, value, wanted.place(line, place))
            T.buffer_store(where, index, wanted.place(line, place))

        def load(line: tirx.Expr, position: tirx.Expr) -> tirx.Expr:
            return tirx.BufferLoad(x, lines.place(line, position))

        if fits_shared(lines.size, dtype, target.gpu):
            _sort_in_shared(lines, wanted.size, dtype, load, order, store, target)
        else:
            _sort_in_memory(lines, wanted.size, load, order, store, room, target)

    index_type = (list(values.shape.values), "int64")
    return emitted_kernel("sort", [form(data)], [form(values), index_type, form(work)], body)


@dataclass(frozen=True)
class _Order:
    """The order of elements of a type. TVM takes `not a < b` for `a >= b`, so nothing with NaN may be negated."""

    dtype: str
    largest: bool

    def before(self, a: tirx.Expr, b: tirx.Expr) -> tirx.Expr:
        """Whether `a` must come before `b`."""
        high, low = (a, b) if self.largest else (b, a)
        if not self._has_nan:
            return high > low
        return tirx.Or(high > low, tirx.And(_is_nan(high), tirx.Not(_is_nan(low))))

    def may_come_before(self, a: tirx.Expr, b: tirx.Expr) -> tirx.Expr:
        """Whether `b` need not come before `a`."""
        high, low = (a, b) if self.largest else (b, a)
        return tirx.Or(high >= low, _is_nan(high)) if self._has_nan else high >= low

    @property
    def _has_nan(self) -> bool:
        return self.dtype.startswith(("float", "bfloat"))


def _is_nan(value: tirx.Expr) -> tirx.Expr:
    return tirx.isnan(value if str(value.ty.dtype) == "float64" else tirx.Cast("float32", value))


def _place(
    position: tirx.Expr, width: tirx.Expr, levels: tirx.Expr, size: tirx.Expr, key: Load, order: _Order
) -> tirx.Expr:
    """Where the element at `position` of a line goes when runs of `width`, 2 ** `levels`, are merged in pairs."""
    run = tirx.floordiv(position, width)
    is_first = tirx.EQ(tirx.floormod(run, i64(2)), i64(0))
    other = T.bind(tirx.Select(is_first, run + i64(1), run - i64(1)) * width)
    count = T.bind(tirx.max(tirx.min(width, size - other), i64(0)))
    own = T.bind(key(position))
    # Counts fit into 32 bits, which shaders hold in one register.
    before = register("int32", tirx.const(0, "int32"))
    with T.serial(i64(0), levels + i64(1)) as step:
        end = T.bind(tirx.Cast("int64", get(before)) + tirx.shift_right(width, step))
        with when(end <= count):
            candidate = T.bind(key(other + end - i64(1)))
            # Elements of the first run come before equal ones of the second.
            comes_first = tirx.Select(is_first, order.before(candidate, own), order.may_come_before(candidate, own))
            with when(comes_first):
                put(before, tirx.Cast("int32", end))
    return tirx.min(position, other + tirx.floormod(position, width)) + tirx.Cast("int64", get(before))


def _sort_in_shared(
    lines: Lines,
    wanted: tirx.Expr,
    dtype: str,
    load: Callable[[tirx.Expr, tirx.Expr], tirx.Expr],
    order: _Order,
    store: Callable[..., None],
    target: GpuTarget,
) -> None:
    size = as_int(lines.size) or 0
    levels = max(0, size - 1).bit_length()
    threads = min(_MOST_THREADS, target.gpu.max_threads, power_of_two(max(size, 1)))
    with grid(lines.count, threads) as (line, thread):
        keys = T.alloc_buffer([i64(max(size, 1))], dtype, scope="shared")
        orders = [T.alloc_buffer([i64(max(size, 1))], "int32", scope="shared") for _ in range(2)]

        def fetch(position: tirx.Expr) -> None:
            put(keys, load(line, position), position)
            put(orders[0], tirx.Cast("int32", position), position)

        def merge(level: tirx.Expr, source: tirx.Var, target: tirx.Var) -> None:
            width = T.bind(tirx.shift_left(i64(1), level))

            def key(position: tirx.Expr) -> tirx.Expr:
                return get(keys, tirx.Cast("int64", get(source, position)))

            def move(position: tirx.Expr) -> None:
                place = _place(position, width, level, i64(size), key, order)
                put(target, get(source, position), place)

            strided(thread, threads, i64(size), move)
            barrier()

        def finish(place: tirx.Expr) -> None:
            index = T.bind(tirx.Cast("int64", get(orders[0], place)))
            store(line, place, get(keys, index), index)

        strided(thread, threads, i64(size), fetch)
        barrier()
        # Two levels at a time, there and back; one more than are needed changes nothing.
        with T.serial(i64(0), i64((levels + 1) // 2)) as pair:
            merge(i64(2) * pair, orders[0], orders[1])
            merge(i64(2) * pair + i64(1), orders[1], orders[0])
        strided(thread, threads, wanted, finish)


def _sort_in_memory(
    lines: Lines,
    wanted: tirx.Expr,
    load: Callable[[tirx.Expr, tirx.Expr], tirx.Expr],
    order: _Order,
    store: Callable[..., None],
    room: tirx.Var,
    target: GpuTarget,
) -> None:
    size, count = lines.size, lines.count

    def begin(index: tirx.Expr) -> None:
        line, position = split_index(index, [count, size])
        T.buffer_store(room, position, [i64(0), line, position])

    for_each(count * size, target, begin)
    known = as_int(size)
    with T.serial(i64(0), i64(_LEVELS if known is None else max(0, known - 1).bit_length())) as level:
        width = tirx.shift_left(i64(1), level)
        # The host launches what is needed of a symbolic size.
        with when(width < size if known is None else None):

            def move(index: tirx.Expr) -> None:
                line, position = split_index(index, [count, size])
                half = tirx.floormod(level, i64(2))

                def key(at: tirx.Expr) -> tirx.Expr:
                    return load(line, tirx.BufferLoad(room, [half, line, at]))

                place = _place(position, width, level, size, key, order)
                T.buffer_store(room, tirx.BufferLoad(room, [half, line, position]), [i64(1) - half, line, place])

            for_each(count * size, target, move)

    def finish(index: tirx.Expr) -> None:
        line, place = split_index(index, [count, wanted])
        source = T.bind(tirx.BufferLoad(room, [_last_half(size), line, place]))
        store(line, place, load(line, source), source)

    for_each(count * wanted, target, finish)


def _last_half(size: tirx.Expr) -> tirx.Expr:
    """Which half of the room the last level wrote: the number of levels, modulo 2."""
    known = as_int(size)
    if known is not None:
        return i64(max(0, known - 1).bit_length() % 2)
    odd: tirx.Expr = i64(0)
    for level in range(_LEVELS):
        odd = tirx.Select(i64(1 << level) < size, i64((level + 1) % 2), odd)
    return odd
