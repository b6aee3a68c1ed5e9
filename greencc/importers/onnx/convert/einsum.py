"""Einsum: as a matrix product where two operands make one, else as one kernel."""

from __future__ import annotations

import string
from dataclasses import dataclass

from tvm import relax

from greencc.importers.onnx.context import Converter, NodeContext
from greencc.importers.onnx.values import Dim, as_expr, same_dim, simplify
from greencc.kernels import kernel


@dataclass(frozen=True)
class Equation:
    """Axis labels of every operand and of the result; an ellipsis is spelled out in capital labels."""

    operands: tuple[str, ...]
    result: str


def einsum(ctx: NodeContext) -> relax.Expr:
    """Einsum over any number of operands."""
    shapes = [ctx.shape(index) for index in range(len(ctx.inputs))]
    equation = _parsed(ctx, [len(shape) for shape in shapes])
    sizes: dict[str, Dim] = {}
    for labels, shape in zip(equation.operands, shapes, strict=True):
        for label, size in zip(labels, shape, strict=True):
            known = sizes.setdefault(label, size)
            if isinstance(known, int) and known == 1:
                sizes[label] = size
            elif not same_dim(known, size) and not (isinstance(size, int) and size == 1):
                raise ctx.refuse(f"axis '{label}' has the sizes {known} and {size}")
    full = all(
        same_dim(sizes[label], size)
        for labels, shape in zip(equation.operands, shapes, strict=True)
        for label, size in zip(labels, shape, strict=True)
    )
    if full and len(equation.operands) == 2 and _is_product(equation):
        return _product(ctx, equation, sizes)
    summed = sorted(set(sizes) - set(equation.result))
    return kernel(
        "einsum",
        [ctx.tensor(index) for index in range(len(shapes))],
        [as_expr(sizes[label]) for label in (*equation.result, *summed)],
        operands=list(equation.operands),
        result=equation.result,
        summed="".join(summed),
    )


def _parsed(ctx: NodeContext, ranks: list[int]) -> Equation:
    text = str(ctx.attr("equation", "")).replace(" ", "")
    left, arrow, right = text.partition("->")
    terms = left.split(",")
    if len(terms) != len(ranks):
        raise ctx.refuse(f"equation '{text}' is for {len(terms)} operands, there are {len(ranks)}")
    # Capital letters that the equation doesn't use stand for the axes under an ellipsis.
    spare = [letter for letter in string.ascii_uppercase if letter not in text]
    pairs = list(zip(terms, ranks, strict=True))
    hidden = [rank - len(term.replace("...", "")) if "..." in term else 0 for term, rank in pairs]
    width = max(hidden)
    if min(hidden) < 0 or width > len(spare):
        raise ctx.refuse(f"equation '{text}' does not fit the ranks {ranks}")
    dots = "".join(spare[:width])
    operands = [term.replace("...", dots[width - count :]) for term, count in zip(terms, hidden, strict=True)]
    if any(len(labels) != rank for labels, rank in zip(operands, ranks, strict=True)):
        raise ctx.refuse(f"equation '{text}' does not fit the ranks {ranks}")
    used = "".join(operands)
    if arrow:
        result = right.replace("...", dots)
    else:
        result = dots + "".join(sorted(label for label in set(used) - set(dots) if used.count(label) == 1))
    if not set(used) <= set(string.ascii_letters) or not set(result) <= set(used) or len(set(result)) < len(result):
        raise ctx.refuse(f"equation '{text}' is not well formed")
    return Equation(tuple(operands), result)


def _is_product(equation: Equation) -> bool:
    """Whether no label repeats in an operand, none is summed in one alone, and something is summed."""
    a, b = equation.operands
    result = set(equation.result)
    return (
        len(set(a)) == len(a)
        and len(set(b)) == len(b)
        and (set(a) ^ set(b)) <= result
        and bool((set(a) & set(b)) - result)
    )


def _product(ctx: NodeContext, equation: Equation, sizes: dict[str, Dim]) -> relax.Expr:
    """[batch, left, summed] @ [batch, summed, right], axes merged and sorted around it where needed."""
    a, b = equation.operands
    batch = [label for label in equation.result if label in a and label in b]
    left = [label for label in equation.result if label in a and label not in b]
    right = [label for label in equation.result if label in b and label not in a]
    summed = [label for label in a if label in b and label not in equation.result]
    first = _arranged(ctx, ctx.tensor(0), a, [batch, left, summed], sizes)
    second = _arranged(ctx, ctx.tensor(1), b, [batch, summed, right], sizes)
    result = ctx.emit(relax.op.matmul(first, second))
    order = [*batch, *left, *right]
    if len(left) != 1 or len(right) != 1:
        result = ctx.emit(relax.op.reshape(result, [as_expr(sizes[label]) for label in order]))
    axes = [order.index(label) for label in equation.result]
    return result if axes == sorted(axes) else relax.op.permute_dims(result, axes)


def _arranged(
    ctx: NodeContext, data: relax.Expr, labels: str, groups: list[list[str]], sizes: dict[str, Dim]
) -> relax.Expr:
    """`data` with its axes in the order of the groups; every group after the first is merged into one axis."""
    order = [labels.index(label) for group in groups for label in group]
    if order != sorted(order):
        data = ctx.emit(relax.op.permute_dims(data, order))
    if all(len(group) == 1 for group in groups[1:]):
        return data
    shape = [as_expr(sizes[label]) for label in groups[0]]
    for group in groups[1:]:
        total: Dim = 1
        for label in group:
            total = total * sizes[label]
        shape.append(as_expr(simplify(total)))
    return ctx.emit(relax.op.reshape(data, shape))


CONVERTERS: dict[tuple[str, str], Converter] = {("", "Einsum"): einsum}
