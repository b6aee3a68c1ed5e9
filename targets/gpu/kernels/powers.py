"""Integer powers: one thread for each."""

from __future__ import annotations

from tvm import relax, tirx
from tvm.tirx.script import builder as T

from greencc.targets.emitted import EmittedKernels
from greencc.targets.gpu.capabilities import GpuTarget
from greencc.targets.gpu.kernels.emit import emitted_kernel, for_each, form, get, put, register
from greencc.targets.gpu.schedules.launch import when
from greencc.targets.tir import i64, split_index, volume


def lower_power_of_integers(
    builder: relax.BlockBuilder, call: relax.Call, target: GpuTarget, kernels: EmittedKernels
) -> relax.Expr:
    """`power_of_integers`."""
    types = [arg.ty for arg in call.args[:2]]
    gv = kernels.add(builder, "power", power_kernel, *types, target)
    return relax.call_tir(gv, list(call.args[:2]), call.ty)


def power_kernel(base: relax.TensorType, exponent: relax.TensorType, target: GpuTarget) -> tirx.PrimFunc:
    """Base ** exponent by repeated squaring, wrapping; a negative exponent gives 0 unless the base is 1 or -1."""
    kind, steps_kind = str(base.dtype), str(exponent.dtype)
    one, nothing, unit = tirx.const(1, kind), tirx.const(0, kind), tirx.const(1, steps_kind)

    def body(bases: tirx.Var, exponents: tirx.Var, out: tirx.Var) -> None:
        shape = list(bases.ty.shape)

        def each(index: tirx.Expr) -> None:
            place = split_index(index, shape)
            value, times = tirx.BufferLoad(bases, place), tirx.BufferLoad(exponents, place)
            square, product = register(kind, value), register(kind, one)
            with T.serial(i64(0), i64(int("".join(filter(str.isdigit, steps_kind))))) as bit:
                shifted = tirx.shift_right(times, tirx.Cast(steps_kind, bit))
                with when(tirx.NE(tirx.bitwise_and(shifted, unit), tirx.const(0, steps_kind))):
                    put(product, get(product) * get(square))
                put(square, get(square) * get(square))
            result = get(product)
            if steps_kind.startswith("int"):
                is_unit = tirx.EQ(value, one)
                if kind.startswith("int"):
                    is_unit = tirx.Or(is_unit, tirx.EQ(value, tirx.const(-1, kind)))
                vanishes = tirx.And(times < tirx.const(0, steps_kind), tirx.Not(is_unit))
                result = tirx.Select(vanishes, nothing, result)
            T.buffer_store(out, result, place)

        for_each(volume(shape), target, each)

    return emitted_kernel("power", [form(base), form(exponent)], [form(base)], body)
