"""Scattering with the order that ONNX's reference has: of updates to one element, later ones come after earlier ones.

Updates are told apart by their slice (what is copied as a whole) and by their number. Those of one number and of
different slices never meet, so each slice can have a thread that goes through the numbers. Where slices are few, each
update has a thread: if no earlier update is to the same element, it applies all that are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tvm import relax, tirx
from tvm.tirx.script import builder as T

from greencc.kernels import kernel_options
from greencc.kernels.indexing import combine
from greencc.kernels.shapes import wrapped
from greencc.targets.emitted import EmittedKernels
from greencc.targets.gpu.capabilities import GpuTarget
from greencc.targets.gpu.kernels.emit import Lines, emitted_kernel, for_each, form, get, put, register
from greencc.targets.gpu.schedules.launch import when
from greencc.targets.tir import as_int, i64, split_index, volume

# With this many slices a thread for each is enough.
_MANY = 1 << 10


@dataclass(frozen=True)
class _Updates:
    """`count` updates of each of `slices` slices: where (int64), the whole place, and the value."""

    slices: tirx.Expr
    count: tirx.Expr
    where: Callable[[tirx.Expr, tirx.Expr], tirx.Expr]
    place: Callable[[tirx.Expr, tirx.Expr], list[tirx.Expr]]
    value: Callable[[tirx.Expr, tirx.Expr], tirx.Expr]


def lower_scatter_elements(
    builder: relax.BlockBuilder, call: relax.Call, target: GpuTarget, kernels: EmittedKernels
) -> relax.Expr:
    """`scatter_elements`."""
    return _call(builder, call, scatter_elements_kernel, kernel_options(call), target, kernels)


def lower_relax_scatter_elements(
    builder: relax.BlockBuilder, call: relax.Call, target: GpuTarget, kernels: EmittedKernels
) -> relax.Expr:
    """relax.scatter_elements: the same with other words."""
    rank, reduction = int(call.args[0].ty.ndim), str(call.attrs.reduction)
    options = {"axis": int(call.attrs.axis) % rank, "reduction": "none" if reduction == "update" else reduction}
    return _call(builder, call, scatter_elements_kernel, options, target, kernels)


def lower_scatter_nd(
    builder: relax.BlockBuilder, call: relax.Call, target: GpuTarget, kernels: EmittedKernels
) -> relax.Expr:
    """`scatter_nd`."""
    return _call(builder, call, scatter_nd_kernel, kernel_options(call), target, kernels)


def _call(
    builder: relax.BlockBuilder,
    call: relax.Call,
    emit: Callable[..., tirx.PrimFunc],
    options: dict[str, object],
    target: GpuTarget,
    kernels: EmittedKernels,
) -> relax.Expr:
    types = [arg.ty for arg in call.args[:3]]
    gv = kernels.add(builder, "scatter", emit, *types, options, target)
    return relax.call_tir(gv, list(call.args[:3]), call.ty)


def scatter_elements_kernel(
    data: relax.TensorType,
    indices: relax.TensorType,
    updates: relax.TensorType,
    options: dict[str, object],
    target: GpuTarget,
) -> tirx.PrimFunc:
    """A copy of data with out[indices[i, j, k], j, k] = updates[i, j, k] for axis 0; see the kernel of this name."""
    axis = int(str(options["axis"]))

    def body(x: tirx.Var, at: tirx.Var, values: tirx.Var, out: tirx.Var) -> None:
        lines = Lines(list(at.ty.shape), axis)

        def where(line: tirx.Expr, number: tirx.Expr) -> tirx.Expr:
            return wrapped(tirx.BufferLoad(at, lines.place(line, number)), x.ty.shape[axis])

        _copy(x, out, target)
        _scatter(
            _Updates(
                lines.count,
                lines.size,
                where,
                lines.place,
                lambda line, number: tirx.BufferLoad(values, lines.place(line, number)),
            ),
            out,
            str(options["reduction"]),
            target,
        )

    return emitted_kernel("scatter", [form(data), form(indices), form(updates)], [form(data)], body)


def scatter_nd_kernel(
    data: relax.TensorType,
    indices: relax.TensorType,
    updates: relax.TensorType,
    options: dict[str, object],
    target: GpuTarget,
) -> tirx.PrimFunc:
    """A copy of data with the slices at the coordinates in `indices` [..., n] replaced or combined."""
    width = int(indices.shape.values[-1])

    def body(x: tirx.Var, at: tirx.Var, values: tirx.Var, out: tirx.Var) -> None:
        shape, lead = list(x.ty.shape), list(at.ty.shape)[:-1]
        outer, inner = shape[:width], shape[width:]

        def where(_slice: tirx.Expr, number: tirx.Expr) -> tirx.Expr:
            offset: tirx.Expr = i64(0)
            for n, size in enumerate(outer):
                index = tirx.BufferLoad(at, [*split_index(number, lead), i64(n)])
                offset = offset * size + wrapped(index, size)
            return offset

        _copy(x, out, target)
        _scatter(
            _Updates(
                volume(inner),
                volume(lead),
                where,
                lambda own, offset: [*split_index(offset, outer), *split_index(own, inner)],
                lambda own, number: tirx.BufferLoad(values, [*split_index(number, lead), *split_index(own, inner)]),
            ),
            out,
            str(options["reduction"]),
            target,
        )

    return emitted_kernel("scatter", [form(data), form(indices), form(updates)], [form(data)], body)


def _copy(x: tirx.Var, out: tirx.Var, target: GpuTarget) -> None:
    shape = list(x.ty.shape)

    def one(index: tirx.Expr) -> None:
        place = split_index(index, shape)
        T.buffer_store(out, tirx.BufferLoad(x, place), place)

    for_each(volume(shape), target, one)


def _scatter(updates: _Updates, out: tirx.Var, reduction: str, target: GpuTarget) -> None:
    def apply(own: tirx.Expr, number: tirx.Expr, where: tirx.Expr) -> None:
        place = updates.place(own, where)
        T.buffer_store(out, combine(reduction, tirx.BufferLoad(out, place), updates.value(own, number)), place)

    def in_turn(own: tirx.Expr) -> None:
        with T.serial(i64(0), updates.count) as number:
            apply(own, number, T.bind(updates.where(own, number)))

    def as_leader(index: tirx.Expr) -> None:
        number, own = split_index(index, [updates.count, updates.slices])
        where = T.bind(updates.where(own, number))
        earlier = register("int32", tirx.const(0, "int32"))
        with T.serial(i64(0), number) as other, when(tirx.EQ(updates.where(own, other), where)):
            put(earlier, tirx.const(1, "int32"))
        is_leader = tirx.EQ(get(earlier), tirx.const(0, "int32"))
        with (
            when(is_leader),
            T.serial(number, updates.count) as later,
            when(tirx.EQ(updates.where(own, later), where)),
        ):
            apply(own, later, where)

    slices, count = as_int(updates.slices), as_int(updates.count)
    if count == 1 or (slices is not None and slices >= _MANY):
        for_each(updates.slices, target, in_turn)
    else:
        for_each(volume([updates.count, updates.slices]), target, as_leader)
