"""Small kernels, scheduled by hand and lowered as far as the CUDA target gets them."""

from __future__ import annotations

from collections.abc import Callable

import tvm
from tvm import s_tir, te, tirx
from tvm.tirx.build import split_host_device_mods

from greencc.targets.cuda.target import CudaTarget


def i64(value: int) -> tirx.Expr:
    return tirx.IntImm("int64", value)


def threads_only(schedule: s_tir.Schedule, block: s_tir.SBlockRV) -> None:
    """One element to a thread, 128 threads to a block."""
    fused = schedule.fuse(*schedule.get_loops(block))
    outer, inner = schedule.split(fused, [None, 128])
    schedule.bind(outer, "blockIdx.x")
    schedule.bind(inner, "threadIdx.x")


def elementwise(
    dtype: str, body: Callable[[tirx.Expr], tirx.Expr], name: str = "unary", result: str | None = None
) -> tirx.PrimFunc:
    """`body` of every element of a vector of symbolic length."""
    n = tirx.Var("n", "int64")
    x = te.placeholder((n,), dtype, name="x")
    y = te.compute((n,), lambda i: body(x[i]), name="y")
    assert result is None or y.dtype == result
    func = te.create_prim_func([x, y]).with_attrs({"global_symbol": name, "tirx.noalias": True})
    schedule = s_tir.Schedule(tvm.IRModule({name: func}))
    threads_only(schedule, schedule.get_sblock("y", name))
    return schedule.mod[name]


def lowered(*functions: tirx.PrimFunc, arch: str = "sm_80") -> tuple[tvm.IRModule, tvm.IRModule]:
    """Host and device functions of scheduled kernels."""
    target = CudaTarget(arch).tvm_target()
    module = tvm.IRModule({str(func.attrs["global_symbol"]): func for func in functions})
    pipeline, finalize_host, finalize_device = tvm.tirx.get_tir_pipeline("s_tir")
    host, device = split_host_device_mods(pipeline(tvm.tirx.transform.BindTarget(target)(module)))
    (kernels,) = device.values()
    return finalize_host()(host), finalize_device()(kernels)


def device(*functions: tirx.PrimFunc, arch: str = "sm_80") -> tvm.IRModule:
    """Device functions of scheduled kernels."""
    return lowered(*functions, arch=arch)[1]
