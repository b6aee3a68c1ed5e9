"""Calibration data: what passes through a model when it runs on inputs like those it is made for."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar, cast

import numpy as np
import tvm
from tvm import relax

from greencc.errors import UserError
from greencc.ir import OUTPUTS_ATTR, shape_of
from greencc.observers import Histogram, RangeObserver
from greencc.passes.graph import publish
from greencc.samples import Samples
from greencc.verification import Program

if TYPE_CHECKING:
    from greencc.targets.base import Target

Emit = Callable[[relax.Expr], relax.Var]
AnswerT = TypeVar("AnswerT")
SubjectT = TypeVar("SubjectT", bound=Hashable)


class Calibration:
    """Runs modules on calibration data. One sample is in memory at a time, besides what the samples keep themselves.

    What was asked of a value of a module is remembered: asked again, nothing runs.

    Args:
        target: what modules are compiled for; its code must run here.
        samples: inputs by name that fit the modules, one mapping for each run, iterated over once for each question
            (see `greencc.samples.open_samples`).

    Attributes:
        runs: how many there are, once something was asked.
    """

    def __init__(self, target: Target, samples: Samples) -> None:
        self._target, self._samples = target, samples
        self._known: dict[tuple[Hashable, ...], object] = {}
        self.runs = 0

    def largest(self, module: tvm.IRModule, values: Sequence[relax.Expr]) -> list[np.ndarray]:
        """The largest |element| of each column (index of the last axis) of some values of main, over all samples.

        Raises:
            UserError: there is no sample, or one does not fit the model.
        """

        def ask(new: list[relax.Expr]) -> list[np.ndarray]:
            return self._reduced(module, [_maxima(value) for value in new], np.maximum)

        return self._remembered(("largest", module), values, ask)

    def mean_squares(
        self, module: tvm.IRModule, values: Sequence[relax.Expr], axes: Sequence[int] | None = None
    ) -> list[np.ndarray]:
        """The mean square of the elements at each index of an axis, of some values of main: float64.

        `axes` has one axis for each value; without, it is the last one. Raises as `largest`.
        """

        def ask(new: list[tuple[relax.Expr, int]]) -> list[np.ndarray]:
            return self._averages(module, [_mean_squares(value, axis) for value, axis in new])

        pairs = list(zip(values, axes or [-1] * len(values), strict=True))
        return self._remembered(("mean squares", module), pairs, ask)

    def means(self, module: tvm.IRModule, values: Sequence[relax.Expr], axes: Sequence[int]) -> list[np.ndarray]:
        """The mean of the elements at each index of an axis, as `mean_squares` of their squares."""

        def ask(new: list[tuple[relax.Expr, int]]) -> list[np.ndarray]:
            return self._averages(module, [_means(value, axis) for value, axis in new])

        return self._remembered(("means", module), list(zip(values, axes, strict=True)), ask)

    def mean_sizes(self, module: tvm.IRModule, values: Sequence[relax.Expr]) -> list[np.ndarray]:
        """The mean |element| of each column of some values of main: float64. Raises as `largest`."""

        def ask(new: list[relax.Expr]) -> list[np.ndarray]:
            return self._averages(module, [_mean_sizes(value) for value in new])

        return self._remembered(("mean sizes", module), values, ask)

    def grams(self, module: tvm.IRModule, values: Sequence[relax.Expr]) -> list[np.ndarray]:
        """Products x^T x of some values of main, x being all their rows over all samples: float64 [K, K].

        The sums over a sample are of float32. They are too large to be remembered. Raises as `largest`.
        """
        return self._reduced(module, [_gram(value) for value in values], np.add)

    def changes(self, module: tvm.IRModule, pairs: Sequence[tuple[relax.Expr, relax.Expr]]) -> list[float]:
        """|behind - before| over |before| of pairs (before, behind), norms over all samples. Raises as `largest`."""

        def ask(new: list[tuple[relax.Expr, relax.Expr]]) -> list[float]:
            wanted = [
                part for before, behind in new for part in (_square_of_difference(before, behind), _square(before))
            ]
            sums = self._reduced(module, wanted, np.add)
            tops, bottoms = sums[::2], sums[1::2]
            return [float(np.sqrt(top / max(float(low), 1e-30))) for top, low in zip(tops, bottoms, strict=True)]

        return self._remembered(("changes", module), pairs, ask)

    def ranges(
        self, module: tvm.IRModule, values: Sequence[relax.Expr], observer: RangeObserver
    ) -> list[tuple[float, float]]:
        """The range (low, high) of some values of main that `observer` gives levels to. Raises as `largest`.

        Another observer is answered by what the first one's question brought.
        """

        def ask(new: list[relax.Expr]) -> list[Histogram]:
            histograms = [Histogram() for _ in new]
            for arrays in self._results(module, [_itself(value) for value in new]):
                for histogram, array in zip(histograms, arrays, strict=True):
                    histogram.add(array)
            return histograms

        histograms = self._remembered(("histograms", module), values, ask)
        return self._remembered(
            ("ranges", observer), histograms, lambda new: [observer.range_of(histogram) for histogram in new]
        )

    def _remembered(
        self,
        question: tuple[Hashable, ...],
        subjects: Sequence[SubjectT],
        ask: Callable[[list[SubjectT]], list[AnswerT]],
    ) -> list[AnswerT]:
        """Answers about subjects, in order; `ask` is asked once for those that have none yet."""
        new = [subject for subject in dict.fromkeys(subjects) if (*question, subject) not in self._known]
        if new:
            answers = zip(new, ask(new), strict=True)
            self._known.update({(*question, subject): answer for subject, answer in answers})
        return [cast(AnswerT, self._known[(*question, subject)]) for subject in subjects]

    def _averages(self, module: tvm.IRModule, wanted: Sequence[Callable[[Emit], relax.Var]]) -> list[np.ndarray]:
        """The average over samples, each of which counts the same."""
        return [total / self.runs for total in self._reduced(module, wanted, np.add)]

    def _reduced(
        self,
        module: tvm.IRModule,
        wanted: Sequence[Callable[[Emit], relax.Var]],
        join: Callable[[np.ndarray, np.ndarray], np.ndarray],
    ) -> list[np.ndarray]:
        """What is computed of values of main, joined over all samples (sums in float64)."""
        joined: list[np.ndarray] | None = None
        for arrays in self._results(module, wanted):
            found = [array.astype(np.float64) for array in arrays]
            joined = found if joined is None else [join(a, b) for a, b in zip(joined, found, strict=True)]
        return joined or []

    def _results(
        self, module: tvm.IRModule, wanted: Sequence[Callable[[Emit], relax.Var]]
    ) -> Iterator[list[np.ndarray]]:
        """What is computed of values of main, sample by sample."""
        program = Program(_watched(module, wanted), self._target)
        runs = 0
        for sample in self._samples:
            yield list(program(sample).values())
            runs += 1
        if not runs:
            raise UserError("--calib: the data hold no sample")
        self.runs = runs


def _maxima(value: relax.Expr) -> Callable[[Emit], relax.Var]:
    return lambda emit: emit(relax.op.max(emit(relax.op.abs(value)), axis=_others(value, -1)))


def _mean_squares(value: relax.Expr, axis: int) -> Callable[[Emit], relax.Var]:
    return lambda emit: emit(relax.op.mean(emit(relax.op.multiply(value, value)), axis=_others(value, axis)))


def _mean_sizes(value: relax.Expr) -> Callable[[Emit], relax.Var]:
    return lambda emit: emit(relax.op.mean(emit(relax.op.abs(value)), axis=_others(value, -1)))


def _gram(value: relax.Expr) -> Callable[[Emit], relax.Var]:
    def compute(emit: Emit) -> relax.Var:
        columns = (shape_of(value.ty) or [])[-1]
        rows = emit(relax.op.reshape(value, (-1, columns)))
        return emit(relax.op.matmul(emit(relax.op.permute_dims(rows)), rows))

    return compute


def _means(value: relax.Expr, axis: int) -> Callable[[Emit], relax.Var]:
    others = _others(value, axis)
    return lambda emit: emit(relax.op.mean(value, axis=others) if others else value)


def _itself(value: relax.Expr) -> Callable[[Emit], relax.Var]:
    return lambda emit: emit(value)


def _square(value: relax.Expr) -> Callable[[Emit], relax.Var]:
    return lambda emit: emit(relax.op.sum(emit(relax.op.multiply(value, value))))


def _square_of_difference(before: relax.Expr, behind: relax.Expr) -> Callable[[Emit], relax.Var]:
    def compute(emit: Emit) -> relax.Var:
        return _square(emit(relax.op.subtract(behind, before)))(emit)

    return compute


def _others(value: relax.Expr, axis: int) -> list[int]:
    """All axes of a value but one."""
    rank = len(shape_of(value.ty) or [])
    return [i for i in range(rank) if i != axis % rank]


def _watched(module: tvm.IRModule, wanted: Sequence[Callable[[Emit], relax.Var]]) -> tvm.IRModule:
    """`module` with what is computed of some of its values as main's outputs."""
    main = module["main"]
    builder = relax.BlockBuilder()
    bindings: list[relax.Binding] = []

    def emit(expr: relax.Expr) -> relax.Var:
        value = builder.normalize(expr)
        var = relax.Var(f"watched{len(bindings)}", value.ty)
        bindings.append(relax.VarBinding(var, value))
        return var

    result = emit(relax.Tuple([compute(emit) for compute in wanted]))
    body = relax.SeqExpr([*main.body.blocks, relax.BindingBlock(bindings)], result)
    function = relax.Function(main.params, publish(builder.normalize(body)), result.ty, main.is_pure, main.attrs)
    watched = module.clone()
    named = function.with_attr(OUTPUTS_ATTR, [f"statistic{i}" for i in range(len(wanted))])
    watched.update_func(module.get_global_var("main"), named)
    return watched
