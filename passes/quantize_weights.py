"""The pass that stores the weights of products in few bits, in groups; activations stay in single precision."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar

import numpy as np
import tvm
from tvm import relax

from greencc.errors import UserError
from greencc.ir import constant
from greencc.ops import GroupAttrs, grouped_matmul
from greencc.passes.base import Activations, Condition, PassContext, PassResult
from greencc.passes.calibrated import CalibratedPass, all_finite
from greencc.passes.gptq import gptq
from greencc.passes.graph import Builder, Graph
from greencc.passes.grouped import BITS, GroupedWeight, round_to_nearest
from greencc.passes.matching import is_float32

METHODS = ("nearest", "gptq")
# Grams that are held at once.
_MOST_GRAM_BYTES = 1 << 28
_LARGEST_HALF = float(np.finfo(np.float16).max)


@dataclass(frozen=True)
class Weighted:
    """A product `call` of x and a constant.

    Attributes:
        chosen: the weight in groups as the data decide; None without data.
    """

    root: relax.Var
    call: relax.Call
    weight: np.ndarray
    bits: int
    group: int
    least: int
    chosen: GroupedWeight | None = None

    @cached_property
    def grouped(self) -> GroupedWeight:
        """The weight in groups."""
        return self.chosen or round_to_nearest(self.weight, self.group, self.bits)


@dataclass(frozen=True)
class QuantizeWeights(CalibratedPass[Weighted]):
    """Store the weights of products in 8 or 4 bits, with scales for groups of rows, and multiply in single precision.

        y = matmul(x, w)    becomes    y = grouped_matmul(x, q, scale)             8 bits, symmetric
                                       y = grouped_matmul(x, q, scale, offset)     4 bits, affine

    Nothing of x is rounded. An eighth to a quarter of the weight's bytes remains, which is what counts where x has few
    rows and time goes into reading weights. With `method=gptq` and calibration data, levels are chosen for a small
    error of y (`greencc.passes.gptq`), else every weight gets its nearest level. The result is close to the original,
    not equal: this pass is not in the default pipeline. Legal when
    1. operands and result are float32;
    2. the weight is a matrix;
    3. all weights are finite;
    4. they are small enough for scales and offsets in half precision;
    5. there are at least `min-weights` of them;
    6. the depth is a multiple of the group.

    Options:
        bits: 8 or 4.
        group: rows that share a scale, an even number.
        method: `nearest` or `gptq`.
        min_weights: see 5.
    """

    bits: int = 8
    group: int = 64
    method: str = "gptq"
    min_weights: int = 4096

    name: ClassVar[str] = "quantize-weights"
    approximates: ClassVar[bool] = True
    conditions: ClassVar[tuple[Condition[Weighted], ...]] = (
        Condition(1, "an operand or the result is not float32", lambda m: is_float32(*m.call.args, m.root)),
        Condition(2, "the weight is not a matrix", lambda m: m.weight.ndim == 2),
        Condition(3, "a weight is not finite", lambda m: all_finite(m.weight)),
        Condition(
            4, "a weight is too large for scales in half precision", lambda m: np.abs(m.weight).max() < _LARGEST_HALF
        ),
        Condition(5, "the weight is too small for quantising to pay", lambda m: m.weight.size >= m.least),
        Condition(6, "the depth is no multiple of the group", lambda m: len(m.weight) % m.group == 0),
    )

    def run(self, module: tvm.IRModule, context: PassContext) -> PassResult:
        """See CalibratedPass.

        Raises:
            UserError: an option has no such value.
        """
        if self.bits not in BITS or self.method not in METHODS or self.group < 2 or self.group % 2:
            raise UserError(
                f"{self.name}: bits are {' or '.join(map(str, BITS))}, group an even number, method one of "
                f"{', '.join(METHODS)}; not {self.bits}, {self.group}, {self.method}"
            )
        return super().run(module, context)

    def match(self, graph: Graph, var: relax.Var, call: relax.Call) -> Weighted | None:
        """See CalibratedPass."""
        if call.op.name != "relax.matmul":
            return None
        x, weight = (graph.constant(arg) for arg in call.args)
        if x is not None or weight is None:
            return None
        return Weighted(var, call, weight, self.bits, self.group, self.min_weights)

    def informed(self, activations: Activations, module: tvm.IRModule, matches: Sequence[Weighted]) -> list[Weighted]:
        """See CalibratedPass."""
        if self.method == "nearest":
            return list(matches)
        legal = [match for match in matches if self.refusal(match) is None]
        chosen: dict[relax.Var, GroupedWeight] = {}
        for some in _batches(legal):
            grams = activations.grams(module, [match.call.args[0] for match in some])
            for match, gram in zip(some, grams, strict=True):
                if np.isfinite(gram).all():
                    chosen[match.root] = gptq(match.weight, gram, self.group, self.bits)
        return [replace(match, chosen=chosen.get(match.root)) for match in matches]

    def stored(self, match: Weighted) -> GroupedWeight:
        """See CalibratedPass."""
        return match.grouped

    def rewrite(self, builder: Builder, match: Weighted) -> relax.Expr:
        """See CalibratedPass."""
        made = match.grouped
        offset = None if made.offset is None else constant(made.offset)
        attrs = GroupAttrs(made.bits, made.group)
        return grouped_matmul(match.call.args[0], constant(made.levels), constant(made.scale), offset, attrs)


def _batches(matches: Sequence[Weighted]) -> Iterator[list[Weighted]]:
    """Matches in order, as many at once as grams may be held of."""
    some: list[Weighted] = []
    held = 0
    for match in matches:
        size = 8 * len(match.weight) ** 2
        if some and held + size > _MOST_GRAM_BYTES:
            yield some
            some, held = [], 0
        some.append(match)
        held += size
    if some:
        yield some
