"""Lowered device functions to the members of an artifact: TVM's CUDA C++, then NVRTC or nvcc.

Without a driver TVM keeps C++ source and says nothing; so greencc takes that source and compiles it itself. What comes
out is checked: an ELF file for the stated architecture that holds every kernel.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tvm
from tvm import ir, tirx

from greencc.caching import cache_folder
from greencc.errors import GreenccError
from greencc.targets.cuda.architectures import capability_of
from greencc.targets.cuda.elf import read_cubin
from greencc.targets.cuda.nvrtc import Binary, Compiler, find_compiler

_ARGUMENTS = ("handle", "int64", "int32", "uint32", "float64", "float32")
"""Types of arguments that TVM's CUDA runtime passes to a kernel."""
_FALLBACK = "TVM_COMPILE_FORCE_FALLBACK"
_IDENTIFIER = re.compile(r"[A-Za-z_]\w*", re.ASCII)
_UNFIT = re.compile(r"\W", re.ASCII)
_environment = threading.Lock()


def compile_kernels(module: tvm.IRModule, arch: str) -> dict[str, bytes]:
    """The members `kernels.json`, `kernels.cubin` and `kernels.ptx` of an artifact. The same bytes every time.

    Args:
        module: device functions, after TVM's pipeline for them (`finalize_device`).
        arch: GPU architecture, sm_75 to sm_121, with CUDA's suffix a or f where it has one.

    Raises:
        UserError: the architecture is unknown, or no compiler is installed.
        GreenccError: TVM's source doesn't compile, a kernel is missing from the result, or takes an argument that
            can't be passed.
    """
    capability = capability_of(arch)
    functions = _describe(module)
    compiler = find_compiler()
    binary = _cached(cuda_source(module, arch), arch, compiler, capability, frozenset(functions))
    table = {"version": 1, "arch": arch, "functions": functions}
    return {
        "kernels.json": json.dumps(table, sort_keys=True, separators=(",", ":")).encode(),
        "kernels.cubin": binary.cubin,
        "kernels.ptx": binary.ptx,
    }


def cuda_source(module: tvm.IRModule, arch: str) -> str:
    """CUDA C++ of device functions, in the order of their names."""
    ordered = dict(sorted((gv.name_hint, (gv, func)) for gv, func in module.functions_items()))
    module = tvm.IRModule({gv: func for gv, func in ordered.values()})
    target = tvm.target.Target({"kind": "cuda", "arch": arch})
    generate = tvm.get_global_func("target.build.cuda")
    with _source_only():
        return str(generate(_with_identifiers(module), target).inspect_source("cuda"))


def _with_identifiers(module: tvm.IRModule) -> tvm.IRModule:
    """Functions whose parameters have names of C++: a model's inputs may be called anything, and TVM prints that."""
    names = {param.name for _, func in module.functions_items() for param in func.params}
    taken = {name for name in names if _IDENTIFIER.fullmatch(name)}
    if taken == names:
        return module
    renamed: dict[str, str] = {}
    for name in sorted(names - taken):
        plain = f"p_{_UNFIT.sub('_', name)}"
        while plain in taken:
            plain += "_"
        taken.add(plain)
        renamed[name] = plain
    # A variable can't be given another name, so the module is written down and read again.
    graph = json.loads(tvm.ir.save_json(module))
    return tvm.ir.load_json(json.dumps(_replaced(graph, renamed)))


def _replaced(value: Any, texts: Mapping[str, str]) -> Any:
    """A JSON value in which some texts are others."""
    if isinstance(value, str):
        return texts.get(value, value)
    if isinstance(value, list):
        return [_replaced(item, texts) for item in value]
    if isinstance(value, dict):
        return {key: _replaced(item, texts) for key, item in value.items()}
    return value


@contextmanager
def _source_only() -> Iterator[None]:
    """Where TVM finds a GPU, it would compile the source at once, in its own way and for that GPU."""
    with _environment:
        before = os.environ.get(_FALLBACK)
        os.environ[_FALLBACK] = "1"
        try:
            yield
        finally:
            if before is None:
                del os.environ[_FALLBACK]
            else:
                os.environ[_FALLBACK] = before


def _describe(module: tvm.IRModule) -> dict[str, dict[str, list[str]]]:
    """How the host calls each kernel: the types of its arguments, and what the launch extents behind them mean."""
    found = {}
    for gv, func in module.functions_items():
        if not isinstance(func, tirx.PrimFunc):
            raise GreenccError(f"'{gv.name_hint}' is no device function")
        name = str(func.attrs["global_symbol"])
        arguments = ["handle" if isinstance(p.ty, ir.PointerType) else str(p.ty.dtype) for p in func.params]
        unknown = [dtype for dtype in arguments if dtype not in _ARGUMENTS]
        if unknown:
            raise GreenccError(f"kernel '{name}': a CUDA kernel can't be given an argument of type {unknown[0]}")
        launch = func.attrs.get("tirx.kernel_launch_params", [])
        found[name] = {"arguments": arguments, "launch": [str(tag) for tag in launch]}
    return found


def _cached(source: str, arch: str, compiler: Compiler, capability: int, kernels: frozenset[str]) -> Binary:
    """The compiled source, from the user's cache where it lies there already."""
    digest = hashlib.blake2b(digest_size=16)
    for part in (compiler.identity, arch, source):
        digest.update(f"{len(part)}:{part}".encode())
    place = cache_folder() / "cuda" / digest.hexdigest()
    try:
        binary = Binary(*((place / f"kernels.{kind}").read_bytes() for kind in ("cubin", "ptx")))
        _check(binary, arch, capability, kernels)
        return binary
    except (OSError, GreenccError):  # not there, or damaged: what follows replaces it
        pass
    binary = compiler.compile(source, arch)
    _check(binary, arch, capability, kernels)
    with contextlib.suppress(OSError):  # a cache that can't be written is none
        place.mkdir(parents=True, exist_ok=True)
        _replace(place / "kernels.ptx", binary.ptx)
        _replace(place / "kernels.cubin", binary.cubin)
    return binary


def _check(binary: Binary, arch: str, capability: int, kernels: frozenset[str]) -> None:
    try:
        cubin = read_cubin(binary.cubin)
    except GreenccError as error:
        raise GreenccError(f"kernels.cubin for {arch}: {error}") from error
    if cubin.capability != capability:
        raise GreenccError(f"kernels.cubin: compiled for {arch}, but holds code for sm_{cubin.capability}")
    missing = sorted(kernels - set(cubin.kernels))
    if missing:
        raise GreenccError(f"kernels.cubin for {arch}: kernel(s) missing: {', '.join(missing)}")


def _replace(path: Path, data: bytes) -> None:
    """Write a file at once: another process sees all of it or none."""
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as draft:
        draft.write(data)
    os.replace(draft.name, path)
