"""Products and convolutions in int8 against integer arithmetic, bit by bit, in all instruction sets of this machine."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace

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


def quantized(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Levels 0..255, scale and zero point of every row."""
    low, high = np.minimum(x.min(-1, keepdims=True), 0), np.maximum(x.max(-1, keepdims=True), 0)
    span = high - low
    with np.errstate(divide="ignore"):
        inverse = np.where(span > 0, np.float32(255) / span, np.float32(0))
    zero = np.rint(-low * inverse)
    levels = np.clip(np.rint(x * inverse + zero), 0, 255)
    return levels.astype(np.int64), span / np.float32(255), zero.astype(np.int64)


def expected(x: np.ndarray, w: np.ndarray, scale: np.ndarray) -> np.ndarray:
    levels, row_scale, zero = quantized(x)
    return ((levels - zero) @ w.astype(np.int64)).astype(np.float32) * (row_scale * scale)


def single(shape: tuple[int, int], w: np.ndarray, scale: np.ndarray) -> tvm.IRModule:
    """A module of one product."""
    return function(
        {"x": (shape, "float32")}, lambda emit, x: emit(quantized_matmul(x, constant(w), constant(scale)))
    )


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


@dataclass(frozen=True)
class Convolution:
    shape: tuple[int, int, int, int]
    filters: int
    kernel: tuple[int, int]
    attrs: Conv2dAttrs = field(default_factory=Conv2dAttrs)

    @property
    def weight(self) -> tuple[np.ndarray, np.ndarray]:
        shape = (self.filters, self.shape[1] // self.attrs.groups, *self.kernel)
        return quantize_channels(normal(*shape, seed=self.filters), 0)

    def quantized(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Levels, scale and zero point of every image, flat."""
        return quantized(x.reshape(len(x), -1))

    def expected(self, x: np.ndarray) -> np.ndarray:
        """The sums in int64, of an image that is padded with zeros after its zero point has been taken off."""
        (w, scale), attrs = self.weight, self.attrs
        flat, image_scale, zero = self.quantized(x)
        top, left, bottom, right = attrs.padding
        image = np.pad((flat - zero).reshape(x.shape), ((0, 0), (0, 0), (top, bottom), (left, right)))
        out = [attrs.out_size(axis, self.shape[2 + axis], self.kernel[axis]) for axis in (0, 1)]
        windows = np.lib.stride_tricks.sliding_window_view(
            image, [(k - 1) * d + 1 for k, d in zip(self.kernel, attrs.dilation, strict=True)], axis=(2, 3)
        )[:, :, :: attrs.strides[0], :: attrs.strides[1], :: attrs.dilation[0], :: attrs.dilation[1]]
        assert windows.shape[2:4] == tuple(out)
        parts = zip(np.split(windows, attrs.groups, 1), np.split(w.astype(np.int64), attrs.groups), strict=True)
        sums = np.concatenate([np.einsum("ncyxrq,kcrq->nkyx", part, own) for part, own in parts], 1)
        return sums.astype(np.float32) * (image_scale.reshape(-1, 1, 1, 1) * scale.reshape(1, -1, 1, 1))


CONVOLUTIONS = [
    Convolution((1, 16, 14, 14), 24, (3, 3), Conv2dAttrs(padding=(1, 1, 1, 1))),
    Convolution((2, 3, 30, 30), 16, (7, 7), Conv2dAttrs((2, 2), (3, 3, 3, 3))),  # a word that is not full
    Convolution((1, 600, 7, 7), 200, (1, 1)),  # panels
    Convolution((1, 18, 26, 26), 12, (1, 1), Conv2dAttrs((2, 2))),
    Convolution((1, 12, 9, 9), 12, (1, 1), Conv2dAttrs(groups=2)),  # groups that are not whole words
    Convolution((1, 16, 20, 20), 8, (3, 3), Conv2dAttrs((1, 1), (2, 3, 2, 3), (2, 3), 2)),
    Convolution((1, 4, 7, 7), 4, (3, 3), Conv2dAttrs((3, 3), (2, 0, 0, 2))),
    Convolution((3, 7, 2, 3), 5, (1, 1)),  # less than a vector
]


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
    return function(
        {"x": (case.shape, "float32")}, lambda emit, x: emit(quantized_conv2d(x, w, scale, case.attrs))
    )


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
