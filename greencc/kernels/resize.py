"""Kernels that resize one axis."""

from __future__ import annotations

from collections.abc import Sequence

from tvm import te, tirx

from greencc.kernels.base import Kernel
from greencc.kernels.shapes import compute, element_type


def weighted_take(
    data: te.Tensor, indices: te.Tensor, weights: te.Tensor, *, dims: Sequence[tirx.Expr], axis: int
) -> te.Tensor:
    """Along `axis`, output i = sum over taps t of weights[i, t] * data[indices[i, t]]."""
    shape = [*data.shape[:axis], indices.shape[0], *data.shape[axis + 1 :]]
    tap = te.reduce_axis((0, indices.shape[1]), name="tap")

    def element(index: Sequence[tirx.Expr]) -> tirx.Expr:
        own = [*index[:axis], indices(index[axis], tap), *index[axis + 1 :]]
        return te.sum(weights(index[axis], tap) * data(*own), axis=tap)

    return compute(shape, element, "weighted_take")


def resize_axis(
    data: te.Tensor,
    *,
    dims: Sequence[tirx.Expr],
    axis: int,
    mode: str,
    transform: str,
    rounding: str,
    scale: float | None,
) -> te.Tensor:
    """Resize `axis` to dims[0] elements, coordinates computed in float32 at run time; sizes may be symbolic.

    Args:
        data: any tensor.
        dims: the new size.
        axis: which axis.
        mode: "nearest" or "linear".
        transform, rounding: ONNX's coordinate_transformation_mode and nearest_mode.
        scale: the stated scale, or None for new size / old size.
    """
    size, out = data.shape[axis], dims[0]
    shape = [*data.shape[:axis], out, *data.shape[axis + 1 :]]

    def element(index: Sequence[tirx.Expr]) -> tirx.Expr:
        def at(position: tirx.Expr) -> tirx.Expr:
            inside = tirx.max(tirx.min(position, size - 1), tirx.IntImm("int64", 0))
            return data(*index[:axis], inside, *index[axis + 1 :])

        if transform == "asymmetric" and mode == "nearest" and rounding == "floor" and _is_whole(scale):
            return at(tirx.floordiv(index[axis], int(scale or 1)))
        where = _coordinate(index[axis], size, out, transform, scale)
        if mode == "nearest":
            return at(tirx.Cast("int64", _ROUNDING[rounding](where)))
        low = tirx.floor(where)
        weight = tirx.Cast(element_type(data), where - low)
        first = tirx.Cast("int64", low)
        return at(first) * (tirx.const(1, element_type(data)) - weight) + at(first + 1) * weight

    return compute(shape, element, "resize_axis")


def _is_whole(scale: float | None) -> bool:
    return scale is not None and scale == int(scale)


def _coordinate(index: tirx.Expr, size: tirx.Expr, out: tirx.Expr, transform: str, scale: float | None) -> tirx.Expr:
    half, one = tirx.const(0.5, "float32"), tirx.const(1.0, "float32")
    at, old, new = (tirx.Cast("float32", value) for value in (index, size, out))
    ratio = tirx.const(scale, "float32") if scale is not None else new / old
    half_pixel = (at + half) / ratio - half
    match transform:
        case "half_pixel":
            return half_pixel
        case "half_pixel_symmetric":
            return old * half * (one - new / (ratio * old)) + half_pixel
        case "pytorch_half_pixel":
            return tirx.Select(out > 1, half_pixel, tirx.const(0.0, "float32"))
        case "align_corners":
            return tirx.Select(out > 1, at * (old - one) / tirx.max(new - one, one), tirx.const(0.0, "float32"))
        case "asymmetric":
            return at / ratio
        case "tf_half_pixel_for_nn":
            return (at + half) / ratio
    raise ValueError(f"unknown coordinate transformation {transform}")


_ROUNDING = {
    "round_prefer_floor": lambda at: tirx.ceil(at - tirx.const(0.5, "float32")),
    "round_prefer_ceil": lambda at: tirx.floor(at + tirx.const(0.5, "float32")),
    "floor": tirx.floor,
    "ceil": tirx.ceil,
}

KERNELS: dict[str, Kernel] = {
    "resize_axis": resize_axis,
    "weighted_take": weighted_take,
}
