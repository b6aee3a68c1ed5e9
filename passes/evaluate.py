"""One operator call on constants, computed at compile time: by numpy where that is exact, else by TVM."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import tvm
from tvm import relax

from greencc.ir import dtype_of, static_shape
from greencc.kernels import KERNEL, kernel_name, kernel_options
from greencc.passes.no_ops import integers, permutation_of, strides_of

Arrays = Sequence[np.ndarray]
# Element types that numpy and TVM's CPU code both have; the rest would need emulation.
EVALUATED_DTYPES = frozenset(("bool", "float16", "float32", "float64", "int8", "int16", "int32", "int64")).union(
    ("uint8", "uint16", "uint32", "uint64")
)


def evaluate(call: relax.Call, arrays: Arrays) -> tuple[np.ndarray, ...]:
    """The results of a call, several for one that returns a tuple.

    Args:
        call: a typed operator call with static result shapes and an entry in TVM's table of lowerings.
        arrays: values of its tensor operands, those in tuples included, in order.
    """
    exact = _EXACT.get(_name(call))
    with np.errstate(all="ignore"):
        result = None if exact is None else exact(call, arrays)
    return _run(call, arrays) if result is None else (result,)


def has_exact_result(call: relax.Call) -> bool:
    """Whether numpy computes the call's operator, for some element types at least."""
    return _name(call) in _EXACT


def _name(call: relax.Call) -> str:
    """The operator's name; that of a kernel behind it."""
    return f"{KERNEL}.{kernel_name(call)}" if call.op.name == KERNEL else str(call.op.name)


def _slice(call: relax.Call, arrays: Arrays) -> np.ndarray | None:
    bounds = [integers(arg) for arg in call.args[1:]]
    # numpy and TVM clip the bounds of a backward slice differently.
    if None in bounds or not all(stride is not None and stride > 0 for stride in strides_of(call).values()):
        return None
    axes, begins, ends, *strides = (bound or () for bound in bounds)
    index = [slice(None)] * arrays[0].ndim
    for axis, *range_ in zip(axes, begins, ends, strides[0] if strides else [1] * len(axes), strict=True):
        index[axis] = slice(*range_)
    return arrays[0][tuple(index)]


def _full(call: relax.Call, arrays: Arrays) -> np.ndarray:
    value = {"relax.zeros": 0, "relax.ones": 1}.get(call.op.name)
    return np.full(static_shape(call.ty) or (), arrays[0] if value is None else value, dtype_of(call.ty))


def _view(call: relax.Call, arrays: Arrays) -> np.ndarray:
    return arrays[0].reshape(static_shape(call.ty) or ())


def _cast(call: relax.Call, arrays: Arrays) -> np.ndarray | None:
    # What a float out of an integer's range becomes is the code generator's choice.
    dtype = dtype_of(call.ty) or ""
    return None if arrays[0].dtype.kind == "f" and "int" in dtype else arrays[0].astype(dtype)


def _dequantize(call: relax.Call, arrays: Arrays) -> np.ndarray | None:
    data, scale, *zero = arrays
    options = kernel_options(call)
    axis, block = options["axis"], options["block"]

    def spread(parameter: np.ndarray) -> np.ndarray:
        if block:
            return np.repeat(parameter, block, axis).take(range(data.shape[axis]), axis)
        return parameter.reshape([-1 if parameter.size > 1 and i == axis else 1 for i in range(data.ndim)])

    value = data.astype(np.int32)
    for points in zero:
        value = value - spread(points).astype(np.int32)
    return (value.astype(np.float32) * spread(scale).astype(np.float32)).astype(options["dtype"])


def _divide(call: relax.Call, arrays: Arrays) -> np.ndarray | None:
    return arrays[0] / arrays[1] if arrays[0].dtype.kind == "f" else None


# Operators whose results have one right answer, bit for bit. None means: only TVM can say.
_EXACT: Mapping[str, Callable[[relax.Call, Arrays], np.ndarray | None]] = {
    **{f"relax.{name}": _view for name in ("reshape", "flatten", "squeeze", "expand_dims")},
    **{f"relax.{name}": _full for name in ("full", "zeros", "ones")},
    f"{KERNEL}.dequantize": _dequantize,
    "relax.permute_dims": lambda call, arrays: arrays[0].transpose(permutation_of(call)),
    "relax.broadcast_to": lambda call, arrays: np.broadcast_to(arrays[0], static_shape(call.ty) or ()),
    "relax.concat": lambda call, arrays: np.concatenate(arrays, int(call.attrs.axis)),
    "relax.strided_slice": _slice,
    "relax.astype": _cast,
    "relax.add": lambda call, arrays: arrays[0] + arrays[1],
    "relax.subtract": lambda call, arrays: arrays[0] - arrays[1],
    "relax.multiply": lambda call, arrays: arrays[0] * arrays[1],
    "relax.divide": _divide,
    "relax.negative": lambda call, arrays: -arrays[0],
    "relax.where": lambda call, arrays: np.where(*arrays),
}


@dataclass(frozen=True)
class _Program:
    """A module compared by its text, which says all that its code depends on: it holds no constants."""

    text: str
    module: tvm.IRModule = field(compare=False)


@functools.lru_cache(maxsize=256)
def _compiled(program: _Program) -> Callable[..., object]:
    executable = tvm.compile(program.module, target=tvm.target.Target({"kind": "llvm"}))
    run: Callable[..., object] = relax.VirtualMachine(executable, tvm.cpu())["main"]
    return run


def _run(call: relax.Call, arrays: Arrays) -> tuple[np.ndarray, ...]:
    params = [relax.Var(f"x{i}", relax.TensorType(a.shape, str(a.dtype))) for i, a in enumerate(arrays)]
    feed = iter(params)

    def open_up(arg: relax.Expr) -> relax.Expr:
        if isinstance(arg, relax.Tuple):
            return relax.Tuple([open_up(part) for part in arg.fields])
        return next(feed) if isinstance(arg.ty, relax.TensorType) else arg

    builder = relax.BlockBuilder()
    with builder.function("main", params):
        builder.emit_func_output(
            builder.emit(relax.Call(call.op, [open_up(arg) for arg in call.args], call.attrs, call.ty_args))
        )
    module = builder.get()
    tensors = [tvm.runtime.tensor(np.asarray(a, order="C")) for a in arrays]
    result = _compiled(_Program(module.script(), module))(*tensors)
    results = [result] if isinstance(result, tvm.runtime.Tensor) else list(result)  # type: ignore[call-overload]
    return tuple(np.array(r.numpy()) for r in results)
