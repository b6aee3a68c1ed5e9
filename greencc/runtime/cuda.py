"""CUDA at run time: which GPUs there are, TVM's CUDA runtime, and its module of an artifact's kernels.

Nothing of CUDA's toolkit is needed: the driver (`libcuda.so.1`) comes with the GPU, `libcudart` with the package
nvidia-cuda-runtime, which TVM's runtime is linked against.

A C++ program does the same: load `libtvm_runtime.so` and `libtvm_runtime_cuda.so`, make the bytes that `module_bytes`
describes, hand them to the registered function `ffi.Module.load_from_bytes.cuda`, and import the module that it
returns into the one of `code.so`.
"""

from __future__ import annotations

import ctypes
import json
import re
import struct
import sys
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from greencc.errors import ArtifactError, GreenccError, UserError
from greencc.runtime.library import Library

_DRIVER = "libcuda.so.1"
_CUDART = "libcudart.so.13"
_RUNTIME = "libtvm_runtime_cuda.so"
_INSTALL = "pip install 'greencc[cuda]'"
_LOADER = "ffi.Module.load_from_bytes.cuda"
# DLPack's type codes.
_TYPES = {
    "handle": (3, 64),
    "int64": (0, 64),
    "int32": (0, 32),
    "uint32": (1, 32),
    "float64": (2, 64),
    "float32": (2, 32),
}
_ARCH = re.compile(r"sm_(?P<capability>\d+)(?P<suffix>[af]?)")
# CUdevice_attribute.
_MULTIPROCESSORS, _MAJOR, _MINOR = 16, 75, 76

_lock = threading.Lock()
_loaded: list[ctypes.CDLL] = []


def devices() -> list[dict[str, Any]]:
    """The NVIDIA GPUs of this machine.

    Of each: `index` (its number, as in `cuda:1`), `name`, `capability` (ten times the compute capability: 90 for 9.0),
    `memory_bytes`, `multiprocessors`.

    Raises:
        UserError: there is no driver.
    """
    driver = _driver()
    count = ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return []
    return [_describe(driver, index) for index in range(count.value)]


def refusal(device: Mapping[str, Any], target: Mapping[str, object]) -> str | None:
    """Why a GPU can't run what was compiled for a target, or None.

    Machine code runs on GPUs of the same major compute capability and no lower minor one; with the suffix a, on its
    own capability alone.
    """
    match = _ARCH.fullmatch(str(target.get("arch")))
    if match is None:
        return f"compiled for the CUDA architecture {target.get('arch')!r}, which this greencc doesn't know"
    built, has = int(match["capability"]), int(device["capability"])
    fits = built == has if match["suffix"] == "a" else built // 10 == has // 10 and built <= has
    if fits:
        return None
    return f"compiled for {match[0]}; {device['name']} is sm_{has}: compile it with --target cuda:sm_{has}"


def _driver() -> ctypes.CDLL:
    try:
        return ctypes.CDLL(_DRIVER)
    except OSError as error:
        raise UserError(f"no NVIDIA driver on this machine ({_DRIVER} doesn't load): CUDA code can't run") from error


def _describe(driver: ctypes.CDLL, index: int) -> dict[str, Any]:
    device, memory, name = ctypes.c_int(), ctypes.c_size_t(), ctypes.create_string_buffer(256)
    _call(driver, "cuDeviceGet", ctypes.byref(device), index)
    _call(driver, "cuDeviceGetName", name, len(name), device)
    _call(driver, "cuDeviceTotalMem_v2", ctypes.byref(memory), device)

    def attribute(number: int) -> int:
        value = ctypes.c_int()
        _call(driver, "cuDeviceGetAttribute", ctypes.byref(value), number, device)
        return value.value

    return {
        "index": index,
        "name": name.value.decode("utf-8", "replace"),
        "capability": 10 * attribute(_MAJOR) + attribute(_MINOR),
        "memory_bytes": memory.value,
        "multiprocessors": attribute(_MULTIPROCESSORS),
    }


def _call(driver: ctypes.CDLL, function: str, *arguments: Any) -> None:
    status = driver[function](*arguments)
    if status:
        raise GreenccError(f"NVIDIA's driver: {function} failed with error {status}")


def load_runtime(library: Library) -> None:
    """Load the CUDA part of TVM's runtime. Once per process; safe from several threads.

    Raises:
        UserError: this machine has no NVIDIA driver, no GPU, or no CUDA runtime library.
        GreenccError: TVM's runtime doesn't load.
    """
    with _lock:
        if not _loaded:
            _loaded.append(_load(library))


def _load(library: Library) -> ctypes.CDLL:
    if not devices():
        raise UserError("NVIDIA's driver finds no GPU on this machine: CUDA code can't run")
    # The loader knows a library by its name, so this one serves TVM's, wherever it lies.
    if not _loads([Path(_CUDART), *packaged(f"*/lib/{_CUDART}")]):
        raise UserError(f"{_CUDART} is not installed: {_INSTALL}, or pip install nvidia-cuda-runtime")
    path = library.path.with_name(_RUNTIME)
    try:
        return ctypes.CDLL(str(path), ctypes.RTLD_GLOBAL)
    except OSError as error:
        raise GreenccError(f"TVM's CUDA runtime does not load: {error}") from error


def packaged(pattern: str) -> list[Path]:
    """Files of NVIDIA's packages: `pattern` is relative to the folder `nvidia` that they share."""
    folders = (Path(entry) / "nvidia" for entry in sys.path if entry)
    return [path for folder in folders if folder.is_dir() for path in sorted(folder.glob(pattern))]


def _loads(paths: Iterable[Path]) -> bool:
    for path in paths:
        try:
            ctypes.CDLL(str(path), ctypes.RTLD_GLOBAL)
        except OSError:
            continue
        return True
    return False


def load_members(library: Library, members: Mapping[str, bytes]) -> Any:
    """TVM's module of an artifact's kernels, to be imported into the module of its machine code.

    Args:
        library: TVM's runtime.
        members: the artifact's members by name.

    Raises:
        UserError: this machine can't run CUDA code.
        ArtifactError: a member isn't what it should be.
        GreenccError: TVM's CUDA runtime doesn't load.
    """
    data = module_bytes(read_table(members["kernels.json"]), members["kernels.cubin"])
    load_runtime(library)
    return library.function(_LOADER)(data)


def read_table(data: bytes) -> Mapping[str, tuple[list[str], list[str]]]:
    """Types of the arguments and tags of the launch extents by kernel, from the member kernels.json.

    Raises:
        ArtifactError: it isn't a table of this version.
    """
    try:
        table = json.loads(data)
    except ValueError as error:
        raise ArtifactError(f"kernels.json is damaged: {error}") from error
    functions = table.get("functions") if isinstance(table, dict) else None
    if not isinstance(functions, dict) or table.get("version") != 1:
        raise ArtifactError("kernels.json is not a table of CUDA kernels of version 1: compile the model again")
    found = {}
    for name, function in functions.items():
        arguments, launch = (_texts(function, key) for key in ("arguments", "launch"))
        if not arguments or not launch or not set(arguments) <= set(_TYPES):
            raise ArtifactError(f"kernels.json: kernel {name!r} is not described as a CUDA kernel: compile again")
        found[name] = (arguments, launch)
    return found


def _texts(function: object, key: str) -> list[str]:
    """A list of texts in a JSON object; nothing in it where there is none."""
    value = function.get(key) if isinstance(function, dict) else None
    return value if isinstance(value, list) and all(isinstance(item, str) for item in value) else []


def module_bytes(functions: Mapping[str, tuple[list[str], list[str]]], code: bytes, form: str = "cubin") -> bytes:
    """What TVM's CUDA module reads: format, functions, code.

    A count and a length are 64-bit integers in front of what they count; a type is code and bits (a byte each) and
    lanes (two bytes), as in DLPack. Of a function: name, types, tags, and one 32-bit integer per argument that is
    nonzero for tensor maps, which greencc has none of. All little-endian.
    """
    parts = [_text(form), _count(functions)]
    for name, (arguments, tags) in functions.items():
        parts += [_text(name), _text(name), _count(arguments)]
        parts += [struct.pack("<BBH", *_TYPES[dtype], 1) for dtype in arguments]
        parts += [_count(tags), *map(_text, tags), _count(arguments), bytes(4 * len(arguments))]
    return b"".join([*parts, _count(code), code])


def _count(items: Mapping[str, object] | list[str] | bytes) -> bytes:
    return struct.pack("<Q", len(items))


def _text(text: str) -> bytes:
    data = text.encode()
    return _count(data) + data


def statistics(device: int = 0) -> dict[str, int]:
    """Counters of a device: none are kept."""
    return {}


def times_kernels(device: int) -> bool:
    """Whether a device's own clock times kernels: TVM's runtime for CUDA offers no way to."""
    return False


def discard(device: int = 0) -> None:
    """Nothing: a copy to memory that isn't pinned is over when CUDA returns."""


def is_recording() -> bool:
    """Whether this thread's launches go into a CUDA graph just now, so that none of them runs.

    While they do, asking about the default stream is an error, which says so; it leaves the recording alone.
    """
    status = ctypes.c_int()
    return bool(_driver().cuStreamIsCapturing(None, ctypes.byref(status)) or status.value)
