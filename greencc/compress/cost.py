"""What a search makes as low as possible: time, or energy."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from statistics import median

import numpy as np

from greencc.energy.meter import choose_meter
from greencc.errors import UserError
from greencc.trials import seconds_by_turns
from greencc.verification import Runnable

# Energy counters are read about once a millisecond, and the package idles too: blocks must be long.
_BLOCKS = 5
_BLOCK_SECONDS = 0.05


class Cost(ABC):
    """A cost of running programs.

    Attributes:
        name: as `--cost` spells it.
    """

    name: str

    @abstractmethod
    def by_turns(self, programs: Sequence[Runnable], inputs: Mapping[str, np.ndarray]) -> list[float]:
        """What a run of each program costs, measured in turns."""


class Latency(Cost):
    """Seconds."""

    name = "latency"

    def by_turns(self, programs: Sequence[Runnable], inputs: Mapping[str, np.ndarray]) -> list[float]:
        """See Cost."""
        return seconds_by_turns(programs, inputs)


class Energy(Cost):
    """Joules: measured where the machine has counters, else the estimate from the processors' time."""

    name = "energy"

    def __init__(self) -> None:
        self._meter = choose_meter().meter

    def by_turns(self, programs: Sequence[Runnable], inputs: Mapping[str, np.ndarray]) -> list[float]:
        """See Cost."""
        joules: list[list[float]] = [[] for _ in programs]
        for _ in range(_BLOCKS):
            for program, own in zip(programs, joules, strict=True):
                once = program.seconds(inputs, 1)  # another program's data fill the caches
                runs = max(1, int(_BLOCK_SECONDS / max(once, 1e-9)))
                mark = self._meter.mark()
                program.seconds(inputs, runs)
                spent = self._meter.since(mark).joules
                if spent is None:
                    raise UserError("--cost energy: the meter gives no reading here; use --cost latency")
                own.append(spent / runs)
        return [median(own) for own in joules]


COSTS: dict[str, type[Latency] | type[Energy]] = {kind.name: kind for kind in (Latency, Energy)}
"""The costs by name."""


def make_cost(name: str) -> Cost:
    """The cost that `--cost` names.

    Raises:
        UserError: there is no such cost.
    """
    if name not in COSTS:
        raise UserError(f"--cost {name}: unknown; known: {', '.join(COSTS)}")
    return COSTS[name]()
