"""Loops, conditions, memory of every kind, barriers, atomic sums, exchange within subgroups."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import tvm
from emitted_kernels import EVERYTHING, PLAIN, computed, device_functions, on_device, shader_of
from tvm import ir, te, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from greencc.errors import GreenccError
from greencc.targets.gpu.schedules.launch import barrier, grid, when
from greencc.targets.tir import i64, ramp

pytestmark = pytest.mark.vulkan
THREADS = 64


def load(buffer: tirx.Var, index: tirx.Expr) -> tirx.Expr:
    return tirx.BufferLoad(buffer, [index])


def store(buffer: tirx.Var, index: tirx.Expr, value: tirx.Expr) -> None:
    T.buffer_store(buffer, value, [index])


def kernel(
    arguments: Sequence[tuple[Sequence[int | tirx.Expr], str]],
    body: Callable[..., None],
    groups: int | tirx.Expr = 1,
    threads: int = THREADS,
) -> tvm.IRModule:
    """A kernel that `body(group, thread, *buffers)` emits."""
    with IRBuilder() as ib, T.prim_func(s_tir=True):
        buffers = [
            T.arg(f"a{n}", T.buffer([i64(d) if isinstance(d, int) else d for d in shape], dtype))
            for n, (shape, dtype) in enumerate(arguments)
        ]
        T.func_attr({"tirx.noalias": True, "global_symbol": "main"})
        with T.sblock("root"), grid(i64(groups) if isinstance(groups, int) else groups, threads) as (group, thread):
            body(group, thread, *buffers)
    return tvm.IRModule({"main": ib.get()})


def test_symbolic_sizes() -> None:
    n = tirx.Var("n", "int64")
    module = computed(lambda a: a * tirx.const(2.0, "float32"), ["float32"], n)
    for size in (1, 31, 32, 33, 1000):
        x, y = np.arange(size, dtype=np.float32), np.full(size + 5, 7, np.float32)
        on_device(module, [x, y[:size]])
        np.testing.assert_array_equal(y[:size], 2 * x)


def test_loops_and_conditions() -> None:
    def body(group: tirx.Expr, thread: tirx.Expr, x: tirx.Var, y: tirx.Var) -> None:
        store(y, thread, tirx.const(0, "int32"))
        with (
            T.serial(i64(0), thread + i64(1)) as i,
            when(tirx.floormod(i, i64(3)) < i64(2)),
            T.If(load(x, i) > tirx.const(0, "int32")),
        ):
            with T.Then():
                store(y, thread, load(y, thread) + load(x, i))
            with T.Else():
                store(y, thread, load(y, thread) - tirx.const(1, "int32"))
        with T.While(load(y, thread) > tirx.const(100, "int32")):
            store(y, thread, load(y, thread) - tirx.const(100, "int32"))

    x, y = np.random.default_rng(0).integers(-20, 50, THREADS).astype(np.int32), np.zeros(THREADS, np.int32)
    on_device(kernel([((THREADS,), "int32")] * 2, body), [x, y])
    want = []
    for t in range(THREADS):
        total = 0
        for i in range(t + 1):
            if i % 3 < 2:
                total = total + x[i] if x[i] > 0 else total - 1
        while total > 100:
            total -= 100
        want.append(total)
    np.testing.assert_array_equal(y, want)


def test_a_loop_that_data_bounds() -> None:
    def body(group: tirx.Expr, thread: tirx.Expr, x: tirx.Var, y: tirx.Var) -> None:
        with T.serial(i64(0), load(x, thread)) as i:
            store(y, thread, load(y, thread) + i * i64(1 << 33))

    x, y = np.arange(THREADS) % 7, np.zeros(THREADS, np.int64)
    on_device(kernel([((THREADS,), "int64")] * 2, body), [x, y])
    np.testing.assert_array_equal(y, x * (x - 1) // 2 * (1 << 33))


def test_what_a_condition_guards_is_not_loaded() -> None:
    def body(group: tirx.Expr, thread: tirx.Expr, x: tirx.Var, y: tirx.Var) -> None:
        inside = tirx.And(thread > i64(0), load(x, thread - i64(1)) > tirx.const(0, "float32"))
        store(y, thread, tirx.if_then_else(inside, load(x, thread - i64(1)), tirx.const(-1, "float32")))

    source = shader_of(kernel([((THREADS,), "float32")] * 2, body)).source
    x, y = np.random.default_rng(0).normal(size=THREADS).astype(np.float32), np.zeros(THREADS, np.float32)
    on_device(kernel([((THREADS,), "float32")] * 2, body), [x, y])
    before = np.concatenate([[-1], x[:-1]]).astype(np.float32)
    np.testing.assert_array_equal(y, np.where(before > 0, before, np.float32(-1)))
    assert "select(" not in source


def test_guarded_vectors_are_loaded_under_the_guard() -> None:
    n = tirx.Var("n", "int64")

    def body(group: tirx.Expr, thread: tirx.Expr, x: tirx.Var, y: tirx.Var) -> None:
        value = tirx.if_then_else(
            thread * i64(4) < n, load(x, ramp(thread * i64(4), 4)), tirx.Broadcast(tirx.const(5, "float32"), 4)
        )
        store(y, ramp(thread * i64(4), 4), value)

    module = kernel([((n,), "float32"), ((4 * THREADS,), "float32")], body)
    x, y = np.arange(40, dtype=np.float32), np.zeros(4 * THREADS, np.float32)
    on_device(module, [x, y])
    np.testing.assert_array_equal(y, np.concatenate([x, np.full(4 * THREADS - 40, 5)]))
    lines = shader_of(module).source.splitlines()
    guard = next(i for i, line in enumerate(lines) if line.strip().startswith("if ("))
    assert any("vec4" in line and "=" in line for line in lines[guard + 1 : guard + 3])


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8", "uint8", "int16", "int32", "int64", "bool", "float64"])
def test_shared_and_local_memory(dtype: str) -> None:
    def body(group: tirx.Expr, thread: tirx.Expr, x: tirx.Var, y: tirx.Var) -> None:
        shared = T.sblock_alloc_buffer((THREADS,), dtype, scope="shared")
        local = T.sblock_alloc_buffer((4,), dtype, scope="local")
        at = group * i64(THREADS)
        store(shared, thread, load(x, at + thread))
        barrier()
        with T.serial(i64(0), i64(4)) as i:
            store(local, i, load(shared, tirx.floormod(thread + i * i64(16), i64(THREADS))))
        store(y, at + thread, load(local, tirx.floormod(thread, i64(4))))

    module = kernel([((4 * THREADS,), dtype)] * 2, body, groups=4)
    x = (np.random.default_rng(0).normal(size=4 * THREADS) * 100).astype(dtype)
    y = np.zeros_like(x)
    on_device(module, [x, y])
    t = np.arange(THREADS)
    want = x.reshape(4, THREADS)[:, (t + t % 4 * 16) % THREADS]
    np.testing.assert_array_equal(y.reshape(4, THREADS), want)


def test_a_reduction_across_threads() -> None:
    x_shape = (i64(8), i64(1000))
    a = te.placeholder(x_shape, "float32", name="a")
    k = te.reduce_axis((0, 1000), name="k")
    total = te.compute((i64(8),), lambda i: te.sum(a[i, k], axis=k), name="total")
    func = te.create_prim_func([a, total]).with_attr("global_symbol", "main")
    schedule = tvm.s_tir.Schedule(tvm.IRModule({"main": func}))
    block = schedule.get_sblock("total")
    i, k = schedule.get_loops(block)
    _, thread = schedule.split(k, [None, 64])
    schedule.bind(i, "blockIdx.x")
    schedule.bind(thread, "threadIdx.x")
    x, y = np.random.default_rng(0).normal(size=(8, 1000)).astype(np.float32), np.zeros(8, np.float32)
    for gpu in (PLAIN, EVERYTHING):  # through shared memory; within subgroups
        on_device(schedule.mod, [x, y], gpu)
        np.testing.assert_allclose(y, x.sum(axis=1), rtol=1e-5, atol=1e-4)
    assert shader_of(schedule.mod, EVERYTHING).subgroup == 8
    assert shader_of(schedule.mod, PLAIN).subgroup is None


@pytest.mark.parametrize("dtype", ["int32", "float32"])
def test_atomic_sums(dtype: str) -> None:
    def body(group: tirx.Expr, thread: tirx.Expr, x: tirx.Var, y: tirx.Var) -> None:
        at = group * i64(THREADS) + thread
        element = tirx.address_of(load(y, tirx.floormod(at, i64(4))))
        T.evaluate(ir.Call("tirx.atomic_add", [element, load(x, at)], ret_ty=dtype))

    module = kernel([((8 * THREADS,), dtype), ((4,), dtype)], body, groups=8)
    x, y = np.arange(8 * THREADS).astype(dtype), np.zeros(4, dtype)
    on_device(module, [x, y])
    np.testing.assert_array_equal(y, x.reshape(-1, 4).sum(axis=0))


def test_exchange_within_subgroups() -> None:
    names = ("", "_up", "_down", "_xor")

    def body(group: tirx.Expr, thread: tirx.Expr, x: tirx.Var, y: tirx.Var) -> None:
        for n, name in enumerate(names):
            numbers = [tirx.const(number, "int32") for number in (2 - n // 3, 4, 8)]
            arguments = [tirx.const(-1, "int32"), load(x, thread), *numbers]
            value = ir.Call(f"tirx.tvm_warp_shuffle{name}", arguments, ret_ty="float32")
            store(y, i64(n * THREADS) + thread, value)

    module = kernel([((THREADS,), "float32"), ((4 * THREADS,), "float32")], body)
    x, y = np.arange(THREADS, dtype=np.float32), np.zeros(4 * THREADS, np.float32)
    on_device(module, [x, y])
    t = np.arange(THREADS)
    lane = t % 4
    want = [t - lane + 2, np.where(lane >= 2, t - 2, t), np.where(lane < 2, t + 2, t), t ^ 1]
    np.testing.assert_array_equal(y.reshape(4, THREADS), want)
    with pytest.raises(GreenccError, match="within a subgroup, whose size the device doesn't fix"):
        shader_of(module, PLAIN)


def test_words_of_bytes() -> None:
    """Dot products of four bytes, from words that are loaded as such, with the instruction and without it."""

    def body(group: tirx.Expr, thread: tirx.Expr, x: tirx.Var, w: tirx.Var, y: tirx.Var) -> None:
        total: tirx.Expr = tirx.const(5, "int32")
        for n in range(4):
            at = ramp(thread * i64(16) + i64(4 * n), 4)
            words = [tirx.reinterpret("int32", load(buffer, at)) for buffer in (x, w)]
            total = tirx.call_extern("int32", "__dp4a", *words, total)
        store(y, thread, total)

    module = kernel([((16 * THREADS,), "int8")] * 2 + [((THREADS,), "int32")], body)
    rng = np.random.default_rng(0)
    x, w = rng.integers(-128, 127, (2, THREADS, 16), dtype=np.int8, endpoint=True)
    for gpu in (EVERYTHING, PLAIN):
        y = np.zeros(THREADS, np.int32)
        on_device(module, [x.reshape(-1), w.reshape(-1), y], gpu)
        np.testing.assert_array_equal(y, (x.astype(np.int32) * w).sum(axis=1) + 5)
    shader = shader_of(module, EVERYTHING)
    assert "dot4" in shader.requires
    assert "storage8" not in shader.requires
    assert "dot4" not in shader_of(module, PLAIN).requires


@pytest.mark.parametrize("lanes", [1, 2, 4])
def test_words_of_many_bytes_are_loaded_at_once(lanes: int) -> None:
    def body(group: tirx.Expr, thread: tirx.Expr, x: tirx.Var, y: tirx.Var) -> None:
        at = ramp(thread * i64(4 * lanes), 4 * lanes)
        word = "int32" if lanes == 1 else f"int32x{lanes}"
        store(y, ramp(thread * i64(lanes), lanes), tirx.reinterpret(word, load(x, at)))

    module = kernel([((4 * lanes * THREADS,), "int8"), ((lanes * THREADS,), "int32")], body)
    x = np.random.default_rng(0).integers(-128, 127, 4 * lanes * THREADS, dtype=np.int8)
    y = np.zeros(lanes * THREADS, np.int32)
    on_device(module, [x, y])
    np.testing.assert_array_equal(y, x.view(np.int32))
    assert f"{ {1: 'uint', 2: 'uvec2', 4: 'uvec4'}[lanes] } v_w =" in shader_of(module).source or lanes == 1


@pytest.mark.parametrize("dtype", ["float32", "int8", "float16", "bool"])
def test_unaligned_vectors_go_by_element(dtype: str) -> None:
    def body(group: tirx.Expr, thread: tirx.Expr, x: tirx.Var, y: tirx.Var) -> None:
        store(y, ramp(thread * i64(4) + i64(1), 4), load(x, ramp(thread * i64(5), 4)))

    module = kernel([((5 * THREADS,), dtype), ((4 * THREADS + 1,), dtype)], body)
    x = (np.random.default_rng(0).normal(size=5 * THREADS) * 10).astype(dtype)
    y = np.zeros(4 * THREADS + 1, dtype)
    on_device(module, [x, y])
    np.testing.assert_array_equal(y[1:], x.reshape(THREADS, 5)[:, :4].reshape(-1))
    source = shader_of(module).source
    assert "vec4" not in source
    assert "uint v_w" not in source


def test_every_lane_is_computed_before_one_is_stored() -> None:
    def body(group: tirx.Expr, thread: tirx.Expr, x: tirx.Var) -> None:
        value = load(x, tirx.Ramp(thread * i64(4) + i64(3), i64(-1), 4))
        store(x, ramp(thread * i64(4), 4), value)

    x = np.arange(4 * THREADS, dtype=np.float32)
    want = x.reshape(-1, 4)[:, ::-1].reshape(-1).copy()
    on_device(kernel([((4 * THREADS,), "float32")], body), [x])
    np.testing.assert_array_equal(x, want)


def test_many_sizes_are_in_a_uniform_buffer() -> None:
    symbols = [tirx.Var(f"n{i}", "int64") for i in range(15)]

    def body(group: tirx.Expr, thread: tirx.Expr, *buffers: tirx.Var) -> None:
        total: tirx.Expr = i64(0)
        for i, symbol in enumerate(symbols):
            total = total + symbol * i64(i + 1)
        with when(thread < symbols[0]):
            store(buffers[-1], thread, total)

    arguments = [((symbol,), "float32") for symbol in symbols]
    module = kernel([*arguments, ((THREADS,), "int64")], body)
    shader = shader_of(module)
    assert shader.scalars_in_uniform
    arrays = [np.zeros(3 + i, np.float32) for i in range(15)]
    y = np.zeros(THREADS, np.int64)
    on_device(module, [*arrays, y])
    np.testing.assert_array_equal(y[:3], sum((3 + i) * (i + 1) for i in range(15)))
    assert not y[3:].any()


def test_names_of_glsl_are_no_names() -> None:
    def body(group: tirx.Expr, thread: tirx.Expr, x: tirx.Var, y: tirx.Var) -> None:
        value = T.bind(load(x, thread) + tirx.const(1, "float32"), var=tirx.Var("vec4", "float32"))
        other = T.bind(value * value, var=tirx.Var("gl__main-0", "float32"))
        store(y, thread, other)

    x, y = np.arange(THREADS, dtype=np.float32), np.zeros(THREADS, np.float32)
    on_device(kernel([((THREADS,), "float32")] * 2, body), [x, y])
    np.testing.assert_array_equal(y, (x + 1) ** 2)


class TestRefusals:
    """What a device or a shader can't do is refused with the kernel's name and the number."""

    module = computed(lambda a: a + a, ["float32"], 1024, threads=512)

    def test_too_many_threads(self) -> None:
        with pytest.raises(GreenccError, match=r"'main_kernel': a workgroup of 512 threads.* allows 256"):
            shader_of(self.module, Capabilities256)

    def test_too_large_a_buffer(self) -> None:
        small = replace(EVERYTHING, max_buffer_bytes=4095)
        with pytest.raises(GreenccError, match="has 4096 bytes, of which the device allows 4095"):
            shader_of(self.module, small)

    def test_too_much_shared_memory(self) -> None:
        def body(group: tirx.Expr, thread: tirx.Expr, x: tirx.Var, y: tirx.Var) -> None:
            shared = T.sblock_alloc_buffer((THREADS,), "float32", scope="shared")
            store(shared, thread, load(x, thread))
            barrier()
            store(y, thread, load(shared, i64(THREADS - 1) - thread))

        module = kernel([((THREADS,), "float32")] * 2, body)
        assert shader_of(module).shared_bytes == 4 * THREADS
        with pytest.raises(GreenccError, match="256 bytes of shared memory, of which the device has 255"):
            shader_of(module, replace(EVERYTHING, shared_bytes=255))

    def test_wide_integers(self) -> None:
        module = computed(lambda a: a * a, ["int64"], 64)
        with pytest.raises(GreenccError, match="needs 64-bit integers, which the device lacks"):
            shader_of(module, replace(EVERYTHING, has_int64=False))

    def test_double_precision(self) -> None:
        module = computed(lambda a: a * a, ["float64"], 64)
        with pytest.raises(GreenccError, match="needs double precision, which the device lacks"):
            shader_of(module, replace(EVERYTHING, has_float64=False))

    def test_barriers_of_the_whole_grid(self) -> None:
        def body(group: tirx.Expr, thread: tirx.Expr, y: tirx.Var) -> None:
            store(y, thread, tirx.const(1, "float32"))
            T.evaluate(T.tvm_storage_sync("global"))

        with pytest.raises(GreenccError, match="'main_kernel': threads of several workgroups can't wait"):
            shader_of(kernel([((THREADS,), "float32")], body))

    def test_unknown_functions(self) -> None:
        module = computed(lambda a: tirx.call_pure_extern("float32", "j0f", a), ["float32"], 64)
        with pytest.raises(GreenccError, match="'main_kernel': no rule for the function 'j0f'"):
            shader_of(module)

    def test_unknown_nodes(self) -> None:
        from greencc.targets.vulkan.emitter.context import Context
        from greencc.targets.vulkan.emitter.expressions import Expressions

        with pytest.raises(GreenccError, match="kernel 'k': no rule for the TIR node StringImm"):
            Expressions(Context("k", EVERYTHING)).value(ir.StringImm("text"))


Capabilities256 = replace(EVERYTHING, max_threads=256)


def test_the_same_module_gives_the_same_bytes() -> None:
    from greencc.targets.vulkan.emitter import compile_kernels

    functions = [device_functions(computed(lambda a: a + a, ["float32"], 64), EVERYTHING) for _ in range(2)]
    first, second = (compile_kernels(module, EVERYTHING) for module in functions)
    assert first == second
    assert set(first) == {"kernels.json", "kernels.spv"}
