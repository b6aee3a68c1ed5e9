"""Compiles the Vulkan runtime library on the user's machine, against the TVM that is installed there."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

from greencc.errors import GreenccError, UserError
from greencc.runtime.features import logical_cpus
from greencc.runtime.vulkan import LIBRARY_NAME, cached_builds, installed_abi, sources_folder

_COMPILERS = ("c++", "g++", "clang++")
_FLAGS = ("-std=c++17", "-O2", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra")
_HEADER = "vulkan/vulkan.h"


def build_sidecar(progress: Callable[[str], None] | None = None, out: Path | None = None) -> Path:
    """Compile the sidecar, unless this compiler has built it already.

    Args:
        progress: told what is being done.
        out: file to write; None means the user's cache, where `greencc.runtime.vulkan.find_sidecar` looks.

    Returns:
        The library's file.

    Raises:
        UserError: a compiler or Vulkan's headers are missing, and the message says what to install; or the library
            can't be written where it is to lie.
        GreenccError: the sources don't compile, or TVM is not installed.
    """
    say = progress or (lambda message: None)
    compiler = _find_compiler()
    target = out or cached_builds() / _compiler_key(compiler) / LIBRARY_NAME
    try:
        if out is None and target.is_file():
            os.utime(target)  # the one that was asked for last is the one that is found
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = tempfile.TemporaryDirectory(prefix="build-", dir=target.parent)
    except OSError as error:
        raise UserError(f"the Vulkan runtime can't be written to {target.parent}: {error.strerror or error}") from error
    with draft as folder:
        _compile(compiler, target, Path(folder), say)
    return target


def _compile(compiler: Sequence[str], target: Path, folder: Path, say: Callable[[str], None]) -> None:
    """Compile the sidecar to `target`, by way of `folder`."""
    includes, libraries = _tvm_folders()
    tvm, tvm_ffi = installed_abi()
    # Headers of others: their warnings are not ours to mend.
    # Compilers to come will warn of more than today's, which must not keep users from building.
    strict = ["-Werror"] if os.environ.get("GREENCC_VULKAN_WERROR") == "1" else []
    flags = [*_FLAGS, *strict, *(flag for folder in includes for flag in ("-isystem", str(folder)))]
    flags += [f'-DGREENCC_TVM_VERSION="{tvm}"', f'-DGREENCC_TVM_FFI_VERSION="{tvm_ffi}"']
    _check_headers(compiler, flags)
    sources = sorted(sources_folder().glob("*.cc"))
    objects = [folder / f"{source.stem}.o" for source in sources]

    def compile_one(source: Path, made: Path) -> None:
        say(f"compiling the Vulkan runtime: {source.name}")
        _run([*compiler, *flags, "-c", str(source), "-o", str(made)], source.name)

    with ThreadPoolExecutor(logical_cpus()) as pool:
        list(pool.map(compile_one, sources, objects))
    say("linking the Vulkan runtime")
    whole = folder / LIBRARY_NAME
    search = [f"-L{library}" for library in libraries]
    link = ["-shared", "-o", str(whole), *map(str, objects), *search, "-ltvm_runtime", "-ltvm_ffi", "-lpthread"]
    _run([*compiler, *link, *(["-ldl"] if os.uname().sysname == "Linux" else [])], "linking")
    # Renamed when it is whole: another process finds a library that loads, or none.
    os.replace(whole, target)


def _find_compiler() -> list[str]:
    chosen = shlex.split(os.environ.get("CXX", ""))
    if chosen:
        if shutil.which(chosen[0]) is None:
            raise UserError(f"CXX names {chosen[0]!r}, which is not installed")
        return chosen
    for name in _COMPILERS:
        if shutil.which(name) is not None:
            return [name]
    raise UserError("there is no C++ compiler: install one (Debian and Ubuntu: apt install g++) or name it in CXX")


def _compiler_key(compiler: Sequence[str]) -> str:
    """A short name for this compiler in this version."""
    version = _run([*compiler, "--version"], "asking the compiler for its version")
    return hashlib.sha256(f"{shlex.join(compiler)}\n{version}".encode()).hexdigest()[:12]


def _tvm_folders() -> tuple[list[Path], list[Path]]:
    """Folders of headers and of libraries of TVM's two packages, found without importing them."""
    roots = []
    for package in ("tvm", "tvm_ffi"):
        spec = find_spec(package)
        places = list(spec.submodule_search_locations or ()) if spec is not None else []
        if not places:
            raise GreenccError(f"{package} is not installed: pip install apache-tvm==0.27.*")
        roots.append(Path(places[0]))
    return [root / "include" for root in roots], [root / "lib" for root in roots]


def _check_headers(compiler: Sequence[str], flags: Sequence[str]) -> None:
    command = [*compiler, *flags, "-x", "c++", "-fsyntax-only", "-"]
    probe = subprocess.run(command, input=f"#include <{_HEADER}>\n", capture_output=True, text=True, check=False)
    if probe.returncode != 0:
        raise UserError(
            f"the C++ compiler does not find Vulkan's headers ({_HEADER}): install them "
            "(Debian and Ubuntu: apt install libvulkan-dev; Fedora: vulkan-headers)"
        )


def _run(command: Sequence[str], what: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if re.search(r"\berror\b", line)] or [
            done.stderr.strip()[:300]
        ]
        raise GreenccError(f"the Vulkan runtime does not compile ({what}): {lines[0]}")
    return done.stdout
