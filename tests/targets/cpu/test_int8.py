"""Products and convolutions in int8 against integer arithmetic, bit by bit, in all instruction sets of this machine."""

import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import tvm
from running import Runner, function, host, normal
from tvm import relax, tirx

from greencc.ir import constant
from greencc.ops import Conv2dAttrs, quantized_conv2d, quantized_matmul
from greencc.passes.stored import quantize_channels
from greencc.targets.cpu.target import CpuTarget
from greencc.targets.lower import lower
from tests.targets.cpu.int8_reference import CONVOLUTIONS, Convolution, expected, quantized

_BASE = ("avx", "avx2", "f16c", "fma", "sse4.2")
X86 = {
    "sse2": replace(host(), cpu="x86-64", features=("sse4.2",)),
    "avx2": replace(host(), cpu="haswell", features=_BASE),
    "avx512bw": replace(host(), cpu="skylake-avx512", features=(*_BASE, "avx512bw", "avx512f", "avx512vl")),
    "avxvnni": replace(host(), cpu="alderlake", features=(*_BASE, "avxvnni")),
    "avx512vnni": replace(
        host(), cpu="icelake-server", features=(*_BASE, "avx512bw", "avx512f", "avx512vl", "avx512vnni")
    ),
}
RUNNABLE = [name for name, target in X86.items() if set(target.features) <= set(host().features)]


def single(shape: tuple[int, int], w: np.ndarray, scale: np.ndarray) -> tvm.IRModule:
    """A module of one product."""
    return function({"x": (shape, "float32")}, lambda emit, x: emit(quantized_matmul(x, constant(w), constant(scale))))


@pytest.mark.skipif(not host().is_x86, reason="x86 instructions")
@pytest.mark.parametrize("name", RUNNABLE)
def test_exact_for_all_remainders(name: str) -> None:
    # Depths leave remainders of a step and of a vector, columns of a tile; one module, because compiling is slow.
    shapes = [(7, 13), (30, 70), (64, 48), (96, 130)]
    parts = [quantize_channels(normal(k, n, seed=k), 1) for k, n in shapes]
    params = {f"x{k}": ((2, 5, k), "float32") for k, _ in shapes}

    def body(emit, *xs):
        products = [emit(quantized_matmul(x, constant(w), constant(s))) for x, (w, s) in zip(xs, parts, strict=True)]
        return [emit(relax.op.nn.relu(y)) for y in products]

    runner = Runner(function(params, body), X86[name])
    assert runner.rules == {"cpu-matmul", "cpu-quantize-rows"}
    xs = [normal(2, 5, k, seed=k + 1) * 3 + 1 for k, _ in shapes]
    for x, (w, s), got in zip(xs, parts, runner(*xs), strict=True):
        np.testing.assert_array_equal(got, np.maximum(expected(x, w, s), 0))


@pytest.mark.skipif(not host().is_x86, reason="x86 instructions")
@pytest.mark.parametrize("name", RUNNABLE)
def test_the_largest_values_do_not_saturate(name: str) -> None:
    # Two neighbouring products of 255 and 127 exceed 16 bits.
    w = np.full((64, 32), 127, np.int8)
    w[:, 1::2] = -127
    x = np.ones((3, 64), np.float32)
    scale = np.ones(32, np.float32)
    (got,) = Runner(single((3, 64), w, scale), X86[name])(x)
    np.testing.assert_array_equal(got, expected(x, w, scale))
    np.testing.assert_allclose(got[0, :2], [64 * 127, -64 * 127], rtol=1e-6)


def test_rows_of_zeros_and_of_one_sign() -> None:
    w, scale = quantize_channels(normal(20, 24), 1)
    x = np.stack([np.zeros(20), np.full(20, 3.0), np.full(20, -3.0), np.full(20, 1e-30)]).astype(np.float32)
    (got,) = Runner(single((4, 20), w, scale))(x)
    np.testing.assert_array_equal(got, expected(x, w, scale))
    assert (got[0] == 0).all()


def test_symbolic_rows_and_factors() -> None:
    rows = tirx.Var("s", "int64")
    w, scale = quantize_channels(normal(32, 80), 1)
    factors = np.exp(normal(32, seed=3))

    def body(emit, x):
        return emit(quantized_matmul(x, constant(w), constant(scale), constant(factors)))

    runner = Runner(function({"x": ((1, rows, 32), "float32")}, body))
    for count in (1, 7, 128, 131):
        x = normal(1, count, 32, seed=count)
        np.testing.assert_array_equal(runner(x)[0], expected(x * factors, w, scale))


def normed(x: np.ndarray, gamma: np.ndarray, beta: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64)
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * gamma + beta


@pytest.mark.parametrize("rows", [9, tirx.Var("s", "int64")], ids=["static", "symbolic"])
@pytest.mark.parametrize("depth", [64, 37])
def test_a_norm_quantizes_its_rows_for_the_products_behind_it(rows: object, depth: int) -> None:
    gamma, beta, factors = 1 + normal(depth, seed=1), normal(depth, seed=2), np.exp(normal(depth, seed=3))
    parts = [quantize_channels(normal(depth, n, seed=n), 1) for n in (48, 20)]

    def body(emit, x):
        made = []
        for scaled in ([constant(factors)], []):
            y = emit(relax.op.nn.layer_norm(x, constant(gamma), constant(beta), axes=[-1]))
            products = (quantized_matmul(y, *map(constant, part), *scaled) for part in parts)
            made += [emit(relax.op.multiply(y, y)), *map(emit, products)]
        return made

    runner = Runner(function({"x": ((2, rows, depth), "float32")}, body))
    assert "cpu-normalize-rows" in runner.rules
    assert "cpu-quantize-rows" not in runner.rules
    x = normal(2, 9, depth) * 3 + 1
    *scaled, square, first, second = runner(x)
    y = normed(x, gamma, beta)
    np.testing.assert_allclose(square, y * y, atol=1e-4, rtol=1e-4)
    # The levels are of y as it was computed: a level more or less where rounding differs.
    for f, got in ((factors, scaled[1:]), (np.ones(depth, np.float32), (first, second))):
        for (w, s), value in zip(parts, got, strict=True):
            want = expected((y * f).astype(np.float32), w, s)
            one_level = quantized((y * f).astype(np.float32))[1] * 127 * s
            assert (np.abs(value - want) <= 2.01 * one_level).all()


def test_a_norm_that_something_else_reads_too_is_computed_once() -> None:
    gamma, beta = np.ones(64, np.float32), np.zeros(64, np.float32)
    w, s = quantize_channels(normal(64, 64), 1)

    def body(emit, x):
        y = emit(relax.op.nn.layer_norm(x, constant(gamma), constant(beta), axes=[-1]))
        return emit(relax.op.add(emit(quantized_matmul(y, constant(w), constant(s))), y))

    runner = Runner(function({"x": ((4, 64), "float32")}, body))
    assert [call.kernel.rstrip("0123456789") for call in runner.lowered.calls] == [
        "normalize_rows", "fused_int8_matmul_dequantize_add"
    ]  # fmt: skip
    x = normal(4, 64)
    y = normed(x, gamma, beta).astype(np.float32)
    np.testing.assert_allclose(runner(x)[0], expected(y, w, s) + y, atol=0.2)


@pytest.mark.skipif(not host().is_x86, reason="x86 instructions")
@pytest.mark.parametrize("name", RUNNABLE)
def test_convolutions_are_exact(name: str) -> None:
    params = {f"x{i}": (case.shape, "float32") for i, case in enumerate(CONVOLUTIONS)}

    def body(emit, *xs):
        made = []
        for x, case in zip(xs, CONVOLUTIONS, strict=True):
            w, scale = map(constant, case.weight)
            made.append(emit(relax.op.nn.relu(emit(quantized_conv2d(x, w, scale, case.attrs)))))
        return made

    runner = Runner(function(params, body), X86[name])
    assert runner.rules == {"cpu-convolution", "cpu-quantize-images"}
    xs = [normal(*case.shape, seed=i) * 2 + 0.7 for i, case in enumerate(CONVOLUTIONS)]
    for x, case, got in zip(xs, CONVOLUTIONS, runner(*xs), strict=True):
        np.testing.assert_array_equal(got, np.maximum(case.expected(x), 0))


def test_images_of_a_symbolic_batch_and_of_zeros() -> None:
    batch, case = tirx.Var("n", "int64"), CONVOLUTIONS[0]
    w, scale = map(constant, case.weight)

    def body(emit, x):
        return emit(quantized_conv2d(x, w, scale, case.attrs))

    runner = Runner(function({"x": ((batch, *case.shape[1:]), "float32")}, body))
    for count in (1, 3):
        x = normal(count, *case.shape[1:], seed=count)
        x[0] *= count - 1
        np.testing.assert_array_equal(runner(x)[0], case.expected(x))


def test_an_image_that_two_convolutions_read_is_quantized_once() -> None:
    first, second = CONVOLUTIONS[0], replace(CONVOLUTIONS[0], filters=9, kernel=(1, 1), attrs=Conv2dAttrs())

    def body(emit, x):
        cases = ((case, *map(constant, case.weight)) for case in (first, second))
        return [emit(quantized_conv2d(x, w, scale, case.attrs)) for case, w, scale in cases]

    runner = Runner(function({"x": (first.shape, "float32")}, body))
    assert [call.kernel for call in runner.lowered.calls].count("quantize_images") == 1
    x = normal(*first.shape)
    for got, case in zip(runner(x), (first, second), strict=True):
        np.testing.assert_array_equal(got, case.expected(x))


def convolution() -> tvm.IRModule:
    case = Convolution((1, 32, 16, 16), 64, (3, 3), Conv2dAttrs(padding=(1, 1, 1, 1)))
    w, scale = map(constant, case.weight)
    return function({"x": (case.shape, "float32")}, lambda emit, x: emit(quantized_conv2d(x, w, scale, case.attrs)))


def product() -> tvm.IRModule:
    return single((16, 64), *quantize_channels(normal(64, 64), 1))


def assembly(module: tvm.IRModule, target: CpuTarget) -> str:
    lowered = lower(module, target)
    kernels = {g.name_hint: f for g, f in lowered.module.functions_items() if isinstance(f, tirx.PrimFunc)}
    module = tvm.IRModule({n: f.with_attr("global_symbol", n) for n, f in kernels.items() if "int8" in n})
    return str(tvm.tirx.build(module, target=target.llvm_target()).inspect_source("asm"))


ARM = CpuTarget("aarch64-linux-gnu", "neoverse-n1", ("dotprod", "neon"), 2)


@pytest.mark.parametrize(
    ("target", "wanted"),
    [
        (X86["avx2"], r"vpmaddwd .*ymm"),
        (X86["avxvnni"], r"\{vex\} vpdpbusd .*ymm"),
        (X86["avx512vnni"], r"vpdpbusd .*zmm"),
        (ARM, r"sdot v\d+\.4s, v\d+\.16b, v\d+\.(16b|4b)"),
        (replace(ARM, cpu="neoverse-v1", features=("dotprod", "i8mm", "neon")), r"usdot v\d+\.4s, v\d+\.16b"),
    ],
    ids=["avx2", "avxvnni", "avx512vnni", "dotprod", "i8mm"],
)
@pytest.mark.parametrize("form", [product, convolution])
def test_the_code_has_the_instruction(form: Callable[[], tvm.IRModule], target: CpuTarget, wanted: str) -> None:
    code = re.sub(r"[ \t]+", " ", assembly(form(), target))
    # A tile takes several rows and columns: the instruction is the body of the loop, not an accident.
    assert len(re.findall(wanted, code)) >= 8
    assert "pmaddubsw" not in code
