"""Products and convolutions of levels against integer arithmetic, bit by bit, in this machine's instruction sets."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from running import Runner, function, host
from test_int8 import ARM, CONVOLUTIONS, RUNNABLE, X86, Convolution, assembly
from tvm import relax, tirx

from greencc.ir import constant
from greencc.ops import Conv2dAttrs, integer_conv2d, integer_matmul


def levels(kind: str, *shape: int, seed: int = 0) -> np.ndarray:
    info = np.iinfo(kind)
    return np.random.default_rng([seed, *shape]).integers(info.min, info.max + 1, shape).astype(kind)


def product(a: np.ndarray, zero: int, w: np.ndarray) -> np.ndarray:
    return (a.astype(np.int64) - int(zero)) @ w.astype(np.int64)


# (element type, zero point, whether it is known when the model is compiled)
SCHEMES = (("uint8", 200, False), ("int8", -100, True), ("int8", -100, False), ("uint8", 3, True))


def zero_point(parameters: dict[str, relax.Expr], scheme: tuple[str, int, bool]) -> relax.Expr:
    """The zero point of a scheme: a constant, or the parameter of its type."""
    kind, zero, is_known = scheme
    return constant(np.array(zero, kind)) if is_known else parameters[kind]


@pytest.mark.skipif(not host().is_x86, reason="x86 instructions")
@pytest.mark.parametrize("name", RUNNABLE)
def test_products_are_exact(name: str) -> None:
    # Depths leave remainders of a step and of a vector, columns of a tile; one module, because compiling is slow.
    shapes = [(7, 13), (30, 70), (64, 48), (96, 130)]
    weights = [levels("int8", *shape) for shape in shapes]
    params = {f"a{i}": ((2, 5, k), SCHEMES[i][0]) for i, (k, _) in enumerate(shapes)}

    def body(emit, unsigned, signed, *rows):
        zeros = [zero_point({"uint8": unsigned, "int8": signed}, scheme) for scheme in SCHEMES]
        return [emit(integer_matmul(a, z, constant(w))) for a, z, w in zip(rows, zeros, weights, strict=True)]

    runner = Runner(function({"unsigned": ((), "uint8"), "signed": ((), "int8"), **params}, body), X86[name])
    assert {"cpu-matmul"} <= runner.rules <= {"cpu-matmul", "cpu-elementwise"}
    given = [levels(kind, 2, 5, k, seed=1) for (kind, _, _), (k, _) in zip(SCHEMES, shapes, strict=True)]
    made = runner(np.array(200, np.uint8), np.array(-100, np.int8), *given)
    for a, (_, zero, _), w, got in zip(given, SCHEMES, weights, made, strict=True):
        assert got.dtype == np.int32
        np.testing.assert_array_equal(got, product(a, zero, w))


@pytest.mark.skipif(not host().is_x86, reason="x86 instructions")
@pytest.mark.parametrize("name", RUNNABLE)
def test_the_largest_values_neither_saturate_nor_wrap(name: str) -> None:
    w = np.full((66, 32), -128, np.int8)
    w[:, 1::2] = 127

    def body(emit, unsigned, u, signed, s):
        return [emit(integer_matmul(a, z, constant(w))) for a, z in ((unsigned, u), (signed, s))]

    params = {"unsigned": ((2, 66), "uint8"), "u": ((1,), "uint8"), "signed": ((2, 66), "int8"), "s": ((1,), "int8")}
    runner = Runner(function(params, body), X86[name])
    limits = [np.array([np.iinfo(kind).min, np.iinfo(kind).max], kind) for kind in ("uint8", "int8")]
    given = [np.repeat(pair[:, None], 66, 1) for pair in limits]
    for end in (0, 1):
        zeros = [pair[end : end + 1] for pair in limits]
        for a, z, got in zip(given, zeros, runner(given[0], zeros[0], given[1], zeros[1]), strict=True):
            np.testing.assert_array_equal(got, product(a, z[0], w))


def test_symbolic_rows_and_a_tail_in_the_same_kernel() -> None:
    rows, w, scale = tirx.Var("s", "int64"), levels("int8", 32, 80), np.linspace(0.5, 2, 80, dtype=np.float32)

    def body(emit, a, zero, a_scale):
        # The factor is no part of the product, yet fusion computes it in the product's kernel, before the product.
        factor = emit(relax.op.multiply(a_scale, constant(scale)))
        total = emit(integer_matmul(a, zero, constant(w)))
        return emit(relax.op.nn.relu(emit(relax.op.multiply(emit(relax.op.astype(total, "float32")), factor))))

    params = {"a": ((1, rows, 32), "uint8"), "zero": ((), "uint8"), "scale": ((), "float32")}
    runner = Runner(function(params, body))
    assert [call.arithmetic for call in runner.lowered.calls].count("int8") == 1
    assert runner.rules == {"cpu-matmul"}
    for count in (1, 7, 128, 131):
        a, zero, own = levels("uint8", 1, count, 32), np.array(77, np.uint8), np.array(0.25, np.float32)
        wanted = np.maximum(product(a, 77, w).astype(np.float32) * (own * scale), 0)
        np.testing.assert_array_equal(runner(a, zero, own)[0], wanted)


def convolved(case: Convolution, a: np.ndarray, zero: int, w: np.ndarray) -> np.ndarray:
    """The sums in int64 over an image that is padded with zeros after its zero point has been taken off."""
    attrs = case.attrs
    top, left, bottom, right = attrs.padding
    image = np.pad(a.astype(np.int64) - int(zero), ((0, 0), (0, 0), (top, bottom), (left, right)))
    windows = np.lib.stride_tricks.sliding_window_view(
        image, [(k - 1) * d + 1 for k, d in zip(case.kernel, attrs.dilation, strict=True)], axis=(2, 3)
    )[:, :, :: attrs.strides[0], :: attrs.strides[1], :: attrs.dilation[0], :: attrs.dilation[1]]
    parts = zip(np.split(windows, attrs.groups, 1), np.split(w.astype(np.int64), attrs.groups), strict=True)
    return np.concatenate([np.einsum("ncyxrq,kcrq->nkyx", part, own) for part, own in parts], 1)


def filters(case: Convolution) -> np.ndarray:
    return levels("int8", case.filters, case.shape[1] // case.attrs.groups, *case.kernel)


@pytest.mark.skipif(not host().is_x86, reason="x86 instructions")
@pytest.mark.parametrize("name", RUNNABLE)
def test_convolutions_are_exact(name: str) -> None:
    cases = [case for i, case in enumerate(CONVOLUTIONS) if i not in (3, 6)]  # enough of strides
    schemes = [SCHEMES[i % 4] for i in range(len(cases))]
    params = {f"a{i}": (case.shape, schemes[i][0]) for i, case in enumerate(cases)}

    def body(emit, unsigned, signed, *images):
        zeros = [zero_point({"uint8": unsigned, "int8": signed}, scheme) for scheme in schemes]
        operands = zip(images, zeros, cases, strict=True)
        return [emit(integer_conv2d(a, z, constant(filters(case)), case.attrs)) for a, z, case in operands]

    runner = Runner(function({"unsigned": ((), "uint8"), "signed": ((), "int8"), **params}, body), X86[name])
    assert runner.rules == {"cpu-convolution", "cpu-channel-words", "cpu-elementwise"}
    given = [levels(kind, *case.shape) for (kind, _, _), case in zip(schemes, cases, strict=True)]
    made = runner(np.array(200, np.uint8), np.array(-100, np.int8), *given)
    for a, (_, zero, _), case, got in zip(given, schemes, cases, made, strict=True):
        np.testing.assert_array_equal(got, convolved(case, a, zero, filters(case)))


@pytest.mark.parametrize("is_known", [True, False])
def test_images_of_a_symbolic_batch_share_a_zero_point(is_known: bool) -> None:
    batch, case, kind = tirx.Var("n", "int64"), CONVOLUTIONS[0], "uint8"

    def body(emit, a, zero):
        z = constant(np.array([9], kind)) if is_known else zero
        return emit(integer_conv2d(a, z, constant(filters(case)), case.attrs))

    runner = Runner(function({"a": ((batch, *case.shape[1:]), kind), "zero": ((1,), kind)}, body))
    for count in (1, 3):
        a = levels(kind, count, *case.shape[1:])
        np.testing.assert_array_equal(runner(a, np.array([9], kind))[0], convolved(case, a, 9, filters(case)))


def test_a_factor_made_before_a_padded_convolution() -> None:
    case = CONVOLUTIONS[0]
    w, scale = filters(case), np.linspace(0.5, 2, case.filters, dtype=np.float32).reshape(1, -1, 1, 1)

    def body(emit, a, zero, a_scale):
        factor = emit(relax.op.multiply(a_scale, constant(scale)))
        total = emit(relax.op.astype(emit(integer_conv2d(a, zero, constant(w), case.attrs)), "float32"))
        return emit(relax.op.multiply(total, factor))

    params = {"a": (case.shape, "int8"), "zero": ((), "int8"), "scale": ((), "float32")}
    runner = Runner(function(params, body))
    assert runner.rules == {"cpu-convolution", "cpu-channel-words", "cpu-elementwise"}
    a, zero, own = levels("int8", *case.shape), np.array(-9, np.int8), np.array(0.25, np.float32)
    wanted = convolved(case, a, -9, w).astype(np.float32) * (own * scale)
    np.testing.assert_array_equal(runner(a, zero, own)[0], wanted)


def test_levels_that_two_operators_read_are_laid_out_once() -> None:
    kind, case = "int8", CONVOLUTIONS[0]
    other = replace(case, filters=9, kernel=(1, 1), attrs=Conv2dAttrs())
    zero = constant(np.array(-5, kind))

    def body(emit, a, rows):
        made = [emit(integer_conv2d(a, zero, constant(filters(c)), c.attrs)) for c in (case, other)]
        return made + [emit(integer_matmul(rows, zero, constant(levels("int8", 6, n)))) for n in (16, 32)]

    runner = Runner(function({"a": (case.shape, kind), "rows": ((4, 6), kind)}, body))
    names = [call.kernel.rstrip("0123456789") for call in runner.lowered.calls]
    assert (names.count("channel_words"), names.count("level_rows")) == (1, 1)
    a, rows = levels(kind, *case.shape), levels(kind, 4, 6)
    *images, first, second = runner(a, rows)
    for c, got in zip((case, other), images, strict=True):
        np.testing.assert_array_equal(got, convolved(c, a, -5, filters(c)))
    for n, got in ((16, first), (32, second)):
        np.testing.assert_array_equal(got, product(rows, -5, levels("int8", 6, n)))


@pytest.mark.parametrize("features", [("dotprod", "neon"), ("dotprod", "i8mm", "neon"), ("neon",)])
def test_arm_compiles_both_kinds_of_levels(features: tuple[str, ...]) -> None:
    target = replace(ARM, cpu="neoverse-v1" if "i8mm" in features else "neoverse-n1", features=features)
    case, kinds = CONVOLUTIONS[0], ("uint8", "int8")

    def body(emit, *levels_):
        rows, images = levels_[:2], levels_[2:]
        zeros = [constant(np.array(7, kind)) for kind in kinds]
        made = [emit(integer_matmul(a, z, constant(levels("int8", 64, 64)))) for a, z in zip(rows, zeros, strict=True)]
        for a, z in zip(images, zeros, strict=True):
            made.append(emit(integer_conv2d(a, z, constant(filters(case)), case.attrs)))
        return made

    params = {f"rows_{kind}": ((16, 64), kind) for kind in kinds} | {f"a_{kind}": (case.shape, kind) for kind in kinds}
    code = assembly(function(params, body), target)
    wanted = "usdot" if "i8mm" in features else "sdot" if "dotprod" in features else "mla"
    assert code.count(wanted) >= 32


def test_operands_of_another_type_are_refused() -> None:
    w = constant(levels("int8", 8, 4))

    def typed(kind: str, zero: np.ndarray) -> None:
        a = relax.Var("a", relax.TensorType((2, 8), kind))
        relax.BlockBuilder().normalize(integer_matmul(a, constant(zero), w))

    # TVM hands the error on as one of its own.
    for kind, zero in (("int16", np.int16(0)), ("uint8", np.int8(0))):
        with pytest.raises(RuntimeError, match="takes bytes, their zero point and int8, not"):
            typed(kind, np.array(zero))
    with pytest.raises(RuntimeError, match="a zero point of one element"):
        typed("uint8", np.zeros(2, np.uint8))
