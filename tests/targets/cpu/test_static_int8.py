"""int8 with schemes that are known at compile time, against integer arithmetic, bit by bit."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
from running import Runner, function, host, normal
from test_int8 import CONVOLUTIONS, RUNNABLE, X86, Convolution
from tvm import relax, tirx

from greencc.affine import Scheme
from greencc.ir import INPUTS_ATTR, OUTPUTS_ATTR, constant
from greencc.ops import quantized_conv2d, quantized_matmul
from greencc.passes.stored import quantize_channels
from greencc.targets.cpu.intrinsics.dot import DotProduct
from greencc.targets.int8.static import dequantize, quantize_rows

# What lies beyond is clipped: standard normal values do, at both ends.
SCHEME = Scheme.of_range(-1.5, 2.25)


def levels(x: np.ndarray, scheme: Scheme) -> np.ndarray:
    """Levels above the zero point, as integers."""
    inverse = np.float32(1) / np.float32(scheme.scale)
    return np.clip(np.rint(x * inverse + np.float32(scheme.zero)), 0, 255).astype(np.int64) - scheme.zero


def expected(x: np.ndarray, w: np.ndarray, scale: np.ndarray, scheme: Scheme = SCHEME) -> np.ndarray:
    return (levels(x, scheme) @ w.astype(np.int64)).astype(np.float32) * (np.float32(scheme.scale) * scale)


def test_a_scheme_spans_its_range_and_represents_zero() -> None:
    scheme = Scheme.of_range(-1.0, 3.0)
    assert (scheme.zero, scheme.scale) == (64, float(np.float32(4 / 255)))
    assert Scheme.of_range(0.0, 2.0).zero == 0
    assert Scheme.of_range(-2.0, 0.0).zero == 255
    assert Scheme.of_range(0.0, 0.0) == Scheme(1.0, 0)
    assert np.isfinite(Scheme.of_range(-1e-38, 1e-40).inverse)


@pytest.mark.skipif(not host().is_x86, reason="x86 instructions")
@pytest.mark.parametrize("name", RUNNABLE)
def test_products_are_exact_for_all_remainders(name: str) -> None:
    shapes = [(7, 13), (30, 70), (64, 48), (96, 130)]
    parts = [quantize_channels(normal(k, n, seed=k), 1) for k, n in shapes]
    params = {f"x{k}": ((2, 5, k), "float32") for k, _ in shapes}

    def body(emit, *xs):
        products = [
            emit(quantized_matmul(x, constant(w), constant(s), scheme=SCHEME))
            for x, (w, s) in zip(xs, parts, strict=True)
        ]
        return [emit(relax.op.nn.relu(y)) for y in products]

    runner = Runner(function(params, body), X86[name])
    assert runner.rules == {"cpu-matmul", "cpu-elementwise"}
    xs = [normal(2, 5, k, seed=k + 1) for k, _ in shapes]
    for x, (w, s), got in zip(xs, parts, runner(*xs), strict=True):
        assert (levels(x, SCHEME) == 255 - SCHEME.zero).any()
        np.testing.assert_array_equal(got, np.maximum(expected(x, w, s), 0))


@pytest.mark.parametrize("low", [0.0, -1.0])
def test_the_largest_values_do_not_saturate(low: float) -> None:
    w = np.full((64, 32), 127, np.int8)
    w[:, 1::2] = -127
    x = np.ones((3, 64), np.float32)
    x[1] = -1
    scale, scheme = np.ones(32, np.float32), Scheme.of_range(low, 1.0)

    def body(emit, x):
        return emit(quantized_matmul(x, constant(w), constant(scale), scheme=scheme))

    (got,) = Runner(function({"x": ((3, 64), "float32")}, body))(x)
    np.testing.assert_array_equal(got, expected(x, w, scale, scheme))
    np.testing.assert_allclose(got[0, :2], [64 * 127, -64 * 127], rtol=1e-2)


def test_symbolic_rows_and_factors_shared_by_products() -> None:
    rows, factors = tirx.Var("s", "int64"), np.exp(normal(32, seed=3))
    parts = [quantize_channels(normal(32, n, seed=n), 1) for n in (80, 20)]

    def body(emit, x):
        return [
            emit(quantized_matmul(x, constant(w), constant(scale), given, SCHEME))
            for given in [constant(factors)]
            for w, scale in parts
        ]

    runner = Runner(function({"x": ((1, rows, 32), "float32")}, body))
    # What both read is quantised once.
    assert sorted(runner.lowered.rules.values()) == ["cpu-elementwise", "cpu-matmul", "cpu-matmul"]
    for count in (1, 7, 131):
        x = normal(1, count, 32, seed=count)
        for (w, scale), got in zip(parts, runner(x), strict=True):
            np.testing.assert_array_equal(got, expected(x * factors, w, scale))


def test_quantizing_is_part_of_the_product_before() -> None:
    (v, a), (w, b) = (quantize_channels(normal(k, n, seed=n), 1) for k, n in ((48, 64), (64, 32)))
    inner = Scheme.of_range(0.0, 4.0)

    def body(emit, x):
        y = emit(quantized_matmul(x, constant(v), constant(a), scheme=SCHEME))
        return emit(quantized_matmul(emit(relax.op.nn.relu(y)), constant(w), constant(b), scheme=inner))

    runner = Runner(function({"x": ((9, 48), "float32")}, body))
    assert [call.kernel for call in runner.lowered.calls] == [
        "quantize", "fused_int8_matmul_dequantize_relu_quantize1", "fused_int8_matmul1_dequantize1"
    ]  # fmt: skip
    assert set(runner.rules) == {"cpu-elementwise", "cpu-matmul"}
    x = normal(9, 48)
    np.testing.assert_array_equal(runner(x)[0], expected(np.maximum(expected(x, v, a), 0), w, b, inner))


@dataclass(frozen=True)
class Static(Convolution):
    """A convolution whose images all have one scheme."""

    def quantized(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        image = levels(x.reshape(len(x), -1), SCHEME)
        return image, np.full((len(x), 1), SCHEME.scale, np.float32), np.zeros((len(x), 1), np.int64)


CASES = [Static(case.shape, case.filters, case.kernel, case.attrs) for case in CONVOLUTIONS]


@pytest.mark.skipif(not host().is_x86, reason="x86 instructions")
@pytest.mark.parametrize("name", RUNNABLE)
def test_convolutions_are_exact(name: str) -> None:
    params = {f"x{i}": (case.shape, "float32") for i, case in enumerate(CASES)}

    def body(emit, *xs):
        made = []
        for x, case in zip(xs, CASES, strict=True):
            w, scale = map(constant, case.weight)
            made.append(emit(relax.op.nn.relu(emit(quantized_conv2d(x, w, scale, case.attrs, SCHEME)))))
        return made

    runner = Runner(function(params, body), X86[name])
    assert runner.rules == {"cpu-convolution", "cpu-quantize-images"}
    xs = [normal(*case.shape, seed=i) + 0.7 for i, case in enumerate(CASES)]
    for x, case, got in zip(xs, CASES, runner(*xs), strict=True):
        np.testing.assert_array_equal(got, np.maximum(case.expected(x), 0))


def test_a_symbolic_batch_that_two_convolutions_read_is_quantized_once() -> None:
    batch, first = tirx.Var("n", "int64"), CASES[0]
    cases = (first, replace(first, filters=9, kernel=(1, 1), attrs=CASES[2].attrs))

    def body(emit, x):
        return [emit(quantized_conv2d(x, *map(constant, case.weight), case.attrs, SCHEME)) for case in cases]

    runner = Runner(function({"x": ((batch, *first.shape[1:]), "float32")}, body))
    assert [call.kernel for call in runner.lowered.calls].count("quantize_images") == 1
    for count in (1, 3):
        x = normal(count, *first.shape[1:], seed=count)
        for case, got in zip(cases, runner(x), strict=True):
            np.testing.assert_array_equal(got, case.expected(x))


def test_images_that_operators_made_are_quantized_by_a_kernel_of_its_own() -> None:
    case = Static((1, 16, 512, 1), 8, (5, 1))  # a kernel of one store: TVM would fuse it

    def body(emit, x):
        image = emit(relax.op.nn.relu(emit(relax.op.permute_dims(x, [0, 3, 1, 2]))))
        return emit(quantized_conv2d(image, *map(constant, case.weight), case.attrs, SCHEME))

    n, c, h, w = case.shape
    runner = Runner(function({"x": ((n, h, w, c), "float32")}, body))
    assert "cpu-quantize-images" in runner.rules
    x = normal(n, h, w, c)
    np.testing.assert_array_equal(runner(x)[0], case.expected(np.maximum(x.transpose(0, 3, 1, 2), 0)))


def test_signed_bytes_are_stored_128_lower_and_mean_the_same() -> None:
    dot, depth = DotProduct(4, 4, "int8", None), 30
    w, scale = quantize_channels(normal(depth, 8), 1)
    x, total = (relax.Var(name, relax.TensorType(shape, kind)) for name, shape, kind in (
        ("x", (5, depth), "float32"), ("total", (5, 8), "int32"),
    ))  # fmt: skip
    builder = relax.BlockBuilder()
    with builder.function("main", [x, total]):
        with builder.dataflow():
            q = builder.emit(quantize_rows(builder, x, [], SCHEME, dot))
            sums = w.sum(axis=0, dtype=np.int32)
            y = builder.emit(dequantize(builder, total, constant(scale), sums, SCHEME, dot, axis=-1))
            result = builder.emit_output(relax.Tuple([q, y]))
        builder.emit_func_output(result)
    module = builder.get()
    named = module["main"].with_attrs({INPUTS_ATTR: ["x", "total"], OUTPUTS_ATTR: ["q", "y"]})
    module.update_func(module.get_global_var("main"), named)
    given = normal(5, depth)
    stored = levels(given, SCHEME) + SCHEME.zero - 128
    got, value = Runner(module)(given, (stored @ w.astype(np.int64)).astype(np.int32))
    assert got.dtype == np.int8
    np.testing.assert_array_equal(got, np.pad(stored, ((0, 0), (0, 2))))
    np.testing.assert_array_equal(value, expected(given, w, scale))
