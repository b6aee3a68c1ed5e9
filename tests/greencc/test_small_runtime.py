"""Every real model that tests compile, run by a process that holds TVM's two runtime libraries and nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from real_models import ENCODERS, OTHERS

PROGRAM = """
import json, sys
import greencc
from greencc import api
ran = [path for path in sys.argv[1:] if api.verify(path)["golden"] is not None]
with open("/proc/self/maps") as maps:
    libraries = sorted({line.split("/")[-1].strip() for line in maps if "libtvm" in line})
roots = {name.partition(".")[0] for name in sys.modules}
print(json.dumps([ran, libraries, sorted(roots & {"tvm", "onnx", "onnxruntime", "torch", "scipy"})]))
"""


@pytest.mark.slow
@pytest.mark.network
def test_every_model_computes_its_golden_outputs_with_the_small_runtime(
    compiled_path: Callable[..., Path],
) -> None:
    models = {**ENCODERS, **OTHERS}
    paths = [str(compiled_path(model.source(), **model.options)) for model in models.values()]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *paths], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    ran, libraries, heavy = json.loads(done.stdout)
    assert ran == paths
    # tvm_ffi brings its own test library along.
    assert set(libraries) - {"libtvm_ffi_testing.so"} == {"libtvm_ffi.so", "libtvm_runtime.so"}
    assert heavy == []
