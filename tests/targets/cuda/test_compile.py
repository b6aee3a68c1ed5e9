"""Device functions to cubin and PTX, on a machine with neither GPU nor toolkit."""

import json

import pytest
from device_kernels import device, elementwise
from tvm import tirx

from greencc.targets.cuda.compile import compile_kernels
from greencc.targets.cuda.elf import read_cubin

ARCHS = ("sm_75", "sm_80", "sm_90", "sm_120")


@pytest.mark.parametrize("arch", ARCHS)
def test_a_cubin_for_the_architecture_with_every_kernel(arch: str) -> None:
    kernels = device(
        elementwise("float32", lambda x: tirx.exp(x) + 1, "grow"),
        elementwise("int64", lambda x: x * 3, "triple"),
        arch=arch,
    )
    members = compile_kernels(kernels, arch)
    assert set(members) == {"kernels.json", "kernels.cubin", "kernels.ptx"}
    cubin = read_cubin(members["kernels.cubin"])
    assert cubin.kernels == ("grow_kernel", "triple_kernel")
    assert cubin.capability == int(arch[3:])
    assert f".target {arch}\n".encode() in members["kernels.ptx"]
    functions = {
        name: {"arguments": ["handle", "handle", "int64"], "launch": ["blockIdx.x", "threadIdx.x"]}
        for name in cubin.kernels
    }
    assert json.loads(members["kernels.json"]) == {"version": 1, "arch": arch, "functions": functions}
