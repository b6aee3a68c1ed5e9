from __future__ import annotations

import numpy as np
import pytest
from onnx_cases import Case, check, refusal

X2 = "(float[N,3,H,W] x) => (float y)"
POOLS = [
    Case("max 1-D", "(float[N,3,W] x) => (float y) { y = MaxPool<kernel_shape=[3], strides=[2], pads=[1,0]>(x) }"),
    Case("max 2-D", X2 + "{ y = MaxPool<kernel_shape=[3,2], strides=[2,1], pads=[1,1,0,0]>(x) }"),
    Case("max 3-D", "(float[1,2,5,H,W] x) => (float y) { y = MaxPool<kernel_shape=[2,3,2], dilations=[1,2,1]>(x) }"),
    Case("max ceil", X2 + "{ y = MaxPool<kernel_shape=[2,2], strides=[2,2], ceil_mode=1>(x) }"),
    Case("max ceil, last window in the pad",
         "(float[1,1,4,5] x) => (float y) { y = MaxPool<kernel_shape=[2,2], strides=[3,3], pads=[0,0,1,1], ceil_mode=1>(x) }"),
    Case("max dilated", X2 + "{ y = MaxPool<kernel_shape=[2,3], dilations=[3,2], pads=[1,1,1,1]>(x) }"),
    Case("max same upper", X2 + "{ y = MaxPool<kernel_shape=[3,3], strides=[2,2], auto_pad=\"SAME_UPPER\">(x) }"),
    Case("max same lower", X2 + "{ y = MaxPool<kernel_shape=[3,3], strides=[2,2], auto_pad=\"SAME_LOWER\">(x) }"),
    Case("max uint8", "(uint8[1,2,5,5] x) => (uint8 y) { y = MaxPool<kernel_shape=[3,3], pads=[1,1,1,1]>(x) }"),
    Case("max int8", "(int8[1,2,5,5] x) => (int8 y) { y = MaxPool<kernel_shape=[3,3], pads=[1,1,1,1]>(x) }"),
    Case("max of minus infinity", "(float[1,1,4,4] x) => (float y) { y = MaxPool<kernel_shape=[2,2], pads=[1,1,0,0]>(x) }",
         feeds={"x": np.full((1, 1, 4, 4), -np.inf, np.float32)},
         expected=[np.full((1, 1, 4, 4), -np.inf, np.float32)]),  # ONNX Runtime gives the lowest finite number
    Case("max with positions", "(float[N,2,H,W] x) => (float y, int64 i) { y, i = MaxPool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(x) }"),
    Case("max with column-major positions", "(float[2,2,4,5] x) => (float y, int64 i) { y, i = MaxPool<kernel_shape=[2,2], storage_order=1>(x) }"),
    Case("max with positions of equals", "(float[1,1,4,4] x) => (float y, int64 i) { y, i = MaxPool<kernel_shape=[3,3], pads=[1,1,1,1]>(x) }",
         feeds={"x": np.ones((1, 1, 4, 4), np.float32)}),
    Case("mean 1-D", "(float[N,3,W] x) => (float y) { y = AveragePool<kernel_shape=[4], strides=[3], pads=[1,2]>(x) }"),
    Case("mean 2-D", X2 + "{ y = AveragePool<kernel_shape=[3,2], pads=[1,1,0,0]>(x) }"),
    Case("mean with padding", X2 + "{ y = AveragePool<kernel_shape=[3,2], pads=[1,1,0,0], count_include_pad=1>(x) }"),
    Case("mean 3-D", "(float[1,2,5,H,W] x) => (float y) { y = AveragePool<kernel_shape=[2,3,2], strides=[1,2,1]>(x) }"),
    Case("mean ceil", X2 + "{ y = AveragePool<kernel_shape=[2,2], strides=[2,2], ceil_mode=1>(x) }"),
    Case("mean ceil with padding",
         "(float[1,1,6,7] x) => (float y) { y = AveragePool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1], ceil_mode=1, count_include_pad=1>(x) }"),
    Case("mean dilated", "(float[1,2,8,8] x) => (float y) { y = AveragePool<kernel_shape=[2,3], dilations=[2,2], pads=[1,1,1,1]>(x) }"),
    Case("mean same upper", X2 + "{ y = AveragePool<kernel_shape=[3,3], strides=[2,2], auto_pad=\"SAME_UPPER\">(x) }"),
    Case("Lp 2", "(float[N,3,H,W] x) => (float y) { y = LpPool<kernel_shape=[2,2], pads=[1,0,0,1]>(x) }"),
    Case("Lp 3", "(float[N,3,W] x) => (float y) { y = LpPool<kernel_shape=[3], p=3, strides=[2]>(x) }"),
    Case("Lp 1", "(float[N,3,W] x) => (float y) { y = LpPool<kernel_shape=[3], p=1>(x) }"),
    Case("global max", "(float[N,3,H,W] x) => (float y) { y = GlobalMaxPool(x) }"),
    Case("global mean", "(float[N,3,H,W] x) => (float y) { y = GlobalAveragePool(x) }"),
    Case("global mean 1-D", "(float[N,3,S] x) => (float y) { y = GlobalAveragePool(x) }"),
    Case("global Lp", "(float[N,3,H,W] x) => (float y) { y = GlobalLpPool<p=2>(x) }"),
    Case("global Lp 3", "(float[N,3,4,5] x) => (float y) { y = GlobalLpPool<p=3>(x) }"),
    Case("unpool", "(float[1,1,2,2] x, int64[1,1,2,2] i) => (float y) { y = MaxUnpool<kernel_shape=[2,2], strides=[2,2]>(x, i) }",
         feeds={"i": np.array([[[[5, 7], [13, 15]]]])}),
]  # fmt: skip

REFUSED = [
    (Case("kernel", "(float[1,1,5,5] x) => (float y) { y = MaxPool<kernel_shape=[3]>(x) }"), "does not fit 2"),
    (Case("empty", "(float[1,1,2,2] x) => (float y) { y = MaxPool<kernel_shape=[3,3]>(x) }"), "larger than"),
    (Case("unpool open", "(float[N,1,2,2] x, int64[N,1,2,2] i) => (float y) { y = MaxUnpool<kernel_shape=[2,2]>(x, i) }"),
     "must be static"),
]  # fmt: skip


def test_pools_agree_with_onnx_runtime(tmp_path):
    check(POOLS, tmp_path, opset=19)


@pytest.mark.parametrize(("case", "reason"), REFUSED, ids=lambda value: getattr(value, "name", ""))
def test_what_does_not_fit_is_refused_with_a_reason(case, reason, tmp_path):
    assert reason in refusal(case, tmp_path, opset=19)
