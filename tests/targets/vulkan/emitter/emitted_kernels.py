"""Small kernels: computed element by element, lowered for Vulkan, validated, run there or by LLVM on the host."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence

import numpy as np
import tvm
import tvm_ffi
from tvm import s_tir, te, tirx
from tvm.tirx.build import split_host_device_mods

from greencc.runtime.library import load_library
from greencc.runtime.vulkan import load_kernels
from greencc.targets.gpu.capabilities import Capabilities
from greencc.targets.vulkan.emitter import Shader, compile_kernels, emit
from greencc.targets.vulkan.target import VulkanTarget

# Lavapipe, with all that it has.
EVERYTHING = Capabilities(max_threads=1024, subgroup=8, has_float16=True, has_float64=True, has_dot4=True, alignment=16)
PLAIN = Capabilities(has_float64=True)

Element = Callable[..., tirx.Expr]


def i64(value: int) -> tirx.Expr:
    return tirx.IntImm("int64", value)


def elementwise(elements: Element | Sequence[Element], dtypes: Sequence[str], count: int | tirx.Expr) -> tirx.PrimFunc:
    """C[i] = element(A0[i], A1[i], ...), one output for each element.

    An element whose last argument is called i gets the index there.
    """
    several = [elements] if callable(elements) else list(elements)
    size = i64(count) if isinstance(count, int) else count
    inputs = [te.placeholder((size,), dtype, name=f"A{i}") for i, dtype in enumerate(dtypes)]

    def at(i: tirx.Var) -> list[tirx.Expr]:
        given = [tensor[i] for tensor in inputs]
        return [element(*given, *([i] if _takes_index(element) else [])) for element in several]

    outputs = te.compute((size,), at, name="C")
    func = te.create_prim_func([*inputs, *(outputs if isinstance(outputs, (list, tuple)) else [outputs])])
    return func.with_attrs({"tirx.noalias": True, "global_symbol": "main"})


def _takes_index(element: Element) -> bool:
    code = getattr(element, "__code__", None)
    return code is not None and code.co_varnames[: code.co_argcount][-1:] == ("i",)


def computed(
    elements: Element | Sequence[Element],
    dtypes: Sequence[str],
    count: int | tirx.Expr,
    threads: int = 32,
    vector: int = 1,
) -> tvm.IRModule:
    """An elementwise kernel with a thread for every `vector` elements."""
    schedule = s_tir.Schedule(tvm.IRModule({"main": elementwise(elements, dtypes, count)}))
    first = schedule.get_child_blocks(schedule.get_sblock("root"))[0]
    (loop,) = schedule.get_loops(first)
    block, thread, lanes = schedule.split(loop, [None, threads, vector])
    schedule.bind(block, "blockIdx.x")
    schedule.bind(thread, "threadIdx.x")
    if vector > 1:
        schedule.vectorize(lanes)
    return schedule.mod


def device_functions(module: tvm.IRModule, gpu: Capabilities) -> tvm.IRModule:
    """The module's device functions, as the emitter gets them."""
    lower, _, finalize = tirx.get_tir_pipeline("s_tir")
    bound = tirx.transform.BindTarget(VulkanTarget(gpu).tvm_target())(module)
    _, devices = split_host_device_mods(lower(bound))
    (functions,) = devices.values()
    return finalize()(functions)


def shader_of(module: tvm.IRModule, gpu: Capabilities = EVERYTHING) -> Shader:
    """The shader of a module of one kernel."""
    ((gv, func),) = device_functions(module, gpu).functions_items()
    return emit(gv.name_hint, func, gpu)


def on_device(module: tvm.IRModule, arrays: Sequence[np.ndarray], gpu: Capabilities = EVERYTHING) -> None:
    """Run the kernel on the Vulkan device; it changes what it writes."""
    with _emitter(gpu):
        executable = tvm.compile(module, target=VulkanTarget(gpu).tvm_target())
    _call(executable, arrays, tvm.device("vulkan", 0))


def on_host(module: tvm.IRModule, arrays: Sequence[np.ndarray]) -> None:
    """Run a module that isn't bound to threads on the host, by LLVM; it changes what it writes."""
    _call(tvm.compile(module, target="llvm"), arrays, tvm.cpu())


def evaluate(
    element: Element, inputs: Sequence[np.ndarray], dtype: str, gpu: Capabilities = EVERYTHING, vector: int = 1
) -> np.ndarray:
    """`element` of every element of the inputs, on the device."""
    return evaluate_all([element], inputs, dtype, gpu, vector)[0]


def evaluate_all(
    elements: Sequence[Element],
    inputs: Sequence[np.ndarray],
    dtype: str | Sequence[str],
    gpu: Capabilities = EVERYTHING,
    vector: int = 1,
) -> list[np.ndarray]:
    """Several functions of every element of the inputs, by one kernel on the device."""
    dtypes = [dtype] * len(elements) if isinstance(dtype, str) else dtype
    outputs = [np.zeros(len(inputs[0]), each) for each in dtypes]
    module = computed(elements, [str(array.dtype) for array in inputs], len(inputs[0]), vector=vector)
    on_device(module, [*inputs, *outputs], gpu)
    return outputs


def evaluate_on_host(
    elements: Sequence[Element], inputs: Sequence[np.ndarray], dtype: str | Sequence[str]
) -> list[np.ndarray]:
    """The same by LLVM on the host."""
    dtypes = [dtype] * len(elements) if isinstance(dtype, str) else dtype
    outputs = [np.zeros(len(inputs[0]), each) for each in dtypes]
    func = elementwise(elements, [str(array.dtype) for array in inputs], len(inputs[0]))
    on_host(tvm.IRModule({"main": func}), [*inputs, *outputs])
    return outputs


def _call(executable: tvm.runtime.Executable, arrays: Sequence[np.ndarray], device: tvm.runtime.Device) -> None:
    tensors = [tvm.runtime.tensor(array, device) for array in arrays]
    executable["main"](*tensors)
    device.sync()
    for array, tensor in zip(arrays, tensors, strict=True):
        array[...] = tensor.numpy()


@contextlib.contextmanager
def _emitter(gpu: Capabilities):
    """While it lasts, TVM builds Vulkan modules with our emitter."""

    def build(module: tvm.IRModule, target: tvm.target.Target) -> tvm.runtime.Module:
        members = compile_kernels(module, gpu)
        return load_kernels(_library(), members["kernels.json"], members["kernels.spv"])

    tvm_ffi.register_global_func("target.build.vulkan", build, override=True)
    try:
        yield
    finally:
        tvm_ffi.registry.remove_global_func("target.build.vulkan")


@functools.cache
def _library():
    return load_library()


def with_pairs_of(special: np.ndarray, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Random pairs of a's and b's values, and all pairs of special values."""
    a, b = a.copy(), np.random.default_rng(1).permutation(b)
    count = len(special)
    a[: count**2], b[: count**2] = np.repeat(special, count), np.tile(special, count)
    return a, b
