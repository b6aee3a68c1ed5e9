"""Launches of static models become graphs."""

from __future__ import annotations

import numpy as np
import tvm
from tvm import relax, tirx

from greencc.ir import INPUTS_ATTR, OUTPUTS_ATTR, bindings_of, constant
from greencc.targets.cpu.target import host_target
from greencc.targets.cuda.graphs import FUNCTIONS, capture_launches
from greencc.targets.library import build_library
from greencc.targets.lower import lower
from greencc.targets.packed_api import register_pipeline

RUN = "vm.builtin.cuda_graph.run_or_capture"


def layers(rows: object, *, branch: bool = False) -> tvm.IRModule:
    """Three layers softmax(x @ w) + mask, lowered for the CPU: what kernels hold doesn't matter here."""
    x, mask = (relax.Var(name, relax.TensorType((rows, 16), "float32")) for name in ("x", "mask"))
    builder = relax.BlockBuilder()
    with builder.function("main", [x, mask]):
        with builder.dataflow():
            value = x
            for seed in range(3):
                w = np.random.default_rng(seed).standard_normal((16, 16)).astype(np.float32)
                value = builder.emit(relax.op.nn.softmax(builder.emit(relax.op.matmul(value, constant(w)))))
                value = builder.emit(relax.op.add(value, mask))
            result = builder.emit_output(relax.Tuple([value]))
        builder.emit_func_output(result)
    module = builder.get()
    attrs = {INPUTS_ATTR: ["x", "mask"], OUTPUTS_ATTR: ["y"]}
    module.update_func(module.get_global_var("main"), module["main"].with_attrs(attrs))
    return lower(module, host_target(1)).module


def kernels(module: tvm.IRModule, name: str) -> list[str]:
    """Kernels that a function launches itself."""
    values = [binding.value for binding in bindings_of(module[name])]
    called = [value.op for value in values if isinstance(value, relax.Call) and isinstance(value.op, tvm.ir.GlobalVar)]
    return [gv.name_hint for gv in called if isinstance(module[gv], tirx.PrimFunc)]


def test_all_launches_but_those_that_write_outputs_are_in_one_graph() -> None:
    module = layers(8)
    before = kernels(module, "main")
    captured = capture_launches(module)
    (graph,) = [gv.name_hint for gv in captured.get_global_vars() if "capture" in gv.name_hint]
    assert len(before) >= 6
    assert kernels(captured, graph) == before[:-1]
    assert kernels(captured, "main") == before[-1:]
    text = captured["main"].script()
    assert text.count(RUN) == 1
    # The arena is the VM's own: a recorded kernel finds it where it was.
    assert "R.memory.alloc_storage" not in text


def test_symbolic_sizes_are_launched_one_by_one() -> None:
    module = layers(tirx.Var("n", "int64"))
    assert capture_launches(module) is module


def test_rewritten_code_calls_what_the_cuda_runtime_has() -> None:
    target = host_target(1)
    pipeline = register_pipeline("greencc-cpu", target.alignment)
    code = build_library(capture_launches(layers(8)), target.llvm_target(), pipeline, target.triple, FUNCTIONS)
    assert RUN.encode() in code
