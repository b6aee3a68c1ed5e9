"""What a Vulkan device can do, from what its driver says."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from greencc import UserError
from greencc.runtime import vulkan
from greencc.targets.gpu.capabilities import Capabilities, UnknownDeviceWarning
from greencc.targets.registry import make_target
from greencc.targets.vulkan.target import VulkanTarget, capabilities_of

DEVICE: dict[str, Any] = {
    "type": "discrete",
    "limits": {
        "max_threads": 1024,
        "shared_bytes": 49152,
        "storage_alignment": 16,
        "max_buffer_bytes": 1 << 32,
        "max_groups": [(1 << 31) - 1, 65535, 65535],
    },
    "features": {"float16": True, "int64": True, "float64": True, "dot4": True},
    "subgroup": {"size": 32, "minimum": 32, "maximum": 32, "can_be_fixed": False, "operations": ["shuffle_relative"]},
    "matrices": [
        {"m": 16, "n": 8, "k": 16, "a": 0, "b": 0, "c": 1, "result": 1, "scope": 3},
        {"m": 16, "n": 16, "k": 16, "a": 0, "b": 0, "c": 1, "result": 1, "scope": 3},
    ],
}


def changed(**fields: Any) -> dict[str, Any]:
    device = copy.deepcopy(DEVICE)
    for name, value in fields.items():
        device[name] = {**device[name], **value} if isinstance(value, dict) else value
    return device


def test_limits_and_features_become_capabilities() -> None:
    gpu = capabilities_of(DEVICE)
    assert (gpu.max_threads, gpu.shared_bytes, gpu.subgroup) == (1024, 49152, 32)
    assert gpu.has_tensor_cores
    assert not gpu.has_tensor_int8


@pytest.mark.parametrize(
    "subgroup",
    [
        {"minimum": 8, "maximum": 8},
        {"minimum": 8, "maximum": 32},
        {"minimum": 64, "maximum": 64},
        {"operations": ["basic"]},
    ],
)
def test_nothing_depends_on_subgroups_that_the_driver_chooses(subgroup: dict[str, Any]) -> None:
    gpu = capabilities_of(changed(subgroup=subgroup))
    assert gpu.subgroup is None
    assert not gpu.has_tensor_cores
    assert VulkanTarget(gpu).tvm_target().attrs["thread_warp_size"] == 1


def test_a_size_that_can_be_fixed_is() -> None:
    assert capabilities_of(changed(subgroup={"minimum": 8, "maximum": 64, "can_be_fixed": True})).subgroup == 32


def test_a_file_describes_a_device(tmp_path: Path) -> None:
    file = tmp_path / "phone.json"
    file.write_text(json.dumps({"kind": "vulkan", "gpu": {"max_threads": 128, "shared_bytes": 16384}}))
    target: Any = make_target(str(file))
    assert target.gpu == Capabilities(max_threads=128, shared_bytes=16384)
    assert not target.runs_here


@pytest.mark.parametrize(
    ("gpu", "reason"),
    [
        ({"max_thread": 1}, "unknown field 'max_thread'"),
        ({"max_threads": "many"}, 'max_threads of "gpu" must be like 256'),
        ({"has_dot4": 1}, 'has_dot4 of "gpu" must be like False'),
        ([], '"gpu" must be an object'),
        ({"max_threads": 1}, 'max_threads of "gpu" must be like 256, at least 64'),
        ({"shared_bytes": 0}, "at least 8192"),
        ({"subgroup": 7}, 'subgroup of "gpu" must be a power of two'),
    ],
)
def test_a_description_that_says_nothing_is_refused(tmp_path: Path, gpu: object, reason: str) -> None:
    file = tmp_path / "device.json"
    file.write_text(json.dumps({"kind": "vulkan", "gpu": gpu}))
    with pytest.raises(UserError, match=reason):
        make_target(str(file))


@pytest.mark.parametrize("text", ['{"kind": []}', '{"kind": "vulkan", "gqu": {}}', '{"kind": "cuda", "gpu": {}}', "[]"])
def test_what_is_no_description_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "device.json"
    file.write_text(text)
    with pytest.raises(UserError, match=r"--target .*device\.json: (expected an object|unknown field)"):
        make_target(str(file))


def test_without_a_device_code_is_for_what_most_have(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vulkan, "devices", list)
    with pytest.warns(UnknownDeviceWarning, match="no Vulkan device; compiling for what desktop GPUs have"):
        target: Any = make_target("vulkan")
    assert target == VulkanTarget(Capabilities())


@pytest.mark.vulkan
@pytest.mark.parametrize(
    ("text", "reason"),
    [("vulkan:x", "write the device's number"), ("vulkan:99", "counted from 0"), ("vulkan:", "unknown target")],
)
def test_a_device_is_named_by_its_number(text: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        make_target(text)


def test_threads_are_of_no_meaning() -> None:
    with pytest.raises(UserError, match="launched by one thread"):
        make_target("vulkan", 4)
