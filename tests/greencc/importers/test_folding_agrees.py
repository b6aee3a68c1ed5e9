"""An operator gives the same whether its inputs are constants (folded while importing) or come at run time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx_cases import Case, run

from greencc.importers.onnx import import_onnx

I32 = np.array([-7, -3, -1, 0, 5, 7, 8, -8], np.int32)
D32 = np.array([2, -2, 3, 5, -3, 7, -3, 3], np.int32)
F32 = np.array([-2.5, -1.5, -0.5, 0.0, 0.5, 1.5, 2.5, 3.7], np.float32)
U8 = np.array([1, 2, 4, 8, 128, 255, 7, 0], np.uint8)
GRID = np.arange(24, dtype=np.float32).reshape(2, 3, 4) - 11

CASES = [
    *(Case(f"{op} of integers", f"(int32[8] x, int32[8] z) => (int32 y) {{ y = {op}(x, z) }}", feeds={"x": I32, "z": D32})
      for op in ("Add", "Div", "Mod", "Mod<fmod=1>", "Max", "Min", "BitwiseXor")),
    *(Case(f"{op} of floats", f"(float[8] x) => (float y) {{ y = {op}(x) }}", feeds={"x": F32})
      for op in ("Round", "Sign", "Ceil", "Neg", "Erf", "Softplus", "HardSigmoid", "LeakyRelu", "Gelu", "Selu")),
    Case("to integers", "(float[8] x) => (int32 y) { y = Cast<to=6>(x) }", feeds={"x": F32}),
    Case("to booleans", "(float[8] x) => (bool y) { y = Cast<to=9>(x) }", feeds={"x": F32}),
    Case("shift", "(uint8[8] x, uint8[8] z) => (uint8 y) { y = BitShift<direction=\"LEFT\">(x, z) }",
         feeds={"x": U8, "z": (U8 % 8).astype(np.uint8)}),
    Case("power", "(float[8] x, int32[8] z) => (float y) { y = Pow(x, z) }", feeds={"x": F32, "z": np.abs(D32)}),
    Case("quantise", "(float[8] x, float s, uint8 z) => (uint8 y) { y = QuantizeLinear(x, s, z) }",
         feeds={"x": F32, "s": np.array(0.5, np.float32), "z": np.array(3, np.uint8)}),
    Case("gather", "(float[2,3,4] x, int64[2] z) => (float y) { y = Gather<axis=1>(x, z) }",
         feeds={"x": GRID, "z": np.array([-1, 0])}),
    Case("scatter", "(float[8] x, int64[2] i, float[2] u) => (float y) { y = ScatterElements<reduction=\"add\">(x, i, u) }",
         feeds={"x": F32, "i": np.array([-1, 7]), "u": F32[:2]}),
    Case("position", "(float[2,3,4] x) => (int64 y) { y = ArgMax<axis=2, select_last_index=1>(x) }",
         feeds={"x": np.abs(GRID)}),
    Case("sum", "(float[2,3,4] x) => (float y) { y = ReduceLogSumExp(x) }", feeds={"x": GRID}),
    Case("transpose", "(float[2,3,4] x) => (float y) { y = Transpose<perm=[2,0,1]>(x) }", feeds={"x": GRID}),
    Case("space to depth", "(float[1,1,4,4] x) => (float y) { y = SpaceToDepth<blocksize=2>(x) }",
         feeds={"x": np.arange(16, dtype=np.float32).reshape(1, 1, 4, 4)}),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_constant_and_run_time_inputs_agree(case: Case, tmp_path: Path) -> None:
    results = []
    for fold in (False, True):
        graph = case.graph()
        if fold:
            graph.initializer.extend(onnx.numpy_helper.from_array(case.feeds[i.name], i.name) for i in graph.input)
            del graph.input[:]
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
        path = tmp_path / f"{fold}.onnx"
        onnx.save(model, path)
        module = import_onnx(path).module
        results.append(run(module, [] if fold else list(case.feeds.values())))
    for at_run_time, folded in zip(*results, strict=True):
        assert at_run_time.dtype == folded.dtype
        assert at_run_time.shape == folded.shape
        np.testing.assert_allclose(at_run_time, folded, rtol=1e-6, atol=1e-6)
