from __future__ import annotations

from pathlib import Path

import numpy as np
from onnx_cases import Case, check


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


TIES = np.array([[3, 1, 3, 0, 1], [2, 2, 2, 2, 2]], np.float32)

REDUCTIONS = [
    *(Case(f"{op} over a symbolic axis", f"(float[N,3,H] x) => (float y, float z) {{ y = {op}(x, a) z = {op}<keepdims=0>(x, b) }}",
           {"a": ints(-1), "b": ints(0, 2)}, rtol=1e-4)
      for op in ("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2",
                 "ReduceSumSquare", "ReduceLogSumExp")),
    Case("everything", "(float[N,3] x) => (float y) { y = ReduceSum<keepdims=0>(x) }"),
    Case("nothing", "(float[N,3] x) => (float y) { y = ReduceSum<noop_with_empty_axes=1>(x) }"),
    Case("integers", "(int32[N,5] x) => (int32 s, int32 m, int32 p) { s = ReduceSum(x, a) m = ReduceMax(x, a) p = ReduceProd(x, a) }",
         {"a": ints(1)}),
    Case("log sum exp without overflow", "(float[3] x) => (float y) { y = ReduceLogSumExp(x) }",
         feeds={"x": np.array([1000, 1001, 999], np.float32)}),
    *(Case(f"{op} {last}", f"(float[2,5] x) => (int64 y, int64 z) {{ y = {op}<axis=1, select_last_index={last}>(x) z = {op}<axis=0, keepdims=0, select_last_index={last}>(x) }}",
           feeds={"x": TIES}) for op in ("ArgMax", "ArgMin") for last in (0, 1)),
    Case("position in a symbolic axis", "(float[N,H] x) => (int64 y) { y = ArgMax<axis=-1>(x) }"),
    *(Case(f"running sum {exclusive}{reverse}", f"(float[N,H] x) => (float y) {{ y = CumSum<exclusive={exclusive}, reverse={reverse}>(x, a) }}",
           {"a": ints(1)[0]}) for exclusive in (0, 1) for reverse in (0, 1)),
    *(Case(f"top {largest} of ties", f"(float[2,5] x) => (float v, int64 i) {{ v, i = TopK<largest={largest}>(x, k) }}",
           {"k": ints(4)}, {"x": TIES}) for largest in (0, 1)),
    Case("top of an inner axis", "(float[3,17,2] x) => (float v, int64 i) { v, i = TopK<axis=1>(x, k) }", {"k": ints(17)}),
    Case("sort a symbolic axis", "(float[N,H] x) => (float v, int64 i) { s = Shape<start=1>(x) v, i = TopK(x, s) }"),
    Case("hardmax", "(float[2,5] x) => (float y) { y = Hardmax(x) }", feeds={"x": TIES}),
    Case("loop of fixed length",
         "(float[3] x) => (float y, float r) { n = Constant<value_int=3>() t = Constant<value=bool {1}>()"
         " y, r = Loop<body = b (int64 i, bool c, float[3] s) => (bool d, float[3] u, float[3] w)"
         " { d = Identity(c) u = Add(s, x) w = Mul(u, u) }>(n, t, x) }"),
]  # fmt: skip


def test_reductions_agree_with_onnxruntime(tmp_path: Path) -> None:
    check(REDUCTIONS, tmp_path, opset=18)


def test_scan_over_a_static_axis(tmp_path: Path) -> None:
    text = (
        "(float[2] s, float[4,2] x) => (float y, float r) { y, r = Scan<num_scan_inputs=1, scan_input_directions=[1],"
        " body = b (float[2] s, float[2] p) => (float[2] t, float[2] q) { t = Add(s, p) q = Mul(t, p) }>(s, x) }"
    )
    check([Case("scan", text)], tmp_path, opset=18)
