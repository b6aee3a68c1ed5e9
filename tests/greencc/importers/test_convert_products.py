from __future__ import annotations

import numpy as np
import pytest
from onnx_cases import Case, check, refusal


def integers(dtype: type, *shape: int) -> np.ndarray:
    info = np.iinfo(dtype)
    return np.random.default_rng(sum(shape)).integers(info.min, info.max, shape, endpoint=True).astype(dtype)


def floats(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def scalar(dtype: type, value: float) -> np.ndarray:
    return np.array(value, dtype)


EINSUM = [
    Case(equation, f"({', '.join(f'float[{shape}] x{i}' for i, shape in enumerate(shapes))}) => (float y)"
         f"{{ y = Einsum<equation=\"{equation}\">({', '.join(f'x{i}' for i in range(len(shapes)))}) }}", atol=2e-5)
    for equation, shapes in (
        ("ij,jk->ik", ("N,3", "3,4")),
        ("bhid,bhjd->bhij", ("N,2,S,4", "N,2,T,4")),
        ("bhij,bjhd->bihd", ("N,2,S,T", "N,T,2,4")),
        ("bij,bjk", ("N,3,4", "N,4,S")),
        ("abc,bcd->ad", ("N,3,4", "3,4,5")),
        ("abc,cde->abde", ("2,3,4", "4,2,3")),
        ("...ij,...jk->...ik", ("N,2,3,4", "N,2,4,5")),
        ("i,i->", ("S", "S")),
        ("ij->ji", ("N,3",)),
        ("ij->i", ("N,3",)),
        ("ii->i", ("4,4",)),
        ("ii", ("4,4",)),
        ("...ii->...i", ("N,4,4",)),
        ("i,j->ij", ("S", "T")),
        ("ij,ij->ij", ("N,3", "N,3")),
        ("ij,jk,kl->il", ("2,3", "3,4", "4,2")),
        ("ij,k->ik", ("2,3", "4")),
        ("...a,...b->...ab", ("N,3", "N,4")),
    )
]  # fmt: skip
I8, U8, I32 = np.int8, np.uint8, np.int32
INTEGER = [
    Case("plain", "(uint8[N,4] x) => (int32 y) { y = MatMulInteger(x, w) }", {"w": integers(I8, 4, 3)}),
    Case("zero points", "(uint8[N,S,4] x) => (int32 y) { y = MatMulInteger(x, w, a, b) }",
         {"w": integers(U8, 4, 3), "a": scalar(U8, 130), "b": scalar(U8, 99)}),
    Case("zero points per column", "(uint8[N,4] x) => (int32 y) { y = MatMulInteger(x, w, a, b) }",
         {"w": integers(I8, 4, 3), "a": scalar(U8, 7), "b": integers(I8, 3)}),
    Case("convolution", "(uint8[N,2,H,W] x) => (int32 y) { y = ConvInteger<pads=[1,1,0,1], strides=[2,1]>(x, w, a, b) }",
         {"w": integers(U8, 3, 2, 3, 3), "a": scalar(U8, 130), "b": scalar(U8, 120)}),
    Case("scaled product", "(uint8[N,4] x) => (uint8 y) { y = QLinearMatMul(x, sa, za, w, sb, zb, sy, zy) }",
         {"w": integers(U8, 4, 3), "sa": scalar(np.float32, 0.0066), "za": scalar(U8, 113), "sb": scalar(np.float32, 0.00705),
          "zb": scalar(U8, 114), "sy": scalar(np.float32, 0.0107), "zy": scalar(U8, 118)}),
    Case("scaled product per column", "(int8[N,4] x) => (int8 y) { y = QLinearMatMul(x, sa, za, w, sb, zb, sy, zy) }",
         {"w": integers(I8, 4, 3), "sa": scalar(np.float32, 0.01), "za": scalar(I8, 3), "sb": floats(0.02, 0.01, 0.03),
          "zb": np.zeros(3, I8), "sy": scalar(np.float32, 0.5), "zy": scalar(I8, -5)}),
    Case("scaled convolution", "(uint8[N,2,H,W] x) => (uint8 y) { y = QLinearConv<pads=[1,1,1,1]>(x, sa, za, w, sb, zb, sy, zy, b) }",
         {"w": integers(I8, 3, 2, 3, 3), "sa": scalar(np.float32, 0.01), "za": scalar(U8, 128), "sb": floats(0.02, 0.01, 0.03),
          "zb": np.zeros(3, I8), "sy": scalar(np.float32, 0.11), "zy": scalar(U8, 100), "b": integers(I32, 3) // 2**20}),
    Case("scaled depthwise convolution", "(uint8[N,3,H,W] x) => (uint8 y) { y = QLinearConv<group=3>(x, sa, za, w, sb, zb, sy, zy) }",
         {"w": integers(U8, 3, 1, 3, 3), "sa": scalar(np.float32, 0.01), "za": scalar(U8, 128), "sb": scalar(np.float32, 0.02),
          "zb": scalar(U8, 110), "sy": scalar(np.float32, 0.11), "zy": scalar(U8, 100)}),
    Case("dynamic quantisation", "(float[N,S] x) => (uint8 q, float s, uint8 z) { q, s, z = DynamicQuantizeLinear(x) }"),
    *(Case(f"dynamic quantisation of {name}", "(float[4] x) => (uint8 q, float s, uint8 z) { q, s, z = DynamicQuantizeLinear(x) }",
           feeds={"x": floats(*values)})
      for name, values in (("zeros", (0, 0, 0, 0)), ("positives", (1, 2, 3, 4)), ("negatives", (-1, -2, -3, -7)))),
]  # fmt: skip
GEMM = [
    Case("rescaled", "(uint8[N,6] x) => (uint8 y) { y = com.microsoft.QGemm<alpha=0.5>(x, sa, za, w, sb, zb, c, sy, zy) }",
         {"w": integers(I8, 6, 4), "c": integers(I32, 4) // 2**20, "sa": scalar(np.float32, 0.1), "za": scalar(U8, 128),
          "sb": floats(0.02, 0.01, 0.03, 0.1), "zb": np.zeros(4, I8), "sy": scalar(np.float32, 0.7), "zy": scalar(U8, 100)}),
    Case("to floats", "(int8[N,6] x) => (float y) { y = com.microsoft.QGemm<transB=1>(x, sa, za, w, sb, zb, c) }",
         {"w": integers(I8, 4, 6), "c": integers(I32, 4) // 2**20, "sa": scalar(np.float32, 0.1), "za": scalar(I8, -3),
          "sb": scalar(np.float32, 0.02), "zb": scalar(I8, 2)}),
    Case("both transposed", "(int8[6,N] x) => (float y) { y = com.microsoft.QGemm<transA=1, transB=1>(x, sa, za, w, sb, zb) }",
         {"w": integers(I8, 4, 6), "sa": scalar(np.float32, 0.1), "za": scalar(I8, -3), "sb": floats(0.02, 1, 2, 3),
          "zb": np.zeros(4, I8)}),
]  # fmt: skip
SAMPLING = [
    Case(f"{mode} {padding} {aligned}", f"(float[N,2,H,W] x, float[N,S,T,2] g) => (float y)"
         f"{{ y = GridSample<mode=\"{mode}\", padding_mode=\"{padding}\", align_corners={aligned}>(x, g) }}", atol=5e-5)
    for mode in ("linear", "nearest", "cubic")
    for padding in ("zeros", "border", "reflection")
    for aligned in (0, 1)
] + [
    Case("3-D", "(float[1,2,3,4,5] x, float[1,2,3,2,3] g) => (float y) { y = GridSample<padding_mode=\"border\">(x, g) }"),
]  # fmt: skip
DEFORMED = [
    Case("plain", "(float[1,2,6,6] x, float[1,18,4,4] o) => (float y) { y = DeformConv(x, w, o) }",
         {"w": floats(*range(54)).reshape(3, 2, 3, 3) / 54}, atol=5e-5),
    Case("groups, mask, bias", "(float[1,4,6,6] x, float[1,36,3,3] o, float[1,18,3,3] m) => (float y)"
         "{ y = DeformConv<group=2, offset_group=2, strides=[2,2], pads=[1,1,1,1]>(x, w, o, b, m) }",
         {"w": floats(*range(72)).reshape(4, 2, 3, 3) / 72, "b": floats(1, 2, 3, 4)}, atol=5e-5),
]  # fmt: skip
REFUSED = [
    (Case("letters", '(float[2,3] x) => (float y) { y = Einsum<equation="ij->ik">(x) }'), "not well formed"),
    (Case("rank", '(float[2,3] x) => (float y) { y = Einsum<equation="ijk->i">(x) }'), "does not fit"),
    (Case("operands", '(float[2,3] x) => (float y) { y = Einsum<equation="ij,jk->ik">(x) }'), "for 2 operands"),
    (Case("sizes", '(float[2,3] x, float[4,5] z) => (float y) { y = Einsum<equation="ij,jk->ik">(x, z) }'), "axis 'j'"),
    (Case("grid", "(float[1,1,4,4] x, float[1,2,2,3] g) => (float y) { y = GridSample(x, g) }"), "does not fit 2"),
]


@pytest.mark.parametrize("cases", [EINSUM, INTEGER], ids=["Einsum", "integer products"])
def test_products_agree_with_onnx_runtime(cases, tmp_path):
    check(cases, tmp_path, opset=14)


def test_quantized_gemms_agree_with_onnx_runtime(tmp_path):
    check(GEMM, tmp_path, opset=14, contrib=True)


@pytest.mark.parametrize("cases", [SAMPLING, DEFORMED], ids=["GridSample", "DeformConv"])
def test_sampling_agrees_with_onnx_runtime(cases, tmp_path):
    check(cases, tmp_path, opset=20)


@pytest.mark.parametrize(("case", "reason"), REFUSED, ids=lambda value: getattr(value, "name", ""))
def test_what_does_not_fit_is_refused_with_a_reason(case, reason, tmp_path):
    assert reason in refusal(case, tmp_path, opset=20)
