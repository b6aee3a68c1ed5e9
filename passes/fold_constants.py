"""The pass that computes at compile time what depends on constants only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import tvm
from tvm import ir, relax

from greencc.ir import constant_array, dtype_of, relax_functions, span_of, static_shape
from greencc.passes.base import Condition, Pass, PassContext, PassResult, Refusal
from greencc.passes.common_subexpressions import makes_new_value
from greencc.passes.evaluate import EVALUATED_DTYPES, evaluate
from greencc.passes.graph import Graph, Replacement, eliminate_dead, is_pure, rebuild

# Operands that are no tensors. A symbolic dimension is none to wait for either: condition 3 sees to it.
_NUMBERS = (relax.ShapeExpr, ir.StringImm)


@dataclass(frozen=True)
class ConstantCall:
    """A call whose tensor operands are all constants.

    Attributes:
        call: the call, its operands still variables where they are results of other such calls.
        arrays: values of the tensor operands in order, those in tuples included.
        max_growth: bytes by which the result may exceed the operands.
    """

    call: relax.Call
    arrays: tuple[np.ndarray, ...]
    max_growth: int


def tensor_types(ty: relax.Type) -> list[relax.Type]:
    """The tensor types in a result's type; anything else in it stands for itself."""
    return (
        [t for field in ty.fields for t in tensor_types(field)] if isinstance(ty, relax.TupleType) else [ty]
    )


def _is_deterministic(match: ConstantCall) -> bool:
    return is_pure(match.call) and not makes_new_value(match.call)


def _has_lowering(match: ConstantCall) -> bool:
    return match.call.op.get_attr("FLegalize") is not None


def _has_static_shape(match: ConstantCall) -> bool:
    return all(static_shape(ty) is not None for ty in tensor_types(match.call.ty))


def _has_known_dtype(match: ConstantCall) -> bool:
    dtypes = [*(str(a.dtype) for a in match.arrays), *(dtype_of(ty) for ty in tensor_types(match.call.ty))]
    return all(dtype in EVALUATED_DTYPES for dtype in dtypes)


def _stays_small(match: ConstantCall) -> bool:
    size = sum(
        int(np.prod(static_shape(ty) or (), dtype=np.int64)) * ((tvm.DataType(dtype_of(ty)).bits + 7) // 8)
        for ty in tensor_types(match.call.ty)
    )
    return bool(size <= sum(a.nbytes for a in match.arrays) + match.max_growth)


@dataclass(frozen=True)
class FoldConstants(Pass):
    """Replace calls on constants by their results.

        w = transpose(const[384, 1536], (1, 0)); y = x @ w
    becomes
        y = x @ const[1536, 384]

    Layout operators, casts and sums, products and quotients are computed by numpy, which has the one right
    answer; all else is compiled by TVM for this host and run: its result is that of TVM's own lowering.
    A target with other polynomials for exp or erf may differ in the last bits.

    Legality conditions:
    1. The operator has no effect, is not random and makes no storage.
    2. TVM has a lowering of its own for the operator, which leaves out greencc.*.
    3. The results are tensors of static shape.
    4. The element types are ones that this host computes with.
    5. The results are not larger than the operands by more than `max_growth` bytes: a broadcast is cheaper to
       repeat than to store.

    Attributes:
        max_growth: see condition 5.
    """

    name: ClassVar[str] = "fold-constants"
    conditions: ClassVar[tuple[Condition[ConstantCall], ...]] = (
        Condition(1, "the operator has an effect or is random", _is_deterministic),
        Condition(2, "TVM has no lowering for the operator", _has_lowering),
        Condition(3, "the result has no static shape", _has_static_shape),
        Condition(4, "the element type is not computed at compile time", _has_known_dtype),
        Condition(5, "the result is much larger than its operands", _stays_small),
    )
    max_growth: int = 65536

    def run(self, module: tvm.IRModule, context: PassContext) -> PassResult:
        """Fold in one walk per function: a result is a constant to the calls after it."""
        counts: Counter[str] = Counter()
        refusals: list[Refusal] = []
        for gv, function in list(relax_functions(module)):
            graph = Graph(module, function)
            folded: dict[relax.Expr, relax.Expr] = {}
            for var, value in graph.definitions():
                match = self._match(graph, value, folded)
                if match is None:
                    continue
                failed = next((c for c in self.conditions if not c.holds(match)), None)
                if failed is None:
                    folded[var] = _constants(match)
                    counts[value.op.name.removeprefix("relax.")] += 1
                else:
                    node = span_of(value) or var.name
                    refusals.append(Refusal(self.name, node, failed.number, failed.reason))
            if folded:
                new = rebuild(function, {var: _use(c) for var, c in folded.items()}, owner=self.name)
                module = module.clone()
                module.update_func(gv, eliminate_dead(new))
        return PassResult(module, counts.total(), tuple(refusals), dict(sorted(counts.items())))

    def _match(
        self, graph: Graph, value: relax.Expr, folded: dict[relax.Expr, relax.Expr]
    ) -> ConstantCall | None:
        if not isinstance(value, relax.Call) or not isinstance(value.op, ir.Op):
            return None
        arrays = tuple(array for arg in value.args for array in _arrays(graph, arg, folded))
        if any(array is None for array in arrays):
            return None
        return ConstantCall(value, arrays, self.max_growth)  # type: ignore[arg-type]


def _arrays(
    graph: Graph, expr: relax.Expr, folded: dict[relax.Expr, relax.Expr]
) -> Iterator[np.ndarray | None]:
    """Values of the tensors in an operand, in order; None for what is no constant."""
    expr = _resolve(graph, expr, folded)
    if isinstance(expr, relax.Tuple):
        for field in expr.fields:
            yield from _arrays(graph, field, folded)
    elif isinstance(expr, ir.GenericConst):
        yield constant_array(expr)
    elif not isinstance(expr.ty, ir.PrimType) and not isinstance(expr, _NUMBERS):
        yield None


def _resolve(graph: Graph, expr: relax.Expr, folded: dict[relax.Expr, relax.Expr]) -> relax.Expr:
    """What `expr` is once everything before it is folded."""
    if expr in folded:
        return folded[expr]
    value = graph.value(expr) if expr not in folded else expr
    if isinstance(value, relax.TupleGetItem):
        source = _resolve(graph, value.tuple_value, folded)
        return (
            _resolve(graph, source.fields[value.index], folded) if isinstance(source, relax.Tuple) else value
        )
    return value


def _use(constant: relax.Expr) -> Replacement:
    return lambda _builder: constant


def _constants(match: ConstantCall) -> relax.Expr:
    results = evaluate(match.call, match.arrays)
    constants = [
        relax.const(np.asarray(result, order="C"), dtype_of(ty))
        for result, ty in zip(results, tensor_types(match.call.ty), strict=True)
    ]
    return relax.Tuple(constants) if isinstance(match.call.ty, relax.TupleType) else constants[0]
