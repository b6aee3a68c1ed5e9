"""What a meter returns."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Reading:
    """Energy used over an interval.

    Attributes:
        joules: the energy; None when it could not be found out, never 0 for that.
        seconds: the interval's length.
    """

    joules: float | None
    seconds: float
