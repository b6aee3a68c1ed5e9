"""What kernels of convolutions and windows have in common: their parameters, operands and results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tvm import ir, sym, tirx
from tvm.tirx.script import builder as T

from greencc.targets.kernel import Tail
from greencc.targets.tir import rewrite


class Operands:
    """Emits a kernel's parameters, and reads expressions in them.

    Args:
        func: the kernel to schedule.
        tail: its tail.
        packed: parameters that have another shape, with what declares them.
    """

    def __init__(self, func: tirx.PrimFunc, tail: Tail, packed: Mapping[tirx.Var, tirx.Var]) -> None:
        self.tail = tail
        self.buffers: dict[tirx.Var, tirx.Var] = {}
        for param in func.params:
            self.buffers[param] = T.arg(param.name, packed.get(param, param))

    def at(
        self, value: tirx.Expr, axes: Sequence[tirx.Var], place: Sequence[tirx.Expr], sum_: tirx.Expr | None = None
    ) -> tirx.Expr:
        """`value` at a place, with `sum_` for the reduction's result."""
        places = dict(zip(axes, place, strict=True))

        def replace(node: tirx.Expr) -> tirx.Expr | None:
            if isinstance(node, ir.TensorLoad) and node.source.same_as(self.tail.intermediate) and sum_ is not None:
                return sum_
            if isinstance(node, ir.TensorLoad) and node.source in self.buffers:
                return tirx.BufferLoad(self.buffers[node.source], [rewrite(index, replace) for index in node.indices])
            return places.get(node) if isinstance(node, tirx.Var) else None

        return sym.Analyzer().simplify(rewrite(value, replace))

    def store(self, sum_: tirx.Expr, place: Sequence[tirx.Expr]) -> None:
        """Emit the store of the tail's value at a place."""
        kind = str(self.tail.intermediate.ty.dtype)
        known = sum_ if str(sum_.ty.dtype) == kind else tirx.Cast(kind, sum_)
        value = self.at(self.tail.value, self.tail.axes, place, known)
        T.buffer_store(self.buffers[self.tail.output], value, list(place))


def converted(value: tirx.Expr, kind: str) -> tirx.Expr:
    """A value in another type, if it hasn't it."""
    return value if str(value.ty.dtype) == kind else tirx.Cast(kind, value)
