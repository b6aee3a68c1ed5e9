"""Worker of node_suite.py: reads case names on stdin, writes one JSON line per case on stdout."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import onnx

from benchmarks.node_cases import Case, bind_controls, load_cases

if TYPE_CHECKING:
    from greencc.targets.base import Target

# Runtime functions that need more than libtvm_runtime: an artifact that calls one would not run.
FOREIGN = ("tvm.contrib.", "relax.run.", "vm.builtin.call_py_func")


def run_greencc(case: Case) -> dict[str, Any]:
    """Import, compile and run one case with greencc."""
    from greencc.errors import UserError

    if not case.tensors:
        return {"status": "refused", "reason": "inputs or outputs that are no numeric tensors"}
    inputs = case.inputs()
    try:
        if any(0 in array.shape for array in inputs):  # to greencc, a declared size of 0 is an open dimension
            raise UserError("an input without elements")
        return _compile_and_run(case, case.folder / "model.onnx", inputs, [])
    except UserError as first:
        model = onnx.load(case.folder / "model.onnx", load_external_data=False)
        names = [info.name for info in model.graph.input]
        bound = bind_controls(model, inputs)
        if not bound:
            return {"status": "refused", "reason": _reason(first)}
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            path.write_bytes(model.SerializeToString())
            rest = [array for name, array in zip(names, inputs, strict=False) if name not in bound]
            try:
                return {**_compile_and_run(case, path, rest, bound), "folded": not rest}
            except UserError as second:
                return {"status": "refused", "reason": _reason(second), "bound": bound}


def _compile_and_run(case: Case, path: Path, inputs: list[np.ndarray], bound: list[str]) -> dict[str, Any]:
    """All that `greencc compile` and `greencc run` do, but for writing the artifact."""
    from greencc.pipeline import compile_model
    from greencc.targets.base import Code
    from greencc.verification import Library

    target = _target()
    compiled = compile_model(path, target=target).compiled
    foreign = [name for name in FOREIGN if name.encode() in compiled.library]
    if foreign:
        return {
            "status": "crash",
            "reason": f"calls {foreign[0]}*, which libtvm_runtime lacks",
            "bound": bound,
        }
    outputs = Library(Code(compiled.library, compiled.kernels), compiled.weights, target.place)(inputs)
    difference = compare(case, outputs) or _validation_message(target)
    return {"status": "wrong" if difference else "pass", "reason": difference, "bound": bound}


def _validation_message(target: Target) -> str:
    """What Vulkan's validation layer has to say, where it is switched on; empty if nothing."""
    if target.kind != "vulkan":
        return ""
    from greencc.runtime.vulkan import validation_messages

    return next(iter(validation_messages()), "")


@cache
def _target() -> Target:
    """What the worker's second argument names; a run on the CPU has one thread, as a worker is one of several."""
    from greencc.targets.registry import make_target

    name = sys.argv[2]
    return make_target(name, 1 if name == "cpu" else None)


def compare(case: Case, outputs: list[np.ndarray]) -> str:
    """What differs from the expected outputs, as the onnx package's runner judges; empty if nothing does."""
    expected = case.outputs()
    if len(outputs) != len(expected):
        return f"{len(outputs)} outputs, not {len(expected)}"
    for index, (got, want) in enumerate(zip(outputs, expected, strict=True)):
        if got.dtype != want.dtype:
            return f"output {index} is {got.dtype}, not {want.dtype}"
        if got.shape != want.shape:
            return f"output {index} has the shape {list(got.shape)}, not {list(want.shape)}"
        if want.dtype.kind in "biu":
            if not np.array_equal(got, want):
                return f"output {index}: {int(np.sum(got != want))} of {want.size} integers differ"
            continue
        rtol = case.rtol
        if want.dtype.name == "bfloat16":
            # Two units in the last place, as the onnx runner allows.
            rtol, got, want = 2**-6, got.astype(np.float32), want.astype(np.float32)
        if not np.allclose(got, want, rtol=rtol, atol=case.atol, equal_nan=True):
            with np.errstate(all="ignore"):
                worst = np.nanmax(np.abs(got.astype(np.float64) - want.astype(np.float64)))
            return f"output {index} differs by up to {worst:.3g}"
    return ""


def run_onnxruntime(case: Case) -> dict[str, Any]:
    """Run one case with ONNX Runtime's CPU provider, nothing bound."""
    import onnxruntime

    if not case.tensors:
        return {"status": "refused", "reason": "inputs or outputs that are no numeric tensors"}
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(case.folder / "model.onnx", options, providers=["CPUExecutionProvider"])
    feeds = {info.name: array for info, array in zip(session.get_inputs(), case.inputs(), strict=True)}
    difference = compare(case, [np.asarray(output) for output in session.run(None, feeds)])
    return {"status": "wrong" if difference else "pass", "reason": difference}


ENGINES: dict[str, Callable[[Case], dict[str, Any]]] = {
    "greencc": run_greencc,
    "onnxruntime": run_onnxruntime,
}


def _reason(error: Exception) -> str:
    nodes = getattr(error, "nodes", None)
    if nodes:
        return f"{nodes[0].op}: {nodes[0].reason}"
    return str(error).split(": ", 1)[-1]


def main() -> None:
    """Serve cases until stdin closes."""
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever libraries print must not reach the protocol
    warnings.simplefilter("ignore")
    cases = {case.name: case for case in load_cases()}
    engine = ENGINES[sys.argv[1]]
    for line in sys.stdin:
        case = cases[line.strip()]
        try:
            result = engine(case)
        except Exception as error:  # the boundary of the process: any error is this case's outcome
            text = str(error).strip().splitlines()
            result = {
                "status": "crash",
                "reason": f"{type(error).__name__}: {text[-1] if text else ''}"[:300],
            }
        channel.write(json.dumps({"name": case.name, **result}) + "\n")
        channel.flush()


if __name__ == "__main__":
    main()
