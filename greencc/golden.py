"""Small inputs that fit a model: for the artifact's golden pair, for --verify and as bench's default."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import tvm
from tvm import relax, tirx

from greencc.ir import SYMBOL_LOWER_ATTR, SYMBOL_UPPER_ATTR, bindings_of, dtype_of, shape_of

# Sizes that symbolic dimensions get where their bounds allow it.
BATCH, SIZE = 1, 64


def golden_inputs(
    module: tvm.IRModule, padded: str | None = None, at: Mapping[str, int] | None = None
) -> dict[str, np.ndarray]:
    """Reproducible inputs by name: normal floats, integers that every table lookup accepts, masks of ones.

    Args:
        module: the model.
        padded: the mask input that gets sequences of several lengths instead, with zeros behind them.
        at: sizes of symbolic dimensions by name, instead of small ones.
    """
    main = module["main"]
    limits = lookup_limits(main)
    sizes = {symbol: (at or {}).get(symbol.name, size) for symbol, size in symbol_sizes(main).items()}
    rng = np.random.default_rng(0)
    result: dict[str, np.ndarray] = {}
    for param in main.params:
        shape = tuple(int(dim) if isinstance(dim, tirx.IntImm) else sizes[dim] for dim in shape_of(param.ty) or [])
        dtype = np.dtype(str(dtype_of(param.ty)))
        if param.name == padded and len(shape) == 2:
            result[param.name] = _lengths(*shape).astype(dtype)
        elif "mask" in param.name.lower():
            result[param.name] = np.ones(shape, dtype)
        elif dtype.kind == "f":
            result[param.name] = rng.standard_normal(shape).astype(dtype)
        elif dtype.kind == "b":
            result[param.name] = rng.integers(0, 2, shape).astype(dtype)
        else:
            result[param.name] = rng.integers(0, limits.get(param, 2), shape).astype(dtype)
    return result


def _lengths(batch: int, longest: int) -> np.ndarray:
    """A mask [batch, longest] of sequences of 5/8, 6/8, 7/8 and 8/8 of the length, in turn."""
    eighths = 5 + np.arange(batch) % 4
    return np.arange(longest) < np.maximum(1, longest * eighths // 8)[:, None]


def symbol_sizes(main: relax.Function) -> dict[tirx.Var, int]:
    """A size for every symbolic dimension: 1 for the first axis, 64 for others, moved into the stated bounds."""
    bounds = [
        {str(k): int(v) for k, v in main.attrs[name].items()} if main.attrs and name in main.attrs else {}
        for name in (SYMBOL_LOWER_ATTR, SYMBOL_UPPER_ATTR)
    ]
    sizes: dict[tirx.Var, int] = {}
    for param in main.params:
        for axis, dim in enumerate(shape_of(param.ty) or []):
            if isinstance(dim, tirx.Var) and dim not in sizes:
                size = BATCH if axis == 0 else SIZE
                size = max(size, bounds[0].get(dim.name, 1))
                sizes[dim] = min(size, bounds[1].get(dim.name, size))
    return sizes


def lookup_limits(main: relax.Function) -> dict[relax.Var, int]:
    """For integer inputs that index a table: the smallest number of its rows."""
    origin: dict[relax.Var, relax.Var] = {param: param for param in main.params}
    limits: dict[relax.Var, int] = {}
    for binding in bindings_of(main):
        value = binding.value
        if not isinstance(value, relax.Call) or not isinstance(value.op, tvm.ir.Op):
            continue
        if value.op.name in ("relax.astype", "relax.reshape") and value.args[0] in origin:
            origin[binding.var] = origin[value.args[0]]
        if value.op.name == "relax.take" and value.args[1] in origin:
            axis = int(value.attrs.axis) if value.attrs.axis is not None else 0
            dims = shape_of(value.args[0].ty) or []
            if axis < len(dims) and isinstance(dims[axis], tirx.IntImm):
                source = origin[value.args[1]]
                limits[source] = min(limits.get(source, int(dims[axis])), int(dims[axis]))
    return limits
