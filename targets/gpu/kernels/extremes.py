"""Positions of extremes: argmax and argmin, of equal elements the first or the last."""

from __future__ import annotations

from tvm import relax, tirx
from tvm.tirx.script import builder as T

from greencc.kernels import kernel_options
from greencc.targets.emitted import EmittedKernels
from greencc.targets.gpu.capabilities import GpuTarget
from greencc.targets.gpu.kernels.emit import (
    GpuLowering,
    Lines,
    emitted_kernel,
    for_each,
    form,
    get,
    put,
    register,
    strided,
)
from greencc.targets.gpu.schedules.launch import barrier, grid, power_of_two, when
from greencc.targets.tir import as_int, i64, split_index, volume

_LONG = 32
_MANY = 1 << 13
_MOST_THREADS = 256


def lower_arg_extreme(
    builder: relax.BlockBuilder, call: relax.Call, target: GpuTarget, kernels: EmittedKernels
) -> relax.Expr:
    """`arg_extreme`."""
    options = kernel_options(call)
    axis, largest, last = int(options["axis"]), bool(options["largest"]), bool(options["last"])
    return _call(builder, call, axis, largest, last, target, kernels)


def lower_position(largest: bool) -> GpuLowering:
    """relax.argmax, relax.argmin: the first one."""

    def lower(builder: relax.BlockBuilder, call: relax.Call, target: GpuTarget, kernels: EmittedKernels) -> relax.Expr:
        axis = call.attrs.axis
        chosen = None if axis is None else int(axis) % int(call.args[0].ty.ndim)
        return _call(builder, call, chosen, largest, False, target, kernels)

    return lower


def _call(
    builder: relax.BlockBuilder,
    call: relax.Call,
    axis: int | None,
    largest: bool,
    last: bool,
    target: GpuTarget,
    kernels: EmittedKernels,
) -> relax.Expr:
    types = call.args[0].ty, call.ty
    gv = kernels.add(builder, "arg_extreme", arg_extreme_kernel, *types, axis, largest, last, target)
    return relax.call_tir(gv, [call.args[0]], call.ty)


def arg_extreme_kernel(
    data: relax.TensorType,
    result: relax.TensorType,
    axis: int | None,
    largest: bool,
    last: bool,
    target: GpuTarget,
) -> tirx.PrimFunc:
    """int64 index of the largest or smallest element along `axis`, of the whole tensor in row-major order for None.

    A NaN is never better than another element, and nothing is better than one in front: so the CPU's kernel has it.
    """
    dtype = str(data.dtype)

    def body(x: tirx.Var, out: tirx.Var) -> None:
        shape, results = list(x.ty.shape), list(out.ty.shape)
        lines = Lines(shape if axis is not None else [volume(shape)], axis or 0)

        def load(line: tirx.Expr, position: tirx.Expr) -> tirx.Expr:
            return tirx.BufferLoad(x, split_index(position, shape) if axis is None else lines.place(line, position))

        def is_better(value: tirx.Expr, index: tirx.Expr, old: tirx.Expr, kept: tirx.Expr) -> tirx.Expr:
            closer = index > kept if last else index < kept
            better = value > old if largest else value < old
            return tirx.Or(better, tirx.And(tirx.EQ(value, old), closer))

        def emit(line: tirx.Expr, thread: tirx.Expr, threads: int) -> None:
            best, where = register(dtype, load(line, i64(0))), register("int32", tirx.const(0, "int32"))

            def step(position: tirx.Expr) -> None:
                value = T.bind(load(line, position))
                number = tirx.Cast("int32", position)
                with when(is_better(value, number, get(best), get(where))):
                    put(best, value)
                    put(where, number)

            strided(thread, threads, lines.size, step)
            if threads == 1:
                T.buffer_store(out, tirx.Cast("int64", get(where)), split_index(line, results))
                return
            # Each level of the tree reads one pair of buffers and writes the other: TVM finds no barrier missing then.
            pairs = [
                tuple(T.alloc_buffer([i64(size)], kind, scope="shared") for kind in (dtype, "int32"))
                for size in (threads, threads // 2)
            ]
            values, indices = pairs[0]
            put(values, get(best), thread)
            put(indices, get(where), thread)
            barrier()
            half, level = threads // 2, 0
            while half:
                (values, indices), (to_values, to_indices) = pairs[level % 2], pairs[1 - level % 2]
                with when(thread < i64(half)):
                    ours = T.bind(get(values, thread)), T.bind(get(indices, thread))
                    theirs = T.bind(get(values, thread + i64(half))), T.bind(get(indices, thread + i64(half)))
                    better = T.bind(is_better(*theirs, *ours))
                    put(to_values, tirx.Select(better, theirs[0], ours[0]), thread)
                    put(to_indices, tirx.Select(better, theirs[1], ours[1]), thread)
                barrier()
                half, level = half // 2, level + 1
            with when(tirx.EQ(thread, i64(0))):
                T.buffer_store(out, tirx.Cast("int64", get(pairs[level % 2][1])), split_index(line, results))

        size, count = as_int(lines.size), as_int(lines.count)
        few = size is not None and size < _LONG
        if few or (count is not None and count >= _MANY) or not lines.is_innermost:
            for_each(lines.count, target, lambda line: emit(line, i64(0), 1))
            return
        most = min(_MOST_THREADS, target.gpu.max_threads)
        threads = 64 if size is None else min(most, power_of_two(-(-size // 4)))
        with grid(lines.count, threads) as (line, thread):
            emit(line, thread, threads)

    return emitted_kernel("arg-extreme", [form(data)], [form(result)], body)
