"""Copies with an index formula: strided slices, padding, tiling, triangles, ranges, columns to images."""

from __future__ import annotations

from collections.abc import Sequence

from tvm import te, tirx

from greencc.kernels.base import Kernel
from greencc.kernels.shapes import compute, element_type


def strided_slice(data: te.Tensor, *, dims: list[tirx.Expr], steps: list[int]) -> te.Tensor:
    """out[i] = data[start + i * step] on every axis; dims = starts, then sizes. Steps may be negative."""
    rank = len(data.shape)
    starts, sizes = dims[:rank], dims[rank:]
    return compute(
        sizes,
        lambda index: data(*(start + i * step for start, i, step in zip(starts, index, steps, strict=True))),
        "strided_slice",
    )


def _mirrored(position: tirx.Expr, size: tirx.Expr) -> tirx.Expr:
    """Reflection at the edges, repeated as often as needed; the edge itself isn't repeated."""
    period = tirx.max(2 * (size - 1), tirx.IntImm("int64", 1))
    folded = tirx.floormod(position, period)
    return tirx.min(folded, tirx.max(period - folded, tirx.IntImm("int64", 0)))


def pad(data: te.Tensor, *values: te.Tensor, dims: list[tirx.Expr], mode: str) -> te.Tensor:
    """Padding (negative amounts crop). dims = amounts before, then output sizes; values: the constant."""
    rank = len(data.shape)
    before, sizes = dims[:rank], dims[rank:]

    def element(index: Sequence[tirx.Expr]) -> tirx.Expr:
        places = [i - start for i, start in zip(index, before, strict=True)]
        if mode == "constant":
            filler = values[0](*[0] * len(values[0].shape)) if values else tirx.const(0, element_type(data))
            inside = [tirx.And(place >= 0, place < size) for place, size in zip(places, data.shape, strict=True)]
            return tirx.if_then_else(tirx.all(*inside), data(*places), filler) if inside else data()
        if mode == "edge":
            zero = tirx.IntImm("int64", 0)
            places = [tirx.max(tirx.min(p, size - 1), zero) for p, size in zip(places, data.shape, strict=True)]
        elif mode == "reflect":
            places = [_mirrored(place, size) for place, size in zip(places, data.shape, strict=True)]
        else:
            places = [tirx.floormod(place, size) for place, size in zip(places, data.shape, strict=True)]
        return data(*places)

    return compute(sizes, element, f"pad_{mode}")


def tile(data: te.Tensor, *, dims: list[tirx.Expr]) -> te.Tensor:
    """Repetition along every axis; dims = output sizes."""
    return compute(
        dims,
        lambda index: data(*(tirx.floormod(i, size) for i, size in zip(index, data.shape, strict=True))),
        "tile",
    )


def triangle(data: te.Tensor, *shift: te.Tensor, dims: list[tirx.Expr], upper: bool, diagonal: int = 0) -> te.Tensor:
    """The upper or lower triangle of the last two axes; `shift` (one element) replaces `diagonal`."""

    def element(index: Sequence[tirx.Expr]) -> tirx.Expr:
        k: tirx.Expr = tirx.IntImm("int64", diagonal)
        if shift:
            k = tirx.Cast("int64", shift[0](*[0] * len(shift[0].shape)))
        offset = index[-1] - index[-2]
        keep = offset >= k if upper else offset <= k
        return tirx.Select(keep, data(*index), tirx.const(0, element_type(data)))

    return compute(data.shape, element, "triangle")


def eye(*, dims: list[tirx.Expr], dtype: str, diagonal: int) -> te.Tensor:
    """Ones on one diagonal; dims = [rows, columns]."""
    return compute(dims, lambda index: tirx.Cast(dtype, index[1] - index[0] == diagonal), "eye")


def arange(*, dims: list[tirx.Expr], dtype: str) -> te.Tensor:
    """Dims = [start, step, count] -> start + i * step."""
    start, step, count = dims
    return compute([count], lambda index: tirx.Cast(dtype, start + index[0] * step), "arange")


def col2im(
    columns: te.Tensor,
    *,
    dims: list[tirx.Expr],
    kernel: list[int],
    strides: list[int],
    dilations: list[int],
    pads: list[int],
) -> te.Tensor:
    """[N, C * prod(kernel), L] -> [N, C, *dims]: overlapping blocks are summed."""
    rank = len(kernel)
    points = 1
    for size in kernel:
        points *= size
    blocks = [
        (dims[n] + pads[n] + pads[n + rank] - dilations[n] * (kernel[n] - 1) - 1) // strides[n] + 1 for n in range(rank)
    ]
    taps = [te.reduce_axis((0, kernel[n]), name=f"k{n}") for n in range(rank)]

    def element(index: Sequence[tirx.Expr]) -> tirx.Expr:
        batch, channel, *place = index
        tap: tirx.Expr = tirx.IntImm("int64", 0)
        block: tirx.Expr = tirx.IntImm("int64", 0)
        valid = []
        for n in range(rank):
            k = tirx.Cast("int64", taps[n].var)
            offset = place[n] + pads[n] - k * dilations[n]
            number = tirx.floordiv(offset, strides[n])
            valid += [offset >= 0, tirx.floormod(offset, strides[n]) == 0, number < blocks[n]]
            tap = tap * kernel[n] + k
            block = block * blocks[n] + number
        value = tirx.if_then_else(
            tirx.all(*valid),
            columns(batch, channel * points + tap, block),
            tirx.const(0, element_type(columns)),
        )
        return te.sum(value, axis=taps)

    return compute([columns.shape[0], columns.shape[1] // points, *dims], element, "col2im")


KERNELS: dict[str, Kernel] = {
    "arange": arange,
    "col2im": col2im,
    "eye": eye,
    "pad": pad,
    "strided_slice": strided_slice,
    "tile": tile,
    "triangle": triangle,
}
