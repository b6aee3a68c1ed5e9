"""Finds and loads the Vulkan runtime library (the "sidecar"), and calls what it adds to TVM's runtime.

TVM's wheels hold no Vulkan runtime. The sidecar is one, built on the user's machine against the TVM that is installed
there (`greencc devices --build-vulkan`), or shipped in a wheel that was built with GREENCC_BUILD_VULKAN=1. It opens
Vulkan's loader when it first needs it: machines without a GPU can load it.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import re
import sys
import threading
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Any

from greencc.caching import cache_folder
from greencc.errors import ArtifactError, GreenccError, UserError
from greencc.runtime.library import Library, load_library

KDL_VULKAN = 7
"""kDLVulkan of DLPack."""

LIBRARY_NAME = "libgreencc_vulkan.dylib" if sys.platform == "darwin" else "libgreencc_vulkan.so"
BUILD_COMMAND = "greencc devices --build-vulkan"

_ABI = re.compile(rb"greencc-vulkan-abi:tvm=([^;\0]*);tvm_ffi=([^;\0]*);\0")
_lock = threading.Lock()
_loaded: list[Path] = []


def sources_folder() -> Path:
    """Where the sidecar's C++ sources are installed."""
    return Path(__file__).resolve().parent.parent / "targets" / "vulkan" / "sidecar"


def bundle_folder() -> Path:
    """Where wheels that were built with GREENCC_BUILD_VULKAN=1 have the sidecar."""
    return Path(__file__).resolve().parent / "lib"


def installed_abi() -> tuple[str, str]:
    """Versions of apache-tvm and apache-tvm-ffi that are installed.

    Raises:
        GreenccError: one of them isn't.
    """
    try:
        return package_version("apache-tvm"), package_version("apache-tvm-ffi")
    except PackageNotFoundError as error:
        raise GreenccError(f"{error.name} is not installed: pip install apache-tvm==0.27.*") from error


def cached_builds() -> Path:
    """Folder of the sidecars that were built here from these sources, for the TVM that is installed.

    Each compiler's build has a folder of its own in it.
    """
    digest = hashlib.sha256()
    folder = sources_folder()
    for source in sorted(folder.glob("*.cc")) + sorted(folder.glob("*.h")):
        content = source.read_bytes()
        digest.update(f"{source.name} {len(content)}\n".encode() + content)
    digest.update("\n".join(installed_abi()).encode())
    return cache_folder() / "vulkan" / f"sidecar-{digest.hexdigest()[:20]}"


def find_sidecar() -> Path:
    """The sidecar's file: the one that GREENCC_VULKAN_LIB names, the bundled one, or the one that was built last.

    A bundled one that was made for another TVM than is installed gives way to one that was built here.

    Raises:
        UserError: there is none; the message names the command that builds one.
    """
    chosen = os.environ.get("GREENCC_VULKAN_LIB", "")
    if chosen:
        if not Path(chosen).is_file():
            raise UserError(f"GREENCC_VULKAN_LIB names {chosen}, which is no file")
        return Path(chosen)
    bundled = bundle_folder() / LIBRARY_NAME
    has_bundled = bundled.is_file()
    if has_bundled and _abi(bundled) == installed_abi():
        return bundled
    built = _last_build()
    if built is not None:
        return built
    if has_bundled:
        return bundled
    raise UserError(f"the Vulkan runtime is not built on this machine: run `{BUILD_COMMAND}`")


def _last_build() -> Path | None:
    """The cached build that was asked for last. One in a folder that this user can't read is none."""
    try:
        builds = {file.stat().st_mtime: file for file in cached_builds().glob(f"*/{LIBRARY_NAME}")}
    except OSError:
        return None
    return builds[max(builds)] if builds else None


def load_sidecar(library: Library | None = None) -> None:
    """Load the sidecar once per process, after TVM's runtime. Safe from several threads.

    Args:
        library: the loaded runtime; None loads it.

    Raises:
        UserError: there is no sidecar, or it was built for another TVM.
        GreenccError: it does not load.
    """
    if not _loaded:
        open_sidecar((library or load_library()).ffi)


def open_sidecar(ffi: Any) -> None:
    """`load_sidecar` where some other program has loaded TVM's runtime: nothing of that program's is set.

    Args:
        ffi: the `tvm_ffi` package.
    """
    with _lock:
        if _loaded:
            return
        path = find_sidecar()
        _check_abi(path)
        if ffi.get_global_func("device_api.vulkan", allow_missing=True) is None:
            try:
                ctypes.CDLL(str(path))
            except OSError as error:
                raise GreenccError(f"the Vulkan runtime {path} does not load: {error}") from error
        _loaded.append(path)


def is_loaded() -> bool:
    """Whether this process has loaded the sidecar."""
    return bool(_loaded)


def devices() -> list[dict[str, Any]]:
    """The machine's Vulkan devices with their limits and features, `vulkan:0` first.

    "refusal" says why nothing can run on a device, and is None where kernels can. "matrices" are the products that it
    computes in hardware, in the numbers of VkComponentTypeKHR and VkScopeKHR.

    Raises:
        UserError: no sidecar, or no Vulkan loader on this machine.
    """
    found: list[dict[str, Any]] = json.loads(_call("devices"))
    return found


def refusal(device: Mapping[str, Any], target: Mapping[str, object]) -> str | None:
    """Why a device can't run what was compiled for a target, or None.

    Only what concerns every kernel: what one kernel needs and the device lacks is said when that kernel is loaded, so
    that a model that was compiled on a larger device, but does not use what it has, runs.

    Args:
        device: one of `devices`.
        target: the artifact's target, with the capabilities that it was compiled for under "gpu".
    """
    if device["refusal"] is not None:
        return f"{device['name']} can't be used: {device['refusal']}"
    gpu = target.get("gpu")
    needs = gpu if isinstance(gpu, Mapping) else {}
    alignment, has = needs.get("alignment"), device["limits"]["storage_alignment"]
    if isinstance(alignment, int) and alignment % has:
        return (
            f"its tensors begin at multiples of {alignment} bytes; {device['name']} reads from multiples of {has}: "
            "compile it for this device"
        )
    return None


def load_members(library: Library, members: Mapping[str, bytes]) -> Any:
    """The kernels among an artifact's members as a module, to be imported into the one of its machine code.

    Raises:
        ArtifactError: a member is damaged, or of another version.
        UserError: there is no sidecar, or it was built for another TVM.
    """
    return load_kernels(library, members["kernels.json"], members["kernels.spv"])


def load_kernels(library: Library, table: bytes, spirv: bytes) -> Any:
    """The kernels of an artifact as a module, to be imported into the artifact's library.

    Args:
        library: the loaded runtime.
        table: contents of kernels.json.
        spirv: contents of kernels.spv.

    Raises:
        ArtifactError: the table or the code is damaged, or of another version.
        UserError: there is no sidecar, or it was built for another TVM.
    """
    load_sidecar(library)
    try:
        text = table.decode()
    except UnicodeDecodeError as error:
        raise ArtifactError(f"kernels.json is damaged: {error}") from error
    try:
        return library.function("greencc.vulkan.module")(text, spirv)
    except (ValueError, RuntimeError, TypeError) as error:
        raise ArtifactError(_first_line(error)) from error


def statistics(device: int = 0) -> dict[str, int]:
    """What the device has done since the last `reset_statistics`: submits, waits, dispatches, barriers, transfers.

    Raises:
        UserError: no such device.
    """
    counters: dict[str, int] = json.loads(_call("statistics", device))
    return counters


def is_recording() -> bool:
    """Whether launches are recorded to be run later: never, for what can be told from outside."""
    return False


def discard(device: int = 0) -> None:
    """Forget the copies to the host that this thread asked for and has not waited for, whose memory is to be freed.

    For a caller that fails between the two: otherwise they would be made by whoever waits next.
    """
    if is_loaded():
        _call("discard", device)


def reset_statistics(device: int = 0) -> None:
    """Set the counters of `statistics` to 0, its peak to what is allocated now."""
    _call("reset_statistics", device)


def times_kernels(device: int) -> bool:
    """Whether a device's own clock times kernels: some have none.

    Raises:
        UserError: no such device.
    """
    found = devices()
    if not 0 <= device < len(found):
        raise UserError(f"vulkan:{device}: this machine has {len(found)} Vulkan device(s), counted from 0")
    return bool(found[device]["features"]["timestamps"])


def profile(on: bool) -> None:
    """Time every kernel of this thread from now on, or stop. Its kernels then run one by one."""
    _call("profile", on)


def profile_results() -> list[dict[str, Any]]:
    """Times of this thread's kernels since the last call, in order: "kernel" and "milliseconds"."""
    times: list[dict[str, Any]] = json.loads(_call("profile_results"))
    return times


def validation_messages() -> list[str]:
    """What the validation layer has said since the last call; it is on when GREENCC_VULKAN_VALIDATION is 1 or sync."""
    messages: list[str] = json.loads(_call("validation_messages"))
    return messages


def _call(name: str, *arguments: object) -> Any:
    library = load_library()
    load_sidecar(library)
    try:
        return library.function(f"greencc.vulkan.{name}")(*arguments)
    except RuntimeError as error:
        raise UserError(_first_line(error)) from error


def _abi(path: Path) -> tuple[str, str] | None:
    """Versions of TVM and tvm-ffi that a file was built for, read without loading it: it might not load, or crash."""
    found = _ABI.search(path.read_bytes())
    return None if found is None else (found[1].decode(errors="replace"), found[2].decode(errors="replace"))


def _check_abi(path: Path) -> None:
    built, installed = _abi(path), installed_abi()
    if built is None:
        raise UserError(f"{path} is no Vulkan runtime of greencc: run `{BUILD_COMMAND}`")
    if built != installed:
        raise UserError(
            f"the Vulkan runtime {path} was built for TVM {built[0]} and tvm-ffi {built[1]}, here are "
            f"{installed[0]} and {installed[1]}: run `{BUILD_COMMAND}`"
        )


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:500]
