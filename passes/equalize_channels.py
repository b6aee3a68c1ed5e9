"""The pass that gives channels between two products or convolutions weights of one size on both sides."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import tvm
from tvm import relax

from greencc.ir import relax_functions
from greencc.passes.base import Condition, Pass, PassContext, PassResult, Refusal, node_name
from greencc.passes.calibrated import all_finite
from greencc.passes.graph import Builder, Graph, Replacement, eliminate_dead, rebuild
from greencc.passes.linear_chains import Linear, Link, links_of, spread_of
from greencc.passes.matching import is_float32

# Links of a chain depend on each other: they are gone through until no factor changes by more than this, or so often.
_SETTLED, _SWEEPS = 0.001, 100
_CLOSE = 0.01
# Beyond it, products with factors may overflow or vanish.
_LARGEST_FACTOR = 2.0**64


def _is_finite(link: Link) -> bool:
    """Condition 5, as far as factors are known."""
    finite = all_finite(link.first.weight, link.second.weight)
    return finite and (link.spread is None or link.spread <= _LARGEST_FACTOR)


@dataclass(frozen=True)
class EqualizeChannels(Pass):
    """Divide channels by factors where they are computed, and multiply the weights that read them.

        y = matmul(relu(matmul(x, v) + b), w)    becomes    y = matmul(relu(matmul(x, v / s) + b / s), s * w)

    s_i = sqrt(r1_i * r2_i) / r2_i with the largest weights r1_i of channel i in v and r2_i in w, which makes both equal
    (Nagel et al., arXiv:1906.04721, equation 11), so that a scale which channels share serves all of them. Products and
    convolutions alike, relu or leaky relu or none between them; a depthwise convolution between two others is the
    second of one pair and the first of the next. Pairs of a chain are equalised in turn until none changes. A channel
    without weights on one side stays as it is. Results are equal but for rounding. Legal when
    1. operands and results are float32;
    2. both have the channels on the same axis, and as many of them;
    3. the second is depthwise, or not grouped: each channel has weights of its own;
    4. nothing else uses what is in between;
    5. all weights are finite, and factors and their inverses at most 2^64: products neither overflow nor vanish;
    6. a factor is more than 1% from 1: they are not equal already.
    """

    name: ClassVar[str] = "equalize-channels"
    conditions: ClassVar[tuple[Condition[Link], ...]] = (
        Condition(
            1,
            "an operand or a result is not float32",
            lambda m: is_float32(*m.first.call.args, *m.second.call.args, m.second.root),
        ),
        Condition(
            2,
            "the channels lie on different axes, or are not as many",
            lambda m: m.first.out_axis == m.second.in_axis and m.first.channels == m.second.inputs,
        ),
        Condition(3, "the second convolution is grouped", lambda m: m.second.groups == 1 or m.second.is_depthwise),
        Condition(4, "a value in between is used elsewhere", lambda m: m.graph.is_closed(m.second.root, m.inner)),
        Condition(5, "a weight is not finite, or a factor too large", _is_finite),
        Condition(6, "the channels are equal already", lambda m: m.spread is None or m.spread > 1 + _CLOSE),
    )

    def run(self, module: tvm.IRModule, context: PassContext) -> PassResult:
        """See Pass."""
        result, rewrites = module, 0
        refusals: list[Refusal] = []
        for gv, function in relax_functions(module):
            legal = self._legal(links_of(Graph(module, function, context)), refusals)
            links = self._legal(_equalized(legal), refusals)
            if links:
                result = result.clone() if result is module else result
                rewritten = rebuild(function, _replacements(links), owner=self.name)
                result.update_func(gv, eliminate_dead(rewritten))
                rewrites += len(links)
        return PassResult(result, rewrites, tuple(refusals), {self.name: rewrites} if rewrites else {})

    def _legal(self, links: Sequence[Link], refusals: list[Refusal]) -> list[Link]:
        """The links that all conditions hold for; why the others are refused is added."""
        legal = []
        for link in links:
            failed = next((c for c in self.conditions if not c.holds(link)), None)
            if failed is None:
                legal.append(link)
            else:
                node = node_name(link.second.root, link.second.call)
                refusals.append(Refusal(self.name, node, failed.number, failed.reason))
        return legal


def _equalized(links: Sequence[Link]) -> list[Link]:
    """The links with their factors."""
    factors = [np.ones(link.first.channels) for link in links]
    incoming = {link.second.root: made for link, made in zip(links, factors, strict=True)}
    outgoing = {link.first.root: made for link, made in zip(links, factors, strict=True)}

    def sizes(linear: Linear) -> np.ndarray:
        """Its weights' sizes as they are now, from each input to each output."""
        read, given = incoming.get(linear.root, np.ones(1)), outgoing.get(linear.root, np.ones(1))
        return linear.sizes * read / given if linear.is_depthwise else linear.sizes * read / given[:, None]

    for _ in range(_SWEEPS):
        changes = [1.0]
        for link, made in zip(links, factors, strict=True):
            first, second = sizes(link.first), sizes(link.second)
            first = first if first.ndim == 1 else first.max(axis=1)
            second = second if second.ndim == 1 else second.max(axis=0)
            both = (first > 0) & (second > 0)
            step = np.sqrt(np.where(both, first, 1.0)) / np.sqrt(np.where(both, second, 1.0))
            made *= step
            changes.append(spread_of(step))
        if max(changes) <= 1 + _SETTLED:
            break
    return [replace(link, factors=made) for link, made in zip(links, factors, strict=True)]


def _replacements(links: Sequence[Link]) -> dict[relax.Var, Replacement]:
    """What every operator of the links becomes."""
    incoming = {link.second.root: link.factors for link in links}
    outgoing = {link.first.root: link.factors for link in links}
    linears = {linear.root: linear for link in links for linear in (link.first, link.second)}
    made = {root: linear.scaled(incoming.get(root), outgoing.get(root)) for root, linear in linears.items()}
    for link in links:
        if link.factors is not None:
            made.update({bias.root: bias.scaled(link.factors, link.first.out_axis) for bias in link.biases})
    return {root: functools.partial(_ready, value) for root, value in made.items()}


def _ready(value: relax.Expr, builder: Builder) -> relax.Expr:
    return value
