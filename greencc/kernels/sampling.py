"""Kernels that read an image between its elements: GridSample and deformable convolution."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence

from tvm import te, tirx

from greencc.kernels.base import Kernel
from greencc.kernels.shapes import compute, element_type

_CUBIC = -0.75


def grid_sample(
    data: te.Tensor, grid: te.Tensor, *, dims: Sequence[tirx.Expr], mode: str, padding: str, align_corners: bool
) -> te.Tensor:
    """Elements of [N, C, spatial...] at the places in grid [N, out..., axes], whose last axis counts from x on.

    Args:
        data, grid: see above; places run from -1 to 1.
        dims: none.
        mode: "nearest", "linear" or "cubic".
        padding: "zeros", "border" or "reflection", for places outside of the image.
        align_corners: whether -1 and 1 are the centres of the outermost elements, or their outer edges.
    """
    dtype = element_type(data)
    sizes = list(data.shape[2:])
    rank = len(sizes)
    zero, half, one = tirx.const(0.0, dtype), tirx.const(0.5, dtype), tirx.const(1.0, dtype)

    def place(index: Sequence[tirx.Expr], axis: int) -> tirx.Expr:
        """Coordinate on an axis, in elements."""
        size = tirx.Cast(dtype, sizes[axis])
        raw = tirx.Cast(dtype, grid(*index, rank - 1 - axis))
        low, high = (zero, size - one) if align_corners else (-half, size - half)
        at = (raw + one) * half * (size - one) if align_corners else ((raw + one) * size - one) * half
        if mode == "nearest":
            at = tirx.nearbyint(at)
        if padding == "border" and mode != "cubic":  # cubic taps are clamped one by one
            at = tirx.Select(tirx.any(at < low, at > high), tirx.max(tirx.min(at, size - one), zero), at)
        if padding == "reflection":
            at = _reflected(at, low, high)
        return at

    # Places, then weights and indices of the elements around them, are computed once for all channels.
    lead, count = [data.shape[0], *grid.shape[1:-1]], {"nearest": 1, "linear": 2, "cubic": 4}[mode]

    def coordinate(index: Sequence[tirx.Expr]) -> tirx.Expr:
        return _chosen(index[0], [place(index[1:], axis) for axis in range(rank)])

    places = compute([rank, *lead], coordinate, "place")
    numbers = [tirx.IntImm("int64", axis) for axis in range(rank)]

    def weight(index: Sequence[tirx.Expr]) -> tirx.Expr:
        return _chosen(index[1], [w for w, _ in _taps(places(index[0], *index[2:]), mode)])

    def position(index: Sequence[tirx.Expr]) -> tirx.Expr:
        at = _chosen(index[1], [i for _, i in _taps(places(index[0], *index[2:]), mode)])
        size = _chosen(index[0], sizes)
        if padding == "border":
            return tirx.max(tirx.min(at, size - 1), tirx.IntImm("int64", 0))
        if padding == "reflection":
            wide = tirx.Cast(dtype, size)
            low, high = (zero, wide - one) if align_corners else (-half, wide - half)
            return tirx.Cast("int64", _reflected(tirx.Cast(dtype, at), low, high))
        return at

    weights = compute([rank, count, *lead], weight, "weight")
    positions = compute([rank, count, *lead], position, "position")
    taps = [te.reduce_axis((0, count), name=f"tap{axis}") for axis in range(rank)]

    def element(index: Sequence[tirx.Expr]) -> tirx.Expr:
        where = [index[0], *index[2:]]
        factors = [weights(number, tap, *where) for number, tap in zip(numbers, taps, strict=True)]
        own = [positions(number, tap, *where) for number, tap in zip(numbers, taps, strict=True)]
        return te.sum(functools.reduce(lambda a, b: a * b, factors) * _read(data, index[:2], own), axis=taps)

    return compute([data.shape[0], data.shape[1], *grid.shape[1:-1]], element, "grid_sample")


def deform_conv(
    data: te.Tensor,
    filters: te.Tensor,
    offset: te.Tensor,
    *mask: te.Tensor,
    dims: Sequence[tirx.Expr],
    strides: Sequence[int],
    dilations: Sequence[int],
    groups: int,
    offset_groups: int,
) -> te.Tensor:
    """2-D convolution whose taps are shifted by offset [N, offset_groups * kh * kw * 2, oh, ow] and scaled by mask.

    `dims` = (output height, output width, top pad, left pad); places outside of the image count as 0.
    """
    dtype = element_type(data)
    per_group, (kh, kw) = int(filters.shape[1]), (int(size) for size in filters.shape[2:])
    out_per_group = int(filters.shape[0]) // groups
    channels_per_offset = per_group * groups // offset_groups
    channel = te.reduce_axis((0, per_group), name="channel")
    taps = [te.reduce_axis((0, kh), name="tap0"), te.reduce_axis((0, kw), name="tap1")]

    # What the taps read doesn't depend on the output channel: it is computed once.
    channels = per_group * groups

    def sample(index: Sequence[tirx.Expr]) -> tirx.Expr:
        batch, source, ky, kx, row, column = index
        tap = (source // channels_per_offset * kh + ky) * kw + kx
        base = [row * strides[0] + ky * dilations[0] - dims[2], column * strides[1] + kx * dilations[1] - dims[3]]
        places = [tirx.Cast(dtype, base[axis]) + offset(batch, tap * 2 + axis, row, column) for axis in range(2)]
        value: tirx.Expr = tirx.const(0.0, dtype)
        for (w0, i0), (w1, i1) in itertools.product(*(_taps(at, "linear") for at in places)):
            value = value + w0 * w1 * _read(data, [batch, source], [i0, i1])
        return value * mask[0](batch, tap, row, column) if mask else value

    samples = compute([data.shape[0], channels, kh, kw, dims[0], dims[1]], sample, "deformed")

    def element(index: Sequence[tirx.Expr]) -> tirx.Expr:
        batch, out, row, column = index
        source = out // out_per_group * per_group + channel
        return te.sum(samples(batch, source, *taps, row, column) * filters(out, channel, *taps), axis=[channel, *taps])

    return compute([data.shape[0], filters.shape[0], dims[0], dims[1]], element, "deform_conv")


def _chosen(number: tirx.Expr, values: Sequence[tirx.Expr]) -> tirx.Expr:
    """values[number]."""
    result = values[-1]
    for position in range(len(values) - 2, -1, -1):
        result = tirx.Select(number == position, values[position], result)
    return result


def _taps(at: tirx.Expr, mode: str) -> list[tuple[tirx.Expr, tirx.Expr]]:
    """(weight, index) of the elements around a place."""
    dtype = str(at.ty.dtype)
    if mode == "nearest":
        return [(tirx.const(1.0, dtype), tirx.Cast("int64", at))]
    low = tirx.floor(at)
    first, rest = tirx.Cast("int64", low), at - low
    one = tirx.const(1.0, dtype)
    if mode == "linear":
        return [(one - rest, first), (rest, first + 1)]
    return [(_near(rest) if step in (0, 1) else _far(rest), first + step) for step, rest in (
        (-1, rest + one), (0, rest), (1, one - rest), (2, tirx.const(2.0, dtype) - rest))]  # fmt: skip


def _near(d: tirx.Expr) -> tirx.Expr:
    """Keys' cubic convolution kernel within one element."""
    return (d * (_CUBIC + 2) - (_CUBIC + 3)) * d * d + 1.0


def _far(d: tirx.Expr) -> tirx.Expr:
    """The same kernel between one and two elements away."""
    return ((d * _CUBIC - 5 * _CUBIC) * d + 8 * _CUBIC) * d - 4 * _CUBIC


def _reflected(at: tirx.Expr, low: tirx.Expr, high: tirx.Expr) -> tirx.Expr:
    """A place mirrored at the edges until it lies within them."""
    dtype = str(at.ty.dtype)
    span = tirx.max(high - low, tirx.const(1e-30, dtype))
    beyond = tirx.max(low - at, at - high)
    times = tirx.trunc(beyond / span)
    rest = beyond - times * span
    is_even = times - tirx.const(2.0, dtype) * tirx.floor(times * tirx.const(0.5, dtype)) < 0.5
    under = tirx.Select(is_even, low + rest, high - rest)
    over = tirx.Select(is_even, high - rest, low + rest)
    return tirx.Select(at < low, under, tirx.Select(at > high, over, at))


def _read(data: te.Tensor, lead: Sequence[tirx.Expr], index: Sequence[tirx.Expr]) -> tirx.Expr:
    """An element of [N, C, spatial...], or 0 outside of the image."""
    bounds = itertools.chain.from_iterable((i >= 0, i < size) for i, size in zip(index, data.shape[2:], strict=True))
    return tirx.if_then_else(tirx.all(*bounds), data(*lead, *index), tirx.const(0.0, element_type(data)))


KERNELS: dict[str, Kernel] = {"deform_conv": deform_conv, "grid_sample": grid_sample}
