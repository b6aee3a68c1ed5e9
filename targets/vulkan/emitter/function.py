"""A function of the shader library."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Function:
    """The GLSL of a function, and the others that it calls by name and type."""

    source: str
    calls: tuple[tuple[str, str], ...] = ()


def calls(*names: str, kind: str = "float") -> tuple[tuple[str, str], ...]:
    """Functions of one type."""
    return tuple((name, kind) for name in names)


def horner(x: str, coefficients: Sequence[float], suffix: str = "") -> str:
    """A polynomial of a variable, the highest power first; `suffix` is that of the literals: "lf" of double."""
    text = f"{float(coefficients[0])!r}{suffix}"
    for coefficient in coefficients[1:]:
        text = f"fma({text}, {x}, {float(coefficient)!r}{suffix})"
    return text
