"""Kernels that are emitted while a module is lowered, and how to emit them again by another plan.

Such a kernel carries the name of its rule and a recipe: what, beside the types of its parameters, it was made of.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tvm import tirx

RECIPE_ATTR = "greencc.recipe"


def with_recipe(func: tirx.PrimFunc, recipe: Mapping[str, Any]) -> tirx.PrimFunc:
    """`func` with what a rule needs to emit it again, as JSON."""
    return func.with_attr(RECIPE_ATTR, json.dumps(recipe, sort_keys=True))


def recipe_of(func: tirx.PrimFunc) -> dict[str, Any] | None:
    """What the kernel was made of, or None where it can't be made again."""
    if not func.attrs or RECIPE_ATTR not in func.attrs:
        return None
    found: dict[str, Any] = json.loads(str(func.attrs[RECIPE_ATTR]))
    return found
