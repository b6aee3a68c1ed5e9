"""Samples of a model's inputs, to calibrate by and to measure on: read or iterated over, checked, cut into runs."""

from __future__ import annotations

import hashlib
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tvm import relax, tirx

from greencc.artifact.bundle import Array
from greencc.errors import UserError
from greencc.ir import dim_text, dtype_of, shape_of, symbol_bounds
from greencc.npz import read_npz

Samples = Iterable[Mapping[str, Array]]
"""Arrays by name, a mapping for each run of the model."""

LABEL_PREFIX = "label."
"""Before the names of arrays that a metric gets and the model doesn't."""


@dataclass(frozen=True)
class Dataset:
    """Samples of a model's inputs, and labels, in memory. Iterating over it gives the inputs of one run after another.

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
        """How many runs the samples make; a rest that fills none is left out."""
        return len(next(iter(self.inputs.values()))) // self.batch

    def run(self, number: int) -> dict[str, Array]:
        """Inputs of one run."""
        return {name: array[self._rows([number])] for name, array in self.inputs.items()}

    def labels_of(self, runs: Sequence[int]) -> dict[str, Array]:
        """Labels of the samples of some runs, in order."""
        return {name: array[self._rows(runs)] for name, array in self.labels.items()}

    def __iter__(self) -> Iterator[dict[str, Array]]:
        return map(self.run, range(self.runs))

    def _rows(self, runs: Sequence[int]) -> Array:
        return (np.asarray(runs, np.int64)[:, None] * self.batch + np.arange(self.batch)).ravel()


def read_dataset(data: Path | Samples, main: relax.Function, *, option: str = "--calib") -> Dataset:
    """Read and check samples for a model, all of them at once.

    Args:
        data: an .npz file, or an iterable of runs; arrays have a first axis of samples.
        main: the model's main function.
        option: what the data were given with, for messages.

    Raises:
        UserError: an input is missing, an array is unknown, has another shape or type, is empty or not finite.
    """
    form = _Form.of(data, main, option)
    arrays = read_npz(data) if isinstance(data, Path) else _joined(data, form.name)
    batch = form.batch
    form.require(arrays)
    counts = {key: len(array) if array.ndim else 0 for key, array in arrays.items()}
    if len(set(counts.values())) != 1:
        raise UserError(f"{form.name}: the arrays have different numbers of samples: {counts}")
    form.check({key: arrays[key] for key in form.params}, of_samples=True)
    total = next(iter(counts.values()))
    if total < batch:
        raise UserError(f"{form.name}: {total} sample(s), and the model takes {batch} at once")
    labels = {key: array for key, array in arrays.items() if key.startswith(LABEL_PREFIX)}
    return Dataset(form.name, {key: arrays[key] for key in form.params}, labels, batch, _digest(arrays))


def open_samples(data: Path | Samples, main: relax.Function, *, option: str = "--calib") -> Samples:
    """The runs of data, to be iterated over several times, each checked when it is read.

    Memory does not grow with an iterable: it is iterated over anew each time. What can be iterated over only once is
    kept in a temporary file, which goes with the result.

    Args:
        data: an .npz file, whose arrays have a first axis of samples, or an iterable of mappings that fit the model.
        main: the model's main function.
        option: what the data were given with, for messages.

    Raises:
        UserError: as `read_dataset`; of an iterable, what can be said by its first run, the rest when it is reached.
    """
    if isinstance(data, Path):
        return read_dataset(data, main, option=option)
    form = _Form.of(data, main, option)
    checked = _Checked(data, form)
    # An iterator, or what gives the same one each time, can be iterated over only once.
    if iter(data) is iter(data):
        return _Spooled(checked, list(form.params), form.name)
    next(iter(checked))
    return checked


class _Checked:
    """The runs of an iterable, each checked when it is reached."""

    def __init__(self, data: Samples, form: _Form) -> None:
        self._data, self._form = data, form

    def __iter__(self) -> Iterator[dict[str, Array]]:
        number = -1
        for number, run in enumerate(self._data):
            form = self._form.named(f"{self._form.name}: run {number}")
            arrays = _arrays(run, form.name)
            form.require(arrays)
            inputs = {key: arrays[key] for key in form.params}
            form.check(inputs, of_samples=False)
            yield inputs
        if number < 0:
            raise UserError(f"{self._form.name}: there is no sample")


class _Spooled:
    """Runs that were written to a temporary file, one behind the other; the file is gone with the object."""

    def __init__(self, runs: Samples, names: Sequence[str], name: str) -> None:
        self._names, self._runs, self._name = names, 0, name
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 (it lives as long as the object)
        weakref.finalize(self, self._file.close)
        for run in runs:
            try:
                for key in names:
                    np.lib.format.write_array(self._file, run[key], allow_pickle=False)
                self._file.flush()
            except OSError as error:
                folder = tempfile.gettempdir()
                raise UserError(f"{name}: an iterator is kept in {folder}, which fails: {error}") from error
            self._runs += 1

    def __iter__(self) -> Iterator[dict[str, Array]]:
        place = 0
        for _ in range(self._runs):
            self._file.seek(place)  # another iteration may have been here
            run = {key: np.lib.format.read_array(self._file, allow_pickle=False) for key in self._names}
            place = self._file.tell()
            yield run


@dataclass(frozen=True)
class _Form:
    """What a model takes, and what to call the data that must fit it."""

    name: str
    params: Mapping[str, relax.Var]
    bounds: Mapping[str, tuple[int, int | None]]

    @staticmethod
    def of(data: Path | Samples, main: relax.Function, option: str) -> _Form:
        """The form of a main function's inputs."""
        name = f"{option} {data if isinstance(data, Path) else '(samples)'}"
        if not main.params:
            raise UserError(f"{name}: the model has no inputs")
        return _Form(name, {str(param.name): param for param in main.params}, symbol_bounds(main))

    def named(self, name: str) -> _Form:
        """The form of the same model under another name."""
        return _Form(name, self.params, self.bounds)

    @property
    def batch(self) -> int:
        """How many samples the model takes at once: the fewest where that is open."""
        firsts = {key: next(iter(shape_of(param.ty) or []), None) for key, param in self.params.items()}
        sizes = {key: self._least(dim) for key, dim in firsts.items()}
        if None in sizes.values() or len(set(sizes.values())) != 1:
            raise UserError(
                f"{self.name}: the model's inputs have no common first axis for samples ({sizes}): "
                "give an iterable of mappings, one for each run"
            )
        return next(size for size in sizes.values() if size is not None)

    def _least(self, dim: tirx.Expr | None) -> int | None:
        if isinstance(dim, tirx.Var):
            return self.bounds[dim.name][0]
        return int(dim) if isinstance(dim, tirx.IntImm) else None

    def require(self, arrays: Mapping[str, Array]) -> None:
        """Refuse a missing input, and arrays that are neither inputs nor labels."""
        missing = [key for key in self.params if key not in arrays]
        if missing:
            raise UserError(f"{self.name}: the model's input {missing[0]!r} is missing")
        unknown = [key for key in arrays if key not in self.params and not key.startswith(LABEL_PREFIX)]
        if unknown:
            raise UserError(
                f"{self.name}: {unknown[0]!r} is no input of the model; it takes {', '.join(self.params)} "
                f"(arrays for a metric are called {LABEL_PREFIX}NAME)"
            )

    def check(self, inputs: Mapping[str, Array], *, of_samples: bool) -> None:
        """Refuse arrays of another shape or type, and values that are no numbers.

        Args:
            inputs: arrays by input name, all that there are.
            of_samples: the first axis runs over samples, however many.
        """
        sizes: dict[str, tuple[int, str]] = {}
        for key, param in self.params.items():
            array, dims = inputs[key], shape_of(param.ty) or []
            skipped = int(of_samples)
            fits = array.ndim == len(dims) and all(
                int(dim) == size
                for dim, size in list(zip(dims, array.shape, strict=True))[skipped:]
                if isinstance(dim, tirx.IntImm)
            )
            if not fits or str(array.dtype) != str(dtype_of(param.ty)):
                shown = ", ".join([*["samples"][:skipped], *map(dim_text, dims[skipped:])])
                raise UserError(
                    f"{self.name}: {key!r} is {array.dtype}{list(array.shape)}, "
                    f"the model takes {dtype_of(param.ty)}[{shown}]"
                )
            if array.size == 0:
                raise UserError(f"{self.name}: {key!r} is empty")
            for dim, size in list(zip(dims, array.shape, strict=True))[skipped:]:
                if isinstance(dim, tirx.Var):
                    self._check_size(dim.name, size, key, sizes)
            if array.dtype.kind == "f":
                bad = ~np.isfinite(array.reshape(len(array) if array.ndim else 1, -1)).all(axis=1)
                if bad.any():
                    raise UserError(f"{self.name}: {key!r} has NaN or infinity in sample {int(np.argmax(bad))}")

    def _check_size(self, symbol: str, size: int, key: str, known: dict[str, tuple[int, str]]) -> None:
        """Refuse a symbolic dimension that is out of bounds, or has another size in another input."""
        low, high = self.bounds[symbol]
        if size < low or (high is not None and size > high):
            shown = f"{low}..{high}" if high is not None else f"at least {low}"
            raise UserError(f"{self.name}: {key!r} has {symbol}={size}, the model takes {shown}")
        other, first = known.setdefault(symbol, (size, key))
        if other != size:
            raise UserError(f"{self.name}: {key!r} has {symbol}={size}, and {first!r} has {symbol}={other}")


def _arrays(run: object, name: str) -> dict[str, Array]:
    if not isinstance(run, Mapping):
        raise UserError(f"{name}: a run is a mapping of arrays by input name, not {type(run).__name__}")
    try:
        return {str(key): np.asarray(value) for key, value in run.items()}
    except ValueError as error:
        raise UserError(f"{name}: a value is no array: {error}") from error


def _joined(runs: Samples, name: str) -> dict[str, Array]:
    """The arrays of all runs behind each other."""
    collected = [_arrays(run, name) for run in runs]
    if not collected:
        raise UserError(f"{name}: there is no sample")
    keys = collected[0].keys()
    if any(run.keys() != keys for run in collected):
        raise UserError(f"{name}: they don't all have the same names")
    try:
        return {key: np.concatenate([run[key] for run in collected]) for key in keys}
    except ValueError as error:
        raise UserError(f"{name}: they don't fit together: {error}") from error


def _digest(arrays: Mapping[str, Array]) -> str:
    digest = hashlib.sha256()
    for key in sorted(arrays):
        array = np.ascontiguousarray(arrays[key])
        digest.update(f"{key} {array.dtype.str} {array.shape}\n".encode())
        digest.update(array.data)
    return digest.hexdigest()
