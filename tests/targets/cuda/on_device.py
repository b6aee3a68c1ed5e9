"""Kernels on a real GPU against numpy.

    python on_device.py prepare FOLDER ARCH   compiles the cases; any machine with greencc will do
    python on_device.py check FOLDER          runs them on this machine's first GPU: greencc's runtime is enough

The second prints a line of JSON for each case, and ends with status 1 where a result is wrong. test_on_device.py does
both where there is a GPU.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from greencc.runtime.devices import Device
from greencc.runtime.executable import Executable

RUNS = 50
"""Runs that are timed together."""
_MEMBERS = ("kernels.json", "kernels.cubin")


@dataclass(frozen=True)
class Case:
    """A computation.

    Attributes:
        params: shape and type of the inputs by name; a shape may hold the name of a symbol.
        body: emits it: the compiler's `Tools`, then the inputs.
        inputs: sets of arrays to run it on.
        expected: what numpy makes of a set.
        tolerance: largest error allowed, absolute and relative to the largest element.
        rule: name of the schedule rule that must have been chosen for one of its kernels.
    """

    params: dict[str, tuple[tuple[int | str, ...], str]]
    body: Callable[..., Any]
    inputs: list[list[np.ndarray]]
    expected: Callable[..., np.ndarray]
    tolerance: float
    rule: str | None = None


@dataclass(frozen=True)
class Tools:
    """What a case is emitted with; cases are described without, because a machine that checks may have no compiler.

    Attributes:
        emit: of the builder.
        op: relax.op.
        constant: an array as a constant.
        ops: greencc.ops.
    """

    emit: Callable[[Any], Any]
    op: Any
    constant: Callable[[np.ndarray], Any]
    ops: Any


def normal(*shape: int, seed: int = 0, dtype: str = "float32") -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def as_bfloat16(x: np.ndarray) -> np.ndarray:
    """Float32 values rounded to the nearest that bfloat16 has, to even ones half-way."""
    bits = np.ascontiguousarray(x).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) & np.uint32(0xFFFF0000)).view(np.float32)


def levels(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-128, 128, shape, np.int8)


def cases() -> dict[str, Case]:
    """All cases by name."""
    found: dict[str, Case] = {}

    def product(
        dtype: str, rows: int | str, depth: int, columns: int, sizes: list[int], transposed: bool = False
    ) -> Case:
        """relu(x @ w + bias), summed in float32."""
        shape = (columns, depth) if transposed else (depth, columns)
        stored = "float32" if dtype == "bfloat16" else dtype
        w, bias = normal(*shape, seed=1, dtype=stored), normal(columns, seed=2)
        rounded = as_bfloat16 if dtype == "bfloat16" else lambda x: x

        def body(t: Tools, x: Any) -> Any:
            weight = t.constant(w)
            if dtype == "bfloat16":
                x, weight = (t.emit(t.op.astype(value, "bfloat16")) for value in (x, weight))
            if transposed:
                weight = t.emit(t.op.permute_dims(weight))
            total = t.emit(t.op.matmul(x, weight, out_dtype="float32"))
            return t.emit(t.op.nn.relu(t.emit(t.op.add(total, t.constant(bias)))))

        def expected(x: np.ndarray) -> np.ndarray:
            left, right = (rounded(value).astype(np.float64) for value in (x, w.T if transposed else w))
            return np.maximum(left @ right + bias, 0).astype(np.float32)

        inputs = [[normal(size, depth, seed=size, dtype=stored)] for size in sizes]
        # Matrix units cut off where float32 would round; the products themselves are exact.
        tolerance = 1e-5 if dtype == "float32" else 1e-4
        rule = "gpu-tensor-core" if stored == "float16" or dtype == "bfloat16" else "gpu-matmul"
        return Case({"x": ((rows, depth), stored)}, body, inputs, expected, tolerance, rule)

    found["product-f32"] = product("float32", 128, 384, 1536, [128])
    found["product-f32-ragged"] = product("float32", "n", 52, 200, [1, 7, 77])
    found["product-f16-small"] = product("float16", 128, 384, 1536, [128])
    found["product-f16-large"] = product("float16", 2048, 2048, 1024, [2048])
    found["product-f16-ragged"] = product("float16", "n", 52, 200, [1, 7, 77])
    found["product-f16-odd"] = product("float16", "n", 51, 33, [19])
    found["product-f16-transposed"] = product("float16", "n", 64, 96, [40], transposed=True)
    found["product-bf16"] = product("bfloat16", "n", 384, 384, [100])

    w8 = levels(200, 136, seed=3)
    found["product-int8"] = Case(
        {"x": (("n", 200), "int8")},
        lambda t, x: t.emit(t.op.matmul(x, t.constant(w8), out_dtype="int32")),
        [[levels(rows, 200, seed=rows)] for rows in (16, 77)],
        lambda x: x.astype(np.int32) @ w8.astype(np.int32),
        0.0,
        "gpu-tensor-core",
    )

    def softmax(x: np.ndarray) -> np.ndarray:
        powers = np.exp(x - x.max(-1, keepdims=True))
        return powers / powers.sum(-1, keepdims=True)

    rows = {"x": (("n", 384), "float32")}
    found["softmax"] = Case(
        rows, lambda t, x: t.emit(t.op.nn.softmax(x)), [[normal(n, 384, seed=n)] for n in (1, 130)], softmax, 1e-6
    )
    gamma, beta = normal(384, seed=4), normal(384, seed=5)

    def normalized(x: np.ndarray) -> np.ndarray:
        wide = x.astype(np.float64)
        centred = wide - wide.mean(-1, keepdims=True)
        return (centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * gamma + beta).astype(np.float32)

    found["layer-norm"] = Case(
        rows,
        lambda t, x: t.emit(t.op.nn.layer_norm(x, t.constant(gamma), t.constant(beta), axes=[-1], epsilon=1e-5)),
        [[normal(n, 384, seed=n)] for n in (1, 130)],
        normalized,
        1e-5,
    )

    def gelu(x: np.ndarray) -> np.ndarray:
        return (x * (np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)) + 1) / 2).astype(np.float32)

    found["gelu-tanh"] = Case(
        rows, lambda t, x: t.emit(t.op.nn.gelu_tanh(x)), [[normal(77, 384, seed=6) * 3]], gelu, 1e-5
    )
    found["mean"] = Case(
        {"x": ((3, 50, 70), "float32")},
        lambda t, x: t.emit(t.op.mean(x, axis=[1])),
        [[normal(3, 50, 70, seed=7)]],
        lambda x: x.mean(1),
        1e-6,
    )
    kernel = normal(16, 8, 3, 3, seed=8)

    def convolved(x: np.ndarray) -> np.ndarray:
        padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
        parts = [
            np.einsum("nchw,oc->nohw", padded[:, :, i : i + x.shape[2], j : j + x.shape[3]], kernel[:, :, i, j])
            for i in range(3)
            for j in range(3)
        ]
        return np.sum(parts, 0, dtype=np.float32)

    found["convolution"] = Case(
        {"x": ((2, 8, 30, 27), "float32")},
        lambda t, x: t.emit(t.op.nn.conv2d(x, t.constant(kernel), padding=(1, 1))),
        [[normal(2, 8, 30, 27, seed=9)]],
        convolved,
        1e-5,
    )
    heads, size = 12, 32

    def attended(q: np.ndarray, k: np.ndarray, v: np.ndarray, mask: np.ndarray) -> np.ndarray:
        split = [x.reshape(*x.shape[:2], heads, size).transpose(0, 2, 1, 3) for x in (q, k, v)]
        scores = split[0] @ split[1].swapaxes(-1, -2) * size**-0.5 + mask
        return (softmax(scores) @ split[2]).transpose(0, 2, 1, 3).reshape(q.shape)

    def attends(t: Tools, *operands: Any) -> Any:
        return t.emit(t.ops.attention(*operands, t.ops.AttentionAttrs(heads, heads, size, size, scale=size**-0.5)))

    shape = ((1, "n", heads * size), "float32")
    found["attention"] = Case(
        {"q": shape, "k": shape, "v": shape, "mask": ((1, 1, "n", "n"), "float32")},
        attends,
        [
            [*(normal(1, n, heads * size, seed=i) for i in range(3)), normal(1, 1, n, n, seed=3)]
            for n in (1, 7, 128, 200)
        ],
        attended,
        1e-5,
    )

    stack = [(normal(64, 64, seed=i) / 8, normal(64, seed=10 + i)) for i in range(6)]

    def layers(t: Tools, x: Any) -> Any:
        for weight, offset in stack:
            total = t.emit(t.op.add(t.emit(t.op.matmul(x, t.constant(weight))), t.constant(offset)))
            x = t.emit(t.op.nn.softmax(total))
        return x

    def stacked(x: np.ndarray) -> np.ndarray:
        for weight, offset in stack:
            x = softmax(x @ weight + offset)
        return x

    found["layers-in-a-graph"] = Case(
        {"x": ((32, 64), "float32")}, layers, [[normal(32, 64, seed=i)] for i in range(3)], stacked, 1e-5
    )
    return found


def prepare(folder: Path, arch: str, names: list[str] | None = None) -> None:
    """Compile the cases into a folder each."""
    from tvm import relax, tirx

    from greencc import ops
    from greencc.ir import INPUTS_ATTR, OUTPUTS_ATTR, constant
    from greencc.targets.cuda.target import CudaTarget
    from greencc.targets.lower import lower

    target = CudaTarget(arch)
    for name, case in cases().items():
        if names and name not in names:
            continue
        symbols: dict[str, tirx.Var] = {}

        def dim(size: int | str, symbols: dict[str, tirx.Var] = symbols) -> Any:
            return size if isinstance(size, int) else symbols.setdefault(size, tirx.Var(size, "int64"))

        params = [
            relax.Var(key, relax.TensorType([dim(size) for size in shape], dtype))
            for key, (shape, dtype) in case.params.items()
        ]
        builder = relax.BlockBuilder()
        tools = Tools(builder.emit, relax.op, constant, ops)
        with builder.function("main", params):
            with builder.dataflow():
                result = builder.emit_output(relax.Tuple([case.body(tools, *params)]))
            builder.emit_func_output(result)
        module = builder.get()
        attrs = {INPUTS_ATTR: list(case.params), OUTPUTS_ATTR: ["y"]}
        module.update_func(module.get_global_var("main"), module["main"].with_attrs(attrs))
        lowered = lower(module, target)
        if case.rule is not None and case.rule not in lowered.rules.values():
            raise SystemExit(f"{name}: scheduled by {sorted(set(lowered.rules.values()))}, not by {case.rule}")
        code = target.build(lowered.module)
        place = folder / name
        place.mkdir(parents=True, exist_ok=True)
        (place / "code.so").write_bytes(code.library)
        for member in _MEMBERS:
            (place / member).write_bytes(code.kernels[member])
        np.savez(place / "weights.npz", **lowered.weights)


def check(folder: Path) -> bool:
    """Run what `prepare` made; whether all of it is right."""
    passed = True
    for name, case in cases().items():
        place = folder / name
        if not place.is_dir():
            continue
        kernels = {member: (place / member).read_bytes() for member in _MEMBERS}
        executable = Executable(place / "code.so", kernels, Device("cuda", 0))
        machine = executable.new_machine()
        with np.load(place / "weights.npz") as stored:
            weights = executable.place([_aligned(stored[key]) for key in stored])
        errors, times = [], []
        # The first run of a static model is recorded, later ones replay it: every set of inputs comes twice.
        for given in case.inputs * 2:
            arrays, expected = [_aligned(array) for array in given], case.expected(*given)
            (got,) = machine.run(arrays, weights)
            largest = max(1.0, float(np.abs(expected).max()))
            same = got.shape == expected.shape and got.dtype == expected.dtype
            errors.append(float(np.abs(got - expected).max()) / largest if same else float("inf"))
            times.append(machine.seconds(arrays, weights, RUNS) / RUNS)
        right = all(error <= case.tolerance for error in errors)  # not so for NaN
        passed &= right
        line = {"case": name, "right": right, "error": max(errors), "tolerance": case.tolerance}
        print(json.dumps({**line, "microseconds": [round(1e6 * seconds, 1) for seconds in times]}), flush=True)
    return passed


def _aligned(array: np.ndarray) -> np.ndarray:
    """The array at a multiple of 64 bytes, as the runtime wants its arrays."""
    memory = np.empty(array.nbytes + 64, np.uint8)
    start = -memory.ctypes.data % 64
    result = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    result[...] = array
    return result


if __name__ == "__main__":
    verb, place, *rest = sys.argv[1:]
    if verb == "prepare":
        prepare(Path(place), rest[0], rest[1:])
    elif not check(Path(place)):
        raise SystemExit(1)
