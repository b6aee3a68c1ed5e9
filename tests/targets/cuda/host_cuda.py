"""Runs generated CUDA C++ on the CPU: what a kernel computes is checked where there is no GPU."""

from __future__ import annotations

import ctypes
import re
import subprocess
from pathlib import Path

import numpy as np
from device_kernels import device
from tvm import sym, tirx

from greencc.targets.cuda.compile import cuda_source
from greencc.targets.tir import rewrite

_HEADER = Path(__file__).with_name("host_cuda.h")
_START = 'extern "C" __global__'
_SIGNATURE = re.compile(rf"{_START} void __launch_bounds__\(\d+\) (\w+)\(([^)]*)\) \{{")


class HostKernel:
    """A kernel with one axis of blocks and one of threads; a size is given by its symbol's name."""

    def __init__(self, func: tirx.PrimFunc, folder: Path, arch: str = "sm_80") -> None:
        source = cuda_source(device(func, arch=arch), arch)
        ((name, parameters),) = _SIGNATURE.findall(source)
        self.groups, threads = launch_extents(func)
        self.threads = int(threads)
        declared = [part.replace("__restrict__", "") for part in parameters.split(",")]
        names = [part.split()[-1] for part in declared]
        self.parameters = [part.removesuffix("_ptr") for part in names]
        text = (
            f'#include "{_HEADER}"\n{source[source.index(_START) :]}\n'
            f"{_START} void run(long groups, int threads, {', '.join(declared)}) {{\n"
            f"  launch(groups, threads, [=] {{ {name}({', '.join(names)}); }});\n}}\n"
        )
        file = folder / f"{name}.cpp"
        file.write_text(text.replace(f"{_START} void run", 'extern "C" void run'))
        library = file.with_suffix(".so")
        # -fno-strict-aliasing: generated code reads vectors where scalars were written, as CUDA's compilers allow.
        options = ["-std=c++20", "-O1", "-fno-strict-aliasing", "-shared", "-fPIC", "-pthread"]
        subprocess.run(["g++", *options, "-o", str(library), str(file)], check=True)
        self._run = ctypes.CDLL(str(library))["run"]

    def __call__(self, **arguments: np.ndarray | int) -> None:
        """Run on arrays, the result among them."""
        sizes = {name: tirx.IntImm("int64", value) for name, value in arguments.items() if isinstance(value, int)}
        groups = rewrite(self.groups, lambda node: sizes.get(node.name) if isinstance(node, tirx.Var) else None)
        values: list[object] = [ctypes.c_long(int(sym.Analyzer().simplify(groups))), ctypes.c_int(self.threads)]
        for name in self.parameters:
            value = arguments[name]
            is_array = isinstance(value, np.ndarray)
            values.append(value.ctypes.data_as(ctypes.c_void_p) if is_array else ctypes.c_int64(value))
        self._run(*values)


def launch_extents(func: tirx.PrimFunc) -> list[tirx.Expr]:
    """Extents of a kernel's launch: blocks, then threads."""
    found, node = [], func.body
    while getattr(node, "attr_key", None) == "thread_extent":
        found.append(node.value)
        node = node.body
    return found
