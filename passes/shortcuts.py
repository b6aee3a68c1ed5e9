"""What prune-dead-nodes puts in place of a value: something that is there already, or a simpler call."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from tvm import ir, relax

from greencc.ir import span_of
from greencc.passes import common_subexpressions, compositions, no_ops
from greencc.passes.graph import Graph, Replacement, Unused
from greencc.passes.no_ops import Candidate, Rule

Allowed = Callable[[object, str], bool]
# A no-op is tried before a composition: it leaves nothing behind.
_RULES: dict[str, tuple[Rule, ...]] = {
    op: (*no_ops.NO_OP_RULES.get(op, ()), *compositions.COMPOSITION_RULES.get(op, ()))
    for op in (*no_ops.NO_OP_RULES, *compositions.COMPOSITION_RULES)
}


def replacements_of(graph: Graph, allowed: Allowed, found: Counter[str]) -> dict[relax.Var, Replacement]:
    """What to put in place of each value that a rule applies to, or that is there already."""
    replacements: dict[relax.Var, Replacement] = {}

    def is_legal(c: Candidate) -> bool:
        return allowed(c, span_of(c.value) or c.var.name)

    for var, value in graph.definitions():
        if isinstance(value, (relax.Var, ir.GenericConst)):
            replacements[var] = _use(value)
            found["alias"] += 1
        elif isinstance(value, relax.TupleGetItem):
            fields = graph.value(value.tuple_value)
            if isinstance(fields, relax.Tuple):
                replacements[var] = _use(fields.fields[value.index])
                found["projection"] += 1
        elif isinstance(value, relax.Call) and isinstance(value.op, ir.Op):
            for rule in _RULES.get(value.op.name, ()):
                candidate = rule.match(graph, var, value)
                if candidate is not None and is_legal(candidate):
                    replacements[var] = _apply(rule, candidate)
                    found[candidate.kind] += 1
                    break
    for repeated in common_subexpressions.duplicates(graph, is_legal):
        if repeated.var not in replacements:
            replacements[repeated.var] = _use(repeated.source)
            found["duplicate" if isinstance(repeated.value, relax.Call) else "projection"] += 1
    return replacements


def _use(value: relax.Expr) -> Replacement:
    return lambda _builder: value


def _apply(rule: Rule, candidate: Candidate) -> Replacement:
    return lambda builder: rule.rewrite(builder, candidate)


def may_remove(unused: Unused, allowed: Allowed, found: Counter[str]) -> bool:
    """Whether a result that nothing uses may go; counted when it is a node."""
    may = allowed(unused, span_of(unused.value) or unused.var.name)
    is_node = isinstance(unused.value, (relax.Call, relax.If))
    found["dead-node"] += may and is_node
    return may
