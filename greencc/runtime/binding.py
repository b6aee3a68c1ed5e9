"""Checks the arrays of a run against the model's inputs, and lays them out as the machine code needs them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from greencc.artifact.bundle import Array, TensorSpec
from greencc.artifact.tensors import ALIGNMENT
from greencc.errors import InputError

Symbols = Mapping[str, tuple[int, int | None]]


def bind_inputs(specs: Sequence[TensorSpec], symbols: Symbols, given: Mapping[str, object]) -> list[Array]:
    """The arrays of `given` in call order, every name, element type and dimension checked.

    Args:
        specs: the model's inputs.
        symbols: bounds of the symbols that their shapes name.
        given: arrays (or what numpy makes an array of) by input name.

    Raises:
        InputError: a name is missing or unknown, an element type differs, a dimension is not the fixed one, a
            symbol is out of its bounds or differs between two inputs. Nothing is converted silently.
    """
    unknown = sorted(given.keys() - {spec.name for spec in specs})
    missing = [spec.name for spec in specs if spec.name not in given]
    if unknown or missing:
        problem = f"there is no input {unknown[0]!r}" if unknown else f"input {missing[0]!r} is missing"
        raise InputError(f"{problem}: the model takes {', '.join(map(str, specs)) or 'no inputs'}")
    bound: dict[str, tuple[int, str]] = {}
    arrays = []
    for spec in specs:
        array = _as_array(spec, given[spec.name])
        _check_shape(spec, array, symbols, bound)
        arrays.append(array)
    return arrays


def aligned(array: Array) -> Array:
    """`array` itself where the machine code can read it in place, else a copy that it can.

    In place means C-contiguous, at a multiple of 64 bytes, and writable (numpy can't pass read-only memory to
    TVM, though nothing writes to it). `aligned_empty` makes such arrays.
    """
    flags = array.flags
    if flags.c_contiguous and flags.writeable and array.ctypes.data % ALIGNMENT == 0:
        return array
    copy = aligned_empty(array.shape, array.dtype)
    copy[...] = array
    return copy


def aligned_empty(shape: Sequence[int], dtype: npt.DTypeLike) -> Array:
    """An uninitialised array at a multiple of 64 bytes: as an input it is used in place, without a copy."""
    kind = np.dtype(dtype)
    size = math.prod(shape) * kind.itemsize
    raw = np.empty(size + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + size].view(kind).reshape(tuple(shape))


def _as_array(spec: TensorSpec, value: object) -> Array:
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"input {spec.name!r} is not an array: {error}") from error
    if array.dtype != np.dtype(spec.dtype):
        raise InputError(
            f"input {spec.name!r} is {array.dtype}, the model takes {spec.dtype}: "
            f"convert it with .astype('{spec.dtype}')"
        )
    return array


def _check_shape(spec: TensorSpec, array: Array, symbols: Symbols, bound: dict[str, tuple[int, str]]) -> None:
    """Check one input's shape and add the symbols that it fixes to `bound` (value, input that fixed it)."""
    expected = f"the model takes [{', '.join(map(str, spec.shape))}]"
    actual = f"input {spec.name!r} has shape {list(array.shape)}"
    if array.ndim != len(spec.shape):
        raise InputError(f"{actual}, {expected}")
    for axis, (dim, size) in enumerate(zip(spec.shape, array.shape, strict=True)):
        if isinstance(dim, int):
            if size != dim:
                raise InputError(f"{actual}, {expected}: dimension {axis} must be {dim}")
            continue
        low, high = symbols[dim]
        if size < low or (high is not None and size > high):
            limits = f"at least {low}" if high is None else f"from {low} to {high}"
            raise InputError(f"{actual}, {expected}: {dim} must be {limits}")
        value, first = bound.setdefault(dim, (size, spec.name))
        if value != size:
            raise InputError(f"{actual}, {expected}: {dim} is {size} here and {value} in input {first!r}")
