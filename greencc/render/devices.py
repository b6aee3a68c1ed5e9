"""The devices of a machine, as people read them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType

from greencc.render.tables import facts, size

Result = Mapping[str, Any]


def device_list(result: Result) -> RenderableType:
    """The devices of this machine."""
    lists = {"cpu": _cpu, "cuda": _cuda, "vulkan": _vulkan}
    absent = [(kind, reason) for kind, reason in result["absent"].items()]
    blocks = [lists[device["kind"]](device) for device in result["devices"]] + ([absent] if absent else [])
    return Group(*(facts(block) for block in blocks))


def _cpu(device: Result) -> list[tuple[str, str]]:
    energy = device["energy"]
    reason = f" ({energy['reason']})" if energy["reason"] else ""
    return [
        (device["kind"], f"{device['name']} ({device['architecture']})"),
        ("features", " ".join(device["features"]) or "unknown"),
        (
            "cores",
            f"{device['physical_cores']} physical, {device['logical_cpus']} logical, usable by this process",
        ),
        ("threads", f"{device['threads']} by default"),
        ("energy", f"{energy['note']}{reason}"),
    ]


def _vulkan(device: Result) -> list[tuple[str, str]]:
    limits, features = device["limits"], device["features"]
    offered = [name for name, has in features.items() if has]
    lacked = {"float64": "tensors of float64", "int64": "tensors of int64", "storage8": "tensors of int8 and bool"}
    refused = [text for name, text in lacked.items() if not features[name]]
    refused.append(f"tensors above {size(limits['max_buffer_bytes'])}")
    if device["refusal"] is not None:
        refused = [f"everything: {device['refusal']}"]
    return [
        (f"vulkan:{device['index']}", f"{device['name']} (Vulkan {device['api_version']}, {device['type']})"),
        ("memory", f"{size(device['memory_bytes'])}{', shared with the host' if device['unified_memory'] else ''}"),
        (
            "workgroup",
            f"{limits['max_threads']} threads, {size(limits['shared_bytes'])} of shared memory, subgroups of "
            f"{device['subgroup']['size']}",
        ),
        ("features", " ".join(offered)),
        ("refuses", ", ".join(refused)),
    ]


def _cuda(device: Result) -> list[tuple[str, str]]:
    major, minor = divmod(device["capability"], 10)
    return [
        (f"cuda:{device['index']}", f"{device['name']} (compute capability {major}.{minor})"),
        ("memory", size(device["memory_bytes"])),
        ("processors", str(device["multiprocessors"])),
    ]
