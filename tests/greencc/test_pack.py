"""Packed artifacts: what comes out is what went in, and damage of any kind is found."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import zstandard

from greencc import UserError, api, load
from greencc.artifact import pack as packing
from greencc.artifact.pack import MAGIC, is_packed, pack, unpack
from greencc.errors import ArtifactError


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("artifact") / "affine"
    tiny_models.write(path, tiny_models.affine())
    return path


@pytest.fixture(scope="module")
def packed(artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("packed") / "affine.pack"
    pack(artifact, file)
    return file


def contents(path: Path) -> dict[str, bytes]:
    return {entry.name: entry.read_bytes() for entry in path.iterdir()}


def test_every_byte_comes_back(artifact: Path, packed: Path, tmp_path: Path) -> None:
    unpack(packed, tmp_path / "again")
    assert contents(tmp_path / "again") == contents(artifact)
    assert is_packed(packed)
    assert not is_packed(artifact)
    assert not is_packed(artifact / "code.so")


def test_the_same_artifact_gives_the_same_file(artifact: Path, packed: Path, tmp_path: Path) -> None:
    pack(artifact, tmp_path / "other")
    assert (tmp_path / "other").read_bytes() == packed.read_bytes()


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int64", "int16", "int8", "bool"])
def test_numbers_of_every_width_come_back(dtype: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weights = {"layer/w": rng.standard_normal((4, 3), dtype=np.float32), "layer/b": np.zeros(3, np.float32)}
    further = {f"w{n}": (100 * rng.standard_normal((n, 5))).astype(dtype) for n in (0, 1, 7)}
    names = list(weights | further)
    path = tmp_path / "a"
    tiny_models.write(path, tiny_models.affine())
    from greencc.artifact.tensors import map_tensors, write_tensors

    with (tmp_path / "t.safetensors").open("wb") as stream:
        write_tensors(stream, weights | further)
    data = np.fromfile(tmp_path / "t.safetensors", np.uint8)
    apart = packing._put_apart(data, "t")
    np.testing.assert_array_equal(packing._put_together(apart, "t"), data)
    assert list(map_tensors(apart, "t")) == names


def test_signs_and_exponents_stand_together(tmp_path: Path) -> None:
    """Normal float32 weights: a byte of four is mostly exponent and compresses, mantissas don't."""
    weights = tiny_models.affine_weights() | {"w": np.random.default_rng(0).standard_normal((400, 100), np.float32)}
    from greencc.artifact.tensors import write_tensors

    with (tmp_path / "t").open("wb") as stream:
        write_tensors(stream, weights)
    data = np.fromfile(tmp_path / "t", np.uint8)
    plain, planes = (len(packing._compress(data, order, "t")) / len(data) for order in ("plain", "planes"))
    assert planes < 0.88 < 0.9 < plain


def test_a_packed_artifact_is_loaded_from_the_cache(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    inputs = tiny_models.affine_inputs()
    for _ in range(2):
        model = load(packed, threads=1)
        np.testing.assert_allclose(model(inputs)["y"], tiny_models.affine_reference(inputs), rtol=1e-5)
    (folder,) = (tmp_path / "greencc/artifacts").iterdir()
    assert model.artifact.path == folder
    assert api.inspect(packed)["kernels"] == 4
    assert api.verify(packed)["golden"]
    shutil.rmtree(folder)
    assert load(packed, threads=1)(inputs).keys() == model(inputs).keys()


def test_any_flipped_byte_is_found(packed: Path, tmp_path: Path) -> None:
    whole = packed.read_bytes()
    places = np.random.default_rng(0).integers(0, len(whole), 150).tolist()
    for place in [*range(0, 60, 3), *places, len(whole) - 1]:
        damaged = bytearray(whole)
        damaged[place] ^= 0x41
        (tmp_path / "damaged").write_bytes(damaged)
        with pytest.raises(ArtifactError, match="damaged"):
            unpack(tmp_path / "damaged", tmp_path / "out")
    assert [entry.name for entry in tmp_path.iterdir()] == ["damaged"]


@pytest.mark.parametrize("share", [0, 0.001, 0.3, 0.9, 0.9999])
def test_truncated_and_longer_files_are_refused(packed: Path, tmp_path: Path, share: float) -> None:
    whole = packed.read_bytes()
    for content in (whole[: int(share * len(whole))], whole + b"x"):
        (tmp_path / "file").write_bytes(content)
        with pytest.raises(ArtifactError):
            unpack(tmp_path / "file", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def rewritten(packed: Path, change: Any) -> bytes:
    """The packed file with another header."""
    whole = packed.read_bytes()
    start = len(MAGIC) + 8
    length = int.from_bytes(whole[len(MAGIC) : start], "little")
    header = json.loads(whole[start : start + length])
    change(header["members"])
    text = json.dumps(header).encode()
    return MAGIC + len(text).to_bytes(8, "little") + text + whole[start + length :]


@pytest.mark.parametrize(
    "change",
    [
        lambda members: members[1].update(name="../evil"),
        lambda members: members.pop(),
        lambda members: members.append(members[0]),
        lambda members: members[3].update(bytes=-1),
        lambda members: members[3].update(bytes=1 << 60),
        lambda members: members[3].update(bytes=1 << 30),
        lambda members: members[3].update(packed=10),
        lambda members: members[3].update(order="reversed"),
        lambda members: members[0].update(sha256=5),
        lambda members: members[0].pop("packed"),
    ],
)
def test_headers_that_lie_are_refused(packed: Path, tmp_path: Path, change: Any) -> None:
    (tmp_path / "file").write_bytes(rewritten(packed, change))
    with pytest.raises(ArtifactError):
        unpack(tmp_path / "file", tmp_path / "out")
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_stream_can_not_expand_beyond_what_is_declared(packed: Path, tmp_path: Path) -> None:
    bomb = zstandard.ZstdCompressor().compress(bytes(1 << 26))
    with pytest.raises(ArtifactError, match="too long"):
        packing._expand(bomb, 1000, "plain", "a: b")


def test_folders_and_other_files_are_no_packs(artifact: Path, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello")
    for path, words in ((tmp_path / "text", "not a packed artifact"), (tmp_path / "none", "can't be read")):
        with pytest.raises(ArtifactError, match=words):
            unpack(path, tmp_path / "out")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("precious")
    with pytest.raises(UserError, match="not a greencc artifact"):
        api.unpack(tmp_path / "text", tmp_path / "mine")
    with pytest.raises(UserError, match="is not a folder that can be written to"):
        api.pack(artifact, tmp_path / "nowhere" / "file")


def test_the_report_says_what_was_saved(artifact: Path, tmp_path: Path) -> None:
    report: Any = api.pack(artifact, tmp_path / "file")
    assert report["bytes_after"] == (tmp_path / "file").stat().st_size
    assert report["bytes_before"] == sum(file.stat().st_size for file in artifact.iterdir())
    assert report["members"].keys() == {file.name for file in artifact.iterdir()}
