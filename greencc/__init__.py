"""greencc: compiles trained models into smaller, cheaper machine code, and measures itself in joules.

Importing the package costs next to nothing: neither TVM nor ONNX is loaded before a name that needs them is
used. `greencc.load` needs TVM's runtime library only, `greencc.compile` the compiler.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from greencc.errors import (
    ArtifactError,
    BudgetError,
    GreenccError,
    InputError,
    ModelError,
    UnsupportedOperators,
    UserError,
)
from greencc.version import __version__

if TYPE_CHECKING:
    from greencc.api import bench, compile, devices, inspect, run, tune, verify
    from greencc.model_options import ModelOptions
    from greencc.runtime.model import Model, load

_LAZY = {
    "Model": "greencc.runtime.model",
    "load": "greencc.runtime.model",
    "bench": "greencc.api",
    "compile": "greencc.api",
    "devices": "greencc.api",
    "inspect": "greencc.api",
    "run": "greencc.api",
    "tune": "greencc.api",
    "ModelOptions": "greencc.model_options",
    "verify": "greencc.api",
}
"""Where each name lives that is imported on first use."""

__all__ = [
    "ArtifactError",
    "BudgetError",
    "GreenccError",
    "InputError",
    "Model",
    "ModelError",
    "ModelOptions",
    "UnsupportedOperators",
    "UserError",
    "__version__",
    "bench",
    "compile",
    "devices",
    "inspect",
    "load",
    "run",
    "tune",
    "verify",
]


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        raise AttributeError(f"module 'greencc' has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
