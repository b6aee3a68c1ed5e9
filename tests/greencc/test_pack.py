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
from greencc.artifact.format import write_artifact
from greencc.artifact.pack import MAGIC, is_packed, pack, unpack
from greencc.errors import ArtifactError


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("artifact") / "affine"
    tiny_models.write(path, tiny_models.affine())
    return path


def contents(path: Path) -> dict[str, bytes]:
    return {entry.name: entry.read_bytes() for entry in path.iterdir()}


# How each of the tensors below is written; what is small, together with its neighbours.
WAYS = {
    "dense": "planes",
    "small": None,
    "zeros": "sparse planes",
    "values": "codebook",
    "empty": None,
    "zeros and values": "sparse codebook",
    "levels": "codebook",
    "many values": "codebook",
    "half": "planes",
    "flags": "codebook",
}


def some_weights() -> dict[str, np.ndarray]:
    """Tensors for all of WAYS, no two of one size."""
    rng = np.random.default_rng(0)
    dense = rng.standard_normal((60, 40)).astype(np.float32)
    values = rng.standard_normal(14).astype(np.float32)[rng.integers(0, 14, dense.shape)]
    arrays = (
        dense,
        dense[0],
        np.where(np.abs(dense) > 0.67, dense, 0)[1:],
        values[2:],
        np.zeros((0, 5), np.float32),
        np.where(np.abs(dense) > 1.5, values, 0)[3:],
        rng.choice([-2, -1, 1, 2], (3, 2500)).astype(np.int8),
        rng.integers(0, 2**60, 300)[rng.integers(0, 300, 2000)],
        rng.standard_normal(4001).astype(np.float16),
        rng.random(4097) < 0.5,
    )
    return dict(zip(WAYS, arrays, strict=True))


@pytest.fixture(scope="module")
def various(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact with `some_weights`, which nothing runs."""
    path = tmp_path_factory.mktemp("various") / "various"
    compiled = tiny_models.affine(weights=some_weights())
    inputs = tiny_models.affine_inputs()
    write_artifact(path, compiled, source=tiny_models.SOURCE, golden_inputs=inputs, run=None)
    return path


@pytest.fixture(scope="module", params=["affine", "various"])
def packed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file that the artifact of this name is packed to."""
    file = tmp_path_factory.mktemp("packed") / request.param
    pack(request.getfixturevalue({"affine": "artifact"}.get(request.param, request.param)), file)
    return file


@pytest.mark.parametrize("name", ["artifact", "various"])
def test_every_byte_comes_back(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    artifact = request.getfixturevalue(name)
    pack(artifact, tmp_path / "packed")
    unpack(tmp_path / "packed", tmp_path / "again")
    assert contents(tmp_path / "again") == contents(artifact)
    assert is_packed(tmp_path / "packed")
    assert not is_packed(artifact)
    assert not is_packed(artifact / "code.so")


@pytest.mark.parametrize("name", ["artifact", "various"])
def test_the_same_artifact_gives_the_same_file(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    for file in ("one", "other"):
        pack(request.getfixturevalue(name), tmp_path / file)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()


def test_every_large_tensor_is_written_in_the_way_that_makes_it_smallest(various: Path, tmp_path: Path) -> None:
    pack(various, tmp_path / "packed")
    with (tmp_path / "packed").open("rb") as stream:
        (member,) = (one for one in packing._header(stream, tmp_path) if one.name == "weights.safetensors")
    written = {piece.size: piece.kind for piece in member.pieces}
    assert {name: written.get(array.nbytes) for name, array in some_weights().items()} == WAYS


def test_signs_and_exponents_stand_together() -> None:
    """Normal float32 weights: a byte of four is mostly exponent and compresses, mantissas don't."""
    weights = np.random.default_rng(0).standard_normal(40_000).astype(np.float32).view(np.uint8)
    plain, planes = (packing._packed(weights, width)[0].packed / weights.size for width in (0, 4))
    assert planes < 0.865 < 0.9 < plain


@pytest.mark.parametrize(
    ("numbers", "kind", "bits"),
    [
        ("zeros", "sparse planes", 0.5 * 27.5 + 1),  # a dense one takes 27.5 bits of 32
        ("values", "codebook", 4),
        ("zeros and values", "sparse codebook", 0.5 * 4 + 1),
        ("levels", "codebook", 4),
    ],
)
def test_sizes_are_what_the_content_needs(numbers: str, kind: str, bits: float) -> None:
    """Bits of a number as information theory has them, within 3% and half a kilobyte."""
    rng = np.random.default_rng(0)
    count = 60_000
    array = rng.standard_normal(count).astype(np.float32)
    if "values" in numbers:
        array = rng.standard_normal(16).astype(np.float32)[rng.integers(0, 16, count)]
    if "zeros" in numbers:
        array[rng.random(count) < 0.5] = 0
    if numbers == "levels":
        array = rng.integers(-8, 8, count).astype(np.int8)
    piece, _ = packing._packed(array.view(np.uint8), array.itemsize)
    assert piece.kind == kind
    assert piece.packed < 1.03 * bits / 8 * count + 500


def test_a_packed_artifact_is_loaded_from_the_cache(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = tmp_path / "affine.pack"
    pack(artifact, packed)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    inputs = tiny_models.affine_inputs()
    for _ in range(2):
        model = load(packed, threads=1)
        np.testing.assert_allclose(model(inputs)["y"], tiny_models.affine_reference(inputs), rtol=1e-5)
    (folder,) = (tmp_path / "cache/greencc/artifacts").iterdir()
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
        lambda members: members[3].update(bytes=members[3]["bytes"] + 1),
        lambda members: members[3].update(pieces=members[3]["pieces"] * 2),
        lambda members: members[3].update(pieces=[]),
        lambda members: members[3].update(pieces=7),
        lambda members: members[0].update(sha256=5),
        lambda members: members[0].update(sha256="0" * 63),
        lambda members: members[0].pop("pieces"),
        lambda members: members.__setitem__(0, "manifest.json"),
    ],
)
def test_headers_that_lie_are_refused(packed: Path, tmp_path: Path, change: Any) -> None:
    (tmp_path / "file").write_bytes(rewritten(packed, change))
    with pytest.raises(ArtifactError):
        unpack(tmp_path / "file", tmp_path / "out")
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


KIND, WIDTH, SIZE, ENCODED, PACKED = range(5)
WRONG = {
    KIND: ["reversed", 5, ["planes"], "codebook", "sparse codebook"],
    WIDTH: [0, 2, 3, 8, -1, 1.0, "4", None, True],
    SIZE: [-1, 1, 1 << 30, 1 << 40, 1 << 60, 4.0],
    ENCODED: [-1, 0, 1, 1 << 20, 1 << 40, 1 << 60, 4.0],
    PACKED: [-1, 0, 1, 10, 1 << 40, 1 << 60, 4.0],
}


@pytest.mark.parametrize(("field", "value"), [(field, value) for field, values in WRONG.items() for value in values])
@pytest.mark.parametrize("kind", ["sparse planes", "planes"])
def test_pieces_that_lie_are_refused(various: Path, tmp_path: Path, kind: str, field: int, value: object) -> None:
    """Also where the member's size lies with them, so that nothing but the piece itself shows it."""
    pack(various, tmp_path / "packed")

    def change(members: Any) -> None:
        member = members[3]
        piece = next(one for one in member["pieces"] if one[KIND] == kind and one[WIDTH] == 4)
        if field == SIZE and isinstance(value, int):
            member["bytes"] += value - piece[SIZE]
        piece[field] = value

    (tmp_path / "packed").write_bytes(rewritten(tmp_path / "packed", change))
    with pytest.raises(ArtifactError, match=r"damaged|cut off|does not list|bytes follow"):
        unpack(tmp_path / "packed", tmp_path / "out")
    assert [entry.name for entry in tmp_path.iterdir()] == ["packed"]


def test_a_stream_can_not_expand_beyond_what_is_declared() -> None:
    bomb = zstandard.ZstdCompressor().compress(bytes(1 << 26))
    with pytest.raises(ArtifactError, match="too long"):
        packing._unpacked(bomb, packing.Piece("planes", 1, 1000, 1000, len(bomb)), "a: b")
    with pytest.raises(ArtifactError, match="too short"):
        packing._unpacked(bomb, packing.Piece("planes", 1, 1 << 27, 1 << 27, len(bomb)), "a: b")


def test_no_piece_declares_more_than_its_stream_can_hold() -> None:
    """The most that a stream can hold is what a stream of zeros holds, with a bit for each number."""
    zeros = np.zeros(1 << 24, np.uint8)
    piece, stream = packing._packed(zeros, 8)
    assert piece.is_sane
    assert piece.size > 1000 * len(stream)
    packed = 1000
    assert packing.Piece("sparse planes", 8, packed << 21, packed << 15, packed).is_sane
    for encoded, size in ((packed << 15, (packed << 21) + 8), ((packed << 15) + 1, packed << 15)):
        assert not packing.Piece("sparse planes", 8, size, encoded, packed).is_sane


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
