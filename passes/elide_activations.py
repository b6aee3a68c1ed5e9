"""elide-activations: remove activations that do nothing, and merge those that do one thing twice.

    relu(relu(x)), relu(softmax(x)), clip(x, lo, hi) with x within [lo, hi], abs(relu(x))   ->  the operand
    clip(clip(x, a, b), c, d), clip(relu(x), c, d), relu(clip(x, a, b))   ->  one clip
    clip(clip(x, 0, 1), 2, 3), comparisons decided by a range             ->  a constant
    maximum(x, 0), where(x > 0, x, 0), x * cast(x > 0)                    ->  relu(x)
    relu(x) > c, quantize(relu(x)) with the zero point at the lower bound ->  the same of x
    argmax(softmax(x)), sigmoid(x) > c                                    ->  argmax(x), x > logit(c)
    dropout(x), where(true, a, b)                                         ->  x, a

Results keep every bit, of NaN and -0.0 too, operator by operator as TVM lowers them: relu(NaN) is +0,
relu(-0) is +0, clip(NaN, lo, hi) is hi, maximum(x, 0) is relu(x), maximum(0, x) keeps NaN and -0, abs clears
the sign of both, leaky relu keeps both. (Whether a code generator contracts a product and a sum that now
stand next to each other is its affair.) What the value ranges can't prove is refused. Conditions:

1. The replacement gives the same number for every operand within the proven range.
2. It gives the same where the operand is or the result becomes NaN.
3. It gives zeros of the same sign.
4. The inner value of a merge has no other use: it would have to be computed all the same.
5. The replacement has the type of the call (operands may broadcast).
6. softmax normalises along the axis of the argmax.
7. Softmax or sigmoid keeps distinct inputs distinct: rounding makes near ties equal, so the inputs must be
   whole numbers (of at most 2^24 for softmax).
8. The constant compared with a sigmoid is further than rounding errors from its value at any whole number.

With `exact=false`, conditions 2, 3, 7 and 8 are waived: results may then differ where the removed activation
saw NaN or -0 or a near tie. (ONNX leaves NaN open: ONNX Runtime's relu passes NaN and -0 on.)
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import ClassVar

from tvm import relax

from greencc.passes.base import Condition, RewritePass
from greencc.passes.elide_rules import SAME, Elision, Site, proposals
from greencc.passes.graph import Builder, Graph


@dataclass(frozen=True)
class ElideActivations(RewritePass[Elision]):
    """See the module. `exact`: keep every bit, of NaN, -0.0 and near ties too."""

    exact: bool = True

    name: ClassVar[str] = "elide-activations"
    roots: ClassVar[tuple[type, ...]] = (relax.Call, relax.TupleGetItem)
    conditions: ClassVar[tuple[Condition[Elision], ...]] = (
        Condition(1, "numbers within the operand's proven range change", lambda e: "value" not in e.changed),
        Condition(2, "the operand may be NaN or give NaN", lambda e: "nan" not in e.changed),
        Condition(3, "the sign of a zero would change", lambda e: "zero" not in e.changed),
        Condition(4, "the inner value has other uses", lambda e: not e.shared),
        Condition(5, "the replacement has another shape", lambda e: not e.reshaped),
        Condition(6, "softmax and argmax work along different axes", lambda e: not e.axes_differ),
        Condition(7, "rounding may make distinct inputs equal", lambda e: not e.ties),
        Condition(8, "the constant is within rounding of a value of sigmoid", lambda e: not e.near),
    )

    def match(self, graph: Graph, var: relax.Var, call: relax.Expr) -> Elision | None:
        """The first legal proposal for the value, else the one that comes closest; None without proposals."""
        closest, reached = None, -1
        for proposal in proposals(Site(graph, var, call)):
            elision = proposal if self.exact else _inexact(proposal)
            failed = self.refusal(elision)
            if failed is None:
                return elision
            if failed.number > reached:
                closest, reached = elision, failed.number
        return closest

    def rewrite(self, builder: Builder, match: Elision) -> relax.Expr:
        """What the matched rule builds."""
        return match.build(builder)

    def inner(self, match: Elision) -> Iterable[relax.Var]:
        """The values that vanish with the match."""
        return match.inner

    def kind_of(self, match: Elision) -> str:
        """The rule's name."""
        return match.rule


def _inexact(elision: Elision) -> Elision:
    changed = elision.changed & {"value"}
    return replace(elision, changed=changed or SAME, ties=False, near=False)
