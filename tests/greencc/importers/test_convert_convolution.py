from __future__ import annotations

import numpy as np
import pytest
from onnx_cases import Case, check, refusal


def weights(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


W2 = {"w": weights(4, 3, 3, 3)}
X2 = "(float[N,3,H,W] x) => (float y)"

CONV = [
    Case("1-D", "(float[N,3,W] x) => (float y) { y = Conv<pads=[2,1], strides=[2]>(x, w, b) }",
         {"w": weights(4, 3, 4), "b": weights(4)}),
    Case("2-D", X2 + "{ y = Conv(x, w) }", W2),
    Case("3-D", "(float[1,2,5,H,W] x) => (float y) { y = Conv<pads=[1,0,1,0,1,2], dilations=[1,2,1]>(x, w) }",
         {"w": weights(4, 2, 2, 3, 2)}, atol=2e-5),
    Case("3-D groups", "(float[1,4,5,6,7] x) => (float y) { y = Conv<group=2>(x, w) }", {"w": weights(4, 2, 2, 2, 2)}),
    Case("1-D groups", "(float[1,4,9] x) => (float y) { y = Conv<group=4>(x, w) }", {"w": weights(8, 1, 3)}),
    Case("asymmetric pads", X2 + "{ y = Conv<pads=[0,1,2,3], strides=[2,1]>(x, w) }", W2),
    Case("dilations", X2 + "{ y = Conv<dilations=[2,3], pads=[1,1,1,1]>(x, w) }", W2),
    Case("groups", "(float[N,4,H,W] x) => (float y) { y = Conv<group=2, pads=[1,1,1,1]>(x, w, b) }",
         {"w": weights(6, 2, 3, 3), "b": weights(6)}),
    Case("depthwise", "(float[N,4,H,W] x) => (float y) { y = Conv<group=4, strides=[2,2]>(x, w) }",
         {"w": weights(4, 1, 3, 3)}),
    Case("same upper, symbolic", X2 + "{ y = Conv<auto_pad=\"SAME_UPPER\", strides=[2,3]>(x, w) }", W2),
    Case("same lower, symbolic", X2 + "{ y = Conv<auto_pad=\"SAME_LOWER\", strides=[2,2]>(x, w) }", W2),
    Case("same lower, stride 1", "(float[1,3,7,8] x) => (float y) { y = Conv<auto_pad=\"SAME_LOWER\">(x, w) }",
         {"w": weights(2, 3, 2, 4)}),
    Case("same upper, static", "(float[1,3,7,8] x) => (float y) { y = Conv<auto_pad=\"SAME_UPPER\", strides=[2,3]>(x, w) }",
         {"w": weights(2, 3, 2, 4)}),
    Case("same, stride above kernel", X2 + "{ y = Conv<auto_pad=\"SAME_UPPER\", strides=[3,4]>(x, w) }",
         {"w": weights(2, 3, 1, 2)}),
    Case("valid", X2 + "{ y = Conv<auto_pad=\"VALID\">(x, w) }", W2),
    Case("filter as input", "(float[1,3,5,5] x, float[2,3,3,3] w, float[2] b) => (float y) { y = Conv(x, w, b) }"),
]  # fmt: skip

T2 = "(float[N,3,H,W] x) => (float y)"
WT = {"w": weights(3, 4, 3, 3)}
TRANSPOSED = [
    Case("1-D", "(float[N,3,W] x) => (float y) { y = ConvTranspose<strides=[3], output_padding=[1]>(x, w, b) }",
         {"w": weights(3, 4, 2), "b": weights(4)}),
    Case("2-D", T2 + "{ y = ConvTranspose(x, w) }", WT),
    Case("3-D", "(float[1,2,3,4,5] x) => (float y) { y = ConvTranspose<strides=[2,1,2]>(x, w) }",
         {"w": weights(2, 3, 2, 3, 3)}),
    Case("strides and pads", T2 + "{ y = ConvTranspose<strides=[2,3], pads=[1,0,2,1]>(x, w) }", WT),
    Case("kernel equals stride", T2 + "{ y = ConvTranspose<strides=[2,2]>(x, w, b) }",
         {"w": weights(3, 4, 2, 2), "b": weights(4)}),
    Case("kernel equals stride, pads", T2 + "{ y = ConvTranspose<strides=[2,2], pads=[1,0,0,1], output_padding=[1,1]>(x, w) }",
         {"w": weights(3, 4, 2, 2)}),
    Case("dilations", T2 + "{ y = ConvTranspose<dilations=[2,2], strides=[2,1]>(x, w) }", WT),
    Case("groups", "(float[1,4,3,3] x) => (float y) { y = ConvTranspose<group=2, strides=[2,2]>(x, w) }",
         {"w": weights(4, 3, 3, 3)}),
    Case("output_shape", "(float[1,3,3,3] x) => (float y) { y = ConvTranspose<strides=[3,2], output_shape=[10,8], output_padding=[1,1]>(x, w) }", WT),
    Case("output_shape cuts", "(float[1,3,4,4] x) => (float y) { y = ConvTranspose<strides=[2,2], output_shape=[8,8]>(x, w) }", WT),
    Case("output_shape, upper", "(float[1,3,4,4] x) => (float y) { y = ConvTranspose<strides=[2,2], output_shape=[8,8], auto_pad=\"SAME_UPPER\">(x, w) }", WT),
    Case("same upper", T2 + "{ y = ConvTranspose<strides=[2,2], auto_pad=\"SAME_UPPER\">(x, w) }", WT),
    Case("same lower", T2 + "{ y = ConvTranspose<strides=[2,2], auto_pad=\"SAME_LOWER\">(x, w) }", WT),
]  # fmt: skip

REFUSED = [
    (Case("rank", "(float[1,2,3,3,3,3] x) => (float y) { y = Conv(x, w) }", {"w": weights(2, 2, 1, 1, 1, 1)}),
     "1 to 3 axes"),
    (Case("groups", "(float[1,4,5,5] x) => (float y) { y = Conv<group=3>(x, w) }", {"w": weights(6, 2, 3, 3)}),
     "do not fit the filter"),
    (Case("too large", "(float[1,3,2,5] x) => (float y) { y = Conv(x, w) }", W2), "larger than the padded input"),
    (Case("open filter", "(float[1,3,5,5] x, float[2,3,K,K] w) => (float y) { y = Conv(x, w) }"), "must be static"),
    (Case("kernel_shape", "(float[1,3,5,5] x) => (float y) { y = Conv<kernel_shape=[2,2]>(x, w) }", W2),
     "differs from the filter"),
    (Case("strides", "(float[1,3,5,5] x) => (float y) { y = Conv<strides=[0,1]>(x, w) }", W2), "positive numbers"),
    (Case("pads", "(float[1,3,5,5] x) => (float y) { y = Conv<pads=[-1,0,0,0]>(x, w) }", W2), "aren't negative"),
    (Case("auto_pad", "(float[1,3,5,5] x) => (float y) { y = Conv<auto_pad=\"X\">(x, w) }", W2), "is unknown"),
]  # fmt: skip


def test_conv_agrees_with_onnx_runtime(tmp_path):
    check(CONV, tmp_path, opset=17)


def test_conv_transpose_agrees_with_onnx_runtime(tmp_path):
    check(TRANSPOSED, tmp_path, opset=17)


@pytest.mark.parametrize(("case", "reason"), REFUSED, ids=lambda value: getattr(value, "name", ""))
def test_what_does_not_fit_is_refused_with_a_reason(case, reason, tmp_path):
    assert reason in refusal(case, tmp_path, opset=17)
