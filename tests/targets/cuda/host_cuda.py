"""Runs generated CUDA C++ on the CPU: what a kernel computes is checked where there is no GPU."""

from __future__ import annotations

import ctypes
import re
import subprocess
from pathlib import Path

import numpy as np
import tvm
from device_kernels import device
from tvm import sym, tirx

from greencc.targets.cuda.compile import cuda_source
from greencc.targets.tir import rewrite

_HEADER = Path(__file__).with_name("host_cuda.h")
_START = 'extern "C" __global__'
_SIGNATURE = re.compile(rf"{_START} void __launch_bounds__\(\d+\) (\w+)\(([^)]*)\) \{{")


class HostKernel:
    """A function with a kernel, or one for each of several cases, which have one axis of blocks and one of threads.

    A size is given by its symbol's name.
    """

    def __init__(self, func: tirx.PrimFunc, folder: Path, arch: str = "sm_80") -> None:
        # Otherwise the host computes what several kernels have in common, and gives it to them.
        with tvm.transform.PassContext(config={"tirx.disable_cse_tir": True}):
            source = cuda_source(device(func, arch=arch), arch)
        self._cases = _cases(func.body)
        signatures = _SIGNATURE.findall(source)
        assert len(signatures) == len(self._cases)
        text = f'#include "{_HEADER}"\n{source[source.index(_START) :]}\n'
        self._parameters = []
        for number, (name, parameters) in enumerate(sorted(signatures)):
            declared = [part.replace("__restrict__", "") for part in parameters.split(",")]
            names = [part.split()[-1] for part in declared]
            self._parameters.append([part.removesuffix("_ptr") for part in names])
            text += (
                f'extern "C" void run{number}(long groups, int threads, {", ".join(declared)}) {{\n'
                f"  launch(groups, threads, [=] {{ {name}({', '.join(names)}); }});\n}}\n"
            )
        file = folder / "kernel.cpp"
        file.write_text(text)
        library = file.with_suffix(".so")
        # -fno-strict-aliasing: generated code reads vectors where scalars were written, as CUDA's compilers allow.
        options = ["-std=c++20", "-O1", "-fno-strict-aliasing", "-shared", "-fPIC", "-pthread"]
        subprocess.run(["g++", *options, "-o", str(library), str(file)], check=True)
        self._library = ctypes.CDLL(str(library))

    def __call__(self, **arguments: np.ndarray | int) -> None:
        """Run on arrays, the result among them."""
        sizes = {name: tirx.IntImm("int64", value) for name, value in arguments.items() if isinstance(value, int)}

        def value_of(expr: tirx.Expr) -> int:
            known = rewrite(expr, lambda node: sizes.get(node.name) if isinstance(node, tirx.Var) else None)
            return int(sym.Analyzer().simplify(known))

        number, (_, groups, threads) = next(
            (i, case) for i, case in enumerate(self._cases) if case[0] is None or value_of(case[0])
        )
        values: list[object] = [ctypes.c_long(value_of(groups)), ctypes.c_int(value_of(threads))]
        for name in self._parameters[number]:
            value = arguments[name]
            is_array = isinstance(value, np.ndarray)
            values.append(value.ctypes.data_as(ctypes.c_void_p) if is_array else ctypes.c_int64(value))
        self._library[f"run{number}"](*values)


def _cases(stmt: tirx.Stmt) -> list[tuple[tirx.Expr | None, tirx.Expr, tirx.Expr]]:
    """Of each launch: when it is done (None: otherwise), how many blocks it has, and how many threads a block."""
    if isinstance(stmt, tirx.IfThenElse):
        return [(stmt.condition, *_cases(stmt.then_case)[0][1:]), *_cases(stmt.else_case)]
    extents = []
    while getattr(stmt, "attr_key", None) == "thread_extent":
        extents.append(stmt.value)
        stmt = stmt.body
    groups, threads = extents
    return [(None, groups, threads)]
