"""Emits reductions over small windows: a thread computes an output by itself."""

from __future__ import annotations

from collections.abc import Callable

from tvm import ir, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from greencc.targets.gpu.schedules.convolution.emitter import Operands, converted
from greencc.targets.gpu.schedules.convolution.form import FLOATS
from greencc.targets.gpu.schedules.launch import when
from greencc.targets.gpu.schedules.shared_tiles import ceiling, split_index
from greencc.targets.gpu.schedules.threads import launch, local
from greencc.targets.kernel import DATA_PARALLEL, Tail
from greencc.targets.tir import as_int, i64, rewrite, volume

THREADS = 128
# Elements of a window that are written out, so that their loads are under way at once.
MAX_UNROLLED = 32


def window_kernel(func: tirx.PrimFunc, tail: Tail, threads: int = THREADS) -> tirx.PrimFunc:
    """The kernel of a reduction with its tail, by workgroups of so many threads."""
    block = tail.producer
    kept = [axis.var for axis in block.iter_vars if int(axis.iter_type) == DATA_PARALLEL]
    reduced = [axis for axis in block.iter_vars if int(axis.iter_type) != DATA_PARALLEL]
    extents = list(tail.output.ty.shape)
    kind = str(tail.intermediate.ty.dtype)
    sums = "float32" if kind in FLOATS else kind
    with IRBuilder() as ib, T.prim_func(s_tir=True):
        operands = Operands(func, tail, {})
        T.func_attr({"tirx.noalias": True})
        count = volume(extents)
        # TVM looks into kernels of one operand for reshapes, and expects a block there.
        with (
            T.sblock("root"),
            launch([ceiling(count, threads)], threads) as ((group,), thread),
        ):
            item = group * i64(threads) + thread
            known = as_int(count)
            with when(item < count if known is None or known % threads else None):
                place = split_index(item, extents)
                total = local(1, sums)
                T.buffer_store(total, converted(operands.at(block.init.value, kept, place), sums), [i64(0)])

                def step(index: list[tirx.Expr]) -> None:
                    value = _widened(block.body.value, sums) if sums != kind else block.body.value
                    axes = [*kept, *(axis.var for axis in reduced)]
                    found = operands.at(value, axes, [*place, *index], total[i64(0)])
                    T.buffer_store(total, converted(found, sums), [i64(0)])

                _each([int(axis.dom.extent) for axis in reduced], [], step)
                operands.store(total[i64(0)], place)
    return ib.get()


def _widened(value: tirx.Expr, kind: str) -> tirx.Expr:
    """A reduction's step in a wider type: its operands are widened as they are loaded."""

    def replace(node: tirx.Expr) -> tirx.Expr | None:
        if isinstance(node, ir.TensorLoad) and str(node.ty.dtype) in FLOATS and str(node.ty.dtype) != kind:
            return tirx.Cast(kind, node)
        if isinstance(node, tirx.FloatImm):
            return tirx.const(float(node.value), kind)
        return None

    return rewrite(value, replace)


def _each(extents: list[int], index: list[tirx.Expr], body: Callable[[list[tirx.Expr]], None]) -> None:
    """`body` for all indices; the innermost axes are unrolled as far as they are short."""
    if not extents:
        body(index)
        return
    rest = 1
    for extent in extents:
        rest *= extent
    loop = T.unroll if rest <= MAX_UNROLLED else T.serial
    with loop(i64(0), i64(extents[0])) as at:
        _each(extents[1:], [*index, at], body)
