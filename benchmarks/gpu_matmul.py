"""The matrix product that greencc makes against a tiled one written by hand in GLSL, on the same device.

    python -m benchmarks.gpu_matmul [--device N] [--seconds S] [--json FILE]

Both multiply float32 [M, K] by a constant [K, N]. The one by hand has tiles of 64 x 64 in shared memory and 4 x 4 sums
in registers for each of 256 threads, and reads vectors of four. Runs are interleaved in blocks, the first of which is
dropped; a time is the median of the others. The result of each is compared with numpy's.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tvm import relax, tirx

from greencc.ir import INPUTS_ATTR, OUTPUTS_ATTR
from greencc.runtime import vulkan
from greencc.runtime.library import load_library
from greencc.targets.lower import lower
from greencc.targets.registry import make_target
from greencc.targets.vulkan.emitter.spirv import compile_all

# Rows, columns and depth: of MiniLM at a length of 128, and squares.
SHAPES = ((128, 384, 384), (128, 1536, 384), (128, 384, 1536), (512, 512, 512), (1024, 1024, 1024))
_NAME = "by_hand"
_BLOCKS = 7
# Sums of K products of standard normals, over the root of K.
_TOLERANCE = 1e-4

BY_HAND = """#version 450
#extension GL_EXT_control_flow_attributes : require
layout(local_size_x = 16, local_size_y = 16) in;
layout(set = 0, binding = 0, std430) readonly buffer A { vec4 a[]; };
layout(set = 0, binding = 1, std430) readonly buffer B { vec4 b[]; };
layout(set = 0, binding = 2, std430) writeonly buffer C { vec4 c[]; };
const uint N = COLUMNS, K = DEPTH;
shared float ta[16][68];
shared vec4 tb[16][16];
void main() {
  uint tx = gl_LocalInvocationID.x, ty = gl_LocalInvocationID.y, t = ty * 16 + tx;
  uint row = gl_WorkGroupID.y * 64, column = gl_WorkGroupID.x * 16;
  vec4 sums[4];
  for (int i = 0; i < 4; ++i) sums[i] = vec4(0);
  for (uint k = 0; k < K; k += 16) {
    vec4 x = a[((row + t / 4) * K + k) / 4 + t % 4];
    vec4 y = b[((k + t / 16) * N) / 4 + column + t % 16];
    barrier();
    ta[t % 4 * 4][t / 4] = x.x;
    ta[t % 4 * 4 + 1][t / 4] = x.y;
    ta[t % 4 * 4 + 2][t / 4] = x.z;
    ta[t % 4 * 4 + 3][t / 4] = x.w;
    tb[t / 16][t % 16] = y;
    barrier();
    [[unroll]] for (int i = 0; i < 16; ++i) {
      vec4 w = tb[i][tx];
      [[unroll]] for (int r = 0; r < 4; ++r) sums[r] += ta[i][ty * 4 + r] * w;
    }
  }
  for (int r = 0; r < 4; ++r) c[((row + ty * 4 + r) * N) / 4 + column + tx] = sums[r];
}
"""


@dataclass(frozen=True)
class Measured:
    """Median times of one shape.

    Attributes:
        rows, columns, depth: of the product.
        ours_ms, by_hand_ms: a launch.
        error: the largest difference of our result from numpy's.
    """

    rows: int
    columns: int
    depth: int
    ours_ms: float
    by_hand_ms: float
    error: float

    @property
    def ratio(self) -> float:
        """Our rate over that of the kernel by hand."""
        return self.by_hand_ms / self.ours_ms

    @property
    def gflops(self) -> float:
        """Our rate in 1e9 operations a second."""
        return 2e-6 * self.rows * self.columns * self.depth / self.ours_ms


class Device:
    """Tensors and kernels on a Vulkan device."""

    def __init__(self, index: int) -> None:
        self.library = load_library()
        vulkan.load_sidecar(self.library)
        ffi = self.library.ffi
        self._where = ffi.device("vulkan", index)
        self._allocate = self.library.function("runtime.TVMTensorAllocWithScope")
        self._copy = self.library.function("runtime.TVMTensorCopyFromTo")
        self._wait = self.library.function("runtime.Device_StreamSync")

    def tensor(self, array: np.ndarray) -> Any:
        """A copy of an array."""
        ffi = self.library.ffi
        made = self._allocate(ffi.Shape(array.shape), ffi.dtype(str(array.dtype)), self._where, None)
        self._copy(ffi.from_dlpack(array), made)
        self.wait()
        return made

    def array(self, tensor: Any) -> np.ndarray:
        """A tensor's content."""
        made = np.zeros(tuple(tensor.shape), str(tensor.dtype))
        self._copy(tensor, self.library.ffi.from_dlpack(made))
        self.wait()
        return made

    def wait(self) -> None:
        """Wait until all that was launched is done."""
        self._wait(self._where, 0)


def ours(device: Device, index: int, arrays: tuple[np.ndarray, np.ndarray]) -> tuple[Callable[[], None], list[Any]]:
    """What launches greencc's kernel, and its tensors, which have to be kept; the last one is the result."""
    a, b = arrays
    x = relax.Var("x", relax.TensorType(a.shape, "float32"))
    builder = relax.BlockBuilder()
    with builder.function("main", [x]):
        with builder.dataflow():
            result = builder.emit_output(relax.Tuple([builder.emit(relax.op.matmul(x, relax.const(b)))]))
        builder.emit_func_output(result)
    module = builder.get()
    names = {INPUTS_ATTR: ["x"], OUTPUTS_ATTR: ["y"]}
    module.update_func(module.get_global_var("main"), module["main"].with_attrs(names))
    target = make_target(f"vulkan:{index}")
    lowered = lower(module, target)
    members = target.build(lowered.module).kernels
    ((name, entry),) = json.loads(members["kernels.json"])["functions"].items()
    kernel = vulkan.load_kernels(device.library, members["kernels.json"], members["kernels.spv"])[name]
    (weight,) = lowered.weights.values()
    (func,) = (f for _, f in lowered.module.functions_items() if isinstance(f, tirx.PrimFunc))
    tensors = dict(zip(("x", "b", "y"), map(device.tensor, (a, weight, _result(arrays))), strict=True))
    groups = int(func.body.value)
    threads = entry["workgroup"][0]
    # Parameters are sorted by name in the device's function: the inputs' are known, the result is what is written.
    order = _in_order(entry["parameters"], func, tensors)
    return lambda: kernel(*order, groups, threads), list(tensors.values())


def _in_order(parameters: list[dict[str, Any]], func: tirx.PrimFunc, tensors: dict[str, Any]) -> list[Any]:
    """Pointers in the order of a kernel's parameters, told apart by their sizes and by what is written."""
    by_bytes = {"x": func.params[0], "b": func.params[1], "y": func.params[2]}
    sizes = {key: 4 * int(np.prod([int(d) for d in param.ty.shape])) for key, param in by_bytes.items()}
    left, found = ["x", "b"], []
    for parameter in parameters:
        if "write" in parameter["access"]:
            found.append(tensors["y"])
            continue
        # Equal sizes keep the order of the names: packed weights are called B or param.
        key = next((k for k in left[::-1] if parameter["bytes"] in (None, sizes[k])), left[-1])
        left.remove(key)
        found.append(tensors[key])
    return [ctypes.c_void_p(tensor.data_ptr()) for tensor in found]


def _result(arrays: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    return np.zeros((arrays[0].shape[0], arrays[1].shape[1]), np.float32)


def by_hand(device: Device, arrays: tuple[np.ndarray, np.ndarray]) -> tuple[Callable[[], None], list[Any]]:
    """What launches the kernel written by hand, and its tensors, like `ours`."""
    a, b = arrays
    (rows, depth), columns = a.shape, b.shape[1]
    source = BY_HAND.replace("COLUMNS", str(columns)).replace("DEPTH", str(depth))
    code = compile_all({_NAME: source})[_NAME]
    buffers = [{"kind": "buffer", "access": access, "bytes": None} for access in ("read", "read", "write")]
    entry = {
        "parameters": buffers,
        "launch": ["blockIdx.x", "blockIdx.y", "threadIdx.x", "threadIdx.y"],
        "workgroup": [16, 16, 1],
        "code": [0, len(code)],
        "requires": [],
        "subgroup": None,
        "shared_bytes": 4 * 16 * (68 + 64),
        "scalars_in_uniform": False,
    }
    table = json.dumps({"version": 1, "functions": {_NAME: entry}}).encode()
    kernel = vulkan.load_kernels(device.library, table, code)[_NAME]
    tensors = list(map(device.tensor, (a, b, _result(arrays))))
    pointers = [ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors]
    return lambda: kernel(*pointers, columns // 64, rows // 64, 16, 16), tensors


def measure(device: Device, index: int, shape: tuple[int, int, int], seconds: float) -> Measured:
    """Times of one shape.

    Raises AssertionError where a result is wrong.
    """
    rows, columns, depth = shape
    random = np.random.default_rng(0)
    a = random.standard_normal((rows, depth)).astype(np.float32)
    b = (random.standard_normal((depth, columns)) / np.sqrt(depth)).astype(np.float32)
    first, ours_tensors = ours(device, index, (a, b))
    second, hand_tensors = by_hand(device, (a, b))
    first()
    second()
    want = a.astype(np.float64) @ b
    results = [device.array(tensors[-1]) for tensors in (ours_tensors, hand_tensors)]
    error = float(np.abs(results[0] - want).max())
    for got in results:
        np.testing.assert_allclose(got, want, rtol=0, atol=_TOLERANCE)
    times: dict[Callable[[], None], list[float]] = {first: [], second: []}
    runs = max(1, int(seconds / (2 * _BLOCKS) / _block(device, second, 1)))
    for _ in range(_BLOCKS):
        for launch, found in times.items():
            found.append(_block(device, launch, runs))
    ours_ms, by_hand_ms = (1e3 * statistics.median(found[1:]) for found in times.values())
    return Measured(rows, columns, depth, ours_ms, by_hand_ms, error)


def _block(device: Device, launch: Callable[[], None], runs: int) -> float:
    """Seconds of a launch, of so many behind each other."""
    device.wait()
    started = time.perf_counter()
    for _ in range(runs):
        launch()
    device.wait()
    return (time.perf_counter() - started) / runs


def main() -> None:
    """Measure all shapes and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=4.0, help="for a shape")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    device = Device(options.device)
    print(vulkan.devices()[options.device]["name"])
    print(f"{'rows':>6} {'columns':>8} {'depth':>6} {'ours ms':>9} {'by hand':>9} {'GFLOP/s':>8} {'ratio':>6}")
    found = []
    for shape in SHAPES:
        item = measure(device, options.device, shape, options.seconds)
        found.append(item)
        print(
            f"{item.rows:6} {item.columns:8} {item.depth:6} {item.ours_ms:9.3f} {item.by_hand_ms:9.3f} "
            f"{item.gflops:8.1f} {item.ratio:6.2f}",
            flush=True,
        )
    if options.json is not None:
        rows = [{**vars(item), "ratio": item.ratio, "gflops": item.gflops} for item in found]
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
