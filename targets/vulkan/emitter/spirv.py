"""GLSL to SPIR-V with the tools of the Khronos group: compiled, validated, optimised, and kept in the user's cache.

The tools come with `pip install 'greencc[vulkan]'`, or are found on PATH. What they make is kept under a hash of the
source, of the tools' versions and of their options, so that a kernel is compiled once on a machine.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import secrets
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from greencc.caching import cache_folder
from greencc.errors import GreenccError, UserError

_TARGET = "vulkan1.1"
# Subgroup operations and the like are validated under the rules of the same version.
_COMPILE = ("-V", "--target-env", _TARGET, "-S", "comp", "--quiet")
_VALIDATE = ("--target-env", _TARGET, "--scalar-block-layout")
_OPTIMISE = ("-O", f"--target-env={_TARGET}", "--strip-debug")
_TIMEOUT_S = 300
_MAGIC = b"\x03\x02\x23\x07"


@dataclass(frozen=True)
class Tools:
    """The programs, and the folder that their libraries are in if that isn't a usual one."""

    glslang: str
    validator: str
    optimiser: str
    libraries: str | None
    versions: str


def compile_all(sources: Mapping[str, str]) -> dict[str, bytes]:
    """SPIR-V by kernel name for GLSL by kernel name; the modules are valid and optimised.

    Raises:
        UserError: the tools aren't installed.
        GreenccError: a source doesn't compile or its module isn't valid: a fault of the emitter.
    """
    tools = find_tools()
    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        made = pool.map(lambda name: compile_one(name, sources[name], tools), sources)
        return dict(zip(sources, made, strict=True))


def compile_one(name: str, source: str, tools: Tools) -> bytes:
    """The valid SPIR-V module of one shader, from the cache if it is there."""
    key = hashlib.sha256("\0".join([tools.versions, *_COMPILE, *_VALIDATE, *_OPTIMISE, source]).encode()).hexdigest()
    cached = cache_folder() / "spirv" / key[:2] / f"{key}.spv"
    try:
        found = cached.read_bytes()
        if found[:4] == _MAGIC and len(found) % 4 == 0:
            return found
    except OSError:
        pass
    with tempfile.TemporaryDirectory(prefix="greencc-") as folder:
        text, raw, optimised = (str(Path(folder, file)) for file in ("kernel.comp", "raw.spv", "kernel.spv"))
        Path(text).write_text(source, encoding="utf-8")
        _run(tools, name, [tools.glslang, *_COMPILE, "-o", raw, text])
        _run(tools, name, [tools.optimiser, *_OPTIMISE, "-o", optimised, raw])
        _run(tools, name, [tools.validator, *_VALIDATE, optimised])
        module = Path(optimised).read_bytes()
    _keep(cached, module)
    return module


def _keep(cached: Path, module: bytes) -> None:
    """Keep a module; a cache that can't be written is none."""
    staged = cached.parent / f".{cached.name}.{secrets.token_hex(8)}.tmp"
    with contextlib.suppress(OSError):
        cached.parent.mkdir(parents=True, exist_ok=True)
        try:
            staged.write_bytes(module)
            staged.replace(cached)
        finally:
            staged.unlink(missing_ok=True)


def _run(tools: Tools, name: str, command: list[str]) -> None:
    done = _call(command, tools.libraries)
    if done.returncode != 0:
        tool = Path(command[0]).name
        lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        reason = next((line for line in lines if "error" in line.lower()), lines[0] if lines else "no message")
        raise GreenccError(f"vulkan: kernel '{name}': {tool} refuses it: {reason.strip()}")


def _call(command: list[str], libraries: str | None) -> subprocess.CompletedProcess[str]:
    environment = dict(os.environ)
    if libraries is not None:
        searched = environment.get("LD_LIBRARY_PATH")
        environment["LD_LIBRARY_PATH"] = f"{libraries}{os.pathsep}{searched}" if searched else libraries
    try:
        return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise GreenccError(f"{command[0]}: can't be run: {error}") from error


@functools.cache
def find_tools() -> Tools:
    """The tools that are installed beside greencc, or else those on PATH.

    Raises UserError, naming the command that installs them, when one is missing.
    """
    prefix = Path(sysconfig.get_path("purelib")) / "cmeel.prefix"
    found = []
    for names in (("glslang", "glslangValidator"), ("spirv-val",), ("spirv-opt",)):
        candidates = [str(prefix / "bin" / name) for name in names] + list(names)
        path = next((which for name in candidates if (which := shutil.which(name)) is not None), None)
        if path is None:
            raise UserError(f"the Vulkan target needs {names[0]}, which isn't installed: pip install 'greencc[vulkan]'")
        found.append(path)
    libraries = str(prefix / "lib") if any(path.startswith(str(prefix)) for path in found) else None
    versions = []
    for path in found:
        done = _call([path, "--version"], libraries)
        if done.returncode != 0:
            raise UserError(
                f"{path} doesn't start ({(done.stderr or done.stdout).strip().splitlines()[:1]}): "
                "pip install 'greencc[vulkan]'"
            )
        versions.append(done.stdout)
    glslang, validator, optimiser = found
    return Tools(glslang, validator, optimiser, libraries, "\n".join(versions))
