"""The pass that computes at compile time what depends on constants only."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import tvm
from tvm import relax

from greencc.ir import dtype_of, is_call, relax_functions, span_of, static_shape
from greencc.kernels import KERNEL, kernel_name
from greencc.passes.base import Condition, Pass, PassContext, PassResult, Refusal
from greencc.passes.common_subexpressions import makes_new_value
from greencc.passes.constant_calls import ConstantCall, constant_call, folded_constants, tensor_types
from greencc.passes.evaluate import EVALUATED_DTYPES, has_exact_result
from greencc.passes.graph import Graph, Replacement, eliminate_dead, is_pure, rebuild


def _is_deterministic(match: ConstantCall) -> bool:
    return is_pure(match.call) and not makes_new_value(match.call)


def _has_lowering(match: ConstantCall) -> bool:
    return has_exact_result(match.call) or match.call.op.get_attr("FLegalize") is not None


def _has_static_shape(match: ConstantCall) -> bool:
    return all(static_shape(ty) is not None for ty in tensor_types(match.call.ty))


def _has_known_dtype(match: ConstantCall) -> bool:
    dtypes = [*(str(a.dtype) for a in match.arrays), *(dtype_of(ty) for ty in tensor_types(match.call.ty))]
    return all(dtype in EVALUATED_DTYPES for dtype in dtypes)


def _stays_small(match: ConstantCall) -> bool:
    if is_call(match.call, KERNEL):
        return True
    types = tensor_types(match.call.ty)
    counts = [int(np.prod(static_shape(ty) or (), dtype=np.int64)) for ty in types]
    size = sum(count * ((tvm.DataType(dtype_of(ty)).bits + 7) // 8) for count, ty in zip(counts, types, strict=True))
    is_no_wider = sum(counts) <= max((array.size for array in match.arrays), default=0)
    return is_no_wider or size <= sum(array.nbytes for array in match.arrays) + match.max_growth


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
    2. TVM has a lowering of its own for the operator, or numpy computes it, which leaves out most of greencc.*.
    3. The results are tensors of static shape.
    4. The element types are ones that this host computes with.
    5. The results are not larger than the operands by more than `max_growth` bytes: a broadcast is cheaper to
       repeat than to store. Dequantised weights may be: no pass has taken them in bytes, and every run would
       dequantise them again.

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
                match = constant_call(graph, value, folded, self.max_growth)
                if match is None:
                    continue
                failed = next((c for c in self.conditions if not c.holds(match)), None)
                if failed is None:
                    folded[var] = folded_constants(match)
                    counts[_name(value)] += 1
                else:
                    node = span_of(value) or var.name
                    refusals.append(Refusal(self.name, node, failed.number, failed.reason))
            if folded:
                new = rebuild(function, {var: _use(c) for var, c in folded.items()}, owner=self.name)
                module = module.clone()
                module.update_func(gv, eliminate_dead(new))
        return PassResult(module, counts.total(), tuple(refusals), dict(sorted(counts.items())))


def _name(call: relax.Call) -> str:
    return kernel_name(call) if is_call(call, KERNEL) else str(call.op.name.removeprefix("relax."))


def _use(constant: relax.Expr) -> Replacement:
    return lambda _builder: constant
