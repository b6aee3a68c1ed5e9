from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx_cases import Case, check, refusal

F32 = np.float32
EDGES = np.array([0.0, -0.0, 0.5, -0.5, 1.5, 2.5, -2.5, 3.7, -3.7, 1e-8, 88.0, -88.0, 1e4, -1e4], F32)
NOT_FINITE = np.array([np.nan, np.inf, -np.inf, 1.0, -1.0], F32)
SIGNED = np.array([-7, -3, -1, 0, 1, 3, 7, 8, -8, 100], np.int32)
DIVISORS = np.array([2, -2, 3, -3, 7, 2, -2, 3, -3, -7], np.int32)

ACTIVATIONS = [
    Case(f"{op} {position}", f"(float[14] x) => (float y) {{ y = {op}(x) }}", feeds={"x": EDGES}, rtol=1e-5, atol=1e-6)
    for position, op in enumerate((
        "Abs", "Ceil", "Floor", "Round", "Sign", "Neg", "Relu", "Sigmoid", "Tanh", "Erf", "Softplus", "Softsign",
        "Sin", "Cos", "Atan", "Asinh", "Elu<alpha=0.7>", "Selu", "Celu<alpha=1.3>", "LeakyRelu<alpha=0.2>",
        "ThresholdedRelu<alpha=0.6>", "HardSigmoid<alpha=0.3, beta=0.4>", "HardSwish", "Mish",
        "Shrink<lambd=1.0, bias=0.5>", "Gelu", "Gelu<approximate=\"tanh\">", "Clip",
    ))
]  # fmt: skip

OTHERS = [
    Case("symbolic broadcast", "(float[N,1,H] x, float[S,1] z) => (float y) { y = Add(x, z) }"),
    Case("inverse functions", "(float[5] x) => (float a, float b, float c) { a = Acos(x) b = Asin(x) c = Atanh(x) }",
         feeds={"x": np.array([-0.9, -0.1, 0.0, 0.3, 0.99], F32)}),
    Case("hyperbolic", "(float[5] x) => (float a, float b, float c) { a = Sinh(x) b = Cosh(x) c = Tan(x) }",
         feeds={"x": np.array([-1.2, -0.1, 0.0, 0.3, 1.4], F32)}),
    Case("exact half even", "(double[4] x) => (double y) { y = Round(x) }", feeds={"x": np.array([0.5, 1.5, -0.5, -2.5])}),
    Case("not finite", "(float[5] x) => (bool a, bool b, bool c) { a = IsNaN(x) b = IsInf(x) c = IsInf<detect_negative=0>(x) }",
         feeds={"x": NOT_FINITE}),
    Case("NaN in extremes", "(float[5] x, float[1] z) => (float a, float b) { a = Max(x, z) b = Min(z, x) }",
         feeds={"x": NOT_FINITE}),
    Case("integer quotient", "(int32[10] x, int32[10] z) => (int32 y) { y = Div(x, z) }",
         feeds={"x": SIGNED, "z": DIVISORS}),
    Case("remainder", "(int32[10] x, int32[10] z) => (int32 a, int32 b) { a = Mod(x, z) b = Mod<fmod=1>(x, z) }",
         feeds={"x": SIGNED, "z": DIVISORS}),
    Case("power of mixed types", "(float[4] x, int64[4] z) => (float y) { y = Pow(x, z) }",
         feeds={"x": np.array([2, -2, 0.5, 3], F32), "z": np.array([3, 3, -2, 0])}),
    Case("power of integers", "(int64[4] x, int64[4] z) => (int64 y) { y = Pow(x, z) }",
         feeds={"x": np.array([2, -3, 7, 0]), "z": np.array([40, 3, 1, 0])}),
    Case("square", "(float[N,S] x) => (float y) { two = Constant<value_float=2.0>() y = Pow(x, two) }"),
    Case("shifts", "(uint8[4] x, uint8[4] z) => (uint8 a, uint8 b) { a = BitShift<direction=\"LEFT\">(x, z) b = BitShift<direction=\"RIGHT\">(x, z) }",
         feeds={"x": np.array([1, 255, 16, 7], np.uint8), "z": np.array([7, 1, 3, 0], np.uint8)}),
    Case("signed shifts", "(int8[5] x, int8[5] z) => (int8 a, int8 b) { a = BitShift<direction=\"LEFT\">(x, z) b = BitShift<direction=\"RIGHT\">(x, z) }",
         feeds={"x": np.array([1, -128, -7, 7, -1], np.int8), "z": np.array([7, 1, 3, 9, 8], np.int8)},
         expected=[np.array([-128, 0, -56, 0, 0], np.int8), np.array([0, -64, -1, 0, -1], np.int8)]),
    Case("bits", "(int32[10] x, int32[10] z) => (int32 a, int32 b, int32 c, int32 d) { a = BitwiseAnd(x, z) b = BitwiseOr(x, z) c = BitwiseXor(x, z) d = BitwiseNot(x) }",
         feeds={"x": SIGNED, "z": DIVISORS}),
    Case("logic", "(bool[N,3] x, bool[3] z) => (bool a, bool b, bool c, bool d) { a = And(x, z) b = Or(x, z) c = Xor(x, z) d = Not(x) }"),
    Case("equality of booleans", "(bool[N,3] x, bool[3] z) => (bool y) { y = Equal(x, z) }"),
    Case("where", "(bool[N,1] c, float[3] x, float[N,3] z) => (float y) { y = Where(c, x, z) }"),
    Case("clip at run time", "(float[N,H] x, float l, float h) => (float y) { y = Clip(x, l, h) }",
         feeds={"l": np.array(-0.3, F32), "h": np.array(0.4, F32)}),
    Case("clip above only", "(float[N,H] x, float h) => (float y) { y = Clip(x, , h) }", feeds={"h": np.array(0.1, F32)}),
    Case("clip constant", "(float[N,H] x) => (float y) { l = Constant<value_float=-0.1>() y = Clip(x, l) }"),
    Case("clip integers", "(int64[5] x) => (int64 y) { l = Constant<value_int=1>() h = Constant<value_int=3>() y = Clip(x, l, h) }"),
    Case("slope per channel", "(float[N,3,H] x, float[3,1] s) => (float y) { y = PRelu(x, s) }"),
    Case("sum of three", "(float[N,3] x, float[3] z, float[1] w) => (float y, float m) { y = Sum(x, z, w) m = Mean(x, z, w) }"),
    Case("to booleans", "(float[5] x) => (bool y) { y = Cast<to=9>(x) }", feeds={"x": np.array([0, -0.0, 0.3, -2, np.nan], F32)}),
    Case("to integers", "(float[5] x) => (int32 y) { y = Cast<to=6>(x) }", feeds={"x": np.array([0.9, -0.9, 2.5, -2.5, 100], F32)}),
    Case("from booleans", "(bool[5] x) => (float y, int64 z) { y = Cast<to=1>(x) z = Cast<to=7>(x) }"),
    Case("to half and back", "(float[5] x) => (float y) { h = Cast<to=10>(x) y = Cast<to=1>(h) }"),
    Case("quantise", "(float[N,H] x, float s, uint8 z) => (uint8 q, float y) { q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z) }",
         feeds={"s": np.array(0.02, F32), "z": np.array(128, np.uint8)}),
    Case("quantise per channel", "(float[N,3,H] x, float[3] s, int8[3] z) => (int8 q, float y) { q = QuantizeLinear<axis=1>(x, s, z) y = DequantizeLinear<axis=1>(q, s, z) }",
         feeds={"s": np.array([0.02, 0.5, 0.1], F32), "z": np.array([3, -4, 0], np.int8)}),
]  # fmt: skip


def test_activations_agree_with_onnxruntime(tmp_path: Path) -> None:
    check(ACTIVATIONS, tmp_path, opset=22)


def test_arithmetic_agrees_with_onnxruntime(tmp_path: Path) -> None:
    check(OTHERS, tmp_path, opset=20)


def test_old_operator_sets(tmp_path: Path) -> None:
    cases = [
        Case("aligned by axis", "(float[2,3,4] x, float[3] z) => (float y) { y = Add<broadcast=1, axis=1>(x, z) }",
             feeds={"x": np.ones((2, 3, 4), F32), "z": np.arange(3, dtype=F32)},
             expected=[np.ones((2, 3, 4), F32) + np.arange(3, dtype=F32)[:, None]]),
        Case("clip by attributes", "(float[4] x) => (float y) { y = Clip<min=-0.5, max=0.25>(x) }",
             feeds={"x": np.array([-1, -0.2, 0.2, 1], F32)}, expected=[np.array([-0.5, -0.2, 0.2, 0.25], F32)]),
    ]  # fmt: skip
    check(cases, tmp_path, opset=6)


def test_division_by_zero_does_not_trap(tmp_path: Path) -> None:
    lowest = np.iinfo(np.int32).min
    case = Case("trap", "(int32[3] x, int32[3] z) => (int32 q, int32 r) { q = Div(x, z) r = Mod(x, z) }",
                feeds={"x": np.array([5, lowest, 7], np.int32), "z": np.array([0, -1, 0], np.int32)},
                expected=[np.array([0, lowest, 0], np.int32), np.zeros(3, np.int32)])  # fmt: skip
    check([case], tmp_path, opset=18)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("(float[3] x) => (string y) { y = Cast<to=8>(x) }", "element type string is not supported"),
        ("(float[3] x) => (float8e4m3fn y) { y = Cast<to=17>(x) }", "element type float8_e4m3fn is not supported"),
        ("(float[3] x) => (float y) { y = RandomNormalLike(x) }", "no converter"),
    ],
)
def test_what_is_refused(text: str, reason: str, tmp_path: Path) -> None:
    assert reason in refusal(Case("refused", text), tmp_path, opset=19)
