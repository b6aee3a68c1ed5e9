"""RAPL: the energy counters of Intel and AMD processors, through Linux's powercap files.

Each zone has `energy_uj`, microjoules that wrap to 0 after `max_energy_range_uj`. Packages are added up,
with their memory where it is a zone of its own (`dram` lies outside `package`; `core` and `uncore` lie
inside it, and `psys` holds everything: those are left out). The counters cover the whole machine, idle power
and other processes included. Documentation: https://docs.kernel.org/power/powercap/powercap.html
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from greencc.energy.reading import Reading

POWERCAP = Path("/sys/class/powercap")
_MOST_WATTS = 1000.0
"""No package draws more. A counter that could have wrapped twice at this power tells nothing."""


@dataclass(frozen=True)
class Zone:
    """One energy counter: its name (`package-0`, `dram`), file and wrap-around in microjoules."""

    name: str
    counter: Path
    range_uj: int


@dataclass(frozen=True)
class RaplMeter:
    """Adds up the counters of all packages and their memories."""

    method: ClassVar[str] = "rapl"
    zones: tuple[Zone, ...]

    @classmethod
    def detect(cls, root: Path = POWERCAP) -> RaplMeter | str:
        """The meter, or the reason why there is none here, in words."""
        zones = []
        try:
            for folder in sorted(root.glob("*-rapl:*")):
                name = _text(folder / "name")
                if name.startswith("package") or name == "dram":
                    zone = Zone(name, folder / "energy_uj", int(_text(folder / "max_energy_range_uj")))
                    _count(zone)
                    zones.append(zone)
        except PermissionError as error:
            return f"RAPL is there but {error.filename} may not be read: make it readable, or run as root"
        except (OSError, ValueError) as error:
            return f"RAPL is there but does not work: {error}"
        return cls(tuple(zones)) if zones else f"no RAPL counters in {root}"

    @property
    def note(self) -> str:
        """The zones."""
        return f"RAPL counters of the whole machine: {', '.join(zone.name for zone in self.zones)}"

    def mark(self) -> object:
        """The counters and the clock now; the counters are None when they can't be read any more."""
        return self._counts(), time.perf_counter()

    def since(self, mark: object) -> Reading:
        """Joules since `mark`; None when a counter failed or may have wrapped more than once."""
        if not isinstance(mark, tuple):
            raise TypeError("not a mark of this meter")
        before, started = mark
        after, seconds = self._counts(), time.perf_counter() - started
        if before is None or after is None:
            return Reading(None, seconds)
        total = 0
        for zone, first, last in zip(self.zones, before, after, strict=True):
            if seconds * _MOST_WATTS * 1e6 > zone.range_uj:
                return Reading(None, seconds)
            total += last - first if last >= first else last + zone.range_uj - first
        return Reading(total * 1e-6, seconds)

    def _counts(self) -> list[int] | None:
        try:
            return [_count(zone) for zone in self.zones]
        except (OSError, ValueError):
            return None


def _count(zone: Zone) -> int:
    return int(_text(zone.counter))


def _text(file: Path) -> str:
    return file.read_text().strip()
