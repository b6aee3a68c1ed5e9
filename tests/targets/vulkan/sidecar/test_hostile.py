"""Tables and code that are damaged, or that some other program wrote."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from vulkan_rig import ADD, Rig, Shader, normal, table

from greencc.errors import ArtifactError
from greencc.runtime import vulkan
from greencc.runtime.library import load_library

pytestmark = pytest.mark.vulkan


def load(described: Any, code: bytes) -> Any:
    text = described if isinstance(described, bytes) else json.dumps(described).encode()
    return vulkan.load_kernels(load_library(), text, code)


def changed(change: Callable[[dict[str, Any]], Any]) -> tuple[dict[str, Any], bytes]:
    """The table of one kernel, changed."""
    described, code = table({"add": ADD})
    change(described["functions"]["add"])
    return described, code


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e: e.pop("parameters"), r'the table\.functions\.add has no "parameters"'),
        (lambda e: e.update(parameters=3), r"parameters is not a list"),
        (lambda e: e.update(parameters=[{"kind": "image"}]), r'kind is "image", not "buffer" or "scalar"'),
        (lambda e: e["parameters"][0].update(access="all"), r'access is "all"'),
        (lambda e: e["parameters"][0].update(bytes=-1), r"bytes is -1, not from 0 to"),
        (lambda e: e["parameters"][0].update(bytes=1.5), r"bytes is not an integer"),
        (lambda e: e["parameters"][3].update(type="complex64"), r'"complex64", which is no type of a scalar'),
        (lambda e: e["parameters"][3].update(is_index=1), r"is_index is not true or false"),
        (lambda e: e.update(parameters=[e["parameters"][0]] * 2000), r"parameters are too many"),
        (lambda e: e.update(launch=["blockIdx.w"]), r'"blockIdx\.w", which is no launch argument'),
        (lambda e: e.update(launch=["vthread"]), r'"vthread", which is no launch argument'),
        (lambda e: e.update(workgroup=[64, 1]), r"workgroup has not three sizes"),
        (lambda e: e.update(workgroup=[64, 0, 1]), r"workgroup\[1\] is 0"),
        (lambda e: e.update(workgroup=[2**40, 1, 1]), r"workgroup\[0\] is \d+, not from 0 to"),
        (lambda e: e.update(code=[0]), r"code is not an offset and a size"),
        (lambda e: e.update(code=[0, 10**6]), r"code ends at byte 1000000 of kernels\.spv, which has \d+"),
        (lambda e: e.update(code=[2**62, 2**62]), r"code ends at byte \d+ of kernels\.spv"),
        (lambda e: e.update(requires=[1]), r"requires\[0\] is not a text"),
        (lambda e: e.update(requires=["telepathy"]), r'add\.requires\[0\] is "telepathy", which this .* does not know'),
        (lambda e: e.update(subgroup="32"), r"subgroup is not an integer"),
        (lambda e: e.update(shared_bytes=None), r"shared_bytes is not an integer"),
        (lambda e: e.update(scalars_in_uniform=0), r"scalars_in_uniform is not true or false"),
    ],
)  # fmt: skip
def test_a_damaged_entry_is_named(change: Callable[[dict[str, Any]], Any], message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        load(*changed(change))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "is not JSON"),
        (b"{", "is not JSON"),
        (b"[1, 2]", "the table is not an object"),
        (b"\xff\xfe", r"kernels\.json is damaged: 'utf-8' codec"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b'{"version": 2, "functions": {}}', "of version 2, this Vulkan runtime reads version 1: compile the model"),
        (b'{"version": "1", "functions": {}}', "version is not an integer"),
        (b'{"functions": {}}', 'has no "version"'),
        (b'{"version": 1, "functions": []}', "functions is not an object"),
        (b'{"version": 1, "functions": {"f": 1}}', "functions.f is not an object"),
    ],
)  # fmt: skip
def test_a_damaged_table_is_refused(text: bytes, message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        load(text, b"")


def words(code: bytes) -> list[int]:
    return list(struct.unpack(f"<{len(code) // 4}I", code))


def test_damaged_code_never_reaches_the_driver() -> None:
    """Cut off anywhere, or with any instruction's length changed, it is refused when it is loaded."""
    described, code = table({"add": ADD})
    starts, at = [], 5
    whole = words(code)
    while at < len(whole):
        starts.append(at)
        at += whole[at] >> 16
    damaged = [code[: 4 * at + 4] for at in starts if whole[at] >> 16 > 1]
    damaged += [code[:-2], code[:12], b"", b"\0" * len(code)]
    # An instruction of no words: whoever walks over it walks for ever.
    for at in starts:
        damaged.append(struct.pack(f"<{len(whole)}I", *whole[:at], whole[at] & 0xFFFF, *whole[at + 1 :]))
    for bad in damaged:
        described["functions"]["add"]["code"] = [0, len(bad)]
        with pytest.raises(ArtifactError, match=r"kernels\.spv: the code of 'add' (is|has)"):
            load(described, bad)


def replaced(old: str, new: str) -> Shader:
    assert old in ADD.body
    return Shader(ADD.body.replace(old, new), ADD.parameters)


@pytest.mark.parametrize(
    ("shader", "change", "message"),
    [
        (replaced("binding = 2", "binding = 3"), {}, "uses binding 3, kernels.json gives it 3"),
        (replaced("set = 0, binding = 1", "set = 1, binding = 1"), {}, "uses descriptor set 1, not 0"),
        (ADD, {"workgroup": [32, 1, 1]}, "has workgroups of 64 threads along axis 0, kernels.json says 32"),
    ],
)
def test_code_that_is_not_its_entrys_is_refused(shader: Shader, change: dict[str, Any], message: str) -> None:
    described, code = table({"add": shader})
    described["functions"]["add"].update(change)
    with pytest.raises(ArtifactError, match=message):
        load(described, code)


@pytest.mark.parametrize("data", [b"", b"\1\0\0", (2**63).to_bytes(8, "little") + b"{}", (5).to_bytes(8, "little")])
def test_cut_off_bytes_of_a_module_are_refused(rig: Rig, data: bytes) -> None:
    with pytest.raises(ValueError, match="the Vulkan kernels are cut off"):
        rig.library.function("ffi.Module.load_from_bytes.vulkan")(data)


def test_a_kernel_that_failed_can_be_called_again(rig: Rig, kernels: Any) -> None:
    good = rig.upload(normal(64))
    for _ in range(2):
        with pytest.raises(ValueError, match="takes 6 arguments"):
            kernels["add"](good)
    c = rig.empty((64,))
    rig.add(kernels, good, good, c, 64)
    np.testing.assert_array_equal(rig.read(c)[0], 2 * normal(64))
