"""CUDA C++ to a cubin and PTX: by NVRTC from the package index, or by the nvcc that `GREENCC_NVCC` names."""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from greencc.caching import cache_folder
from greencc.errors import GreenccError, UserError
from greencc.runtime.cuda import packaged

NVCC_VARIABLE = "GREENCC_NVCC"
_INSTALL = "pip install 'greencc[cuda]'"
_ESSENTIAL = "cuda_fp16.h"
# Kernels use no more of the C++ library than this. The real headers are CCCL's: 20 MB that take a second to compile,
# and leave their constants in the cubin.
_STANDARD = {
    "cuda/std/cstdint": """
namespace cuda { namespace std {
using int8_t = signed char;
using int16_t = short;
using int32_t = int;
using int64_t = long long;
using uint8_t = unsigned char;
using uint16_t = unsigned short;
using uint32_t = unsigned int;
using uint64_t = unsigned long long;
} }
""",
    "cuda/std/type_traits": """
namespace cuda { namespace std {
template <class A, class B> struct is_same { enum { value = 0 }; };
template <class A> struct is_same<A, A> { enum { value = 1 }; };
template <class A, class B> constexpr bool is_same_v = is_same<A, B>::value;
template <bool B, class T = void> struct enable_if {};
template <class T> struct enable_if<true, T> { using type = T; };
template <bool B, class T, class F> struct conditional { using type = T; };
template <class T, class F> struct conditional<false, T, F> { using type = F; };
// The generated prelude names these, and nothing uses them.
template <class T> struct is_integral;
template <class T> struct is_signed;
template <class T> struct is_unsigned;
template <class T> struct is_floating_point;
} }
""",
    # NVRTC has what this would declare built in.
    "sm_61_intrinsics.h": "",
}


@dataclass(frozen=True)
class Binary:
    """Compiled CUDA C++."""

    cubin: bytes
    ptx: bytes


@dataclass(frozen=True)
class Compiler:
    """A compiler of CUDA C++.

    Attributes:
        identity: name and version: what the result depends on besides source and architecture.
        compile: source text and architecture (sm_80) to machine code.
    """

    identity: str
    compile: Callable[[str, str], Binary]


def find_compiler() -> Compiler:
    """The nvcc that the user names, otherwise NVRTC.

    Raises:
        UserError: neither is installed.
    """
    nvcc = os.environ.get(NVCC_VARIABLE)
    return _nvcc(nvcc) if nvcc else _nvrtc()


def _nvrtc() -> Compiler:
    try:
        # By name: the package has no types.
        nvrtc: Any = import_module("cuda.bindings.nvrtc")
        status, major, minor = nvrtc.nvrtcVersion()
    # What cuda-bindings raises where it finds no library differs between its versions.
    except (ImportError, RuntimeError, OSError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"--target cuda needs NVRTC, which isn't installed ({first}): {_INSTALL}") from error
    _check(nvrtc, status, "nvrtcVersion")

    def compile_source(source: str, arch: str) -> Binary:
        return _compile_nvrtc(nvrtc, source, arch, _headers(nvrtc, f"{major}.{minor}"))

    return Compiler(f"NVRTC {major}.{minor}", compile_source)


def _compile_nvrtc(nvrtc: Any, source: str, arch: str, headers: Path) -> Binary:
    texts = [text.encode() for text in _STANDARD.values()]
    names = [name.encode() for name in _STANDARD]
    status, program = nvrtc.nvrtcCreateProgram(source.encode(), b"kernels.cu", len(names), texts, names)
    _check(nvrtc, status, "nvrtcCreateProgram")
    try:
        # -w: TVM's code generator names values that it then doesn't use.
        options = [f"--gpu-architecture={arch}", "--std=c++17", "-w", f"-I{headers}", f"-I{headers / 'cccl'}"]
        (status,) = nvrtc.nvrtcCompileProgram(program, len(options), [option.encode() for option in options])
        if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            log = _read(nvrtc, program, "ProgramLog").decode("utf-8", "replace")
            raise GreenccError(_failure(f"NVRTC, {arch}", log))
        cubin, ptx = _read(nvrtc, program, "CUBIN"), _read(nvrtc, program, "PTX")
    finally:
        nvrtc.nvrtcDestroyProgram(program)
    return Binary(cubin, ptx.rstrip(b"\0"))


def _read(nvrtc: Any, program: Any, what: str) -> bytes:
    """One of a program's results: its size first, then its bytes."""
    status, size = getattr(nvrtc, f"nvrtcGet{what}Size")(program)
    _check(nvrtc, status, f"nvrtcGet{what}Size")
    data = bytearray(size)
    (status,) = getattr(nvrtc, f"nvrtcGet{what}")(program, data)
    _check(nvrtc, status, f"nvrtcGet{what}")
    return bytes(data)


def _check(nvrtc: Any, status: Any, call: str) -> None:
    if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise GreenccError(f"NVRTC: {call} failed: {getattr(status, 'name', status)}")


def _headers(nvrtc: Any, version: str) -> Path:
    """A folder with CUDA's headers of device code: NVRTC brings them along, otherwise those of an installed package.

    Raises:
        UserError: there are none.
    """
    try:
        found = _bundled_headers(nvrtc, cache_folder() / f"cuda-headers-{version}")
    except OSError:  # a cache that can't be used is none
        found = _bundled_headers(nvrtc, _process_folder() / f"cuda-headers-{version}")
    if found is not None:
        return found
    for folder in _header_folders():
        if (folder / _ESSENTIAL).is_file():
            return folder
    raise UserError(
        f"NVRTC {version} has no {_ESSENTIAL}, and no installed package has it: "
        "pip install 'nvidia-cuda-nvrtc>=13.3', or nvidia-cuda-runtime and nvidia-cuda-cccl of the same version"
    )


@functools.cache
def _process_folder() -> Path:
    """A folder that is gone when the process ends."""
    folder = Path(tempfile.mkdtemp(prefix="greencc-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _bundled_headers(nvrtc: Any, place: Path) -> Path | None:
    """`place`, into which the headers that NVRTC brings along have been unpacked; None where it brings none."""
    if (place / _ESSENTIAL).is_file():
        return place
    install = getattr(nvrtc, "nvrtcInstallBundledHeaders", None)
    if install is not None:
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place.parent) as unpacked:
            try:
                status, *_ = install(os.fsencode(unpacked), 0)
            except RuntimeError:  # cuda-bindings knows the function, the installed NVRTC doesn't
                status = None
            if status == nvrtc.nvrtcResult.NVRTC_SUCCESS:
                return _keep_headers(Path(unpacked), place)
    return None


def _keep_headers(source: Path, place: Path) -> Path:
    """Keep of the unpacked headers what kernels can include: a tenth of them. CCCL goes, but for `nv/target`."""
    with tempfile.TemporaryDirectory(dir=place.parent) as folder:
        draft = Path(folder) / "headers"
        draft.mkdir()
        for part in ("crt", "cccl/nv"):
            if (source / part).is_dir():
                shutil.copytree(source / part, draft / part)
        for file in (*source.glob("*.h"), *source.glob("*.hpp")):
            shutil.copy(file, draft)
        try:
            draft.rename(place)
        except OSError:  # another process was faster
            if not (place / _ESSENTIAL).is_file():
                raise
    return place


def _header_folders() -> list[Path]:
    """Where NVIDIA's packages put headers, and the toolkit's where the environment names one."""
    found = [file.parent for file in packaged(f"*/include/{_ESSENTIAL}")]
    toolkit = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    return [*found, Path(toolkit) / "include"] if toolkit else found


def _nvcc(program: str) -> Compiler:
    found = shutil.which(program)
    if found is None:
        raise UserError(f"{NVCC_VARIABLE}={program}: no such program")
    lines = _run([found, "--version"], "nvcc --version").strip().splitlines()

    def compile_source(source: str, arch: str) -> Binary:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "kernels.cu"
            path.write_text(source)
            results = []
            for kind in ("cubin", "ptx"):
                target = path.with_suffix(f".{kind}")
                command = [found, f"--{kind}", f"-arch={arch}", "-std=c++17", "-w", "-o", str(target), str(path)]
                _run(command, f"nvcc, {arch}")
                results.append(target.read_bytes())
        return Binary(*results)

    return Compiler(f"nvcc {lines[-1] if lines else ''}".strip(), compile_source)


def _run(command: list[str], what: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise GreenccError(_failure(what, done.stderr or done.stdout))
    return done.stdout


def _failure(what: str, log: str) -> str:
    """One line of a compiler's log: its first error."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower()]
    return f"{what}: generated code doesn't compile: {(errors or lines or ['no message'])[0][:300]}"
