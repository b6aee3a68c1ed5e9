"""What a device can't do is said with numbers, before the driver is asked."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Any

import pytest
from vulkan_rig import ADD, Rig, Shader, buffer, module, normal, scalar, table

from greencc.runtime import vulkan

pytestmark = pytest.mark.vulkan


def refuse(rig: Rig, shader: Shader, message: str) -> None:
    good = rig.upload(normal(64))
    given = [good if each["kind"] == "buffer" else 64 for each in shader.parameters]
    with pytest.raises(RuntimeError, match=message) as caught:
        module(add=shader)["add"](*given, 1, *([shader.workgroup[0]] if len(shader.launch) > 1 else []))
    assert "vulkan:0" in str(caught.value)


def test_features_that_the_device_lacks(rig: Rig) -> None:
    known = Shader(ADD.body, ADD.parameters, entry={"requires": ["int64", "matrix"]})
    refuse(rig, known, "it needs matrix, which the device lacks")


def test_workgroups_that_are_too_large(rig: Rig) -> None:
    described, code = table({"add": ADD})
    described["functions"]["add"]["workgroup"] = [2048, 1, 1]
    # glslang makes no such shader: OpExecutionMode main LocalSize 64 1 1, with 2048 for 64.
    size = struct.pack("<4I", 17, 64, 1, 1)
    assert code.count(size) == 1
    good = rig.upload(normal(64))
    larger = code.replace(size, struct.pack("<4I", 17, 2048, 1, 1))
    kernels = vulkan.load_kernels(rig.library, json.dumps(described).encode(), larger)
    with pytest.raises(RuntimeError, match="it has 2048 threads along x, the device allows 1024"):
        kernels["add"](good, good, good, 64, 1, 2048)
    refuse(
        rig,
        Shader(ADD.body, ADD.parameters, (64, 32, 1), ("blockIdx.x",)),
        "it has 2048 threads in a workgroup, the device allows 1024",
    )


def test_shared_memory_that_the_device_has_not(rig: Rig) -> None:
    shader = Shader(ADD.body, ADD.parameters, entry={"shared_bytes": 1 << 20})
    refuse(rig, shader, "it has 1048576 bytes of shared memory, the device allows 32768")


def test_more_buffers_than_the_device_binds(rig: Rig) -> None:
    shader = Shader(ADD.body, [*ADD.parameters, *[buffer() for _ in range(40)]])
    refuse(rig, shader, "it has 43 buffers, the device allows 32")


def test_more_scalars_than_push_constants_hold(rig: Rig) -> None:
    shader = Shader(ADD.body, [*ADD.parameters, *[scalar() for _ in range(14)]])
    refuse(rig, shader, "it has 136 bytes of push constants, the device allows 128")


def test_subgroups_of_another_size(rig: Rig) -> None:
    shader = Shader(ADD.body, ADD.parameters, entry={"subgroup": 32})
    refuse(rig, shader, "it is made for subgroups of 32 threads, the device has 8 to 8")


def test_a_subgroup_size_that_the_device_has(rig: Rig) -> None:
    shader = Shader(
        """
#extension GL_KHR_shader_subgroup_basic : require
layout(set = 0, binding = 0) writeonly buffer O { uint o[]; };
layout(push_constant) uniform Push { uvec3 base; } push;
void main() { if (gl_LocalInvocationID.x == 0) { o[0] = gl_SubgroupSize; o[1] = gl_NumSubgroups; } }
""",
        [buffer("write")],
        entry={"subgroup": 8, "requires": ["subgroup"]},
    )
    out = rig.empty((2,), "uint32")
    module(f=shader)["f"](out, 1, 64)
    assert rig.read(out)[0].tolist() == [8, 8]


def test_a_tensor_that_is_larger_than_a_kernel_can_be_given(rig: Rig) -> None:
    limit = vulkan.devices()[0]["limits"]["max_buffer_bytes"]
    shader = Shader(ADD.body, [buffer("read", limit + 4), buffer(), buffer("write"), scalar()])
    large, small = rig.empty((limit + 4,), "uint8"), rig.upload(normal(64))
    with pytest.raises(ValueError, match=rf"tensor of .* \({limit + 4} bytes\); a kernel on vulkan:0 .* {limit}"):
        module(add=shader)["add"](large, small, small, 64, 1, 64)


def test_a_tensor_of_unbounded_size_that_is_too_large(rig: Rig) -> None:
    """It has its memory for itself. Those of other models lie in an arena: much may be behind them."""
    limit = vulkan.devices()[0]["limits"]["max_buffer_bytes"]
    large, small = rig.empty((limit + 4,), "uint8"), rig.upload(normal(64))
    described, code = table({"add": ADD})
    load = vulkan.load_kernels
    bounded = load(rig.library, json.dumps(described).encode(), code)
    unbounded = load(rig.library, json.dumps({**described, "unbounded": True}).encode(), code)
    with pytest.raises(ValueError, match=rf"argument 2: is a tensor of 128.* bytes .* can be given at most {limit}"):
        unbounded["add"](small, small, large, 64, 1, 64)
    fits, out = rig.empty((limit,), "uint8"), rig.empty((64,))
    rig.add(unbounded, small, small, fits, 64)
    rig.add(bounded, small, small, large, 64)
    rig.add(unbounded, rig.view(large, (64,), "float32", 1 << 20), small, out, 64)
    rig.synchronize()


def test_devices_are_described() -> None:
    (device, *_) = vulkan.devices()
    assert device["index"] == 0
    assert device["refusal"] is None
    assert device["type"] in ("discrete", "integrated", "virtual", "cpu", "other")
    assert device["memory_bytes"] > 1 << 28
    assert device["limits"]["max_groups"][0] >= 65535
    assert device["subgroup"]["minimum"] <= device["subgroup"]["size"] <= device["subgroup"]["maximum"]
    assert all(len(device["uuid"][name]) == 32 for name in ("device", "driver", "pipeline_cache"))


def device(**changes: Any) -> Mapping[str, Any]:
    """A device like a desktop GPU, with some of its sections changed."""
    described: dict[str, Any] = {
        "name": "GPU",
        "refusal": None,
        "limits": {"storage_alignment": 64},
        "subgroup": {"size": 64, "minimum": 32, "maximum": 64, "can_be_fixed": True},
    }
    return {**described, **changes}


@pytest.mark.parametrize(
    ("changes", "gpu", "reason"),
    [
        ({}, {"alignment": 256, "subgroup": 32}, None),
        ({}, {"alignment": 256, "subgroup": None}, None),
        ({"refusal": "it has Vulkan 1.0 only"}, {}, "GPU can't be used: it has Vulkan 1.0 only"),
        ({}, {"alignment": 16}, "multiples of 16 bytes; GPU reads from multiples of 64"),
        # The kernels that need them, if there are any, say so when they are loaded.
        ({"subgroup": {"size": 64, "can_be_fixed": False}}, {"subgroup": 32}, None),
    ],
)
def test_an_artifact_for_a_device_that_differs(changes: Any, gpu: Any, reason: str | None) -> None:
    found = vulkan.refusal(device(**changes), {"kind": "vulkan", "gpu": gpu})
    assert found is None if reason is None else reason in str(found)
