"""Shaders written by hand, launched through the sidecar without TVM's compiler."""

from __future__ import annotations

import copy
import functools
import json
import os
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from greencc.runtime import vulkan
from greencc.runtime.binding import aligned, aligned_empty
from greencc.runtime.library import load_library

HEADER = """#version 450
#extension GL_EXT_shader_explicit_arithmetic_types_int64 : enable
#extension GL_EXT_shader_explicit_arithmetic_types_float64 : enable
layout(local_size_x = {x}, local_size_y = {y}, local_size_z = {z}) in;
"""


@functools.cache
def spirv(source: str) -> bytes:
    """A compute shader's module, by glslang."""
    spec = find_spec("cmeel")
    assert spec is not None
    assert spec.origin is not None
    prefix = Path(spec.origin).parent.parent / "cmeel.prefix"
    with tempfile.TemporaryDirectory() as folder:
        text, module = Path(folder, "kernel.comp"), Path(folder, "kernel.spv")
        text.write_text(source)
        command = [str(prefix / "bin/glslang"), "-V", "--target-env", "vulkan1.1", "-o", str(module), str(text)]
        environment = {**os.environ, "LD_LIBRARY_PATH": str(prefix / "lib")}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout
        return module.read_bytes()


def buffer(access: str = "read", nbytes: int | None = None) -> dict[str, object]:
    return {"kind": "buffer", "access": access, "bytes": nbytes}


def scalar(dtype: str = "int64", is_index: bool = True) -> dict[str, object]:
    return {"kind": "scalar", "type": dtype, "is_index": is_index}


@dataclass
class Shader:
    """A kernel: its body in GLSL after the workgroup's size, and its entry in kernels.json."""

    body: str
    parameters: list[dict[str, object]]
    workgroup: tuple[int, int, int] = (64, 1, 1)
    launch: tuple[str, ...] = ("blockIdx.x", "threadIdx.x")
    entry: dict[str, object] = field(default_factory=dict)

    @property
    def code(self) -> bytes:
        x, y, z = self.workgroup
        return spirv(HEADER.format(x=x, y=y, z=z) + self.body)


def table(shaders: dict[str, Shader]) -> tuple[dict[str, Any], bytes]:
    """kernels.json, not yet as text, and kernels.spv."""
    functions, code = {}, b""
    for name, shader in shaders.items():
        functions[name] = {
            "parameters": copy.deepcopy(shader.parameters),
            "launch": list(shader.launch),
            "workgroup": list(shader.workgroup),
            "code": [len(code), len(shader.code)],
            "requires": [],
            "subgroup": None,
            "shared_bytes": 0,
            "scalars_in_uniform": False,
            **shader.entry,
        }
        code += shader.code
    return {"version": 1, "functions": functions}, code


def module(**shaders: Shader) -> Any:
    described, code = table(shaders)
    return vulkan.load_kernels(load_library(), json.dumps(described).encode(), code)


# One thread an element; n is the first scalar.
ADD = Shader(
    """
layout(set = 0, binding = 0) readonly buffer A { float a[]; };
layout(set = 0, binding = 1) readonly buffer B { float b[]; };
layout(set = 0, binding = 2) writeonly buffer C { float c[]; };
layout(push_constant) uniform Push { uvec3 base; layout(offset = 16) int n; } push;
void main() {
  uint i = (gl_WorkGroupID.x + push.base.x) * 64 + gl_LocalInvocationID.x;
  if (i < push.n) c[i] = a[i] + b[i];
}
""",
    [buffer(), buffer(), buffer("write"), scalar()],
)
# Multiplies in place by a float.
SCALE = Shader(
    """
layout(set = 0, binding = 0) buffer A { float a[]; };
layout(push_constant) uniform Push { uvec3 base; layout(offset = 16) int n; layout(offset = 24) float by; } push;
void main() {
  uint i = (gl_WorkGroupID.x + push.base.x) * 64 + gl_LocalInvocationID.x;
  if (i < push.n) a[i] *= push.by;
}
""",
    [buffer("readwrite"), scalar(), scalar("float32", False)],
)


def groups(count: int, of: int = 64) -> int:
    return -(-count // of)


class Rig:
    """The first device, as a program uses it."""

    def __init__(self) -> None:
        self.library = load_library()
        vulkan.load_sidecar(self.library)
        ffi = self.ffi = self.library.ffi
        self.device = ffi.device("vulkan", 0)
        self._allocate = self.library.function("runtime.TVMTensorAllocWithScope")
        self._copy = self.library.function("runtime.TVMTensorCopyFromTo")
        self._synchronize = self.library.function("runtime.Device_StreamSync")

    def empty(self, shape: Sequence[int], dtype: str = "float32") -> Any:
        return self._allocate(self.ffi.Shape(tuple(shape)), self.ffi.dtype(dtype), self.device, None)

    def upload(self, array: np.ndarray, into: Any = None) -> Any:
        tensor = self.empty(array.shape, str(array.dtype)) if into is None else into
        self._copy(self.ffi.from_dlpack(aligned(array)), tensor)
        return tensor

    def copy(self, source: Any, target: Any) -> None:
        self._copy(source, target)

    def begin_read(self, tensor: Any) -> np.ndarray:
        """An array that holds the tensor's content after `synchronize`."""
        array = aligned_empty(tuple(tensor.shape), str(tensor.dtype))
        self._copy(tensor, self.ffi.from_dlpack(array))
        return array

    def read(self, *tensors: Any) -> list[np.ndarray]:
        arrays = [self.begin_read(tensor) for tensor in tensors]
        self.synchronize()
        return arrays

    def synchronize(self) -> None:
        self._synchronize(self.device, 0)

    def view(self, tensor: Any, shape: Sequence[int], dtype: str, offset: int) -> Any:
        create = self.library.function("runtime.TVMTensorCreateView")
        return create(tensor, self.ffi.Shape(tuple(shape)), self.ffi.dtype(dtype), offset)

    def counts(self) -> dict[str, int]:
        return vulkan.statistics()

    def add(self, kernels: Any, a: Any, b: Any, c: Any, n: int) -> None:
        kernels["add"](a, b, c, n, groups(n), 64)

    def scale(self, kernels: Any, a: Any, n: int, by: float) -> None:
        kernels["scale"](a, n, by, groups(n), 64)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
