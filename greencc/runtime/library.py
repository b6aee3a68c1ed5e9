"""Loads TVM's runtime library, and only it: neither the compiler (260 MB) nor the `tvm` Python package.

Two settings of TVM's thread pool are made before it exists, unless the environment already makes them:

* `TVM_BIND_THREADS=0`: by default the pool pins its workers, and the thread that calls it, to the first
cores,
  whatever cores the process may use. A library must not move its caller's thread.
* `TVM_THREAD_POOL_SPIN_COUNT`: an idle worker spins before it sleeps, by default for 300,000 yields: about
  0.2 s of a core after every inference. 2,000 yields (about 1 ms) bridge the gaps between kernels and save
  the rest of that energy.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from greencc.errors import GreenccError

_FILE_NAMES = {"darwin": "libtvm_runtime.dylib", "win32": "tvm_runtime.dll"}
_ENVIRONMENT = {"TVM_BIND_THREADS": "0", "TVM_THREAD_POOL_SPIN_COUNT": "2000"}

_lock = threading.Lock()
_loaded: list[Library] = []


@dataclass(frozen=True)
class Library:
    """The loaded runtime.

    Attributes:
        ffi: the `tvm_ffi` package.
        path: the runtime library's file.
        handle: keeps it loaded.
    """

    ffi: Any
    path: Path
    handle: ctypes.CDLL

    def function(self, name: str) -> Any:
        """A function of the runtime's registry.

        Raises:
            GreenccError: the library has no such function.
        """
        found = self.ffi.get_global_func(name, allow_missing=True)
        if found is None:
            raise GreenccError(f"{self.path} has no function {name!r}: install a matching apache-tvm")
        return found


def load_library() -> Library:
    """Load the runtime once per process; later calls return the same one. Safe from several threads.

    Raises:
        GreenccError: tvm_ffi or the library is not installed, or does not load.
    """
    with _lock:
        if not _loaded:
            _loaded.append(_load())
        return _loaded[0]


def _load() -> Library:
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    path = _find_runtime()
    try:
        ffi = _import_ffi()
        handle = ctypes.CDLL(str(path), ctypes.RTLD_GLOBAL)
    except (ImportError, OSError) as error:
        raise GreenccError(f"TVM's runtime does not load: {error}") from error
    return Library(ffi, path, handle)


def _find_runtime() -> Path:
    """Where the apache-tvm wheel put its runtime library, found without importing `tvm`."""
    spec = find_spec("tvm")
    name = _FILE_NAMES.get(sys.platform, "libtvm_runtime.so")
    for folder in spec.submodule_search_locations or () if spec is not None else ():
        candidate = Path(folder) / "lib" / name
        if candidate.is_file():
            return candidate
    raise GreenccError(f"{name} is not installed: pip install apache-tvm==0.27.*")


def _import_ffi() -> ModuleType:
    """Import `tvm_ffi` without torch, which it would import first wherever it is installed.

    That costs seconds and hundreds of megabytes for an interoperability that greencc does not use. Where the
    program has imported torch already, nothing is held back.
    """
    if "torch" in sys.modules or "tvm_ffi" in sys.modules:
        import tvm_ffi

        return tvm_ffi  # type: ignore[no-any-return]
    hider = _TorchHider(threading.get_ident())
    sys.meta_path.insert(0, hider)
    try:
        import tvm_ffi
    finally:
        sys.meta_path.remove(hider)
    return tvm_ffi  # type: ignore[no-any-return]


@dataclass(frozen=True)
class _TorchHider(MetaPathFinder):
    """Makes `import torch` fail in one thread; other threads import it as ever."""

    thread: int

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        hidden = fullname.partition(".")[0] in ("torch", "torch_c_dlpack_ext")
        if hidden and threading.get_ident() == self.thread:
            raise ModuleNotFoundError(f"{fullname} is not needed by greencc", name=fullname)
        return None
