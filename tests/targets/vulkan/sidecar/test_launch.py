"""Arguments of kernels: buffers with offsets, scalars of every type, grids of any size."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from vulkan_rig import ADD, Rig, Shader, buffer, groups, module, normal, scalar, table

pytestmark = pytest.mark.vulkan

PUSH = "layout(push_constant) uniform Push { uvec3 base; } push;"


def test_a_kernel_computes(rig: Rig, kernels: Any) -> None:
    a, b = normal(1000), normal(1000, seed=1)
    c = rig.empty((1000,))
    rig.add(kernels, rig.upload(a), rig.upload(b), c, 1000)
    np.testing.assert_array_equal(rig.read(c)[0], a + b)


def test_a_kernel_takes_parts_of_memory(rig: Rig, kernels: Any) -> None:
    whole = rig.upload(normal(1024))
    halves = [rig.view(whole, (512,), "float32", offset) for offset in (0, 2048)]
    sums = rig.upload(np.zeros(1024, np.float32))
    rig.add(kernels, *halves, rig.view(sums, (256,), "float32", 1024), 256)
    data, result = rig.read(whole, sums)
    expected = np.zeros(1024, np.float32)
    expected[256:512] = data[:256] + data[512:768]
    np.testing.assert_array_equal(result, expected)


def test_scalars_of_every_type_reach_the_shader(rig: Rig) -> None:
    shader = Shader(
        """
layout(set = 0, binding = 0) writeonly buffer O { double o[]; };
layout(push_constant) uniform Push {
  uvec3 base;
  layout(offset = 16) int narrow; layout(offset = 24) int64_t wide; layout(offset = 32) float half_;
  layout(offset = 40) float single; layout(offset = 48) double twice; layout(offset = 56) int flag;
  layout(offset = 64) int index; layout(offset = 72) uint unsigned_; } push;
void main() {
  o[0] = push.narrow; o[1] = double(push.wide); o[2] = push.half_; o[3] = push.single;
  o[4] = push.twice; o[5] = push.flag; o[6] = push.index; o[7] = push.unsigned_;
}
""",
        [
            buffer("write"), scalar("int32", False), scalar("int64", False), scalar("float16", False),
            scalar("float32", False), scalar("float64", False), scalar("bool", False), scalar("int64"),
            scalar("uint32", False),
        ],
        workgroup=(1, 1, 1),
        entry={"requires": ["int64", "float64"]},
    )  # fmt: skip
    values = [-7, -(2**40), 0.5, 0.1, 1 / 3, True, -(2**31), 2**32 - 1]
    out = rig.empty((8,), "float64")
    module(f=shader)["f"](out, *values, 1, 1)
    expected = np.array([-7, -(2**40), 0.5, np.float32(0.1), 1 / 3, 1, -(2**31), 2**32 - 1])
    np.testing.assert_array_equal(rig.read(out)[0], expected)


def test_many_scalars_are_in_a_uniform_buffer(rig: Rig) -> None:
    count = 40
    members = " ".join(f"layout(offset = {8 * i}) int s{i};" for i in range(count))
    stores = " ".join(f"o[{i}] = u.s{i};" for i in range(count))
    shader = Shader(
        f"""
layout(set = 0, binding = 0) writeonly buffer O {{ int o[]; }};
layout(set = 0, binding = 1, std140) uniform U {{ {members} }} u;
{PUSH}
void main() {{ {stores} }}
""",
        [buffer("write"), *[scalar() for _ in range(count)]],
        workgroup=(1, 1, 1),
        entry={"scalars_in_uniform": True},
    )
    kernel = module(f=shader)["f"]
    outs = [rig.empty((count,), "int32") for _ in range(2)]
    for i, out in enumerate(outs):
        kernel(out, *range(i, count + i), 1, 1)
    for i, result in enumerate(rig.read(*outs)):
        np.testing.assert_array_equal(result, np.arange(i, count + i))


@pytest.mark.parametrize(("grid", "dispatches"), [((70000, 1, 1), 2), ((3, 66000, 1), 2), ((2, 1, 131071), 3)])
def test_a_large_grid_is_split(rig: Rig, grid: tuple[int, int, int], dispatches: int) -> None:
    """lavapipe, as most devices, runs at most 65535 workgroups along an axis at once."""
    shader = Shader(
        """
layout(set = 0, binding = 0) buffer O { uint o[]; };
layout(push_constant) uniform Push { uvec3 base; layout(offset = 16) int x; layout(offset = 24) int y; } push;
void main() {
  uvec3 group = gl_WorkGroupID + push.base;
  uint i = (group.z * push.y + group.y) * push.x + group.x;
  o[i] += i + 1;
}
""",
        [buffer("readwrite"), scalar(), scalar()],
        workgroup=(1, 1, 1),
        launch=("blockIdx.x", "blockIdx.y", "blockIdx.z"),
    )
    count = int(np.prod(grid))
    out = rig.upload(np.zeros(count, np.uint32))
    before = rig.counts()["dispatches"]
    module(f=shader)["f"](out, grid[0], grid[1], *grid)
    np.testing.assert_array_equal(rig.read(out)[0], np.arange(1, count + 1, dtype=np.uint32))
    assert rig.counts()["dispatches"] - before == dispatches


def test_a_grid_of_no_groups_runs_nothing(rig: Rig, kernels: Any) -> None:
    c = rig.upload(normal(64))
    before = rig.counts()["dispatches"]
    rig.add(kernels, c, c, c, 0)
    rig.synchronize()
    assert rig.counts()["dispatches"] == before


def test_views_of_several_types_alias(rig: Rig) -> None:
    shader = Shader(
        f"""
layout(set = 0, binding = 0) readonly buffer I {{ uvec4 wide[]; }};
layout(set = 0, binding = 0) readonly buffer J {{ uint narrow[]; }};
layout(set = 0, binding = 1) writeonly buffer O {{ uint o[]; }};
{PUSH}
void main() {{ o[0] = wide[0].z; o[1] = narrow[1]; }}
""",
        [buffer(), buffer("write")],
        workgroup=(1, 1, 1),
    )
    out = rig.empty((2,), "uint32")
    module(f=shader)["f"](rig.upload(np.array([5, 6, 7, 8], np.uint32)), out, 1, 1)
    assert rig.read(out)[0].tolist() == [7, 6]


def test_dynamic_shared_memory_is_what_the_kernel_has(rig: Rig) -> None:
    shader = Shader(
        f"""
layout(set = 0, binding = 0) writeonly buffer O {{ uint o[]; }};
shared uint s[64];
{PUSH}
void main() {{
  uint i = gl_LocalInvocationID.x; s[i] = i; barrier(); o[i] = s[63 - i];
}}
""",
        [buffer("write")],
        launch=("blockIdx.x", "threadIdx.x", "tirx.use_dyn_shared_memory"),
        entry={"shared_bytes": 256},
    )
    kernel = module(f=shader)["f"]
    out = rig.empty((64,), "uint32")
    kernel(out, 1, 64, 256)
    np.testing.assert_array_equal(rig.read(out)[0], np.arange(63, -1, -1))
    with pytest.raises(ValueError, match="asks for 512 bytes of shared memory, the kernel has 256"):
        kernel(out, 1, 64, 512)


def test_a_module_survives_serialisation(rig: Rig, kernels: Any) -> None:
    described, code = table({"add": ADD})
    text = json.dumps(described).encode()
    load = rig.library.function("ffi.Module.load_from_bytes.vulkan")
    loaded = load(len(text).to_bytes(8, "little") + text + code)
    assert loaded.kind == "vulkan"
    assert loaded.get_property_mask() == kernels.get_property_mask() == 3
    assert not loaded.implements_function("other")
    a = rig.upload(normal(64))
    c = rig.empty((64,))
    rig.add(loaded, a, a, c, 64)
    np.testing.assert_array_equal(rig.read(c)[0], 2 * normal(64))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (lambda t: (t, t, t, 64, 1), "takes 6 arguments, it got 5"),
        (lambda t: (t, t, t, 2**31, 1, 64), "argument 3: is 2147483648, but kernels compute indices and sizes in 32"),
        (lambda t: (t, t, t, 1.5, 1, 64), "argument 3: is not an integer"),
        (lambda t: (t, t, t, 64, -1, 64), "argument 4: is not a size"),
        (lambda t: (t, t, t, 64, 1, 32), "argument 5: asks for 32 threads, the kernel has 64"),
        (lambda t: (t, t, "text", 64, 1, 64), "argument 2: is not a pointer to the device's memory"),
        (lambda t: (t, 4096, t, 64, 1, 64), "argument 1: is not a pointer to the device's memory"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_refused(rig: Rig, kernels: Any, arguments: Any, message: str) -> None:
    with pytest.raises((ValueError, RuntimeError), match=message):
        kernels["add"](*arguments(rig.empty((64,))))


def test_a_tensor_of_the_host_is_refused(rig: Rig, kernels: Any) -> None:
    host = rig.ffi.from_dlpack(np.zeros(64, np.float32))
    with pytest.raises(ValueError, match="argument 0: is not a pointer to the device's memory"):
        kernels["add"](host, host, host, 64, 1, 64)


def test_memory_that_is_too_small_is_refused(rig: Rig) -> None:
    shader = Shader(ADD.body, [buffer("read", 1024), buffer(), buffer("write"), scalar()])
    small = rig.empty((64,))
    with pytest.raises(ValueError, match="argument 0: must have 1024 bytes, there are 256"):
        module(add=shader)["add"](small, small, small, 64, groups(64), 64)


def test_an_offset_that_the_device_can_not_take_is_refused(rig: Rig, kernels: Any) -> None:
    tensor = rig.empty((64,))
    odd = rig.view(tensor, (4,), "float32", 4)
    with pytest.raises(ValueError, match=r"argument 0: begins \d+ bytes into its memory; .* from multiples of 16"):
        rig.add(kernels, odd, odd, odd, 4)
