"""The meter's interface, and the choice of the best one that this machine has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from greencc.energy.estimate import DEFAULT_WATTS_PER_CORE, EstimateMeter
from greencc.energy.rapl import RaplMeter
from greencc.energy.reading import Reading


class Meter(Protocol):
    """Measures energy between two points in time.

    A meter holds no state between calls: intervals may overlap and nest.
    """

    @property
    def method(self) -> str:
        """How figures are come by: `rapl` or `estimate`."""
        ...

    @property
    def note(self) -> str:
        """What the figure covers and rests on, in words for people."""
        ...

    def mark(self) -> object:
        """The counters now."""
        ...

    def since(self, mark: object) -> Reading:
        """What has been used since `mark`, a value that this meter's `mark` returned."""
        ...


@dataclass(frozen=True)
class MeterChoice:
    """A meter, and why it is not a better one.

    Attributes:
        meter: the meter to use.
        reason: why the hardware's own counters can't be read; None when they are.
    """

    meter: Meter
    reason: str | None


def choose_meter(watts_per_core: float = DEFAULT_WATTS_PER_CORE) -> MeterChoice:
    """RAPL where its counters can be read, else the estimate.

    Args:
        watts_per_core: power of one busy core, which the estimate rests on.

    Raises:
        UserError: `watts_per_core` is not a positive number.
    """
    estimate = EstimateMeter(watts_per_core)
    found = RaplMeter.detect()
    return MeterChoice(found, None) if isinstance(found, RaplMeter) else MeterChoice(estimate, found)
