"""The runtime without a GPU: on a machine that has none, and on one whose driver only writes down what is asked."""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from pathlib import Path

import pytest
import tvm
from device_kernels import device, elementwise, lowered
from fake_cuda import FakeMachine
from tvm import tirx

from greencc.errors import ArtifactError, UserError
from greencc.runtime import cuda
from greencc.targets.cuda.compile import compile_kernels, cuda_source

GROW = elementwise("float32", lambda x: x + tirx.const(1, "float32"), "grow")


def has_driver() -> bool:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> FakeMachine:
    return FakeMachine(tmp_path_factory.mktemp("machine"))


@pytest.mark.skipif(has_driver(), reason="this machine has an NVIDIA driver")
def test_a_machine_without_driver_gets_one_line() -> None:
    with pytest.raises(UserError) as caught:
        cuda.devices()
    assert str(caught.value) == ("no NVIDIA driver on this machine (libcuda.so.1 doesn't load): CUDA code can't run")


def test_devices_are_described(machine: FakeMachine) -> None:
    printed = machine.run("import json; from greencc.runtime.cuda import devices; print(json.dumps(devices()))")
    fake = {"index": 0, "name": "Fake GPU", "capability": 86, "memory_bytes": 80 << 30, "multiprocessors": 84}
    assert json.loads(printed) == [fake]


def test_a_driver_without_gpu_gets_one_line(tmp_path: Path) -> None:
    code = """
from greencc.errors import UserError
from greencc.runtime.cuda import devices, load_runtime
from greencc.runtime.library import load_library
assert devices() == []
try:
    load_runtime(load_library())
except UserError as error:
    print(error)
"""
    printed = FakeMachine(tmp_path, devices=0).run(code)
    assert printed == "NVIDIA's driver finds no GPU on this machine: CUDA code can't run"


def test_the_bytes_of_a_module_are_what_tvm_writes(tmp_path: Path) -> None:
    # TVM's compiler writes its own module of the same kernels, with source instead of machine code, into a library.
    scale = elementwise("int64", lambda x: x * 3, "scale")
    host, kernels = lowered(GROW, scale)
    source = cuda_source(kernels, "sm_80")
    written = tvm.get_global_func("target.build.cuda")(kernels, tvm.target.Target({"kind": "cuda", "arch": "sm_80"}))
    library = tvm.get_global_func("target.build.llvm")(host, tvm.target.Target("llvm"))
    library.import_module(written)
    file = tmp_path / "library.so"
    library.export_library(str(file))
    assert str(written.inspect_source("cuda")) == source
    names = [str(func.attrs["global_symbol"]) for _, func in kernels.functions_items()]
    functions = {name: (["handle", "handle", "int64"], ["blockIdx.x", "threadIdx.x"]) for name in names}
    assert cuda.module_bytes(functions, source.encode(), "cuda") in file.read_bytes()


def test_kernels_are_launched_as_the_table_says(machine: FakeMachine, tmp_path: Path) -> None:
    members = compile_kernels(device(GROW), "sm_80")
    for name, data in members.items():
        (tmp_path / name).write_bytes(data)
    code = """
import sys
from pathlib import Path
from greencc.runtime.cuda import load_members
from greencc.runtime.library import load_library
members = {path.name: path.read_bytes() for path in Path(sys.argv[1]).glob("kernels.*")}
library = load_library()
module = load_members(library, members)
assert module.kind == "cuda"
module.get_function("grow_kernel")(None, None, 1000, 8, 128)
"""
    machine.run(code, tmp_path)
    assert machine.log[-2:] == ["load cubin", "launch grow_kernel grid=8,1,1 block=128,1,1"]


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        ("{", "kernels.json is damaged"),
        ("[]", "not a table of CUDA kernels of version 1"),
        ('{"version": 2, "functions": {}}', "not a table of CUDA kernels of version 1"),
        ('{"version": 1, "functions": {"f": {"arguments": ["float16"], "launch": ["blockIdx.x"]}}}', "kernel 'f'"),
        ('{"version": 1, "functions": {"f": {"arguments": ["handle"]}}}', "kernel 'f'"),
        ('{"version": 1, "functions": {"f": [1]}}', "kernel 'f'"),
    ],
)
def test_damaged_tables_are_refused(table: str, reason: str) -> None:
    with pytest.raises(ArtifactError, match=reason):
        cuda.read_table(table.encode())


@pytest.mark.parametrize(
    ("arch", "capability", "fits"),
    [
        ("sm_80", 80, True),
        ("sm_80", 86, True),
        ("sm_86", 80, False),
        ("sm_80", 90, False),
        ("sm_90a", 90, True),
        ("sm_100a", 103, False),
        ("sm_100f", 103, True),
    ],
)
def test_machine_code_runs_on_its_own_generation(arch: str, capability: int, fits: bool) -> None:
    reason = cuda.refusal({"name": "GPU", "capability": capability}, {"kind": "cuda", "arch": arch})
    assert (reason is None) is fits
    if reason is not None:
        assert f"compiled for {arch}; GPU is sm_{capability}" in reason


def test_the_runtime_imports_nothing_of_the_compiler() -> None:
    code = "import sys, greencc.runtime.cuda; print([m for m in sys.modules if m == 'tvm' or 'targets' in m])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
