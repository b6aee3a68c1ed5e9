"""What a kernel that quantises rows is made of, beside its target: what emits it again by another plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tvm import tirx

from greencc.targets.tuning.emitted import with_recipe


@dataclass(frozen=True)
class QuantizedRows:
    """Such a kernel.

    Attributes:
        shape: of x, whose rows are quantised.
        with_factors: whether rows are multiplied by factors before that.
        epsilon: of the variance, where rows are normalised first; None where they aren't.
    """

    shape: list[tirx.Expr]
    with_factors: bool
    epsilon: float | None

    @staticmethod
    def of(func: tirx.PrimFunc, recipe: Mapping[str, Any]) -> QuantizedRows:
        """What a kernel with the recipe of `noted_on` is."""
        return QuantizedRows(list(func.params[0].ty.shape), recipe["with_factors"], recipe["epsilon"])

    def noted_on(self, func: tirx.PrimFunc) -> tirx.PrimFunc:
        """The kernel `func` with what `of` reads."""
        return with_recipe(func, {"with_factors": self.with_factors, "epsilon": self.epsilon})
