"""How much accuracy is lost: a drop, and its interval by a paired bootstrap.

The reference's and the candidate's outputs on the same samples give each sample some numbers (its statistics); the drop
is a function of their sums, so that resampled drops are sums under resampled weights.
"""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from greencc.artifact.bundle import Array
from greencc.errors import UserError

Outputs = Mapping[str, Array]
Statistics = NDArray[np.float64]
"""[samples, columns]."""
# Resamplings for an interval; the same draws for all candidates.
_RESAMPLES = 2000
_TINY = 1e-30


@dataclass(frozen=True)
class Drop:
    """Loss of accuracy over some samples.

    Attributes:
        value: the loss.
        low: lower end of the 95% interval.
        high: its upper end.
        bound: what the loss is below with 95% certainty.
        samples: how many samples it is over.
    """

    value: float
    low: float
    high: float
    bound: float
    samples: int

    def as_json(self) -> dict[str, object]:
        """The fields as JSON values."""
        interval = [self.low, self.high]
        return {"value": self.value, "interval_95": interval, "bound_95": self.bound, "samples": self.samples}


class Metric(ABC):
    """A definition of the drop.

    Attributes:
        name: as `--metric` spells it; of a script without the folder it lies in.
        sees_all: whether `statistics` wants all samples at once, not run by run.
    """

    name: str
    sees_all = False

    @abstractmethod
    def statistics(self, reference: Outputs, candidate: Outputs, labels: Mapping[str, Array]) -> Statistics:
        """Numbers of each sample of a run, whose sums decide. Arrays have a first axis of samples."""

    @abstractmethod
    def of_sums(self, sums: Statistics, samples: int) -> NDArray[np.float64]:
        """Drops, float64 [...], from sums [..., columns] over so many samples."""

    def drop(self, statistics: Sequence[Statistics]) -> Drop:
        """The drop over runs, with its interval."""
        table = np.concatenate(list(statistics))
        count = len(table)
        value = float(self.of_sums(table.sum(axis=0), count))
        rng = np.random.default_rng(0)
        weights = rng.multinomial(count, np.full(count, 1 / count), _RESAMPLES)
        drops = self.of_sums(weights @ table, count)
        without = self.of_sums(table.sum(axis=0) - table, count - 1) if count > 1 else np.array([value])
        low, high, bound = _corrected(value, drops, without, (0.025, 0.975, 0.95))
        return Drop(value, low, high, bound, count)


class RelativeL2(Metric):
    """sqrt(sum |candidate - reference|^2 / sum |reference|^2); of several outputs the worst."""

    name = "relative_l2"

    def statistics(self, reference: Outputs, candidate: Outputs, labels: Mapping[str, Array]) -> Statistics:
        """See Metric: two columns for each output."""
        columns = []
        for wanted, found in _pairs(reference, candidate):
            columns += [((found - wanted) ** 2).sum(axis=1), (wanted**2).sum(axis=1)]
        return np.stack(columns, axis=1)

    def of_sums(self, sums: Statistics, samples: int) -> NDArray[np.float64]:
        """See Metric."""
        return np.asarray(np.sqrt((sums[..., ::2] / np.maximum(sums[..., 1::2], _TINY)).max(axis=-1)))


class Cosine(Metric):
    """1 - mean over samples of the cosine of candidate and reference; of several outputs the worst."""

    name = "cosine"

    def statistics(self, reference: Outputs, candidate: Outputs, labels: Mapping[str, Array]) -> Statistics:
        """See Metric: a column for each output."""
        columns = []
        for wanted, found in _pairs(reference, candidate):
            sizes = np.linalg.norm(wanted, axis=1) * np.linalg.norm(found, axis=1)
            equal = (wanted == found).all(axis=1)  # of two zero vectors too
            columns.append(np.where(equal, 1.0, (wanted * found).sum(axis=1) / np.maximum(sizes, _TINY)))
        return np.stack(columns, axis=1)

    def of_sums(self, sums: Statistics, samples: int) -> NDArray[np.float64]:
        """See Metric."""
        return np.asarray(1.0 - sums.min(axis=-1) / samples)


class Top1(Metric):
    """Share of samples whose largest element is at the label's place, reference less candidate.

    The label is the first `label.*` array, or what the reference says where there is none. It is over the last axis of
    the first output; where that has further axes, a sample's score is the share of its places that are right.
    """

    name = "top1"

    def statistics(self, reference: Outputs, candidate: Outputs, labels: Mapping[str, Array]) -> Statistics:
        """See Metric: one column, the difference of the two scores."""
        output = next(iter(reference))
        wanted, found = (np.argmax(outputs[output], axis=-1) for outputs in (reference, candidate))
        right = next(iter(labels.values()), wanted)
        if right.shape != wanted.shape:
            raise UserError(
                f"--metric top1: labels are {list(right.shape)}, the output has places {list(wanted.shape)}"
            )
        flat = [(places == right).reshape(len(right), -1).mean(axis=1) for places in (wanted, found)]
        return np.asarray((flat[0] - flat[1])[:, None])

    def of_sums(self, sums: Statistics, samples: int) -> NDArray[np.float64]:
        """See Metric."""
        return np.asarray(sums[..., 0] / samples)


class Script(Metric):
    """A user's score of each sample, reference less candidate: `function(outputs, labels)` -> [samples].

    It gets all samples at once: a score may depend on the others, as in retrieval.
    """

    sees_all = True

    def __init__(self, name: str, function: Callable[[Outputs, Mapping[str, Array]], object]) -> None:
        self.name = name
        self._function = function

    def statistics(self, reference: Outputs, candidate: Outputs, labels: Mapping[str, Array]) -> Statistics:
        """See Metric: one column, the difference of the two scores."""
        samples = len(next(iter(reference.values())))
        return (self._scores(reference, labels, samples) - self._scores(candidate, labels, samples))[:, None]

    def of_sums(self, sums: Statistics, samples: int) -> NDArray[np.float64]:
        """See Metric."""
        return np.asarray(sums[..., 0] / samples)

    def _scores(self, outputs: Outputs, labels: Mapping[str, Array], samples: int) -> NDArray[np.float64]:
        try:
            scores = np.asarray(self._function(outputs, labels), np.float64)
        except Exception as error:  # whatever a user's function raises
            raise UserError(f"--metric {self.name}: it raised {type(error).__name__}: {error}") from error
        if scores.shape != (samples,) or not np.isfinite(scores).all():
            wanted = f"{samples} finite scores, one for each sample"
            raise UserError(f"--metric {self.name}: it must give {wanted}, not {list(scores.shape)}")
        return scores


METRICS: dict[str, type[RelativeL2] | type[Cosine] | type[Top1]] = {
    kind.name: kind for kind in (RelativeL2, Cosine, Top1)
}
"""The metrics that have names."""
DEFAULT_METRIC = RelativeL2.name


def make_metric(text: str) -> Metric:
    """The metric that `--metric` names: one of `METRICS`, or FILE.py:FUNCTION.

    Raises:
        UserError: there is no such metric, file or function.
    """
    if text in METRICS:
        return METRICS[text]()
    file, colon, function = text.rpartition(":")
    if not colon or not file.endswith(".py"):
        raise UserError(f"--metric {text}: write {', '.join(METRICS)}, or FILE.py:FUNCTION")
    if not Path(file).is_file():
        raise UserError(f"--metric {text}: there is no file {file}")
    spec = importlib.util.spec_from_file_location("greencc_metric", file)
    if spec is None or spec.loader is None:
        raise UserError(f"--metric {text}: {file} can't be imported")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever a user's file raises
        raise UserError(f"--metric {text}: {file} raised {type(error).__name__}: {error}") from error
    found = getattr(module, function, None)
    if not callable(found):
        raise UserError(f"--metric {text}: {file} has no function {function!r}")
    return Script(f"{Path(file).name}:{function}", found)


def _corrected(
    value: float, drops: NDArray[np.float64], without: NDArray[np.float64], levels: Sequence[float]
) -> list[float]:
    """Quantiles of resampled drops, corrected for bias and skewness (BCa; Efron 1987, equations 2.3 and 6.6).

    Plain quantiles are too low where few samples hold most of the error, as they do in models.

    Args:
        value: the drop of the samples themselves.
        drops: of resampled samples.
        without: of all samples but one, for each.
        levels: of the quantiles.
    """
    normal = NormalDist()
    below = (np.count_nonzero(drops < value) + np.count_nonzero(drops == value) / 2) / len(drops)
    bias = normal.inv_cdf(min(max(below, 1 / len(drops)), 1 - 1 / len(drops)))
    apart = without.mean() - without
    spread = float((apart**2).sum())
    acceleration = float((apart**3).sum()) / (6 * spread**1.5) if spread > 0 else 0.0
    found = []
    for level in levels:
        z = bias + normal.inv_cdf(level)
        share = normal.cdf(bias + z / max(1 - acceleration * z, 1e-3))
        found.append(float(np.quantile(drops, share)))
    return found


def _pairs(reference: Outputs, candidate: Outputs) -> list[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Reference and candidate of each floating-point output, or of all, as rows [samples, elements]."""
    names = [name for name, array in reference.items() if array.dtype.kind == "f"] or list(reference)

    def rows(array: Array) -> NDArray[np.float64]:
        return array.reshape(len(array), -1).astype(np.float64)

    return [(rows(reference[name]), rows(candidate[name])) for name in names]
