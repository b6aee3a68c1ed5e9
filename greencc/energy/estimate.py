"""An estimate of energy where no counter can be read: CPU time of this process times watts per busy core."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import ClassVar

from greencc.energy.reading import Reading
from greencc.errors import UserError

DEFAULT_WATTS_PER_CORE = 5.0
"""A middling figure: rated power over core count is 4 to 6 W on current servers, 3 to 4 W on laptops and up
to 10 W on desktops. State your machine's own for figures in earnest."""


@dataclass(frozen=True)
class EstimateMeter:
    """User and system CPU time of all threads of this process, times a stated power.

    It sees neither memory traffic, nor clock frequency, nor what idle parts draw: it orders programs by the
    work they do and no more. Threads that spin while they wait count, as they should.

    Attributes:
        watts_per_core: power of one busy core, in watts.
    """

    method: ClassVar[str] = "estimate"
    watts_per_core: float = DEFAULT_WATTS_PER_CORE

    def __post_init__(self) -> None:
        if not (math.isfinite(self.watts_per_core) and self.watts_per_core > 0):
            raise UserError(f"watts per core must be a positive number, not {self.watts_per_core}")

    @property
    def note(self) -> str:
        """The formula."""
        return f"estimate: CPU time of this process x {self.watts_per_core:g} W per busy core"

    def mark(self) -> object:
        """Process CPU time and wall clock time now, in seconds."""
        return time.process_time(), time.perf_counter()

    def since(self, mark: object) -> Reading:
        """The energy that the CPU time since `mark` stands for."""
        if not isinstance(mark, tuple):
            raise TypeError("not a mark of this meter")
        cpu, wall = mark
        return Reading((time.process_time() - cpu) * self.watts_per_core, time.perf_counter() - wall)
