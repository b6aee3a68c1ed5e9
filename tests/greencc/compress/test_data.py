"""Samples for a budget: what fits, what is refused, and how they are split."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tvm import relax, tirx

from greencc import UserError
from greencc.compress.data import read_dataset, split


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
