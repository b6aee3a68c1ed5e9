"""Along one axis: the last of equal extremes, running sums and products, stable sorting."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TypeAlias

from tvm import relax, te, tirx, topi
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from greencc.errors import GreenccError
from greencc.kernels.base import Kernel
from greencc.kernels.elementwise import maximum, minimum
from greencc.kernels.shapes import compute, element_type, is_zero, product, sequence

Lowering: TypeAlias = Callable[[relax.BlockBuilder, relax.Call], relax.Expr]


def extreme(data: te.Tensor, *, axes: list[int], keep: bool, largest: bool) -> te.Tensor:
    """Largest or smallest element along `axes`; NaN where there is one.

    TVM's own reduction starts from the largest finite number, which is wrong where all elements are infinite.
    """
    taps = {axis: te.reduce_axis((0, data.shape[axis]), name=f"k{axis}") for axis in axes}
    shape = [tirx.IntImm("int64", 1) if n in taps else dim for n, dim in enumerate(data.shape) if keep or n not in taps]

    def element(index: Sequence[tirx.Expr]) -> tirx.Expr:
        rest = iter(index)
        places = []
        for n in range(len(data.shape)):
            place = next(rest) if keep or n not in taps else None
            places.append(taps[n].var if n in taps else place)
        return reduce(data(*places), axis=list(taps.values()))

    reduce = te.max if largest else te.min
    if element_type(data).startswith(("float", "bfloat")):
        better = maximum if largest else minimum
        bound = -float("inf") if largest else float("inf")
        reduce = te.comm_reducer(better, lambda dtype: tirx.const(bound, str(dtype)), name="extreme")
    return compute(shape, element, "extreme")


def lower_extreme(largest: bool) -> Lowering:
    """relax.max, relax.min."""

    def lower(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
        rank = int(call.args[0].ty.ndim)
        given = range(rank) if call.attrs.axis is None else [int(axis) % rank for axis in call.attrs.axis]
        axes, keep = sorted(given), bool(call.attrs.keepdims)
        name = "max" if largest else "min"
        if any(is_zero(call.args[0].ty.shape.values[axis]) for axis in axes):
            raise GreenccError("the extreme of no elements is not defined")

        def reduced(x: relax.Expr, axes: list[int]) -> relax.Call:
            build = functools.partial(extreme, axes=axes, keep=keep, largest=largest)
            return builder.call_te(lambda x: build(x), x, primfunc_name_hint=name)

        if len(axes) < rank or rank < 2:
            return reduced(call.args[0], axes)
        # Of a whole tensor, the extremes of its columns first: those are found in vectors, by several threads.
        columns = builder.emit(reduced(call.args[0], axes[:-1]))
        return reduced(columns, [rank - 1 if keep else 0])

    return lower


def lower_position(largest: bool) -> Lowering:
    """relax.argmax, relax.argmin: the first one, also among infinities."""

    def lower(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
        rank, axis = int(call.args[0].ty.ndim), call.attrs.axis

        def build(x: te.Tensor) -> te.Tensor:
            if axis is None:
                flat = topi.reshape(x, [product(x.shape)])
                found = arg_extreme(flat, dims=[], axis=0, largest=largest, last=False)
            else:
                found = arg_extreme(x, dims=[], axis=int(axis) % rank, largest=largest, last=False)
            return topi.reshape(found, call_shape(x))

        def call_shape(x: te.Tensor) -> list[tirx.Expr]:
            one = tirx.IntImm("int64", 1)
            kept = [one if axis is None or n == int(axis) % rank else dim for n, dim in enumerate(x.shape)]
            return [d for n, d in enumerate(kept) if call.attrs.keepdims or not (axis is None or n == int(axis) % rank)]

        return builder.call_te(build, call.args[0], primfunc_name_hint="argmax" if largest else "argmin")

    return lower


def arg_extreme(data: te.Tensor, *, dims: list[tirx.Expr], axis: int, largest: bool, last: bool) -> te.Tensor:
    """int64 index of the largest or smallest element along `axis` (kept with size 1); ties by `last`."""
    shape = [*data.shape[:axis], tirx.IntImm("int64", 1), *data.shape[axis + 1 :]]
    size = data.shape[axis]
    inner = product(data.shape[axis + 1 :])

    def generate(ins: list[tirx.Buffer], outs: list[tirx.Buffer]) -> tirx.Stmt:
        source, out = T.buffer_proxy(ins[0]), T.buffer_proxy(outs[0])
        with IRBuilder() as builder:
            with T.serial(0, product(shape)) as row, sequence():
                start = (row // inner) * size * inner + row % inner
                out[row] = tirx.IntImm("int64", 0)
                with T.serial(0, size) as i:
                    new, old = source[start + i * inner], source[start + out[row] * inner]
                    better = new > old if largest else new < old
                    if last:
                        better = tirx.Or(better, new == old)
                    with T.If(better), T.Then():
                        out[row] = i
            return builder.get()

    return te.extern([shape], [data], generate, dtype="int64", name="arg_extreme", tag="arg_extreme")


def scan(
    data: te.Tensor, *, dims: list[tirx.Expr], axis: int, exclusive: bool, reverse: bool, multiply: bool
) -> te.Tensor:
    """Running sum or product along `axis`; `exclusive` leaves the element itself out."""
    size = data.shape[axis]
    inner = product(data.shape[axis + 1 :])
    rows = product(data.shape[:axis]) * inner
    identity = tirx.const(1 if multiply else 0, element_type(data))

    def generate(ins: list[tirx.Buffer], outs: list[tirx.Buffer]) -> tirx.Stmt:
        source, out = T.buffer_proxy(ins[0]), T.buffer_proxy(outs[0])

        def combine(a: tirx.Expr, b: tirx.Expr) -> tirx.Expr:
            return a * b if multiply else a + b

        with IRBuilder() as builder:
            with T.serial(0, rows) as row, T.serial(0, size) as i:
                start = (row // inner) * size * inner + row % inner
                here = start + (size - 1 - i if reverse else i) * inner
                # Clamped, because both branches are read on the first step.
                step = tirx.max(i - 1, tirx.IntImm("int64", 0))
                before = start + (size - 1 - step if reverse else step) * inner
                if exclusive:
                    out[here] = tirx.if_then_else(i == 0, identity, combine(out[before], source[before]))
                else:
                    out[here] = tirx.if_then_else(i == 0, source[here], combine(out[before], source[here]))
            return builder.get()

    return te.extern([data.shape], [data], generate, dtype=element_type(data), name="scan", tag="scan")


def top_k(data: te.Tensor, *, dims: list[tirx.Expr], axis: int, largest: bool) -> list[te.Tensor]:
    """The dims[0] largest or smallest along `axis`, in order, lower indices first among equals.

    Returns values and int64 indices. A bottom-up merge sort of the indices: n log n, stable.
    """
    count = dims[0]
    size = data.shape[axis]
    inner = product(data.shape[axis + 1 :])
    rows = product(data.shape[:axis]) * inner
    shape = [*data.shape[:axis], count, *data.shape[axis + 1 :]]

    def generate(ins: list[tirx.Buffer], outs: list[tirx.Buffer]) -> tirx.Stmt:
        source, work = T.buffer_proxy(ins[0]), T.buffer_proxy(outs[2])
        values, indices = T.buffer_proxy(outs[0]), T.buffer_proxy(outs[1])
        with IRBuilder() as builder:
            with T.serial(0, rows) as row, sequence():
                start = (row // inner) * size * inner + row % inner
                target = (row // inner) * count * inner + row % inner
                with T.serial(0, size) as i:
                    work[i] = i
                # State of the merge: width of the runs, which half of `work` holds them, three cursors.
                state = T.buffer_proxy(T.decl_buffer([5], "int64", scope="local"))
                width, half, left, right, pair = (T.int64(n) for n in range(5))
                state[width] = tirx.IntImm("int64", 1)
                state[half] = tirx.IntImm("int64", 0)
                with T.While(state[width] < size), sequence():
                    state[pair] = tirx.IntImm("int64", 0)
                    with T.While(state[pair] < size), sequence():
                        middle = tirx.min(state[pair] + state[width], size)
                        end = tirx.min(state[pair] + 2 * state[width], size)
                        state[left] = state[pair]
                        state[right] = middle
                        with T.serial(0, end - state[pair]) as i:
                            a = work[state[half] * size + tirx.min(state[left], size - 1)]
                            b = work[state[half] * size + tirx.min(state[right], size - 1)]
                            first, second = source[start + a * inner], source[start + b * inner]
                            ordered = first >= second if largest else first <= second
                            from_left = tirx.And(state[left] < middle, tirx.Or(state[right] >= end, ordered))
                            with T.If(from_left):
                                with T.Then(), sequence():
                                    work[(1 - state[half]) * size + state[pair] + i] = a
                                    state[left] = state[left] + 1
                                with T.Else(), sequence():
                                    work[(1 - state[half]) * size + state[pair] + i] = b
                                    state[right] = state[right] + 1
                        state[pair] = state[pair] + 2 * state[width]
                    state[half] = 1 - state[half]
                    state[width] = 2 * state[width]
                with T.serial(0, count) as i, sequence():
                    best = work[state[half] * size + i]
                    indices[target + i * inner] = best
                    values[target + i * inner] = source[start + best * inner]
            return builder.get()

    results = te.extern(
        [shape, shape, [2 * size]],
        [data],
        generate,
        dtype=[element_type(data), "int64", "int64"],
        name="top_k",
        tag="top_k",
    )
    return list(results)


KERNELS: dict[str, Kernel] = {"arg_extreme": arg_extreme, "scan": scan, "top_k": top_k}
