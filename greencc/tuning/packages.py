"""What tuning needs beside greencc's own requirements."""

from __future__ import annotations

import importlib.util

from greencc.errors import UserError

_PACKAGES = ("xgboost", "psutil", "cloudpickle", "tornado")


def require_packages(with_report: bool = False) -> None:
    """Raise UserError where a package of the `tune` extra, or the one that draws plots, is missing."""
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"tuning needs {', '.join(missing)}: pip install 'greencc[tune]'")
    if with_report and importlib.util.find_spec("plotly") is None:
        raise UserError("--report needs plotly: pip install 'greencc[report]'")
