"""Kernels that sum products: Einstein summation and determinants."""

from __future__ import annotations

from collections.abc import Sequence

from tvm import te, tirx

from greencc.kernels.base import Kernel
from greencc.kernels.shapes import compute, is_one


def einsum(
    *tensors: te.Tensor, dims: Sequence[tirx.Expr], operands: Sequence[str], result: str, summed: str
) -> te.Tensor:
    """Einstein summation.

    Args:
        tensors: the operands; an axis of size 1 broadcasts.
        dims: sizes of the labels in `result`, then of those in `summed`.
        operands: one letter per axis of each operand.
        result: letters of the result's axes.
        summed: all other letters.
    """
    extents = zip(summed, dims[len(result) :], strict=True)
    axes = {label: te.reduce_axis((0, size), name=label) for label, size in extents}

    def element(index: Sequence[tirx.Expr]) -> tirx.Expr:
        places = {**axes, **dict(zip(result, index, strict=True))}
        product: tirx.Expr | None = None
        for tensor, labels in zip(tensors, operands, strict=True):
            own = [
                tirx.IntImm("int64", 0) if is_one(size) else places[label]
                for label, size in zip(labels, tensor.shape, strict=True)
            ]
            value = tensor(*own)
            product = value if product is None else product * value
        return te.sum(product, axis=list(axes.values())) if axes else product

    return compute(list(dims[: len(result)]), element, "einsum")


KERNELS: dict[str, Kernel] = {"einsum": einsum}
