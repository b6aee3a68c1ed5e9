"""Compiled code calls what an artifact's runtime holds, and nothing else: checked when it is built."""

from __future__ import annotations

import subprocess
import sys

import pytest
import tvm
from running import function, host
from tvm import relax, topi

from greencc.errors import GreenccError
from greencc.targets.lower import lower
from greencc.targets.runtime_functions import RUNTIME_FUNCTIONS


def test_the_small_runtime_holds_every_listed_function() -> None:
    code = "\n".join(
        [
            "import sys",
            "from greencc.runtime.library import load_library",
            "ffi = load_library().ffi",
            "print([n for n in sys.argv[1:] if ffi.get_global_func(n, allow_missing=True) is None])",
        ]
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *sorted(RUNTIME_FUNCTIONS)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_a_function_of_the_larger_runtime_is_refused_when_code_is_built() -> None:
    def body(emit, x):
        return [emit(relax.op.call_dps_packed("tvm.contrib.sort.sort", [x], x.ty))]

    module = lower(function({"x": ((3, 4), "float32")}, body), host()).module
    with pytest.raises(GreenccError, match=r"would call tvm\.contrib\.sort\.sort, which an artifact's runtime"):
        host().build(module)


def test_a_call_from_inside_a_kernel_is_refused() -> None:
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((3, 4), "float32"))
    with builder.function("main", [x]), tvm.target.Target("llvm"):
        builder.emit_func_output(builder.emit_te(topi.argsort, x))
    with pytest.raises(GreenccError, match=r"would call tvm\.contrib\.sort\.argsort, which"):
        host().build(builder.get())
