"""Small Relax modules for pass tests, and a numpy interpreter of them that knows nothing of the passes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import tvm
from tvm import ir, relax, tirx

from greencc.ir import INPUTS_ATTR, OUTPUTS_ATTR, bindings_of, constant_array, with_span
from greencc.kernels import kernel_name, kernel_options
from greencc.passes.base import PassContext, PassResult
from greencc.passes.prune_dead_nodes import PruneDeadNodes

Emit = Callable[..., relax.Var]
Body = Callable[..., Sequence[relax.Expr]]


def tensor(name: str, *shape: int | tirx.Var, dtype: str = "float32") -> relax.Var:
    return relax.Var(name, relax.TensorType(list(shape), dtype))


def symbol(name: str) -> tirx.Var:
    return tirx.Var(name, "int64")


def const(values: object, dtype: str = "float32") -> relax.Expr:
    return relax.const(np.asarray(values, dtype), dtype)


def finish(module: tvm.IRModule, outputs: int) -> tvm.IRModule:
    """`module` with the attributes that an importer gives main; outputs are named out0, out1, ..."""
    main = module["main"].with_attr(INPUTS_ATTR, [p.name for p in module["main"].params])
    main = main.with_attr(OUTPUTS_ATTR, [f"out{i}" for i in range(outputs)])
    module = module.clone()
    module.update_func(module.get_global_var("main"), main)
    return module


def graph(params: Sequence[relax.Var], body: Body) -> tvm.IRModule:
    """main(params): one dataflow block that `body(emit, *params)` fills and whose outputs it returns."""
    builder = relax.BlockBuilder()
    with builder.function("main", list(params)):
        with builder.dataflow():
            outputs = list(body(_emitter(builder), *params))
            result = builder.emit_output(relax.Tuple(outputs))
        builder.emit_func_output(result)
    return finish(builder.get(), len(outputs))


def _emitter(builder: relax.BlockBuilder) -> Emit:
    def emit(value: relax.Expr, node: str | None = None) -> relax.Var:
        return builder.emit(with_span(value, node))

    return emit


def prune(module: tvm.IRModule, outputs: tuple[str, ...] | None = None, **options: bool) -> PassResult:
    """The pass's result, verified, and checked to leave nothing for a second run."""
    result = PruneDeadNodes(**options).run(module, PassContext(outputs))
    relax.analysis.well_formed(result.module)
    again = PruneDeadNodes(**options).run(result.module, PassContext())
    assert (again.rewrites, again.counts) == (0, {})
    tvm.ir.assert_structural_equal(again.module, result.module)
    return result


def ops(module: tvm.IRModule, function: str = "main") -> list[str]:
    """Names of the operators that a function calls, in order."""
    values = [binding.value for binding in bindings_of(module[function])]
    calls = [v.op for v in values if isinstance(v, relax.Call) and isinstance(v.op, ir.Op)]
    return [op.name.removeprefix("relax.") for op in calls]


def reasons(result: PassResult) -> list[tuple[int, str]]:
    return [(refusal.condition, refusal.reason) for refusal in result.refusals]


def run_numpy(module: tvm.IRModule, *inputs: np.ndarray) -> list[np.ndarray]:
    """Outputs of main, for the operators in `_NUMPY` and static shapes."""
    main = module["main"]
    env: dict[relax.Expr, object] = dict(zip(main.params, inputs, strict=True))

    def value(expr: relax.Expr) -> object:
        if isinstance(expr, relax.Tuple):
            return [value(field) for field in expr.fields]
        if isinstance(expr, relax.TupleGetItem):
            return value(expr.tuple_value)[expr.index]  # type: ignore[index]
        if isinstance(expr, ir.GenericConst):
            return constant_array(expr)
        if isinstance(expr, relax.ShapeExpr):
            return [int(dim) for dim in expr.values]
        if isinstance(expr, tirx.IntImm):
            return int(expr.value)
        if isinstance(expr, tirx.FloatImm):
            return float(expr.value)
        if isinstance(expr, relax.Call):
            result = _NUMPY[expr.op.name.removeprefix("relax.")](expr, *map(value, expr.args))
            expected = tuple(int(dim) for dim in expr.ty.shape.values) if not isinstance(result, list) else None
            assert expected is None or np.shape(result) == expected
            return result
        return env[expr]

    with np.errstate(all="ignore"):
        for binding in bindings_of(main):
            env[binding.var] = value(binding.value)
        return value(main.body.body)  # type: ignore[return-value]


def _slice(call: relax.Call, x: np.ndarray, axes: list, begin: list, end: list, stride: object = None) -> object:
    index = [slice(None)] * x.ndim
    for position, axis in enumerate(axes):
        index[axis] = slice(begin[position], end[position], stride[position] if stride else 1)  # type: ignore[index]
    return x[tuple(index)]


def _split(x: np.ndarray, parts: int, axis: int) -> object:
    # Relax gives a split into one part the type of a tensor, not of a tuple.
    return x if parts == 1 else np.split(x, parts, axis)


def _pad(call: relax.Call, x: np.ndarray) -> object:
    widths = [int(w) for w in call.attrs.pad_width]
    for axis in range(x.ndim):
        low, high = widths[2 * axis], widths[2 * axis + 1]
        x = np.take(x, range(max(-low, 0), x.shape[axis] - max(-high, 0)), axis)
        x = np.pad(x, [(max(low, 0), max(high, 0)) if a == axis else (0, 0) for a in range(x.ndim)])
    return x


def _kernel(call: relax.Call, *args: object) -> object:
    """`greencc.kernel` for scales and zero points that are one for all, and for pooling of the maximum."""
    *tensors, dims = args
    options = kernel_options(call)
    if kernel_name(call) == "pool":
        (x,) = tensors
        count, low = len(options["kernel"]), -np.inf if x.dtype.kind == "f" else np.iinfo(x.dtype).min
        assert options["kind"] == "max"
        before, behind = dims[count : 2 * count], dims[2 * count :]
        padded = np.pad(x, [(0, 0), (0, 0), *zip(before, behind, strict=True)], constant_values=low)
        windows = np.lib.stride_tricks.sliding_window_view(padded, options["kernel"], axis=(2, 3))
        rows, columns = options["strides"]
        return windows[:, :, ::rows, ::columns].max(axis=(-2, -1))
    data, scale, *zero = tensors
    zero_point = zero[0].astype(np.int32) if zero else np.int32(0)
    if kernel_name(call) == "dequantize":
        return ((data.astype(np.int32) - zero_point).astype(np.float32) * scale).astype(options["dtype"])
    info = np.iinfo(options["dtype"])
    return np.clip(np.rint(data / scale) + np.float32(zero_point), info.min, info.max).astype(info.dtype)


_NUMPY: dict[str, Callable[..., object]] = {
    "add": lambda c, a, b: a + b,
    "subtract": lambda c, a, b: a - b,
    "multiply": lambda c, a, b: a * b,
    "divide": lambda c, a, b: a / b,
    "power": lambda c, a, b: np.power(a, b),
    "negative": lambda c, a: -a,
    "abs": lambda c, a: np.abs(a),
    "maximum": lambda c, a, b: np.maximum(a, b),
    "minimum": lambda c, a, b: np.minimum(a, b),
    "clip": lambda c, a, low, high: np.maximum(np.minimum(a, a.dtype.type(high)), a.dtype.type(low)),
    "greencc.kernel": _kernel,
    "nn.relu": lambda c, a: np.where(a > 0, a, np.zeros_like(a)),
    "exp": lambda c, a: np.exp(a),
    "where": lambda c, a, x, y: np.where(a, x, y),
    "astype": lambda c, a: a.astype(str(c.attrs.dtype)),
    "reshape": lambda c, a, shape: a.reshape(shape),
    "flatten": lambda c, a: a.reshape(-1),
    "squeeze": lambda c, a: a.reshape([int(d) for d in c.ty.shape.values]),
    "expand_dims": lambda c, a: a.reshape([int(d) for d in c.ty.shape.values]),
    "permute_dims": lambda c, a: a.transpose(None if c.attrs.axes is None else [int(i) for i in c.attrs.axes]),
    "broadcast_to": lambda c, a, shape: np.broadcast_to(a, shape),
    "concat": lambda c, parts: np.concatenate(parts, int(c.attrs.axis)),
    "split": lambda c, a: _split(a, int(c.attrs.indices_or_sections), int(c.attrs.axis)),
    "strided_slice": _slice,
    "nn.pad": _pad,
}


def bits(arrays: Sequence[np.ndarray]) -> list[tuple[str, tuple[int, ...], bytes]]:
    """What must be equal for two results to be bitwise equal; all NaNs count as one."""
    found = []
    for array in arrays:
        array = np.array(array)
        if array.dtype.kind == "f":
            array[np.isnan(array)] = np.nan
        found.append((str(array.dtype), array.shape, array.tobytes()))
    return found
