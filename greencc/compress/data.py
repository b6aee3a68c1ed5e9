"""The data that a search learns from and is judged on: read once, checked, split in three."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tvm import relax, tirx

from greencc.artifact.bundle import Array
from greencc.errors import UserError
from greencc.ir import dim_text, dtype_of, shape_of
from greencc.npz import read_npz

LABEL_PREFIX = "label."
"""Before the names of arrays that a metric gets and the model doesn't."""
# Shares of the samples that sensitivities and ranges are learnt from, and that steps are accepted on.
_CALIBRATION, _SELECTION = 0.2, 0.4
# An interval from fewer samples says nothing.
_FEWEST = 8


@dataclass(frozen=True)
class Dataset:
    """Samples of a model's inputs, and labels.

    Attributes:
        name: what to call the data in messages.
        inputs: arrays by input name; the first axis runs over samples.
        labels: further arrays, likewise.
        batch: how many samples the model takes at once.
        sha256: of all arrays.
    """

    name: str
    inputs: Mapping[str, Array]
    labels: Mapping[str, Array]
    batch: int
    sha256: str

    @property
    def runs(self) -> int:
        """How many runs the samples make."""
        return len(next(iter(self.inputs.values()))) // self.batch

    def run(self, number: int) -> dict[str, Array]:
        """Inputs of one run."""
        return {name: array[self._rows([number])] for name, array in self.inputs.items()}

    def labels_of(self, runs: Sequence[int]) -> dict[str, Array]:
        """Labels of the samples of some runs, in order."""
        return {name: array[self._rows(runs)] for name, array in self.labels.items()}

    def _rows(self, runs: Sequence[int]) -> Array:
        return (np.asarray(runs, np.int64)[:, None] * self.batch + np.arange(self.batch)).ravel()


@dataclass(frozen=True)
class Splits:
    """Numbers of runs, disjoint: to learn from, to accept steps on, and to judge the result once."""

    calibration: tuple[int, ...]
    selection: tuple[int, ...]
    judged: tuple[int, ...]


def read_dataset(
    data: Path | Iterable[Mapping[str, Array]], main: relax.Function, *, option: str = "--calib"
) -> Dataset:
    """Read and check samples for a model.

    Args:
        data: an .npz file, whose arrays have a first axis of samples, or an iterable of runs: arrays by name.
        main: the model's main function.
        option: what the data were given with, for messages.

    Raises:
        UserError: an input is missing, an array is unknown, has another shape or type, is empty or not finite.
    """
    name = f"{option} {data if isinstance(data, Path) else '(samples)'}"
    arrays = read_npz(data) if isinstance(data, Path) else _joined(data, name)
    params = {str(param.name): param for param in main.params}
    labels = {key: array for key, array in arrays.items() if key.startswith(LABEL_PREFIX)}
    inputs = {key: array for key, array in arrays.items() if key not in labels}
    _require(name, params, inputs)
    counts = {key: len(array) if array.ndim else 0 for key, array in arrays.items()}
    if len(set(counts.values())) != 1:
        raise UserError(f"{name}: the arrays have different numbers of samples: {counts}")
    batch = _batch(main)
    for key, param in params.items():
        _check(name, key, inputs[key], param, batch)
    total = next(iter(counts.values()))
    if total < batch:
        raise UserError(f"{name}: {total} sample(s), and the model takes {batch} at once")
    return Dataset(name, {key: inputs[key] for key in params}, labels, batch, _digest(arrays))


def split(dataset: Dataset) -> Splits:
    """Three disjoint parts of the runs, by a fixed permutation.

    Raises:
        UserError: there are too few.
    """
    order = [int(i) for i in np.random.default_rng(0).permutation(dataset.runs)]
    first = round(_CALIBRATION * len(order))
    second = first + round(_SELECTION * len(order))
    parts = Splits(tuple(order[:first]), tuple(order[first:second]), tuple(order[second:]))
    fewest = min(map(len, (parts.selection, parts.judged))) * dataset.batch
    if fewest < _FEWEST or not parts.calibration:
        needed = int(np.ceil(_FEWEST / _SELECTION))
        raise UserError(
            f"{dataset.name}: {dataset.runs * dataset.batch} sample(s) are too few to learn from, "
            f"choose by and judge on: give at least {needed}"
        )
    return parts


def _joined(runs: Iterable[Mapping[str, Array]], name: str) -> dict[str, Array]:
    """The arrays of all runs behind each other."""
    collected = [dict(run) for run in runs]
    if not collected:
        raise UserError(f"{name}: there is no sample")
    keys = collected[0].keys()
    if any(run.keys() != keys for run in collected):
        raise UserError(f"{name}: they don't all have the same names")
    try:
        return {key: np.concatenate([np.asarray(run[key]) for run in collected]) for key in keys}
    except ValueError as error:
        raise UserError(f"{name}: they don't fit together: {error}") from error


def _require(name: str, params: Mapping[str, relax.Var], inputs: Mapping[str, Array]) -> None:
    missing = [key for key in params if key not in inputs]
    if missing:
        raise UserError(f"{name}: the model's input {missing[0]!r} is missing")
    unknown = [key for key in inputs if key not in params]
    if unknown:
        raise UserError(
            f"{name}: {unknown[0]!r} is no input of the model; it takes {', '.join(params)} "
            f"(arrays for a metric are called {LABEL_PREFIX}NAME)"
        )


def _batch(main: relax.Function) -> int:
    """How many samples the model takes at once: 1 where that is open."""
    first = next(iter(shape_of(main.params[0].ty) or []), None)
    return int(first) if isinstance(first, tirx.IntImm) else 1


def _check(name: str, key: str, array: Array, param: relax.Var, batch: int) -> None:
    dims = shape_of(param.ty) or []
    wanted = [batch, *(int(dim) if isinstance(dim, tirx.IntImm) else None for dim in dims[1:])]
    shape = (batch, *array.shape[1:])
    fits = len(shape) == len(dims) and all(want in (None, size) for want, size in zip(wanted, shape, strict=True))
    if not fits or str(array.dtype) != str(dtype_of(param.ty)):
        takes = f"{dtype_of(param.ty)}[{', '.join(['samples', *map(dim_text, dims[1:])])}]"
        raise UserError(f"{name}: {key!r} is {array.dtype}{list(array.shape)}, the model takes {takes}")
    if array.size == 0:
        raise UserError(f"{name}: {key!r} is empty")
    if array.dtype.kind == "f":
        bad = ~np.isfinite(array.reshape(len(array), -1)).all(axis=1)
        if bad.any():
            raise UserError(f"{name}: {key!r} has NaN or infinity in sample {int(np.argmax(bad))}")


def _digest(arrays: Mapping[str, Array]) -> str:
    digest = hashlib.sha256()
    for key in sorted(arrays):
        array = np.ascontiguousarray(arrays[key])
        digest.update(f"{key} {array.dtype.str} {array.shape}\n".encode())
        digest.update(array.data)
    return digest.hexdigest()
