"""What a tuning database holds: for what and with what was measured, and what came out, plan by plan.

These are plain values: nothing here loads TVM. How they are written is greencc.tuning.lines.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib.metadata import version as package_version
from math import isfinite
from typing import TYPE_CHECKING, Any, TypeAlias

from greencc.version import __version__

if TYPE_CHECKING:
    from greencc.targets.base import Target
    from greencc.targets.tuning.space import Plan, Value

SizesKey: TypeAlias = tuple[tuple[str, tuple[int, ...]], ...]
"""Sizes of symbolic dimensions as a dictionary can be indexed with them."""
PlanKey: TypeAlias = "tuple[str, tuple[tuple[str, Value], ...] | None]"
"""A rule and a plan, likewise."""

DEFAULT_RULE = ""
"""The rule of a record of the default schedule, whose plan is None."""

_SHORTEST, _LONGEST = 1e-12, 1e12  # seconds: what lies outside is no measurement, and its ratios may be no numbers
_ORDER = ("kind", "mcpu", "arch")  # what a target is called by, in this order


@dataclass(frozen=True)
class Scope:
    """For what and with what records were measured. Those of another scope say nothing.

    Attributes:
        target: `Target.describe()`, as JSON holds it.
        tvm: TVM's version: it decides about workload keys and code.
        greencc: greencc's version: it decides what a plan means.
    """

    target: Mapping[str, Any]
    tvm: str
    greencc: str

    @classmethod
    def of(cls, target: Target) -> Scope:
        """The scope of what is measured now for `target`."""
        return cls(json.loads(json.dumps(target.describe())), *running_versions())

    @property
    def as_json(self) -> dict[str, Any]:
        """The fields, as JSON holds them."""
        return {"target": dict(self.target), "tvm": self.tvm, "greencc": self.greencc}

    @property
    def digest(self) -> str:
        """12 hexadecimal digits that differ between scopes; part of the names of files."""
        return hashlib.blake2b(json.dumps(self.as_json, sort_keys=True).encode(), digest_size=6).hexdigest()

    @property
    def versions(self) -> str:
        """What it was measured with, in words."""
        return f"TVM {self.tvm} and greencc {self.greencc}"

    @property
    def title(self) -> str:
        """The target in words."""
        known = [str(self.target[name]) for name in _ORDER if name in self.target]
        features = self.target.get("features")
        if not isinstance(features, list):  # a GPU: nobody chooses the threads of its host
            return " ".join(known)
        return f"{' '.join(known)} ({', '.join([*map(str, features), _threads(self.target.get('threads'))])})"

    def differences(self, other: Scope) -> list[str]:
        """What `other` has otherwise than this one, each in words: "4 threads instead of 2"."""
        mine, theirs = _flat(self.target), _flat(other.target)
        found = (
            [f"{other.title} instead of {self.title}"]
            if mine.get("kind") != theirs.get("kind")
            else [
                _difference(name, mine.get(name), theirs.get(name))
                for name in (*mine, *(name for name in theirs if name not in mine))
                if mine.get(name) != theirs.get(name)
            ]
        )
        for name in ("tvm", "greencc"):
            before, after = getattr(self, name), getattr(other, name)
            if before != after:
                found.append(f"{ {'tvm': 'TVM', 'greencc': 'greencc'}[name] } {after} instead of {before}")
        return found


@dataclass(frozen=True, slots=True)
class Measured:
    """A plan that ran and computed what it should. One value for each tuple of sizes (one, where all are static).

    Attributes:
        seconds: median of one launch.
        spread: of that, relative: how far another measurement may be from it.
        reference: the default schedule's seconds, measured in turns with it.

    Raises:
        ValueError: the three differ in length, are empty, or hold what is no measurement.
    """

    seconds: tuple[float, ...]
    spread: tuple[float, ...]
    reference: tuple[float, ...]

    def __post_init__(self) -> None:
        if not len(self.seconds) == len(self.spread) == len(self.reference) > 0:
            raise ValueError("seconds, spread and reference don't go together")
        for seconds in (*self.seconds, *self.reference):
            if not _SHORTEST <= seconds <= _LONGEST:
                raise ValueError(f"{seconds} is no time")
        for spread in self.spread:
            if not 0 <= spread <= _LONGEST:
                raise ValueError(f"{spread} is no spread")

    @property
    def ratio(self) -> float:
        """Time over the default schedule's, at the sizes where it is largest."""
        return max(mine / default for mine, default in zip(self.seconds, self.reference, strict=True))

    @property
    def is_faster(self) -> bool:
        """Whether it is faster than the default schedule at all sizes, by more than its spread."""
        times = zip(self.seconds, self.reference, self.spread, strict=True)
        return all(mine < default * (1 - spread) for mine, default, spread in times)


@dataclass(frozen=True, slots=True)
class Failed:
    """A plan that is not to be tried again.

    Attributes:
        reason: why: it couldn't be built, it didn't run, or its result is wrong.
    """

    reason: str


@dataclass(frozen=True, slots=True)
class Trial:
    """What came out of one plan for one kernel.

    Attributes:
        workload: the kernel's key; see greencc.targets.tuning.workload.
        sizes: of symbolic dimensions, by name: entry i of all of them together is where it was timed the i-th time.
        rule: name of the rule; DEFAULT_RULE for the default schedule.
        plan: what it was scheduled by; None for the default schedule.
        outcome: the measurement, or why there is none.
        device: the name of what ran it.
        at: when, as `now` writes it.
        thorough: whether it was measured carefully enough to count, and at sizes in between as well.
    """

    workload: str
    sizes: Mapping[str, tuple[int, ...]]
    rule: str
    plan: Plan | None
    outcome: Measured | Failed
    device: str
    at: str
    thorough: bool = False

    @property
    def sizes_key(self) -> SizesKey:
        """The sizes, to index with."""
        return sizes_key(self.sizes)

    @property
    def plan_key(self) -> PlanKey:
        """Rule and plan, to index with."""
        return plan_key(self.rule, self.plan)


@dataclass(frozen=True, slots=True)
class WorkloadNote:
    """What a kernel is, for people and for a search that learns from other kernels.

    Attributes:
        workload: its key.
        text: as in "matmul 128x384x1536 float32, gelu".
        launches: how often a run of the model launches it.
        traits: numbers that say which kernel it is; see greencc.targets.tuning.space.
        limit: seconds below which this machine can't compute it, or None where that is unknown.
    """

    workload: str
    text: str
    launches: int
    traits: Mapping[str, float] = field(default_factory=dict)
    limit: float | None = None

    def __post_init__(self) -> None:
        if not all(isfinite(value) for value in self.traits.values()):
            raise ValueError("a trait is no number")
        if self.limit is not None and not 0 <= self.limit <= _LONGEST:
            raise ValueError(f"{self.limit} is no time")


def running_versions() -> tuple[str, str]:
    """TVM's and greencc's versions in this process."""
    return package_version("apache-tvm"), __version__


def sizes_key(sizes: Mapping[str, tuple[int, ...]]) -> SizesKey:
    """Sizes as a key; () where there are none."""
    return tuple(sorted((name, tuple(values)) for name, values in sizes.items())) if sizes else ()


def plan_key(rule: str, plan: Plan | None) -> PlanKey:
    """A rule and a plan as a key."""
    return rule, None if plan is None else tuple(sorted(plan.items()))


def now() -> str:
    """The time, in UTC: texts of equal length that sort by time."""
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")


def _flat(target: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a target, those of an object in it beside the others."""
    found: dict[str, Any] = {}
    for name, value in target.items():
        found.update(value if isinstance(value, Mapping) else {name: value})
    return found


def _difference(name: str, before: Any, after: Any) -> str:
    if isinstance(before, list) and isinstance(after, list):
        more = [str(item) for item in after if item not in before]
        less = [str(item) for item in before if item not in after]
        parts = ([f"{', '.join(more)} besides"] if more else []) + ([f"no {', '.join(less)}"] if less else [])
        return " and ".join(parts) or f"{name} in another order"
    if name == "threads":
        return f"{_threads(after)} instead of {before}"
    return f"{name} {after} instead of {before}"


def _threads(count: Any) -> str:
    return "1 thread" if count == 1 else f"{count} threads"
