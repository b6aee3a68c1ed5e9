"""Products and convolutions in int8 on a GPU against integer arithmetic: sums are exact, levels are the CPU's."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from gpu_running import GpuRunner, device
from tvm import relax, tirx

from greencc.affine import Scheme
from greencc.ir import constant
from greencc.ops import (
    Conv2dAttrs,
    integer_conv2d,
    integer_matmul,
    quantized_conv2d,
    quantized_matmul,
    quantized_take,
)
from greencc.passes.stored import quantize_channels
from greencc.targets.base import Target
from greencc.targets.packing import WordPanels
from tests.targets.cpu.int8_reference import CONVOLUTIONS, expected, quantized
from tests.targets.cpu.running import function, normal


def without_dot4() -> Target:
    """The device without its instruction for words of bytes, which are taken apart then."""
    return replace(device(), gpu=replace(device().gpu, has_dot4=False))


@pytest.mark.parametrize(
    ("rows", "target"), [(3, device), (37, device), (37, without_dot4)], ids=["few rows", "tiles", "without dot4"]
)
def test_exact_for_all_remainders(rows: int, target) -> None:
    # Depths leave remainders of a word and of a step, columns of a tile.
    shapes = [(7, 13), (96, 130)]
    parts = [quantize_channels(normal(k, n, seed=k), 1) for k, n in shapes]
    params = {f"x{k}": ((rows, k), "float32") for k, _ in shapes}

    def body(emit, *xs):
        products = [emit(quantized_matmul(x, constant(w), constant(s))) for x, (w, s) in zip(xs, parts, strict=True)]
        return [emit(relax.op.nn.relu(y)) for y in products]

    runner = GpuRunner(function(params, body), target())
    assert runner.rules == {"gpu-matmul", "gpu-quantize-rows"}
    xs = [normal(rows, k, seed=k + 1) * 3 + 1 for k, _ in shapes]
    for x, (w, s), got in zip(xs, parts, runner(*xs), strict=True):
        np.testing.assert_allclose(got, np.maximum(expected(x, w, s), 0), rtol=1e-6, atol=1e-6)


def test_symbolic_rows_factors_and_rows_of_one_sign() -> None:
    rows = tirx.Var("s", "int64")
    w, scale = quantize_channels(normal(32, 80), 1)
    factors = np.exp(normal(32, seed=3))

    def body(emit, x):
        return emit(quantized_matmul(x, constant(w), constant(scale), constant(factors)))

    runner = GpuRunner(function({"x": ((1, rows, 32), "float32")}, body))
    for count in (1, 7, 131):
        x = normal(1, count, 32, seed=count)
        x[0, -1] = 0 if count > 1 else -3
        np.testing.assert_allclose(runner(x)[0], expected(x * factors, w, scale), rtol=1e-6, atol=1e-6)


def test_a_static_scheme_is_quantized_with_what_comes_before() -> None:
    w, scale = quantize_channels(normal(32, 80), 1)
    scheme = Scheme(0.05, 100)

    def body(emit, x):
        y = emit(relax.op.nn.relu(x))
        return emit(quantized_matmul(y, constant(w), constant(scale), None, scheme))

    runner = GpuRunner(function({"x": ((20, 32), "float32")}, body))
    x = normal(20, 32) * 3
    levels = np.clip(np.rint(np.maximum(x, 0) * np.float32(scheme.inverse) + 100), 0, 255).astype(np.int64)
    want = ((levels - 100) @ w.astype(np.int64)).astype(np.float32) * (np.float32(scheme.scale) * scale)
    np.testing.assert_allclose(runner(x)[0], want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ["uint8", "int8"])
@pytest.mark.parametrize("depth", [64, 37])
def test_integer_products_are_exact(kind: str, depth: int) -> None:
    random = np.random.default_rng(depth)
    info = np.iinfo(kind)
    w = random.integers(-127, 128, (depth, 50)).astype(np.int8)
    zero = np.array(info.min + 7, kind)
    runner = GpuRunner(
        function({"a": ((2, 21, depth), kind)}, lambda emit, a: emit(integer_matmul(a, constant(zero), constant(w))))
    )
    a = random.integers(info.min, info.max, (2, 21, depth), endpoint=True).astype(kind)
    np.testing.assert_array_equal(runner(a)[0], (a.astype(np.int64) - int(zero)) @ w.astype(np.int64))


def test_convolutions_are_those_of_their_levels() -> None:
    cases = [CONVOLUTIONS[i] for i in (0, 4, 5)]  # padded; groups that are no whole words; strides, dilation, groups
    params = {f"x{i}": (case.shape, "float32") for i, case in enumerate(cases)}

    def body(emit, *xs):
        made = []
        for x, case in zip(xs, cases, strict=True):
            w, scale = map(constant, case.weight)
            made.append(emit(relax.op.nn.relu(emit(quantized_conv2d(x, w, scale, case.attrs)))))
        return made

    runner = GpuRunner(function(params, body))
    assert "gpu-quantize-images" in runner.rules
    xs = [normal(*case.shape, seed=i) * 2 + 0.7 for i, case in enumerate(cases)]
    for x, case, got in zip(xs, cases, runner(*xs), strict=True):
        one_level = case.quantized(x)[1].max() * 127 * case.weight[1].max()
        assert_nearly_exact(got, np.maximum(case.expected(x), 0), one_level)


def assert_nearly_exact(got: np.ndarray, want: np.ndarray, one_level: float) -> None:
    """Equal, but where a level is another one: a GPU's division may round otherwise, which matters between two levels.

    `one_level` is what that can change of a result at the most.
    """
    difference = np.abs(got - want)
    assert (difference <= 1e-6 + 1e-6 * np.abs(want)).mean() > 0.95
    assert difference.max() <= 2 * one_level


def test_images_of_a_symbolic_batch_larger_than_a_part() -> None:
    batch, case = tirx.Var("n", "int64"), replace(CONVOLUTIONS[0], shape=(1, 4, 70, 70), filters=4)
    w, scale = map(constant, case.weight)
    runner = GpuRunner(
        function(
            {"x": ((batch, *case.shape[1:]), "float32")},
            lambda emit, x: emit(quantized_conv2d(x, w, scale, case.attrs)),
        )
    )
    for count in (1, 3):
        x = normal(count, *case.shape[1:], seed=count)
        x[0] *= count - 1
        np.testing.assert_allclose(runner(x)[0], case.expected(x), rtol=1e-6, atol=1e-6)


def test_integer_convolutions_are_exact() -> None:
    random = np.random.default_rng(0)
    w = random.integers(-127, 128, (6, 5, 3, 3)).astype(np.int8)
    attrs = Conv2dAttrs(padding=(1, 1, 1, 1))
    zero = np.array(9, np.uint8)
    runner = GpuRunner(
        function(
            {"a": ((2, 5, 9, 8), "uint8")},
            lambda emit, a: emit(integer_conv2d(a, constant(zero), constant(w), attrs)),
        )
    )
    a = random.integers(0, 255, (2, 5, 9, 8), endpoint=True).astype(np.uint8)
    image = np.pad(a.astype(np.int64) - 9, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(image, (3, 3), axis=(2, 3))
    np.testing.assert_array_equal(runner(a)[0], np.einsum("ncyxrq,kcrq->nkyx", windows, w.astype(np.int64)))


def test_rows_of_a_table_in_bytes() -> None:
    table, scale = quantize_channels(normal(30, 16).T, 1)
    table = np.ascontiguousarray(table.T)
    runner = GpuRunner(
        function(
            {"i": ((2, 5), "int64")},
            lambda emit, i: emit(quantized_take(constant(table), constant(scale), i, wrap=True)),
        )
    )
    indices = np.array([[0, 3, 29, -1, 7], [5, 5, -30, 1, 2]], np.int64)
    np.testing.assert_allclose(runner(indices)[0], table[indices] * scale[indices][..., None], rtol=1e-6)


@pytest.mark.parametrize(("bits", "low"), [(8, -128), (4, -8)])
def test_words_hold_levels_along_the_depth(bits: int, low: int) -> None:
    levels = np.random.default_rng(bits).integers(low, -low, (32 // bits + 1, 3)).astype(np.int8)
    packed = WordPanels(2, bits).pack(levels)
    assert (packed.shape, packed.dtype) == ((2, 2, 2), np.int32)
    for (k, n), level in np.ndenumerate(levels):
        word, place = divmod(k, 32 // bits)
        value = int(packed[n // 2, word, n % 2]) >> (bits * place) & ((1 << bits) - 1)
        assert value == int(level) & ((1 << bits) - 1)
    assert packed[1, :, 1].tolist() == [0, 0]


def test_levels_are_those_of_the_reference() -> None:
    x = normal(3, 16)
    levels, scale, zero = quantized(x)
    np.testing.assert_allclose((levels - zero) * scale, x, atol=float(scale.max()))


@pytest.mark.parametrize("depth", [64, 37])
def test_a_norm_quantizes_its_rows_for_the_products_behind_it(depth: int) -> None:
    gamma, beta, rows = 1 + normal(depth, seed=1), normal(depth, seed=2), tirx.Var("s", "int64")
    w, s = quantize_channels(normal(depth, 48, seed=3), 1)

    def body(emit, x):
        y = emit(relax.op.nn.layer_norm(x, constant(gamma), constant(beta), axes=[-1]))
        return [emit(relax.op.multiply(y, y)), emit(quantized_matmul(y, constant(w), constant(s)))]

    runner = GpuRunner(function({"x": ((2, rows, depth), "float32")}, body))
    assert "gpu-normalize-rows" in runner.rules
    assert "gpu-quantize-rows" not in runner.rules
    x = (normal(2, 9, depth) * 3 + 1).astype(np.float64)
    y = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * gamma + beta
    square, product = runner(x.astype(np.float32))
    np.testing.assert_allclose(square, y * y, atol=1e-4, rtol=1e-4)
    # The levels are of y as it was computed: a level more or less where rounding differs.
    want, one_level = expected(y.astype(np.float32), w, s), quantized(y.astype(np.float32))[1] * 127 * s
    assert (np.abs(product - want) <= 2.01 * one_level).all()
