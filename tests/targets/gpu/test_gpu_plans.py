"""Kernels by plans from their rules' spaces: right for every plan, within the device's limits, by default as ever."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import numpy as np
import pytest
import tvm
import tvm_ffi
from gpu_plans import SampledPlans, draw, spaces_of
from gpu_running import GpuRunner, device
from test_gpu_attention import apart, fused, reference, width
from test_gpu_convolution import Case, output
from tvm import relax, tirx

from greencc.ir import constant
from greencc.ops import (
    Conv2dAttrs,
    GroupAttrs,
    attention,
    grouped_matmul,
    integer_conv2d,
    integer_matmul,
    quantized_matmul,
)
from greencc.passes.grouped import round_to_nearest
from greencc.passes.stored import quantize_channels
from greencc.targets.base import Declined, Scheduled
from greencc.targets.cuda.target import CudaTarget
from greencc.targets.fusion import PATTERN_ATTR
from greencc.targets.gpu.capabilities import Capabilities
from greencc.targets.lower import constant_parameters, fuse, kernel_calls, lower, schedule_kernel
from greencc.targets.tuning.alone import Kernel, build_alone
from greencc.targets.tuning.planned import PlannedTarget
from greencc.targets.vulkan.target import VulkanTarget
from greencc.verification import Library
from tests.targets.cpu.int8_reference import expected, quantized
from tests.targets.cpu.running import function, normal

# float32 sums of up to 400 products of standard normals, scaled to unit variance.
ATOL = 2e-5
SMALL = VulkanTarget(Capabilities(max_threads=128, shared_bytes=16 << 10))


def weight(depth: int, columns: int) -> np.ndarray:
    return normal(depth, columns, seed=columns) / np.float32(math.sqrt(depth))


# (rows, depth, columns): few rows, rows of one tile and of several, whole tiles, remainders in all directions.
PRODUCTS = [(1, 400, 33), (6, 40, 100), (20, 37, 70), (75, 130, 66), (128, 64, 128)]


def products() -> tvm.IRModule:
    """Products of constants with a bias and relu, and one of two operands that lie across."""
    params = {f"x{i}": ((rows, depth), "float32") for i, (rows, depth, _) in enumerate(PRODUCTS)}
    params |= {"q": ((2, 40, 24), "float32"), "k": ((2, 30, 24), "float32")}

    def body(emit, *args):
        *xs, q, k = args
        results = []
        for x, (_, depth, columns) in zip(xs, PRODUCTS, strict=True):
            y = emit(relax.op.matmul(x, relax.const(weight(depth, columns))))
            results.append(emit(relax.op.nn.relu(emit(relax.op.add(y, relax.const(normal(columns)))))))
        return [*results, emit(relax.op.einsum((q, k), "bik,bjk->bij"))]

    return function(params, body)


def others() -> tvm.IRModule:
    """What isn't a product: passes over rows, rows side by side, rows without number, elements in fours and alone."""
    n = tirx.Var("n", "int64")
    params = {"x": ((37, 70), "float32"), "s": ((n, 50), "float32"), "i": ((37, 70), "int32")}

    def body(emit, x, s, i):
        scale, shift = relax.const(normal(70)), relax.const(normal(70, seed=1))
        return [
            emit(relax.op.nn.softmax(x, axis=-1)),
            emit(relax.op.nn.layer_norm(x, scale, shift, axes=[-1])),
            emit(relax.op.max(x, axis=[0])),
            emit(relax.op.sum(s, axis=[1])),
            emit(relax.op.exp(emit(relax.op.permute_dims(x)))),
            emit(relax.op.tanh(s)),
            emit(relax.op.add(i, relax.const(3, "int32"))),
        ]

    return function(params, body)


# Many filters, few, groups of several filters, one channel a group.
CONVOLUTIONS = [
    Case((2, 3, 13, 11), 40, (3, 3), (2, 2), pads=(1, 1, 1, 1)),
    Case((1, 16, 7, 9), 6),
    Case((1, 8, 9, 9), 16, (3, 3), groups=2),
    Case((1, 12, 9, 8), 12, (3, 3), groups=12),
]


def convolutions() -> tvm.IRModule:
    """Convolutions with a relu, and a pool."""
    params = {f"x{i}": (case.shape, "float32") for i, case in enumerate(CONVOLUTIONS)}

    def body(emit, *xs):
        results = [emit(relax.op.nn.relu(emit(case.emit(x)))) for case, x in zip(CONVOLUTIONS, xs, strict=True)]
        return [*results, emit(relax.op.nn.avg_pool2d(xs[0], pool_size=(3, 3)))]

    return function(params, body)


ATTENTIONS = {
    "masked": (fused(2, 2, 32, 32), (2, 1, 1, 40)),
    "causal, grouped, sizes that fill no vector": (fused(4, 2, 24, 40, causal=True), None),
    "odd heads": (fused(2, 1, 13, 7), None),
}


def attentions() -> tvm.IRModule:
    """Attention of many queries, and of one."""
    params: dict[str, tuple[tuple[object, ...], str]] = {"d": ((2, 1, 64), "float32"), "e": ((2, 70, 64), "float32")}
    for i, (attrs, mask) in enumerate(ATTENTIONS.values()):
        params[f"y{i}"] = ((2, 40, width(attrs)), "float32")
        if mask is not None:
            params[f"m{i}"] = (mask, "float32")

    def body(emit, d, e, *values):
        named = dict(zip(list(params)[2:], values, strict=True))
        few = apart(fused(4, 4, 16, 16))
        return [
            emit(attention(d, e, e, None, few)),
            *(
                emit(attention(named[f"y{i}"], named[f"y{i}"], named[f"y{i}"], named.get(f"m{i}"), attrs))
                for i, (attrs, _) in enumerate(ATTENTIONS.values())
            ),
        ]

    return function(params, body)


SHAPES = [(2, 21, 37), (3, 37), (2, 5, 9, 8)]
BYTES = np.random.default_rng(7)
LEVELS = BYTES.integers(-127, 128, (37, 50)).astype(np.int8)
FILTERS = BYTES.integers(-127, 128, (12, 5, 3, 3)).astype(np.int8)


def integers() -> tvm.IRModule:
    """Products of bytes with many rows and with few, a convolution, rows that are quantised, plain and normalised."""
    params = {
        **{name: (shape, "uint8") for name, shape in zip("abc", SHAPES, strict=True)},
        "x": ((2, 9, 64), "float32"),
    }
    w, scale = map(constant, quantize_channels(weight(64, 48), 1))

    def body(emit, a, b, c, x):
        zero, attrs = constant(np.array(9, np.uint8)), Conv2dAttrs(padding=(1, 1, 1, 1))
        y = emit(relax.op.nn.layer_norm(x, relax.const(normal(64, seed=1)), relax.const(normal(64)), axes=[-1]))
        return [
            emit(integer_matmul(a, zero, constant(LEVELS))),
            emit(integer_matmul(b, zero, constant(LEVELS))),
            emit(integer_conv2d(c, zero, constant(FILTERS), attrs)),
            emit(quantized_matmul(x, w, scale)),
            emit(quantized_matmul(y, w, scale)),
        ]

    return function(params, body)


def kernels(module: tvm.IRModule, target) -> list[tuple[tirx.PrimFunc, frozenset[int]]]:
    fused, _ = fuse(target.legalize(module))
    constants = constant_parameters(fused)
    names = dict.fromkeys(call.args[0].name_hint for call in kernel_calls(fused))
    return [(fused[name], constants.get(name, frozenset())) for name in names]


@pytest.mark.vulkan
@pytest.mark.parametrize("seed", range(2))
def test_products_by_any_plan(seed: int) -> None:
    plans = SampledPlans(device(), seed)
    runner = GpuRunner(products(), PlannedTarget(device(), plans))
    assert len(runner.lowered.tuned) == len(PRODUCTS) + 1
    xs = [normal(rows, depth, seed=i) for i, (rows, depth, _) in enumerate(PRODUCTS)]
    q, k = normal(2, 40, 24), normal(2, 30, 24, seed=1) / np.float32(5)
    *found, crossed = runner(*xs, q, k)
    for x, (_, depth, columns), got in zip(xs, PRODUCTS, found, strict=True):
        want = np.maximum(x.astype(np.float64) @ weight(depth, columns) + normal(columns), 0)
        np.testing.assert_allclose(got, want, atol=ATOL, rtol=0, err_msg=str(plans.chosen))
    want = q.astype(np.float64) @ k.swapaxes(1, 2)
    np.testing.assert_allclose(crossed, want, atol=ATOL, rtol=0, err_msg=str(plans.chosen))


@pytest.mark.vulkan
@pytest.mark.parametrize("seed", range(2))
def test_a_plan_for_symbolic_rows_is_right_for_every_number_of_them(seed: int) -> None:
    rows, w = tirx.Var("s", "int64"), weight(70, 50)
    plans = SampledPlans(device(), seed)
    runner = GpuRunner(
        function({"x": ((1, rows, 70), "float32")}, lambda emit, x: emit(relax.op.matmul(x, relax.const(w)))),
        PlannedTarget(device(), plans),
    )
    (decision,) = plans.chosen.values()
    assert decision is not None
    assert {name.split("_")[0] for name in decision.plan} == {"few", "many"}
    for count in (1, 2, 17, 32, 33, 150):
        x = normal(1, count, 70)
        np.testing.assert_allclose(runner(x)[0], x.astype(np.float64) @ w, atol=ATOL, rtol=0, err_msg=str(decision))


@pytest.mark.vulkan
def test_a_kernel_alone_is_launched_with_each_set_of_weights() -> None:
    rows = tirx.Var("s", "int64")
    module = function(
        {"x": ((rows, 70), "float32")}, lambda emit, x: emit(relax.op.matmul(x, relax.const(weight(70, 50))))
    )
    ((func, constants),) = kernels(module, device())
    rule, space = spaces_of(func, constants, device())["gpu-matmul"]
    scheduled = rule.apply(func, constants, draw(space, random.Random(5)))
    assert isinstance(scheduled, Scheduled)
    alone = build_alone(Kernel(func, constants, 1), scheduled, device(), {1: weight(70, 50)}, 3)
    sets = {f"w{copy}": array * np.float32(copy) for copy in range(3) for array in alone.weights}
    x = normal(40, 70)
    (got,) = Library(alone.code, sets, device().place)([x])
    np.testing.assert_allclose(got, 2 * (x.astype(np.float64) @ weight(70, 50)), atol=2 * ATOL, rtol=0)


@pytest.mark.vulkan
@pytest.mark.parametrize("seed", range(2))
def test_levels_in_groups_by_any_plan(seed: int) -> None:
    sizes = [(rows, bits) for rows in (2, 40) for bits in (4, 8)]
    packed = {bits: round_to_nearest(weight(64, 48), 16, bits) for bits in (4, 8)}

    def body(emit, *xs):
        results = []
        for x, (_, bits) in zip(xs, sizes, strict=True):
            w = packed[bits]
            offset = None if w.offset is None else constant(w.offset)
            levels, scale = constant(w.levels), constant(w.scale)
            results.append(emit(grouped_matmul(x, levels, scale, offset, GroupAttrs(w.bits, w.group))))
        return results

    module = function({f"x{i}": ((rows, 64), "float32") for i, (rows, _) in enumerate(sizes)}, body)
    xs = [normal(rows, 64, seed=i) for i, (rows, _) in enumerate(sizes)]
    plans = SampledPlans(device(), seed)
    runner = GpuRunner(module, PlannedTarget(device(), plans))
    assert len(runner.lowered.tuned) == len(sizes)
    for want, got in zip(GpuRunner(module)(*xs), runner(*xs), strict=True):
        np.testing.assert_allclose(got, want, atol=ATOL, rtol=0, err_msg=str(plans.chosen))


@pytest.mark.vulkan
@pytest.mark.parametrize("seed", range(2))
def test_rows_and_elements_by_any_plan(seed: int) -> None:
    module = others()
    plans = SampledPlans(device(), seed)
    runner = GpuRunner(module, PlannedTarget(device(), plans))
    assert len(runner.lowered.tuned) == 7
    x, i = normal(37, 70), np.arange(37 * 70, dtype=np.int32).reshape(37, 70)
    for count in (1, 45):
        s = normal(count, 50, seed=count)
        wide = np.exp(x.astype(np.float64) - x.max(1, keepdims=True))
        deviation = x - x.mean(1, keepdims=True, dtype=np.float64)
        norm = deviation / np.sqrt(np.square(deviation).mean(1, keepdims=True) + 1e-5)
        want = [
            wide / wide.sum(1, keepdims=True),
            norm * normal(70) + normal(70, seed=1),
            x.max(0),
            s.sum(1, dtype=np.float64),
            np.exp(x.T),
            np.tanh(s),
            i + 3,
        ]
        for number, (got, wanted) in enumerate(zip(runner(x, s, i), want, strict=True)):
            message = f"output {number} by {plans.chosen}"
            np.testing.assert_allclose(got, wanted, atol=ATOL, rtol=1e-5, err_msg=message)


@pytest.mark.vulkan
@pytest.mark.parametrize("seed", range(2))
def test_convolutions_and_windows_by_any_plan(seed: int) -> None:
    module = convolutions()
    plans = SampledPlans(device(), seed)
    runner = GpuRunner(module, PlannedTarget(device(), plans))
    assert len(runner.lowered.tuned) == len(CONVOLUTIONS) + 1
    xs = [normal(*case.shape, seed=i) for i, case in enumerate(CONVOLUTIONS)]
    *found, pooled = runner(*xs)
    for x, case, got in zip(xs, CONVOLUTIONS, found, strict=True):
        # Sums of up to 144 products of standard normals.
        np.testing.assert_allclose(got, np.maximum(output(case, x), 0), atol=1e-4, rtol=0, err_msg=str(plans.chosen))
    windows = np.lib.stride_tricks.sliding_window_view(xs[0], (3, 3), (2, 3))
    np.testing.assert_allclose(pooled, windows.mean((4, 5)), atol=ATOL, rtol=0, err_msg=str(plans.chosen))


@pytest.mark.vulkan
@pytest.mark.parametrize("seed", range(2))
def test_attention_by_any_plan(seed: int) -> None:
    plans = SampledPlans(device(), seed)
    runner = GpuRunner(attentions(), PlannedTarget(device(), plans))
    assert len(runner.lowered.tuned) == len(ATTENTIONS) + 1
    d, e = normal(2, 1, 64), normal(2, 70, 64, seed=1)
    arrays, wanted = [d, e], [reference(d, e, e, apart(fused(4, 4, 16, 16)))]
    for i, (attrs, shape) in enumerate(ATTENTIONS.values()):
        y = normal(2, 40, width(attrs), seed=i)
        mask = None if shape is None else normal(*shape, seed=i + 9)
        arrays += [y] if mask is None else [y, mask]
        wanted.append(reference(y, y, y, attrs, mask))
    for want, got in zip(wanted, runner(*arrays), strict=True):
        np.testing.assert_allclose(got, want, atol=ATOL, rtol=0, err_msg=str(plans.chosen))


@pytest.mark.vulkan
@pytest.mark.parametrize("seed", range(2))
def test_bytes_by_any_plan_are_exact(seed: int) -> None:
    plans = SampledPlans(device(), seed)
    runner = GpuRunner(integers(), PlannedTarget(device(), plans))
    rules = {decision.rule for decision in plans.chosen.values() if decision is not None}
    assert rules >= {"gpu-convolution", "gpu-quantize-rows", "gpu-normalize-rows"}
    a, b, c = (np.random.default_rng(i).integers(0, 256, s).astype(np.uint8) for i, s in enumerate(SHAPES))
    x = normal(2, 9, 64)
    products, few, images, exact, normed = runner(a, b, c, x)
    for given, got in ((a, products), (b, few)):
        np.testing.assert_array_equal(got, (given.astype(np.int64) - 9) @ LEVELS.astype(np.int64), str(plans.chosen))
    padded = np.pad(c.astype(np.int64) - 9, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    want = np.einsum("ncyxrq,kcrq->nkyx", windows, FILTERS.astype(np.int64))
    np.testing.assert_array_equal(images, want, str(plans.chosen))
    w, scale = quantize_channels(weight(64, 48), 1)
    np.testing.assert_allclose(exact, expected(x, w, scale), rtol=1e-6, atol=1e-6, err_msg=str(plans.chosen))
    deviation = x - x.mean(-1, keepdims=True, dtype=np.float64)
    y = deviation / np.sqrt(np.square(deviation).mean(-1, keepdims=True) + 1e-5) * normal(64, seed=1) + normal(64)
    # The levels are of y as it was computed: a level more or less where rounding differs.
    one_level = quantized(y.astype(np.float32))[1] * 127 * scale
    assert (np.abs(normed - expected(y.astype(np.float32), w, scale)) <= 2.01 * one_level).all(), plans.chosen


ALL = [products, others, convolutions, attentions, integers]


TARGETS = {"vulkan": VulkanTarget(Capabilities()), "small": SMALL, "cuda": CudaTarget("sm_80")}


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_the_default_plan_is_what_is_made_without_one(target) -> None:
    seen = set()
    for func, constants in [kernel for module in ALL for kernel in kernels(module(), target)]:
        spaces = spaces_of(func, constants, target)
        first = schedule_kernel(func, constants, target.rules())
        assert isinstance(first, Scheduled)
        assert first.rule in spaces
        for rule, space in spaces.values():
            assert space.problem(space.default) is None
            assert all(map(math.isfinite, space.features(space.default).values()))
            plain, planned = rule.apply(func, constants), rule.apply(func, constants, space.default)
            assert isinstance(plain, Scheduled)
            assert isinstance(planned, Scheduled)
            # What fusion may do with an emitted kernel is said of it when it is emitted first.
            bare = [scheduled.func.without_attr(PATTERN_ATTR) for scheduled in (plain, planned)]
            assert tvm_ffi.get_first_structural_mismatch(*bare) is None
            assert plain.layouts == planned.layouts
            seen.add(rule.name)
    products_and_others = "matmul", "matmul-few-rows", "rowwise", "elementwise", "convolution", "window"
    assert seen >= {f"gpu-{name}" for name in (*products_and_others, "attention", "quantize-rows", "normalize-rows")}


def test_what_a_small_device_lacks_is_no_plan() -> None:
    for func, constants in kernels(products(), SMALL):
        for rule, space in spaces_of(func, constants, SMALL).values():
            large = {knob.name: knob.values[-1] for knob in space.knobs}
            assert isinstance(rule.apply(func, constants, large), Declined)


@pytest.mark.parametrize("module", ALL)
def test_plans_for_a_small_device_fit_it(module: Callable[[], tvm.IRModule]) -> None:
    # The emitter refuses kernels with more threads or shared memory than the device has.
    target = PlannedTarget(SMALL, SampledPlans(SMALL, 3))
    assert target.build(lower(module(), target).module).kernels


@pytest.mark.parametrize(("module", "arch"), [(products, "sm_80"), *((module, "sm_90") for module in ALL)])
def test_plans_compile_to_cubins(module: Callable[[], tvm.IRModule], arch: str) -> None:
    target = CudaTarget(arch)
    planned = PlannedTarget(target, SampledPlans(target, 1))
    assert "kernels.cubin" in planned.build(lower(module(), planned).module).kernels
