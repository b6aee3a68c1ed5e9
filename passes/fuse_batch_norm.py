"""The pass that folds batch normalisation, and other constants per channel, into a convolution."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from tvm import relax

from greencc.ir import constant, span_of, with_span
from greencc.passes import channel_folding as folding
from greencc.passes.base import Condition, RewritePass
from greencc.passes.channel_folding import Folding
from greencc.passes.graph import Builder, Graph
from greencc.passes.matching import is_float32, same_extents


@dataclass(frozen=True)
class FuseBatchNorm(RewritePass[Folding]):
    """Fold batch normalisation into the weights of the convolution before it.

        y = batch_norm(conv(x, w) + b, gamma, beta, mean, var, eps)[0]
    becomes
        g = gamma / sqrt(var + eps); y = conv(x, w * g) + ((b - mean) * g + beta)

    with the constants computed now, in float64. A product or quotient with constants per channel folds the
    same way, and constants added to a biased convolution join the bias: so a normalisation that was exported
    as those folds too. Any layout and number of spatial axes. Legal when
    1. the weight of the convolution is constant;
    2. the parameters of the normalisation are constant;
    3. the normalisation uses its stored statistics, not those of the batch;
    4. the normalisation is over the channels, and other constants, such as the bias, vary over them alone;
    5. all is float32;
    6. the values in between are not used elsewhere: the convolution would be computed twice;
    7. no constant broadcasts the result to another shape;
    8. the factors are finite: 0 * inf among the weights would be NaN where the convolution gives 0.
    """

    name: ClassVar[str] = "fuse-batch-norm"
    roots: ClassVar[tuple[type, ...]] = (relax.Call, relax.TupleGetItem)
    conditions: ClassVar[tuple[Condition[Folding], ...]] = (
        Condition(1, "the weight of the convolution is not constant", lambda f: f.conv.weight is not None),
        Condition(2, "a parameter of the normalisation is not constant", folding.parameters_are_constant),
        Condition(3, "the normalisation uses the statistics of the batch", folding.statistics_are_stored),
        Condition(4, "a constant does not vary over the channels alone", folding.is_over_channels),
        Condition(5, "not all is float32", lambda f: is_float32(f.conv.call.args[0], f.root)),
        Condition(6, "a value inside is used elsewhere", lambda f: f.graph.is_closed(f.root, f.inner)),
        Condition(7, "a constant broadcasts the result", lambda f: same_extents(f.conv.value, f.root)),
        Condition(8, "a factor is not finite", folding.is_finite),
    )

    def match(self, graph: Graph, var: relax.Var, call: relax.Expr) -> Folding | None:
        """See RewritePass."""
        return folding.find(graph, var)

    def inner(self, match: Folding) -> Iterable[relax.Var]:
        """See RewritePass."""
        return match.inner

    def rewrite(self, builder: Builder, match: Folding) -> relax.Expr:
        """See RewritePass."""
        conv, (gain, shift) = match.conv, folding.affine(match)
        weight = conv.call.args[1]
        if match.kind != "bias" and conv.weight is not None:
            scaled = conv.weight * conv.spread(gain, conv.kernel_axis, conv.weight.ndim)
            weight = constant(scaled.astype("float32"))
        data = conv.call.args[0]
        result = relax.Call(conv.call.op, [data, weight], conv.call.attrs, conv.call.ty_args, conv.call.span)
        bias = folding.bias_of(conv, match.graph)
        total = shift if bias is None else bias * gain + shift
        if conv.bias is None and match.kind == "scale":
            return result
        rank = len(match.root.ty.shape.values)
        spread = conv.spread(total, conv.axis, rank).astype("float32")
        # The root may be a field of the normalisation's result, which has no name of its own.
        biased = relax.op.add(builder.emit(result), constant(np.asarray(spread)))
        return with_span(biased, span_of(match.call))
