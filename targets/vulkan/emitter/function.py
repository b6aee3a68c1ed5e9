"""A function of the shader library."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Function:
    """The GLSL of a function, and the others that it calls by name and type."""

    source: str
    calls: tuple[tuple[str, str], ...] = ()


def calls(*names: str) -> tuple[tuple[str, str], ...]:
    """Functions of float."""
    return tuple((name, "float") for name in names)


def horner(x: str, coefficients: Sequence[float]) -> str:
    """A polynomial of a variable, the highest power first."""
    text = repr(float(coefficients[0]))
    for coefficient in coefficients[1:]:
        text = f"fma({text}, {x}, {float(coefficient)!r})"
    return text
