"""A Vulkan device as a target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import tvm

from greencc.errors import GreenccError, UserError
from greencc.runtime import vulkan
from greencc.targets.base import Code, Rule
from greencc.targets.gpu.build import build, host_description
from greencc.targets.gpu.capabilities import Capabilities, refuse_threads, warn_unknown
from greencc.targets.gpu.sizes import is_unbounded


@dataclass(frozen=True)
class VulkanTarget:
    """A GPU with a Vulkan driver to compile for.

    Attributes:
        gpu: what it can do.
        device: its number on this machine; None for one that is described.
    """

    gpu: Capabilities
    device: int | None = None

    @property
    def kind(self) -> str:
        """Name in the registry."""
        return "vulkan"

    @property
    def threads(self) -> int:
        """The one that launches."""
        return 1

    @property
    def runs_here(self) -> bool:
        """Whether it is a device of this machine."""
        return self.device is not None

    @property
    def place(self) -> str:
        """The device of this machine that it is."""
        return f"{self.kind}:{self.device or 0}"

    @property
    def alignment(self) -> int:
        """What the offset of a storage buffer must be a multiple of, at least 64."""
        return max(self.gpu.alignment, 64)

    def tvm_target(self) -> tvm.target.Target:
        """The same target for TVM."""
        gpu = self.gpu
        description = {
            "kind": self.kind,
            "max_num_threads": gpu.max_threads,
            "max_threads_per_block": gpu.max_threads,
            "max_shared_memory_per_block": gpu.shared_bytes,
            # With one thread in a warp TVM reduces through shared memory, which is right on every device.
            "thread_warp_size": gpu.subgroup or 1,
            "supports_float16": gpu.has_float16,
            "supports_float64": gpu.has_float64,
            "supports_int8": True,
            "supports_int16": True,
            "supports_int64": gpu.has_int64,
        }
        return tvm.target.Target(description, host=host_description())

    def describe(self) -> dict[str, object]:
        """What the manifest records."""
        triple = str(host_description()["mtriple"])
        return {"kind": self.kind, "triple": triple, "threads": self.threads, "gpu": asdict(self.gpu)}

    def legalize(self, module: tvm.IRModule) -> tvm.IRModule:
        """Lower every operator to PrimFuncs."""
        from greencc.targets.gpu.legalize import legalize

        return legalize(module, self)

    def rules(self) -> Sequence[Rule]:
        """Schedule rules, in order; the first that applies wins."""
        from greencc.targets.gpu.schedules import rules

        return rules(self)

    def build(self, module: tvm.IRModule) -> Code:
        """A library that launches kernels, and the kernels in SPIR-V."""
        from greencc.targets.vulkan.emitter import compile_kernels

        return build(module, self, lambda kernels: compile_kernels(kernels, self.gpu, is_unbounded(module)))


def local_target(device: str, threads: int | None) -> VulkanTarget:
    """A device of this machine; without a number the first one, or what every device can do where there is none.

    Raises:
        UserError: there is no device of that number, or nothing to find one with.
    """
    refuse_threads(threads)
    if device and not device.isdecimal():
        raise UserError(f"--target vulkan:{device}: write the device's number, as in vulkan:1")
    reason = "this machine has no Vulkan device"
    try:
        found = vulkan.devices()
    except GreenccError as error:
        if device:
            raise
        found, reason = [], str(error)
    if not device and not found:
        warn_unknown("vulkan", reason, "what desktop GPUs have")
        return VulkanTarget(Capabilities())
    index = int(device or 0)
    if index >= len(found):
        raise UserError(f"--target vulkan:{device}: this machine has {len(found)} Vulkan devices, counted from 0")
    refusal = found[index]["refusal"]
    if refusal is not None:
        raise UserError(f"--target vulkan:{index}: {found[index]['name']} can't run anything: {refusal}")
    return VulkanTarget(capabilities_of(found[index]), index)


def described_target(fields: Mapping[str, Any], where: str, threads: int | None) -> VulkanTarget:
    """The target that a JSON object describes: fields of Capabilities under "gpu", defaults for those it lacks.

    Raises:
        UserError: a field is unknown or has another type than its default.
    """
    refuse_threads(threads)
    unknown = sorted(fields.keys() - {"kind", "gpu"})
    if unknown:
        raise UserError(f"{where}: unknown field {unknown[0]!r}; known: kind, gpu")
    given = fields.get("gpu", {})
    known = Capabilities.__dataclass_fields__
    if not isinstance(given, Mapping):
        raise UserError(f'{where}: "gpu" must be an object of {", ".join(known)}')
    for name, value in given.items():
        if name not in known:
            raise UserError(f'{where}: unknown field {name!r} of "gpu"; known: {", ".join(known)}')
        default = known[name].default
        kinds = (int, type(None)) if default is None else (type(default),)
        least = _LEAST.get(name, 1)
        if type(value) not in kinds or (type(value) is int and value < least):
            at_least = "" if isinstance(default, bool) else f", at least {least}"
            raise UserError(f'{where}: {name} of "gpu" must be like {default!r}{at_least}, not {value!r}')
        if name in ("alignment", "subgroup") and value is not None and value & (value - 1):
            raise UserError(f'{where}: {name} of "gpu" must be a power of two, not {value!r}')
    return VulkanTarget(Capabilities(**given))


# Below these no kernel can be made.
_LEAST = {"max_threads": 64, "shared_bytes": 8 << 10, "max_buffer_bytes": 1 << 20, "max_groups": 1024}
# What code may rely on when it exchanges values between threads: of NVIDIA's and Apple's GPUs, and Intel's on request.
_SUBGROUP = 32
# Cooperative matrices that schedules use: sizes, VkComponentTypeKHR (0 float16, 1 float32, 3 int8, 5 int32), scope.
_MATRIX_FIELDS = ("m", "n", "k", "a", "b", "c", "result", "scope")
_FLOAT16_MATRIX = (16, 16, 16, 0, 0, 1, 1, 3)
_INT8_MATRIX = (16, 16, 16, 3, 3, 5, 5, 3)


def capabilities_of(device: Mapping[str, Any]) -> Capabilities:
    """What a device of `greencc.runtime.vulkan.devices` can do."""
    limits, features, subgroup = device["limits"], device["features"], device["subgroup"]
    fits = subgroup["minimum"] <= _SUBGROUP <= subgroup["maximum"] and "shuffle_relative" in subgroup["operations"]
    fixed = subgroup["can_be_fixed"] or subgroup["minimum"] == subgroup["maximum"]
    width = _SUBGROUP if fits and fixed else None
    matrices = {tuple(shape[name] for name in _MATRIX_FIELDS) for shape in device["matrices"]} if width else set()
    return Capabilities(
        max_threads=limits["max_threads"],
        shared_bytes=limits["shared_bytes"],
        subgroup=width,
        has_float16=features["float16"],
        has_int64=features["int64"],
        has_float64=features["float64"],
        has_dot4=features["dot4"],
        has_tensor_cores=_FLOAT16_MATRIX in matrices,
        has_tensor_int8=_INT8_MATRIX in matrices,
        alignment=limits["storage_alignment"],
        max_buffer_bytes=limits["max_buffer_bytes"],
        max_groups=limits["max_groups"][0],
        # Vulkan doesn't say how many cores a device has. A CPU's are few, and large tiles are worth more to them.
        cores=4 if device["type"] == "cpu" else Capabilities.cores,
    )
