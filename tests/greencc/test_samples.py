"""Samples of a model's inputs: what fits, what is refused, how they are streamed, and how a search splits them."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tvm import relax, tirx

from greencc import UserError
from greencc.compress.data import split
from greencc.ir import SYMBOL_LOWER_ATTR, SYMBOL_UPPER_ATTR
from greencc.samples import open_samples, read_dataset


def main_of(batch: Any) -> relax.Function:
    """A function of x [batch, 3] float32 and i [batch] int64."""
    x = relax.Var("x", relax.TensorType((batch, 3), "float32"))
    i = relax.Var("i", relax.TensorType((batch,), "int64"))
    builder = relax.BlockBuilder()
    with builder.function("main", [x, i]):
        builder.emit_func_output(builder.emit(relax.op.exp(x)))
    return builder.get()["main"]


def arrays(samples: int = 40) -> dict[str, np.ndarray]:
    return {
        "x": np.arange(samples * 3, dtype=np.float32).reshape(samples, 3),
        "i": np.arange(samples),
        "label.y": np.arange(samples) * 10,
    }


def test_runs_have_the_models_size_and_labels_follow(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", **arrays(41))
    data = read_dataset(tmp_path / "d.npz", main_of(4))
    assert (data.batch, data.runs) == (4, 10)
    assert data.run(2)["i"].tolist() == [8, 9, 10, 11]
    assert data.labels_of([0, 2])["label.y"].tolist() == [0, 10, 20, 30, 80, 90, 100, 110]
    assert read_dataset(tmp_path / "d.npz", main_of(tirx.Var("b", "int64"))).runs == 41


def test_an_iterable_is_the_same_data_as_a_file(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", **arrays())
    whole = read_dataset(tmp_path / "d.npz", main_of(1))
    runs = ({name: array[i : i + 1] for name, array in arrays().items()} for i in range(40))
    assert read_dataset(runs, main_of(1)).sha256 == whole.sha256
    np.savez(tmp_path / "d.npz", **(arrays() | {"x": arrays()["x"] + 1}))
    assert read_dataset(tmp_path / "d.npz", main_of(1)).sha256 != whole.sha256


def test_splits_are_disjoint_whole_and_the_same_each_time() -> None:
    data = read_dataset([arrays(100)], main_of(1))
    parts = split(data)
    members = [*parts.calibration, *parts.selection, *parts.judged]
    assert sorted(members) == list(range(100))
    assert (len(parts.calibration), len(parts.selection)) == (20, 40)
    assert parts == split(data)
    assert list(parts.selection) != sorted(parts.selection)


def test_too_few_samples_to_split_are_refused() -> None:
    assert len(split(read_dataset([arrays(20)], main_of(1))).selection) == 8
    with pytest.raises(UserError, match=r"19 sample\(s\) are too few .* give at least 20"):
        split(read_dataset([arrays(19)], main_of(1)))


def changed(**fields: Any) -> dict[str, np.ndarray]:
    return {name: array for name, array in (arrays() | fields).items() if array is not None}


NAN = arrays()["x"].copy()
NAN[7, 1] = np.nan


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([changed(x=None)], "the model's input 'x' is missing"),
        ([changed(z=np.zeros(40))], "'z' is no input of the model; it takes x, i"),
        ([changed(x=np.zeros((40, 4), np.float32))], r"'x' is float32\[40, 4\], the model takes float32\[samples, 3\]"),
        ([changed(x=np.zeros((40, 3)))], r"'x' is float64\[40, 3\]"),
        ([changed(x=np.zeros((39, 3), np.float32))], "different numbers of samples"),
        ([changed(x=NAN)], "'x' has NaN or infinity in sample 7"),
        ([changed(x=np.full((40, 3), np.inf, np.float32))], "'x' has NaN or infinity in sample 0"),
        ([{name: array[:0] for name, array in arrays().items()}], "'x' is empty"),
        ([changed(x=np.float32(1))], "don't fit together"),
        ([], "there is no sample"),
        ([arrays(), {"x": arrays()["x"]}], "don't all have the same names"),
        ([arrays(), changed(x=np.zeros((40, 4), np.float32))], "don't fit together"),
    ],
)
def test_data_that_do_not_fit_are_the_users_mistake(given: Iterable[dict[str, np.ndarray]], words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        read_dataset(given, main_of(1))
    assert str(caught.value).startswith("--calib (samples): ")


def test_a_damaged_file_is_the_users_mistake(tmp_path: Path) -> None:
    (tmp_path / "d.npz").write_bytes(b"PK\x03\x04 no archive")
    with pytest.raises(UserError, match=r"not a readable .npz file"):
        read_dataset(tmp_path / "d.npz", main_of(1))


def rows_of(columns: Any, batch: Any = 1, **bounds: int) -> relax.Function:
    """A function of x [batch, columns] and y [batch, columns] float32."""
    params = [relax.Var(name, relax.TensorType((batch, columns), "float32")) for name in "xy"]
    builder = relax.BlockBuilder()
    with builder.function("main", params):
        builder.emit_func_output(builder.emit(relax.op.add(*params)))
    attributes = {"low": SYMBOL_LOWER_ATTR, "high": SYMBOL_UPPER_ATTR}
    return builder.get()["main"].with_attrs({attributes[key]: {"s": value} for key, value in bounds.items()})


def row(columns: int, fill: float = 0.0, rows: int = 1) -> dict[str, np.ndarray]:
    return {name: np.full((rows, columns), fill, np.float32) for name in "xy"}


class Stream:
    """Runs that are made anew each time, and counts how often."""

    def __init__(self, runs: int, columns: int = 4) -> None:
        self.runs, self.columns, self.rounds = runs, columns, 0

    def __iter__(self) -> Iterator[Mapping[str, np.ndarray]]:
        self.rounds += 1
        return (row(self.columns, i) for i in range(self.runs))


def firsts(samples: Iterable[Mapping[str, np.ndarray]]) -> list[float]:
    return [float(run["x"][0, 0]) for run in samples]


def test_a_file_is_cut_into_runs_that_can_be_read_again(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", **arrays(5))
    samples = open_samples(tmp_path / "d.npz", main_of(2))
    for _ in range(2):
        assert [run["i"].tolist() for run in samples] == [[0, 1], [2, 3]]
        assert all(run.keys() == {"x", "i"} for run in samples)


def test_an_open_batch_has_the_fewest_samples_that_are_allowed(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=np.zeros((7, 4), np.float32), y=np.zeros((7, 4), np.float32))
    main = rows_of(4, tirx.Var("s", "int64"), low=3)
    assert [len(run["x"]) for run in open_samples(tmp_path / "d.npz", main)] == [3, 3]


def test_an_iterable_is_read_anew_each_time() -> None:
    stream = Stream(3)
    samples = open_samples(stream, rows_of(4))
    assert [firsts(samples), firsts(samples)] == [[0, 1, 2]] * 2
    assert stream.rounds == 5  # when it is opened, it is asked twice whether it begins anew, and looked at


def test_an_iterator_can_be_read_again_and_by_two_at_once() -> None:
    made = ({**row(4, i), "label.y": np.zeros(1)} for i in range(3))
    samples = open_samples(made, rows_of(4))
    assert [firsts(samples), firsts(samples)] == [[0, 1, 2]] * 2
    pairs = zip(samples, samples, strict=True)
    assert [(float(a["x"][0, 0]), float(b["y"][0, 3])) for a, b in pairs] == [(0, 0), (1, 1), (2, 2)]
    assert next(iter(samples)).keys() == {"x", "y"}


@pytest.mark.parametrize("once", [False, True])
def test_memory_does_not_grow_with_the_samples(once: bool) -> None:
    def peak(runs: int) -> int:
        stream = Stream(runs, columns=1 << 14)
        tracemalloc.start()
        samples = open_samples(iter(stream) if once else stream, rows_of(1 << 14))
        assert sum(1 for _ in samples) == runs
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return used

    assert peak(60) < 1.5 * peak(4)


SYMBOLIC = rows_of(tirx.Var("s", "int64"), low=2, high=8)


@pytest.mark.parametrize(
    ("main", "run", "words"),
    [
        (rows_of(4), {"x": row(4)["x"]}, "run 1: the model's input 'y' is missing"),
        (rows_of(4), row(4) | {"z": np.zeros(1)}, "run 1: 'z' is no input of the model; it takes x, y"),
        (rows_of(4), row(5), r"run 1: 'x' is float32\[1, 5\], the model takes float32\[1, 4\]"),
        (rows_of(4), row(4, rows=2), r"run 1: 'x' is float32\[2, 4\]"),
        (rows_of(4), {"x": np.zeros((1, 4)), "y": np.zeros((1, 4))}, r"run 1: 'x' is float64\[1, 4\]"),
        (rows_of(4), row(4, np.nan), "run 1: 'x' has NaN or infinity in sample 0"),
        (rows_of(4), row(4) | {"y": np.full((1, 4), -np.inf, np.float32)}, "run 1: 'y' has NaN or infinity"),
        (rows_of(4), [1, 2], "run 1: a run is a mapping of arrays by input name, not list"),
        (rows_of(4), row(4) | {"x": [[1], [2, 3]]}, "run 1: a value is no array"),
        (rows_of(4, tirx.Var("b", "int64")), row(4, rows=0), "run 1: 'x' is empty"),
        (SYMBOLIC, row(9), "run 1: 'x' has s=9, the model takes 2..8"),
        (SYMBOLIC, row(1), "run 1: 'x' has s=1, the model takes 2..8"),
        (SYMBOLIC, row(4) | {"y": row(5)["y"]}, "run 1: 'y' has s=5, and 'x' has s=4"),
    ],
)
def test_runs_that_do_not_fit_are_found_where_they_are(main: relax.Function, run: Any, words: str) -> None:
    for data in ([row(4), run], iter([row(4), run])):
        with pytest.raises(UserError, match=words) as caught:
            list(open_samples(data, main))
        assert str(caught.value).startswith("--calib (samples): run 1: ")


@pytest.mark.parametrize("data", [[], iter([]), [{"x": row(4)["x"]}], iter([row(5)])])
def test_the_first_run_is_checked_when_data_are_opened(data: Any) -> None:
    with pytest.raises(UserError, match=r"no sample|run 0"):
        open_samples(data, rows_of(4))


def test_an_iterable_that_is_used_up_is_not_taken_for_data() -> None:
    class Once:
        def __init__(self) -> None:
            self.left = [row(4)]

        def __iter__(self) -> Iterator[Mapping[str, np.ndarray]]:
            while self.left:
                yield self.left.pop()

    samples = open_samples(Once(), rows_of(4))
    with pytest.raises(UserError, match="there is no sample"):
        list(samples)


def test_inputs_without_a_common_axis_need_runs_of_their_own(tmp_path: Path) -> None:
    x, scale = (relax.Var(n, relax.TensorType(s, "float32")) for n, s in (("x", (2, 3)), ("scale", ())))
    builder = relax.BlockBuilder()
    with builder.function("main", [x, scale]):
        builder.emit_func_output(builder.emit(relax.op.multiply(x, scale)))
    main, run = builder.get()["main"], {"x": np.zeros((2, 3), np.float32), "scale": np.float32(2)}
    assert [float(one["scale"]) for one in open_samples([run], main)] == [2.0]
    np.savez(tmp_path / "d.npz", **run)
    with pytest.raises(UserError, match="no common first axis for samples"):
        open_samples(tmp_path / "d.npz", main)


def test_a_model_without_inputs_learns_from_nothing() -> None:
    builder = relax.BlockBuilder()
    with builder.function("main", []):
        builder.emit_func_output(builder.emit(relax.op.zeros((2,), "float32")))
    with pytest.raises(UserError, match=r"--calib \(samples\): the model has no inputs"):
        open_samples([{}], builder.get()["main"])
