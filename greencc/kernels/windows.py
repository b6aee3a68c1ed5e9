"""Kernels over sliding windows: pools, transposed convolution, padding by symbolic sizes.

`dims` hold output sizes and pads, one per spatial axis each, so that symbolic ones need no kernel of their own.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from tvm import te, tirx

from greencc.kernels.base import Kernel
from greencc.kernels.shapes import compute, element_type


def pad_spatial(data: te.Tensor, *, dims: Sequence[tirx.Expr]) -> te.Tensor:
    """[N, C, ...] with dims = (begin..., end...) zeros around the spatial axes."""
    count = len(data.shape) - 2
    sizes = [size + dims[i] + dims[count + i] for i, size in enumerate(data.shape[2:])]

    def element(index: Sequence[tirx.Expr]) -> tirx.Expr:
        own = [at - begin for at, begin in zip(index[2:], dims[:count], strict=True)]
        return _guarded(data, [*index[:2], *own], tirx.const(0, element_type(data)))

    return compute([*data.shape[:2], *sizes], element, "pad_spatial")


def conv_transpose(
    data: te.Tensor,
    filters: te.Tensor,
    *,
    dims: Sequence[tirx.Expr],
    strides: Sequence[int],
    dilations: Sequence[int],
    groups: int,
) -> te.Tensor:
    """Transposed convolution of [N, I, ...] with [I, O / groups, ...]; dims = (output sizes..., begin pads...).

    Each output gathers the inputs that reach it, so that outputs can be computed in parallel.
    """
    count = len(strides)
    kernel = [int(size) for size in filters.shape[2:]]
    per_group, out_per_group = int(filters.shape[0]) // groups, int(filters.shape[1])
    begin = dims[count:]
    # Windows that do not overlap: one tap reaches each output, and it is known which.
    tiled = list(strides) == kernel and all(d == 1 for d in dilations)
    channel = te.reduce_axis((0, per_group), name="channel")
    taps = [] if tiled else [te.reduce_axis((0, size), name=f"tap{i}") for i, size in enumerate(kernel)]

    def element(index: Sequence[tirx.Expr]) -> tirx.Expr:
        source = index[1] // out_per_group * per_group + channel
        column = index[1] % out_per_group
        reached = [at + pad for at, pad in zip(index[2:], begin, strict=True)]
        if tiled:
            own = [tirx.floordiv(at, stride) for at, stride in zip(reached, strides, strict=True)]
            weight = filters(source, column, *(tirx.floormod(a, s) for a, s in zip(reached, strides, strict=True)))
            conditions: list[tirx.Expr] = []
        else:
            starts = [at - tap * dilation for at, tap, dilation in zip(reached, taps, dilations, strict=True)]
            own = [tirx.floordiv(start, stride) for start, stride in zip(starts, strides, strict=True)]
            conditions = [
                tirx.floormod(start, stride) == 0 for start, stride in zip(starts, strides, strict=True) if stride > 1
            ]
            weight = filters(source, column, *taps)
        value = _guarded(data, [index[0], source, *own], tirx.const(0, element_type(data)), conditions)
        return te.sum(value * weight, axis=[channel, *taps])

    return compute([data.shape[0], out_per_group * groups, *dims[:count]], element, "conv_transpose")


def pool(
    data: te.Tensor,
    *,
    dims: Sequence[tirx.Expr],
    kind: str,
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    count_padding: bool = False,
    power: int = 2,
) -> te.Tensor:
    """Pool over the spatial axes; dims = (output sizes..., begin pads..., end pads...).

    Args:
        data: [N, C, ...].
        dims: see above.
        kind: "max" (padding never wins), "mean", or "lp" (p-norm of what a window holds).
        kernel, strides, dilations: one per axis.
        count_padding: whether "mean" divides by the padded elements of a window too.
        power: p of "lp".
    """
    count = len(kernel)
    begin, end = dims[count : 2 * count], dims[2 * count :]
    taps = [te.reduce_axis((0, size), name=f"tap{i}") for i, size in enumerate(kernel)]
    shape = [*data.shape[:2], *dims[:count]]

    def own(index: Sequence[tirx.Expr]) -> list[tirx.Expr]:
        return [
            at * stride + tap * dilation - pad
            for at, stride, tap, dilation, pad in zip(index[2:], strides, taps, dilations, begin, strict=True)
        ]

    if kind == "max":
        lowest = _lowest(data)
        # te.max starts from the lowest finite number instead.
        largest = te.comm_reducer(lambda a, b: tirx.max(a, b), lambda _: lowest, name="largest")
        return compute(
            shape,
            lambda index: largest(_guarded(data, [*index[:2], *own(index)], lowest), axis=taps),
            "max_pool",
        )
    zero = tirx.const(0, element_type(data))

    def summand(index: Sequence[tirx.Expr]) -> tirx.Expr:
        value = _guarded(data, [*index[:2], *own(index)], zero)
        if kind == "mean":
            return value
        if power == 2:
            return value * value
        return tirx.abs(value) if power == 1 else tirx.power(tirx.abs(value), tirx.const(power, element_type(data)))

    total = compute(shape, lambda index: te.sum(summand(index), axis=taps), f"{kind}_pool_sum")

    def finish(index: Sequence[tirx.Expr]) -> tirx.Expr:
        value = total(*index)
        if kind == "lp":
            return (
                value
                if power == 1
                else tirx.sqrt(value)
                if power == 2
                else tirx.power(value, tirx.const(1.0 / power, element_type(data)))
            )
        hits: tirx.Expr = tirx.IntImm("int64", 1)
        for axis in range(count):
            size = data.shape[2 + axis]
            low, high = (-begin[axis], size + end[axis]) if count_padding else (tirx.IntImm("int64", 0), size)
            start = index[2 + axis] * strides[axis] - begin[axis]
            hits = hits * _hits(start, low, high, kernel[axis], dilations[axis])
        return value / tirx.Cast(element_type(data), hits)

    return compute(shape, finish, f"{kind}_pool")


def max_pool_with_indices(
    data: te.Tensor,
    *,
    dims: Sequence[tirx.Expr],
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    column_major: bool,
) -> list[te.Tensor]:
    """Max pool and, int64, each maximum's index in the flattened input (the first one's among equals)."""
    count = len(kernel)
    begin = dims[count : 2 * count]
    taps = [te.reduce_axis((0, size), name=f"tap{i}") for i, size in enumerate(kernel)]
    shape = [*data.shape[:2], *dims[:count]]
    lowest = _lowest(data)
    sizes = data.shape[2:]

    def combine(a: Sequence[tirx.Expr], b: Sequence[tirx.Expr]) -> tuple[tirx.Expr, tirx.Expr]:
        first = tirx.any(a[1] > b[1], tirx.all(a[1] == b[1], a[0] >= 0, tirx.any(b[0] < 0, a[0] <= b[0])))
        return tirx.Select(first, a[0], b[0]), tirx.Select(first, a[1], b[1])

    reducer = te.comm_reducer(combine, lambda t0, t1: (tirx.const(-1, t0), lowest), name="first_maximum")

    def element(*index: tirx.Expr) -> tuple[tirx.Expr, tirx.Expr]:
        own = [
            at * stride + tap * dilation - pad
            for at, stride, tap, dilation, pad in zip(index[2:], strides, taps, dilations, begin, strict=True)
        ]
        inside = _inside(own, sizes)
        order = list(range(count))
        flat: tirx.Expr = tirx.IntImm("int64", 0)
        for axis in order[::-1] if column_major else order:
            flat = flat * sizes[axis] + own[axis]
        plane: tirx.Expr = index[0] * data.shape[1] + index[1]
        for size in sizes:
            plane = plane * size
        where = tirx.if_then_else(inside, tirx.Cast("int64", plane + flat), tirx.const(-1, "int64"))
        result: tuple[tirx.Expr, tirx.Expr] = reducer((where, _guarded(data, [*index[:2], *own], lowest)), axis=taps)
        return result

    position, value = te.compute(tuple(shape), element, name="max_pool_with_indices")
    return [value, position]


def channel_window_squares(data: te.Tensor, *, dims: Sequence[tirx.Expr], size: int) -> te.Tensor:
    """[N, C, ...]: at each channel the sum of squares over `size` channels around it (one more after than before)."""
    tap = te.reduce_axis((0, size), name="tap")

    def element(index: Sequence[tirx.Expr]) -> tirx.Expr:
        channel = index[1] + tap - (size - 1) // 2
        inside = tirx.all(channel >= 0, channel < data.shape[1])
        value = tirx.if_then_else(inside, data(index[0], channel, *index[2:]), tirx.const(0, element_type(data)))
        return te.sum(value * value, axis=tap)

    return compute(data.shape, element, "channel_window_squares")


def _inside(index: Sequence[tirx.Expr], sizes: Sequence[tirx.Expr]) -> tirx.Expr:
    bounds = itertools.chain.from_iterable((at >= 0, at < size) for at, size in zip(index, sizes, strict=True))
    return tirx.all(*bounds)


def _guarded(
    data: te.Tensor, index: Sequence[tirx.Expr], otherwise: tirx.Expr, conditions: Sequence[tirx.Expr] = ()
) -> tirx.Expr:
    """An element of [N, C, ...], or `otherwise` outside of the spatial axes or where a condition fails."""
    test = _inside(index[2:], data.shape[2:])
    return tirx.if_then_else(tirx.all(test, *conditions), data(*index), otherwise)


def _hits(start: tirx.Expr, low: tirx.Expr, high: tirx.Expr, taps: int, dilation: int) -> tirx.Expr:
    """How many of start, start + dilation, ... (`taps` of them) lie in [low, high)."""
    first = tirx.max(tirx.floordiv(low - start + dilation - 1, dilation), tirx.IntImm("int64", 0))
    last = tirx.min(tirx.floordiv(high - start + dilation - 1, dilation), tirx.IntImm("int64", taps))
    return last - first


def _lowest(data: te.Tensor) -> tirx.Expr:
    dtype = element_type(data)
    return tirx.const(float("-inf"), dtype) if "float" in dtype else tirx.min_value(dtype)


KERNELS: dict[str, Kernel] = {
    "channel_window_squares": channel_window_squares,
    "conv_transpose": conv_transpose,
    "max_pool_with_indices": max_pool_with_indices,
    "pad_spatial": pad_spatial,
    "pool": pool,
}
