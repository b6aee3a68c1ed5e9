"""Products of matrices by a subgroup: emitted and valid. Lavapipe doesn't have them, so they aren't run."""

from __future__ import annotations

from dataclasses import replace

import pytest
import tvm
from emitted_kernels import EVERYTHING, device_functions, shader_of
from tvm import ir, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from greencc.errors import GreenccError
from greencc.targets.gpu.schedules.launch import barrier, grid
from greencc.targets.tir import i64
from greencc.targets.vulkan.emitter import compile_kernels

MATRICES = replace(EVERYTHING, subgroup=32, has_tensor_cores=True, has_tensor_bfloat16=True, has_tensor_int8=True)
SIZE = 64


def product(factor: str, total: str, through_shared: bool = False) -> tvm.IRModule:
    """C [64, 64] = A [64, 64] times B [64, 64], a subgroup for 16 x 16 elements of C."""
    sizes = [tirx.const(16, "int32")] * 3
    zero = tirx.const(0, "int32")

    def data(buffer: tirx.Var) -> tirx.Expr:
        return tirx.buffer.buffer_data(buffer)

    def pointer(buffer: tirx.Var, index: tirx.Expr) -> tirx.Expr:
        # TVM removes loads from a plain address.
        return buffer.access_ptr("r", ptr_type=str(buffer.dtype), offset=index, extent=i64(256))

    def call(name: str, *arguments: tirx.Expr) -> None:
        T.evaluate(ir.Call(f"tirx.tvm_{name}", list(arguments), ret_ty="void"))

    with IRBuilder() as ib, T.prim_func(s_tir=True):
        a, b, c = (
            T.arg(name, T.buffer([i64(SIZE * SIZE)], dtype))
            for name, dtype in (("a", factor), ("b", factor), ("c", total))
        )
        T.func_attr({"tirx.noalias": True, "global_symbol": "main"})
        with T.sblock("root"), grid(i64(16), 32) as (group, thread):
            scopes = {"wmma.matrix_a": factor, "wmma.matrix_b": factor, "wmma.accumulator": total}
            left, right, sums = (T.sblock_alloc_buffer((256,), dtype, scope=scope) for scope, dtype in scopes.items())
            row, column = tirx.floordiv(group, i64(4)), tirx.floormod(group, i64(4))
            call("fill_fragment", data(sums), *sizes, zero, tirx.const(0, total))
            with T.serial(i64(0), i64(4)) as step:
                first = row * i64(16 * SIZE) + step * i64(16)
                source, start, stride = a, first, SIZE
                if through_shared:
                    source, start, stride = T.sblock_alloc_buffer((256,), factor, scope="shared"), i64(0), 16
                    with T.serial(i64(0), i64(8)) as i:
                        at = i * i64(32) + thread
                        element = first + tirx.floordiv(at, i64(16)) * i64(SIZE) + tirx.floormod(at, i64(16))
                        T.buffer_store(source, tirx.BufferLoad(a, [element]), [at])
                    barrier()
                layout = ir.StringImm("row_major")
                width = tirx.const(SIZE, "int32")
                call(
                    "load_matrix_sync", data(left), *sizes, zero, pointer(source, start),
                    tirx.const(stride, "int32"), layout,
                )  # fmt: skip
                second = step * i64(16 * SIZE) + column * i64(16)
                call("load_matrix_sync", data(right), *sizes, zero, pointer(b, second), width, layout)
                call("mma_sync", data(sums), zero, data(left), zero, data(right), zero, data(sums), zero)
            place = row * i64(16 * SIZE) + column * i64(16)
            target = tirx.address_of(tirx.BufferLoad(c, [place]))
            call("store_matrix_sync", data(sums), *sizes, zero, target, width, layout)
    return tvm.IRModule({"main": ib.get()})


@pytest.mark.parametrize(("factor", "total"), [("float16", "float32"), ("int8", "int32"), ("float16", "float16")])
@pytest.mark.parametrize("through_shared", [False, True], ids=["direct", "shared"])
def test_products_are_valid(factor: str, total: str, through_shared: bool) -> None:
    module = product(factor, total, through_shared)
    shader = shader_of(module, MATRICES)
    assert shader.source.count("coopMatMulAdd") == 1
    assert {"matrix", "memory_model", "subgroup"} <= set(shader.requires)
    assert shader.subgroup == 32
    members = compile_kernels(device_functions(module, MATRICES), MATRICES)
    assert members["kernels.spv"][:4] == b"\x03\x02\x23\x07"


def test_a_device_without_them_is_told() -> None:
    with pytest.raises(GreenccError, match="a product of matrices by a subgroup, which the device doesn't have"):
        shader_of(product("float16", "float32"), EVERYTHING)
