"""The GPUs of this machine: which there are, whether one can run an artifact, how kernels get onto it."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from greencc.errors import ArtifactError, GreenccError, UserError
from greencc.runtime.library import Library

_TYPES = {"cpu": 1, "cuda": 2, "vulkan": 7}
"""DLDeviceType of DLPack, by kind."""
KINDS = tuple(_TYPES)
GPU_KINDS = ("vulkan", "cuda")


@dataclass(frozen=True)
class Device:
    """A device of this machine.

    Attributes:
        kind: cpu, cuda or vulkan.
        index: its number among those of the kind.
    """

    kind: str = "cpu"
    index: int = 0

    def __str__(self) -> str:
        return self.kind if self.kind == "cpu" else f"{self.kind}:{self.index}"

    @property
    def type(self) -> int:
        """DLDeviceType of DLPack."""
        return _TYPES[self.kind]

    @property
    def is_gpu(self) -> bool:
        """Whether tensors lie in memory of its own."""
        return self.kind != "cpu"


class Driver(Protocol):
    """What the runtime knows of a kind of GPU: `greencc.runtime.cuda`, `greencc.runtime.vulkan`."""

    def devices(self) -> list[dict[str, Any]]:
        """Those of this machine. Raises GreenccError where there is no driver, or no runtime for it."""

    def load_members(self, library: Library, members: Mapping[str, bytes]) -> Any:
        """A module of an artifact's kernels, given by name of the member."""

    def refusal(self, device: Mapping[str, Any], target: Mapping[str, object]) -> str | None:
        """Why a device can't run what was compiled for a target, or None."""

    def statistics(self, index: int) -> dict[str, int]:
        """Counters of a device since the process began; nothing where none are kept."""

    def times_kernels(self, device: int) -> bool:
        """Whether the device's own clock times kernels, with `profile` and `profile_results`."""

    def discard(self, index: int) -> None:
        """Forget the copies to the host that this thread has asked for and not waited for."""

    def profile(self, on: bool) -> None:
        """Time every kernel of the calling thread from now on, or stop."""

    def profile_results(self) -> list[dict[str, Any]]:
        """Times of the calling thread's kernels since the last call, in order: `kernel` and `milliseconds`."""

    def is_recording(self) -> bool:
        """Whether launches of this thread are being recorded, so that none runs and nobody may wait for them."""


def driver(kind: str) -> Driver:
    """The driver of a kind of GPU. It is loaded when it is asked for: most models run on a CPU."""
    return importlib.import_module(f"greencc.runtime.{kind}")


def parse_device(text: str, option: str = "--device") -> Device:
    """`cpu`, `vulkan`, `vulkan:1`, ... as a device.

    Raises:
        UserError: it is not written so.
    """
    kind, colon, number = text.partition(":")
    if kind not in _TYPES or (colon and (kind == "cpu" or not number.isdecimal())):
        raise UserError(f"{option} {text}: write {', '.join(_TYPES)}, or the number of a GPU behind it, as in vulkan:1")
    return Device(kind, int(number or 0))


def check_device(device: Device, target: Mapping[str, object], where: str) -> None:
    """Refuse a device that isn't there, or that can't run what was compiled for `target`.

    Args:
        device: the device.
        target: of the artifact's manifest.
        where: the artifact, for messages.

    Raises:
        UserError: there is no such device, no driver, or no runtime for it.
        ArtifactError: the artifact is for another kind of device.
    """
    if not device.is_gpu:
        return
    of_kind = driver(device.kind)
    found = of_kind.devices()
    if device.index >= len(found):
        count = f"this machine has {len(found)}, counted from 0" if found else "this machine has none"
        raise UserError(f"{device}: there is no such GPU; {count} (greencc devices lists them)")
    reason = of_kind.refusal(found[device.index], target)
    if reason is not None:
        raise ArtifactError(f"{where}: {reason}")


def has_device(target: Mapping[str, object]) -> bool:
    """Whether a GPU of this machine runs what was compiled for `target`."""
    try:
        check_device(Device(str(target["kind"])), target, "")
    except GreenccError:
        return False
    return True
