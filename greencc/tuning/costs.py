"""The model of costs: MetaSchedule's gradient-boosted trees over what a plan says and what is known of its kernel."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from tvm.ir.utils import derived_object
from tvm.s_tir.meta_schedule.cost_model import XGBModel
from tvm.s_tir.meta_schedule.cost_model.xgb_model import FeatureGroup, XGBConfig
from tvm.s_tir.meta_schedule.feature_extractor import PyFeatureExtractor

from greencc.targets.tuning.planned import Decision
from greencc.targets.tuning.space import Space, Value

# Plans are ranked at random until so many have been measured.
_LEAST_SAMPLES = 24


@dataclass(frozen=True)
class Sample:
    """A measured plan of a kernel that isn't searched: what kernel it is, and seconds over those of its default."""

    decision: Decision
    traits: Mapping[str, float]
    ratio: float


class CostModel:
    """Predicts how plans do beside each other, for all kernels of a session.

    What it knows of a plan are named numbers: knobs, the kernel's traits, and what follows from the plan. A number that
    a kernel's rule doesn't have is missing, which trees can tell.

    Args:
        decision: the plan that a schedule of MetaSchedule stands for, given the spaces of its kernel.
        spaces: those of every kernel that is searched, by the kernel's key.
        others: measured plans of kernels that aren't, by key.
    """

    def __init__(
        self,
        decision: Callable[[Any, Mapping[str, Space]], Decision],
        spaces: Mapping[str, Mapping[str, Space]],
        others: Mapping[str, Sequence[Sample]],
    ) -> None:
        self._decision, self._spaces = decision, spaces
        # Some hundred rows of some dozen numbers: small trees, learned in a fraction of a second by one thread.
        self.model = XGBModel(
            extractor=_Extractor(self._rows),
            config=XGBConfig(max_depth=6, eta=0.3, nthread=1, tree_method="hist"),
            num_warmup_samples=_LEAST_SAMPLES,
            early_stopping_rounds=8,
            verbose_eval=0,
        )
        foreign = {key: [_numbers(each.decision, each.traits) for each in known] for key, known in others.items()}
        rows = [row for known in foreign.values() for row in known]
        rows += [
            _numbers(Decision(rule, space.default), space.traits, space)
            for own in spaces.values()
            for rule, space in own.items()
        ]
        self._columns = {name: i for i, name in enumerate(dict.fromkeys(name for row in rows for name in row))}
        for key, known in others.items():
            features = [self._row(numbers) for numbers in foreign[key]]
            self.model.data[key] = FeatureGroup(key, features, np.array([each.ratio for each in known], "float32"))
            self.model.data_size += len(features)

    def learn(self, context: Any, candidates: Sequence[Any], results: Sequence[Any]) -> None:
        """Take note of results; arguments are those of MetaSchedule."""
        self.model.update(context, list(candidates), list(results))

    def _rows(self, context: Any, candidates: Sequence[Any]) -> list[np.ndarray]:
        spaces = self._spaces[str(context.task_name)]
        decisions = [self._decision(candidate.sch, spaces) for candidate in candidates]
        return [self._row(_numbers(each, spaces[each.rule].traits, spaces[each.rule])) for each in decisions]

    def _row(self, numbers: Mapping[str, float]) -> np.ndarray:
        row = np.full((1, len(self._columns)), np.nan, "float32")
        for name, value in numbers.items():
            if name in self._columns:
                row[0, self._columns[name]] = value
        return row


def _numbers(decision: Decision, traits: Mapping[str, float], space: Space | None = None) -> dict[str, float]:
    """What is known of a plan, by name; with its space also what follows from it."""
    found = {f"rule {decision.rule}": 1.0}
    found |= {f"{decision.rule} {name}": _number(value) for name, value in decision.plan.items()}
    found |= {f"trait {name}": float(value) for name, value in traits.items()}
    if space is not None:
        found |= {f"{decision.rule} follows {name}": float(v) for name, v in space.features(decision.plan).items()}
    return found


def _number(value: Value) -> float:
    """A number that tells choices apart, the same in every process."""
    if isinstance(value, int):
        return float(value)
    return float(int.from_bytes(hashlib.blake2b(value.encode(), digest_size=2).digest(), "big"))


@derived_object
class _Extractor(PyFeatureExtractor):  # type: ignore[misc]
    """Hands MetaSchedule the rows of its candidates."""

    def __init__(self, rows: Callable[[Any, Sequence[Any]], list[np.ndarray]]) -> None:
        super().__init__()
        self.rows = rows

    def extract_from(self, context: Any, candidates: Sequence[Any]) -> list[Any]:
        return [tvm.runtime.tensor(row) for row in self.rows(context, candidates)]
