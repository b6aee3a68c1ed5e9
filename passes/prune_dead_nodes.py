"""The pass that removes what no output needs, and what computes a value that is there already."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import tvm

from greencc.errors import GreenccError
from greencc.ir import relax_functions
from greencc.passes import common_subexpressions, compositions, interfaces, no_ops
from greencc.passes.base import MAX_ROUNDS, Condition, Pass, PassContext, PassResult, Refusal
from greencc.passes.graph import Graph, Unused, eliminate_dead, is_pure, rebuild
from greencc.passes.interfaces import Slot
from greencc.passes.no_ops import Candidate
from greencc.passes.shortcuts import may_remove, replacements_of

UNUSED_INPUTS_ATTR = "greencc.unused_inputs"


def _if_candidate(check: Callable[[Candidate], bool]) -> Callable[[object], bool]:
    return lambda match: not isinstance(match, Candidate) or check(match)


def _is_effect_free(match: object) -> bool:
    return is_pure(match.value) if isinstance(match, (Candidate, Unused)) else True


def _binds_no_symbol(match: object) -> bool:
    return not (isinstance(match, (Slot, Unused)) and match.binds_symbol)


def _stays_inside(match: object) -> bool:
    return not (isinstance(match, Slot) and match.escapes)


@dataclass(frozen=True)
class PruneDeadNodes(Pass):
    """Remove what no output needs, no-ops, duplicates, and one of two layout operators in a row.

        a = exp(x); b = reshape(x, shape(x)); c = transpose(transpose(b, (1, 0)), (1, 0))
        d = relu(c); e = relu(x); return (d + e,)
    becomes
        d = relu(x); return (d + d,)

    Kinds of rewrites: dead nodes, in branch functions too, with unused results and parameters of those;
    outputs that `PassContext.outputs` leaves out; aliases; reshape, transpose, cast, slice, pad, squeeze,
    expand, split and concat that return an operand; x + (-0.0), x - 0.0, x * 1, x / 1, x ** 1, a decided
    `where`; two reshapes, transposes, casts, slices or expands in a row; a concat of neighbouring slices of
    one value; repeated calls and equal constants. Results are bitwise those of the module before, NaN
    payloads excepted: sums and products of the same operands in another order count as repeated.

    Inputs of main are the user's contract. An unused one stays in the signature and is recorded in the
    attribute "greencc.unused_inputs", unless `drop_unused_inputs` is set.

    Legality conditions:
    1. A neutral constant, or a `where`, does not broadcast the operand to a larger shape.
    2. A float zero that is added is -0.0 and one that is subtracted is +0.0, or the operand is never -0.0.
    3. A transpose that keeps the type moves only axes of size one.
    4. A slice that keeps the type, or that is composed, steps forwards.
    5. A pad that keeps the type has widths of zero, not widths that cancel.
    6. Of two casts, the first keeps every value.
    7. Slices that are joined or composed have known bounds in a known size.
    8. Slices that are joined are adjacent and in order.
    9. What is removed, or computed once instead of twice, has no effect besides its result.
    10. A call that repeats another one is not random and makes no storage.
    11. What is removed does not give a symbolic dimension, used elsewhere, its value.
    12. A function that loses a result or parameter is called only, and its results are used one by one.

    Attributes:
        drop_unused_inputs: take unused inputs out of main's signature.
    """

    name: ClassVar[str] = "prune-dead-nodes"
    conditions: ClassVar[tuple[Condition[object], ...]] = (
        Condition(1, "the operand is broadcast to another shape", _if_candidate(no_ops.keeps_type)),
        Condition(2, "adding this zero can change -0.0 to +0.0", _if_candidate(no_ops.keeps_negative_zero)),
        Condition(3, "the transpose moves elements", _if_candidate(no_ops.moves_unit_axes_only)),
        Condition(4, "the slice steps backwards or by an unknown step", _if_candidate(no_ops.steps_forwards)),
        Condition(5, "the padding shifts the values", _if_candidate(no_ops.pads_nothing)),
        Condition(6, "the first cast is not exact", _if_candidate(compositions.inner_cast_is_exact)),
        Condition(7, "a slice has unknown bounds", _if_candidate(compositions.bounds_are_known)),
        Condition(8, "the slices are not adjacent", _if_candidate(compositions.pieces_are_adjacent)),
        Condition(9, "the operator has an effect", _is_effect_free),
        Condition(10, "each call makes a new value", _if_candidate(common_subexpressions.is_repeatable)),
        Condition(11, "it gives a symbolic dimension its value", _binds_no_symbol),
        Condition(12, "the function or all its results are used as a value", _stays_inside),
    )
    drop_unused_inputs: bool = False

    def run(self, module: tvm.IRModule, context: PassContext) -> PassResult:
        """Prune to a fixpoint. An output that the model does not have is a UserError."""
        counts: Counter[str] = Counter()
        if context.outputs is not None:
            module, counts["dropped-output"] = interfaces.select_outputs(module, context.outputs)
        module, counts["equal-constant"] = common_subexpressions.share_constants(module, self.name)
        for _ in range(MAX_ROUNDS):
            module, found, refusals = self._round(module)
            counts.update(found)
            if not found.total():
                kinds = {kind: n for kind, n in sorted(counts.items()) if n}
                return PassResult(_record_unused(module), sum(kinds.values()), tuple(refusals), kinds)
        raise GreenccError(f"pass {self.name}: no fixpoint after {MAX_ROUNDS} rounds")

    def _round(self, module: tvm.IRModule) -> tuple[tvm.IRModule, Counter[str], list[Refusal]]:
        found: Counter[str] = Counter()
        refusals: list[Refusal] = []

        def allowed(match: object, node: str) -> bool:
            failed = next((c for c in self.conditions if not c.holds(match)), None)
            if failed is not None:
                refusals.append(Refusal(self.name, node, failed.number, failed.reason))
            return failed is None

        def may_drop(slot: Slot) -> bool:
            return allowed(slot, slot.node)

        for gv, function in list(relax_functions(module)):
            replacements = replacements_of(Graph(module, function), allowed, found)
            new = rebuild(function, replacements, owner=self.name) if replacements else function
            module = module.clone()
            module.update_func(gv, eliminate_dead(new, lambda unused: may_remove(unused, allowed, found)))
        module, found["dead-function"] = interfaces.drop_unreachable(module)
        module, found["unused-slot"] = interfaces.shrink_private_functions(module, may_drop)
        if self.drop_unused_inputs:
            module, found["unused-input"] = interfaces.drop_inputs(module, may_drop)
        return module, found, refusals


def _record_unused(module: tvm.IRModule) -> tvm.IRModule:
    """`module` with the names of main's unused inputs in an attribute of main, where there are any."""
    main = module["main"]
    names = [main.params[i].name for i in interfaces.unused_parameters(main)]
    recorded = main.attrs.get(UNUSED_INPUTS_ATTR) if main.attrs is not None else None
    if names == [str(name) for name in recorded or ()]:
        return module
    module = module.clone()
    module.update_func(module.get_global_var("main"), main.with_attr(UNUSED_INPUTS_ATTR, names))
    return module
