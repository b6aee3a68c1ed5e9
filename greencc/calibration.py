"""Calibration data: what passes through a model when it runs on inputs like those it is made for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import tvm
from tvm import relax, tirx

from greencc.artifact.bundle import Array
from greencc.errors import UserError
from greencc.ir import OUTPUTS_ATTR, dim_text, dtype_of, shape_of
from greencc.npz import read_npz
from greencc.passes.graph import publish
from greencc.verification import Program

if TYPE_CHECKING:
    from greencc.targets.base import Target

Samples = Iterable[Mapping[str, Array]]
Emit = Callable[[relax.Expr], relax.Var]


class Calibration:
    """Runs modules on calibration data. One sample is in memory at a time, besides the data itself.

    Args:
        target: what modules are compiled for; its code must run here.
        samples: inputs by name, one mapping for each run. It is iterated once for each question.
    """

    def __init__(self, target: Target, samples: Samples) -> None:
        self._target, self._samples = target, samples
        self.runs = 0

    def largest(self, module: tvm.IRModule, values: Sequence[relax.Expr]) -> list[np.ndarray]:
        """The largest |element| of each column (index of the last axis) of some values of main, over all samples.

        Raises:
            UserError: there is no sample, or one does not fit the model.
        """
        return self._reduced(module, [_maxima(value) for value in values], np.maximum)

    def mean_squares(self, module: tvm.IRModule, values: Sequence[relax.Expr], axis: int = -1) -> list[np.ndarray]:
        """The mean square of the elements at each index of an axis of some values of main: float64.

        Raises as `largest`.
        """
        sums = self._reduced(module, [_mean_squares(value, axis) for value in values], np.add)
        return [total / self.runs for total in sums]

    def changes(self, module: tvm.IRModule, pairs: Sequence[tuple[relax.Expr, relax.Expr]]) -> list[float]:
        """|behind - before| over |before| of pairs (before, behind), norms over all samples. Raises as `largest`."""
        wanted = [part for before, behind in pairs for part in (_square_of_difference(before, behind), _square(before))]
        sums = self._reduced(module, wanted, np.add)
        tops, bottoms = sums[::2], sums[1::2]
        return [float(np.sqrt(top / max(float(low), 1e-30))) for top, low in zip(tops, bottoms, strict=True)]

    def _reduced(
        self,
        module: tvm.IRModule,
        wanted: Sequence[Callable[[Emit], relax.Var]],
        join: Callable[[np.ndarray, np.ndarray], np.ndarray],
    ) -> list[np.ndarray]:
        """What is computed of values of main, joined over all samples (sums in float64)."""
        program = Program(_watched(module, wanted), self._target)
        joined: list[np.ndarray] | None = None
        self.runs = 0
        for sample in self._samples:
            found = [array.astype(np.float64) for array in program(_checked(module, sample)).values()]
            joined = found if joined is None else [join(a, b) for a, b in zip(joined, found, strict=True)]
            self.runs += 1
        if joined is None:
            raise UserError("--calib: the data hold no sample")
        return joined


def _maxima(value: relax.Expr) -> Callable[[Emit], relax.Var]:
    return lambda emit: emit(relax.op.max(emit(relax.op.abs(value)), axis=_outer(value)))


def _mean_squares(value: relax.Expr, axis: int) -> Callable[[Emit], relax.Var]:
    return lambda emit: emit(relax.op.mean(emit(relax.op.multiply(value, value)), axis=_outer(value, axis)))


def _square(value: relax.Expr) -> Callable[[Emit], relax.Var]:
    return lambda emit: emit(relax.op.sum(emit(relax.op.multiply(value, value))))


def _square_of_difference(before: relax.Expr, behind: relax.Expr) -> Callable[[Emit], relax.Var]:
    def compute(emit: Emit) -> relax.Var:
        return _square(emit(relax.op.subtract(behind, before)))(emit)

    return compute


def _outer(value: relax.Expr, axis: int = -1) -> list[int]:
    """The other axes than `axis`."""
    rank = len(shape_of(value.ty) or [])
    return [i for i in range(rank) if i != axis % rank]


def npz_samples(path: Path, module: tvm.IRModule) -> list[dict[str, Array]]:
    """The samples of an .npz file: arrays by input name, whose first axis runs over samples.

    As many go into a run as the model takes at once, one where that is open; a rest that fills no run is left out.

    Raises:
        UserError: an input is missing, or the arrays don't fit the model or each other.
    """
    arrays = read_npz(path)
    main = module["main"]
    names = [str(param.name) for param in main.params]
    missing = [name for name in names if name not in arrays]
    if missing:
        raise UserError(f"--calib {path}: the model's input {missing[0]!r} is missing")
    counts = {name: len(arrays[name]) if arrays[name].ndim else 0 for name in names}
    if len(set(counts.values())) != 1:
        raise UserError(f"--calib {path}: the inputs have different numbers of samples: {counts}")
    first = next(iter(shape_of(main.params[0].ty) or []), None)
    batch = int(first) if isinstance(first, tirx.IntImm) else 1
    total = next(iter(counts.values()))
    if total < batch:
        raise UserError(f"--calib {path}: {total} sample(s), and the model takes {batch} at once")
    return [
        {name: arrays[name][start : start + batch] for name in names} for start in range(0, total - batch + 1, batch)
    ]


def _checked(module: tvm.IRModule, sample: Mapping[str, Array]) -> Mapping[str, Array]:
    """A sample that fits main's inputs; sizes of symbolic dimensions are the runtime's to check."""
    for param in module["main"].params:
        name, dims = str(param.name), shape_of(param.ty) or []
        if name not in sample:
            raise UserError(f"--calib: a sample lacks the input {name!r}")
        array = np.asarray(sample[name])
        wanted = [int(dim) if isinstance(dim, tirx.IntImm) else None for dim in dims]
        fits = array.ndim == len(wanted) and all(
            want in (None, size) for want, size in zip(wanted, array.shape, strict=True)
        )
        if not fits or str(array.dtype) != str(dtype_of(param.ty)):
            shape = [dim_text(dim) for dim in dims]
            raise UserError(
                f"--calib: {name!r} is {array.dtype}{list(array.shape)}, the model takes {dtype_of(param.ty)}"
                f"[{', '.join(shape)}]"
            )
    return sample


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

