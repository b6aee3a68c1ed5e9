"""What a kernel is, and what a call of `greencc.kernel` says about its kernel."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeAlias

from tvm import relax, te

KERNEL = "greencc.kernel"
Kernel: TypeAlias = "Callable[..., te.Tensor | list[te.Tensor]]"
"""(*tensors, dims, **options) -> one tensor or several; `dims` are the sizes of the call's ShapeExpr."""


def kernel_name(call: relax.Call) -> str:
    """Which entry of `KERNELS` a call of `greencc.kernel` runs."""
    return str(call.attrs["kernel"])


def kernel_options(call: relax.Call) -> dict[str, Any]:
    """The options of a call of `greencc.kernel`, by name."""
    options: dict[str, Any] = json.loads(str(call.attrs["options"]))
    return options
