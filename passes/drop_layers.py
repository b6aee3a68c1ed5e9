"""The pass that drops whole layers."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import tvm
from tvm import relax

from greencc.errors import UserError
from greencc.ir import relax_functions
from greencc.passes.base import Condition, Pass, PassContext, PassResult
from greencc.passes.blocks import Block, find_blocks
from greencc.passes.graph import Builder, eliminate_dead, rebuild
from greencc.passes.narrowing import largest


@dataclass(frozen=True)
class DropLayers(Pass):
    """Keep some of the model's repeated layers, and let their neighbours follow each other.

    A layer is one of a run of blocks with the same operators on weights of the same shapes, whose input and output have
    one type (`greencc.passes.blocks`). With `order=first` the first `keep` layers stay. With `order=change` those stay
    that change their input most: |output - input| over |input|, over calibration data, or the first ones without such.
    Without `keep` those layers go that `PassContext.choices` names, by the operators that they end with. The result is
    another model's: this pass is not in the default pipeline. It is legal whatever the layers compute.

    Options:
        keep: how many layers stay; 0 leaves all but those that are chosen.
        order: `first` or `change`.
    """

    keep: int = 0
    order: str = "first"

    name: ClassVar[str] = "drop-layers"
    approximates: ClassVar[bool] = True
    learns: ClassVar[bool] = True
    conditions: ClassVar[tuple[Condition[Block], ...]] = ()

    def run(self, module: tvm.IRModule, context: PassContext) -> PassResult:
        """Drop the others.

        Raises:
            UserError: the model does not have so many layers, or `order` is unknown.
        """
        if self.order not in ("first", "change"):
            raise UserError(f"{self.name}: order {self.order!r} is unknown; known: first, change")
        if self.keep == 0 and context.choices is None:
            return PassResult(module, 0)
        gv, main = next(iter(relax_functions(module)))
        blocks = find_blocks(main)
        kept = self._kept(module, blocks, context)
        dropped = [block for i, block in enumerate(blocks) if i not in kept]
        if not dropped:
            return PassResult(module, 0)
        replacements = {block.behind: functools.partial(_pass_on, block.before) for block in dropped}
        result = module.clone()
        result.update_func(gv, eliminate_dead(rebuild(main, replacements, owner=self.name)))
        nodes = tuple(block.node for block in dropped)
        return PassResult(result, len(dropped), counts={self.name: len(dropped)}, nodes=nodes)

    def _kept(self, module: tvm.IRModule, blocks: Sequence[Block], context: PassContext) -> set[int]:
        """Numbers of the layers that stay."""
        if self.keep == 0:
            return {i for i, block in enumerate(blocks) if not context.chooses(self.name, block.node)}
        if not 1 <= self.keep <= len(blocks):
            has = f"{len(blocks)} repeated layers" if blocks else "no repeated layers"
            raise UserError(f"{self.name}: can't keep {self.keep} layers: the model has {has}")
        if self.order == "change" and context.activations is not None:
            changes = context.activations.changes(module, [(block.before, block.behind) for block in blocks])
            return set(largest(np.array(changes), self.keep))
        return set(range(self.keep))


def _pass_on(value: relax.Var, builder: Builder) -> relax.Expr:
    return value
