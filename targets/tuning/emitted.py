"""Rules for kernels that are emitted while a module is lowered: they emit them again where a plan is chosen.

Such a kernel carries the name of its rule and a recipe: what, beside the types of its parameters, it was made of.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Generic, TypeVar

from tvm import tirx

from greencc.targets.base import RULE_ATTR, Declined, Scheduled
from greencc.targets.tuning.space import Plan, Space

RECIPE_ATTR = "greencc.recipe"
_FOREIGN = "no kernel of this rule"

Form = TypeVar("Form")


class EmittedRule(ABC, Generic[Form]):
    """A TunableRule for such kernels. What it knows of one is its form.

    Attributes:
        name: what the kernels name as their rule; it is the rule's in reports and tuning records as well.
    """

    name: str

    @abstractmethod
    def form(self, func: tirx.PrimFunc, recipe: Mapping[str, Any]) -> Form:
        """What kernel it is, by the types of its parameters and its recipe."""

    @abstractmethod
    def space_of(self, form: Form) -> Space | Declined:
        """The plans by which it can be emitted."""

    @abstractmethod
    def emit(self, form: Form, plan: Plan) -> tirx.PrimFunc:
        """The kernel, emitted by a plan of its space."""

    def space(self, func: tirx.PrimFunc, constants: frozenset[int]) -> Space | Declined:
        """See TunableRule."""
        form = self._form(func)
        return form if isinstance(form, Declined) else self.space_of(form)

    def apply(self, func: tirx.PrimFunc, constants: frozenset[int], plan: Plan | None = None) -> Scheduled | Declined:
        """The kernel as it is, or by another plan."""
        if plan is None:
            return Scheduled(func, self.name) if self._emitted(func) else Declined(_FOREIGN)
        form = self._form(func)
        if isinstance(form, Declined):
            return form
        space = self.space_of(form)
        problem = space.reason if isinstance(space, Declined) else space.problem(plan)
        if problem is not None:
            return Declined(problem)
        return Scheduled(self.emit(form, plan).without_attr("global_symbol"), self.name)

    def _form(self, func: tirx.PrimFunc) -> Form | Declined:
        if not self._emitted(func):
            return Declined(_FOREIGN)
        if RECIPE_ATTR not in func.attrs:
            return Declined("it can be emitted by one plan only")
        return self.form(func, json.loads(str(func.attrs[RECIPE_ATTR])))

    def _emitted(self, func: tirx.PrimFunc) -> bool:
        """Whether it is a kernel of this rule."""
        return bool(func.attrs) and str(func.attrs.get(RULE_ATTR, "")) == self.name


def with_recipe(func: tirx.PrimFunc, recipe: Mapping[str, Any]) -> tirx.PrimFunc:
    """`func` with what its rule needs to emit it again, as JSON."""
    return func.with_attr(RECIPE_ATTR, json.dumps(recipe, sort_keys=True))
