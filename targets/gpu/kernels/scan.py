"""Running sums and products, and the places of the real tokens of padded sequences, which are running sums too.

A line of elements is scanned by one workgroup: each thread has a piece of it. It reduces its piece; the threads scan
their totals in shared memory; then each goes over its piece again, beginning with what precedes it. Where lines are
many, each has one thread instead.
"""

from __future__ import annotations

from collections.abc import Callable

from tvm import relax, tirx
from tvm.tirx.script import builder as T

from greencc.kernels import kernel_options
from greencc.kernels.shapes import element_type
from greencc.targets.emitted import EmittedKernels
from greencc.targets.gpu.capabilities import GpuTarget
from greencc.targets.gpu.kernels.emit import Lines, emitted_kernel, for_each, form, get, put, register
from greencc.targets.gpu.schedules.launch import barrier, ceildiv, grid, power_of_two, when
from greencc.targets.tir import as_int, i64, split_index, volume

Combine = Callable[[tirx.Expr, tirx.Expr], tirx.Expr]

# Elements of a line for which a workgroup pays.
_LONG = 32
# With this many lines a thread for each is enough.
_MANY = 1 << 13
_MOST_THREADS = 256


def lower_scan(builder: relax.BlockBuilder, call: relax.Call, target: GpuTarget, kernels: EmittedKernels) -> relax.Expr:
    """`scan`: a running sum or product along an axis."""
    gv = kernels.add(builder, "scan", scan_kernel, call.args[0].ty, kernel_options(call), target)
    return relax.call_tir(gv, [call.args[0]], call.ty)


def lower_token_starts(
    builder: relax.BlockBuilder, call: relax.Call, target: GpuTarget, kernels: EmittedKernels
) -> relax.Expr:
    """`token_starts`: how many real tokens come before each place of a mask, and how many there are."""
    gv = kernels.add(builder, "token_starts", token_starts_kernel, call.args[0].ty, target)
    return relax.call_tir(gv, [call.args[0]], list(call.ty.fields))


def lower_token_places(
    builder: relax.BlockBuilder, call: relax.Call, target: GpuTarget, kernels: EmittedKernels
) -> relax.Expr:
    """`token_places`: the places of the real tokens."""
    mask, starts = call.args[:2]
    gv = kernels.add(builder, "token_places", token_places_kernel, mask.ty, call.ty, target)
    return relax.call_tir(gv, [mask, starts], call.ty)


def scan_kernel(data: relax.TensorType, options: dict[str, object], target: GpuTarget) -> tirx.PrimFunc:
    """A running sum or product of `data` along an axis; the options are those of the kernel `scan`."""
    axis, multiply = int(str(options["axis"])), bool(options["multiply"])
    exclusive, reverse = bool(options["exclusive"]), bool(options["reverse"])
    shape, dtype = form(data)
    identity = tirx.const(1 if multiply else 0, dtype)

    def combine(a: tirx.Expr, b: tirx.Expr) -> tirx.Expr:
        return a * b if multiply else a + b

    def body(x: tirx.Var, out: tirx.Var) -> None:
        lines = Lines(list(x.ty.shape), axis)

        def emit(line: tirx.Expr, thread: tirx.Expr, threads: int) -> None:
            def place(position: tirx.Expr) -> list[tirx.Expr]:
                return lines.place(line, lines.size - i64(1) - position if reverse else position)

            def store(position: tirx.Expr, value: tirx.Expr) -> None:
                T.buffer_store(out, value, place(position))

            def load(position: tirx.Expr) -> tirx.Expr:
                return tirx.BufferLoad(x, place(position))

            scan_line(lines.size, load, store, combine, identity, exclusive, thread, threads)

        for_lines(lines, target, emit)

    return emitted_kernel("scan", [(shape, dtype)], [(shape, dtype)], body)


def for_lines(lines: Lines, target: GpuTarget, emit: Callable[[tirx.Expr, tirx.Expr, int], None]) -> None:
    """Emit a launch in which each line is `emit(line, thread, threads)`, by one thread or by a workgroup."""
    size, count = as_int(lines.size), as_int(lines.count)
    if (size is not None and size < _LONG) or (count is not None and count >= _MANY):
        for_each(lines.count, target, lambda line: emit(line, i64(0), 1))
        return
    most = min(_MOST_THREADS, target.gpu.max_threads)
    threads = most if size is None else min(most, power_of_two(-(-size // 4)))
    with grid(lines.count, threads) as (line, thread):
        emit(line, thread, threads)


def scan_line(
    size: tirx.Expr,
    load: Callable[[tirx.Expr], tirx.Expr],
    store: Callable[[tirx.Expr, tirx.Expr], None],
    combine: Combine,
    identity: tirx.Expr,
    exclusive: bool,
    thread: tirx.Expr,
    threads: int,
) -> tirx.Expr:
    """Emit what one of `threads` threads does for a line of `size` elements; its last running value.

    Of the last thread that is the total of the line.
    """
    dtype = element_type(identity)
    piece = ceildiv(size, threads)
    first = thread * piece
    length = tirx.max(tirx.min(piece, size - first), i64(0)) if threads > 1 else size
    running = register(dtype, identity)
    if threads > 1:
        with T.serial(i64(0), length) as step:
            put(running, combine(get(running), load(first + step)))
        before = _scan_totals(get(running), combine, identity, thread, threads)
        put(running, before)
    with T.serial(i64(0), length) as step:
        if exclusive:
            # The element may lie where the result goes.
            element = T.bind(load(first + step))
            store(first + step, get(running))
            put(running, combine(get(running), element))
        else:
            put(running, combine(get(running), load(first + step)))
            store(first + step, get(running))
    return get(running)


def _scan_totals(total: tirx.Expr, combine: Combine, identity: tirx.Expr, thread: tirx.Expr, threads: int) -> tirx.Expr:
    """What precedes a thread's piece: every thread's total combined with those of the threads before it."""
    dtype = element_type(identity)
    source, target = (T.alloc_buffer([i64(threads)], dtype, scope="shared") for _ in range(2))
    put(source, total, thread)
    barrier()
    step = 1
    while step < threads:
        with T.If(thread >= i64(step)):
            with T.Then():
                put(target, combine(get(source, thread - i64(step)), get(source, thread)), thread)
            with T.Else():
                put(target, get(source, thread), thread)
        barrier()
        step, source, target = 2 * step, target, source
    last = get(source, tirx.max(thread - i64(1), i64(0)))
    return tirx.Select(tirx.EQ(thread, i64(0)), identity, last)


def token_starts_kernel(mask: relax.TensorType, target: GpuTarget) -> tirx.PrimFunc:
    """Mask [B, S] -> int64 [B, S], [1]; see `greencc.kernels.padding`."""
    shape, dtype = form(mask)

    def body(x: tirx.Var, starts: tirx.Var, count: tirx.Var) -> None:
        dims = list(x.ty.shape)
        total = volume(dims)
        threads = min(_MOST_THREADS, target.gpu.max_threads)
        with grid(i64(1), threads) as (_, thread):

            def load(position: tirx.Expr) -> tirx.Expr:
                return is_real(tirx.BufferLoad(x, split_index(position, dims)))

            def store(position: tirx.Expr, value: tirx.Expr) -> None:
                T.buffer_store(starts, value, split_index(position, dims))

            end = scan_line(total, load, store, lambda a, b: a + b, i64(0), True, thread, threads)
            with when(tirx.EQ(thread, i64(threads - 1))):
                put(count, tirx.max(end, i64(1)))

    return emitted_kernel("token-starts", [(shape, dtype)], [(shape, "int64"), ([i64(1)], "int64")], body)


def token_places_kernel(mask: relax.TensorType, places: relax.TensorType, target: GpuTarget) -> tirx.PrimFunc:
    """Mask [B, S], int64 [B, S] how many real tokens come before each place -> int64 [N], the real tokens' places."""
    shape, dtype = form(mask)

    def body(x: tirx.Var, starts: tirx.Var, out: tirx.Var) -> None:
        dims = list(x.ty.shape)
        total = volume(dims)

        def one(index: tirx.Expr) -> None:
            at = split_index(index, dims)
            real, before = is_real(tirx.BufferLoad(x, at)), tirx.BufferLoad(starts, at)
            # Where no token is real, the first place stands in; only the thread of the last place knows.
            none = tirx.all(tirx.EQ(index, total - i64(1)), tirx.EQ(before, i64(0)), tirx.EQ(real, i64(0)))
            with when(tirx.Or(tirx.NE(real, i64(0)), none)):
                put(out, tirx.Select(none, i64(0), index), before)

        for_each(total, target, one)

    return emitted_kernel("token-places", [(shape, dtype), (shape, "int64")], [form(places)], body)


def is_real(value: tirx.Expr) -> tirx.Expr:
    """1 (int64) for a real token's element of a mask, 0 for padding."""
    dtype = element_type(value)
    return tirx.Cast("int64", value if dtype == "bool" else tirx.NE(value, tirx.const(0, dtype)))
