"""The artifact's format: determinism, alignment, atomic writing, and refusal of every damaged file."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import tiny_models
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from greencc.artifact import format as artifact_format
from greencc.artifact.bundle import DTYPES, TensorSpec
from greencc.artifact.format import check_destination, read_artifact, write_artifact
from greencc.artifact.manifest import MANIFEST, MEMBERS, parse_manifest, render_manifest
from greencc.artifact.tensors import ALIGNMENT, map_tensors, write_tensors
from greencc.artifact.verify import verify_members
from greencc.errors import ArtifactError, GreenccError, UserError
from greencc.runtime.model import load

FILES = (MANIFEST, *MEMBERS)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("artifact") / "affine"
    tiny_models.write(path, tiny_models.affine())
    return path


@pytest.fixture
def copy(artifact: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(artifact, tmp_path / "affine"))


def contents(path: Path) -> dict[str, bytes]:
    return {entry.name: entry.read_bytes() for entry in path.iterdir()}


def assert_refused(path: Path, member: str) -> None:
    """Both ways into an artifact refuse it and name the member."""
    for read in (verify_members, load):
        with pytest.raises(ArtifactError, match=member.replace(".", r"\.")) as caught:
            read(path)
        assert "\n" not in str(caught.value)


# Writing


def test_read_back_equals_written(artifact: Path) -> None:
    compiled = tiny_models.affine()
    read = read_artifact(artifact)
    assert read.manifest.inputs == compiled.inputs
    assert read.manifest.outputs == compiled.outputs
    assert read.manifest.symbols == {"batch": (1, 8)}
    assert read.manifest.calls == compiled.calls
    assert read.manifest.source == tiny_models.SOURCE
    assert list(read.weights) == ["layer/w", "layer/b"]
    for name, array in compiled.weights.items():
        np.testing.assert_array_equal(read.weights[name], array, strict=True)
    assert read.code.read_bytes() == compiled.library
    assert set(read.golden_inputs) == {"x", "scale"}
    np.testing.assert_allclose(
        read.golden_outputs["y"], tiny_models.affine_reference(read.golden_inputs), rtol=1e-6, atol=1e-6
    )


def test_same_model_gives_same_bytes(artifact: Path, tmp_path: Path) -> None:
    # The same machine code both times: whether a target generates it alike twice is for the target's tests.
    tiny_models.write(tmp_path / "again", tiny_models.affine())
    assert contents(tmp_path / "again") == contents(artifact)


def test_manifest_holds_no_path(artifact: Path) -> None:
    text = (artifact / MANIFEST).read_text()
    assert str(artifact.parent) not in text
    assert str(Path.home()) not in text


def test_every_tensor_starts_at_a_multiple_of_64_in_file_and_memory(artifact: Path) -> None:
    read = read_artifact(artifact)
    for array in [*read.weights.values(), *read.golden_inputs.values(), *read.golden_outputs.values()]:
        assert array.ctypes.data % ALIGNMENT == 0
    for name in ("weights.safetensors", "golden.safetensors"):
        data = (artifact / name).read_bytes()
        start = 8 + int.from_bytes(data[:8], "little")
        header = json.loads(data[8:start])
        assert start % ALIGNMENT == 0
        offsets = [entry["data_offsets"][0] for key, entry in header.items() if not key.startswith("__pad.")]
        assert offsets
        assert all(offset % ALIGNMENT == 0 for offset in offsets)


def test_modes_follow_the_umask(artifact: Path) -> None:
    umask = os.umask(0)
    os.umask(umask)
    assert artifact.stat().st_mode & 0o777 == 0o777 & ~umask
    assert (artifact / MANIFEST).stat().st_mode & 0o777 == 0o666 & ~umask


def test_an_artifact_is_replaced_whole(copy: Path) -> None:
    old = contents(copy)
    tiny_models.write(copy, tiny_models.affine(report={"nodes_before": 6}))
    assert contents(copy).keys() == old.keys()
    assert read_artifact(copy).manifest.report == {"nodes_before": 6}
    assert [entry.name for entry in copy.parent.iterdir()] == ["affine"]


def test_replacing_works_without_an_atomic_exchange(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifact_format, "_exchange", lambda a, b: False)
    tiny_models.write(copy, tiny_models.affine(report={"nodes_before": 7}))
    assert read_artifact(copy).manifest.report == {"nodes_before": 7}
    assert [entry.name for entry in copy.parent.iterdir()] == ["affine"]


def test_a_loaded_model_outlives_the_replacement_of_its_artifact(copy: Path) -> None:
    model = load(copy, threads=1)
    tiny_models.write(copy, tiny_models.affine(report={"nodes_before": 8}))
    inputs = tiny_models.affine_inputs(3)
    np.testing.assert_allclose(model(inputs)["y"], tiny_models.affine_reference(inputs), rtol=1e-6, atol=1e-6)


def test_a_link_to_an_artifact_stays_a_link(copy: Path) -> None:
    link = copy.parent / "link"
    link.symlink_to(copy)
    tiny_models.write(link, tiny_models.affine(report={"nodes_before": 9}))
    assert link.is_symlink()
    assert read_artifact(copy).manifest.report == {"nodes_before": 9}


def _a_file(path: Path) -> None:
    path.write_text("precious")


def _a_folder(path: Path) -> None:
    path.mkdir()
    (path / "precious").write_text("precious")


def _another_manifest(path: Path) -> None:
    path.mkdir()
    (path / MANIFEST).write_text('{"format": "something else"}')


def _an_artifact_with_the_users_notes(path: Path) -> None:
    tiny_models.write(path, tiny_models.affine())
    (path / "notes.txt").write_text("precious")


@pytest.mark.parametrize("make", [_a_file, _a_folder, _another_manifest, _an_artifact_with_the_users_notes])
def test_anything_else_is_not_replaced(tmp_path: Path, make: Callable[[Path], None]) -> None:
    path = tmp_path / "out"
    make(path)
    with pytest.raises(UserError, match="is not a greencc artifact"):
        check_destination(path)
    before = contents(path) if path.is_dir() else path.read_bytes()
    with pytest.raises(UserError):
        tiny_models.write(path, tiny_models.affine())
    assert (contents(path) if path.is_dir() else path.read_bytes()) == before


def test_destination_without_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a folder"):
        check_destination(tmp_path / "missing" / "out")


def test_a_failure_half_way_leaves_no_trace(tmp_path: Path) -> None:
    def fail(staged: Path, inputs: object) -> dict[str, np.ndarray]:
        raise GreenccError("no outputs today")

    with pytest.raises(GreenccError, match="no outputs today"):
        write_artifact(
            tmp_path / "out",
            tiny_models.affine(),
            source=tiny_models.SOURCE,
            golden_inputs=tiny_models.affine_inputs(),
            run=fail,
        )
    assert list(tmp_path.iterdir()) == []


# Damage


def overwrite(path: Path, data: bytes | bytearray) -> None:
    """Replace a file by a new one: this process may have mapped the old one, which must not change under it."""
    path.unlink()
    path.write_bytes(data)


def test_every_byte_of_the_small_members_is_guarded(copy: Path) -> None:
    for name in (MANIFEST, "weights.safetensors", "golden.safetensors"):
        original = (copy / name).read_bytes()
        for position in range(len(original)):
            damaged = bytearray(original)
            damaged[position] ^= 1 << position % 8
            overwrite(copy / name, damaged)
            with pytest.raises(ArtifactError, match=name.replace(".", r"\.")):
                verify_members(copy)
        overwrite(copy / name, original)
    verify_members(copy)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_changed_byte_is_refused(artifact: Path, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(FILES))
    original = (artifact / name).read_bytes()
    position = data.draw(st.integers(0, len(original) - 1))
    flip = data.draw(st.integers(1, 255))
    damaged = bytearray(original)
    damaged[position] ^= flip
    try:
        overwrite(artifact / name, damaged)
        assert_refused(artifact, name)
    finally:
        overwrite(artifact / name, original)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("keep", [0, 1, 7, 8, 9, -1])
def test_truncation_is_refused(copy: Path, name: str, keep: int) -> None:
    overwrite(copy / name, (copy / name).read_bytes()[:keep])
    assert_refused(copy, name)


@pytest.mark.parametrize("name", FILES)
def test_an_appended_byte_is_refused(copy: Path, name: str) -> None:
    with (copy / name).open("ab") as file:
        file.write(b"\n")
    assert_refused(copy, name)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_member_is_refused(copy: Path, name: str) -> None:
    (copy / name).unlink()
    assert_refused(copy, name)


@pytest.mark.parametrize("name", ["extra.so", ".hidden", "sub"])
def test_an_extra_member_is_refused(copy: Path, name: str) -> None:
    (copy / name).mkdir() if name == "sub" else (copy / name).write_bytes(b"")
    assert_refused(copy, name)


def test_swapped_members_are_refused(copy: Path) -> None:
    (copy / "weights.safetensors").rename(copy / "aside")
    (copy / "golden.safetensors").rename(copy / "weights.safetensors")
    (copy / "aside").rename(copy / "golden.safetensors")
    assert_refused(copy, "golden.safetensors")


@pytest.mark.parametrize("name", FILES)
def test_a_pipe_in_a_members_place_does_not_hang(copy: Path, name: str) -> None:
    (copy / name).unlink()
    os.mkfifo(copy / name)
    assert_refused(copy, name)


def test_what_is_no_artifact_is_said_plainly(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="does not exist"):
        load(tmp_path / "nothing")
    (tmp_path / "file").write_text("x")
    with pytest.raises(ArtifactError, match="is not a folder"):
        load(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ArtifactError, match=r"manifest\.json is missing"):
        load(tmp_path / "empty")


# Manifests with a right hash and wrong content: a hash proves no honest author.


def forge(path: Path, change: Callable[[dict[str, object]], object]) -> None:
    """Change the manifest and give it the hash and the layout that a greencc would."""
    document = json.loads((path / MANIFEST).read_bytes())
    del document["manifest_sha256"]
    change(document)
    canonical = json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
    document["manifest_sha256"] = hashlib.sha256(canonical).hexdigest()
    (path / MANIFEST).write_text(json.dumps(document, sort_keys=True, indent=1) + "\n")


def _set(*keys: str | int, to: object) -> Callable[[dict[str, object]], object]:
    def change(document: dict[str, object]) -> None:
        place: object = document
        for key in keys[:-1]:
            place = place[key]  # type: ignore[index]
        place[keys[-1]] = to  # type: ignore[index]

    return change


HASH = {"bytes": 1, "sha256": "0" * 64}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_set("version", to=99), "format version 99"),
        (_set("version", to="1"), "format version '1'"),
        (_set("format", to="zip"), "does not describe a greencc artifact"),
        (_set("members", "../../etc/passwd", to=HASH), "'members' does not list exactly"),
        (_set("members", to={"/etc/passwd": HASH}), "'members' does not list exactly"),
        (_set("members", to=[]), "'members' is not an object"),
        (_set("members", "code.so", "bytes", to=-1), "'members' holds something that is not an integer"),
        (_set("members", "code.so", "bytes", to=1 << 60), "'members' holds something that is not an integer"),
        (_set("members", "code.so", "bytes", to=True), "'members' holds something that is not an integer"),
        (_set("members", "code.so", "sha256", to="0"), "not a SHA-256"),
        (
            _set("inputs", 0, "shape", to=["batch", 1 << 60]),
            "'inputs' holds something that is not an integer",
        ),
        (_set("inputs", 0, "shape", to=["other", 4]), "uses symbol 'other'"),
        (_set("inputs", 0, "shape", to="batch"), "'inputs' is not a list"),
        (_set("inputs", 0, "dtype", to="object"), "element type 'object'"),
        (_set("inputs", 1, "name", to="x"), "'inputs' names something twice"),
        (_set("inputs", 0, to={"name": "x"}), "entries without exactly: name, dtype, shape"),
        (_set("symbols", "batch", to=[4, 1]), "the empty range 4..1"),
        (_set("symbols", "batch", to=[1]), "two bounds"),
        (_set("calls", 0, "nodes", to=[1]), "'calls' holds something that is not text"),
        (_set("calls", 0, "arithmetic", to="float8"), "arithmetic 'float8'"),
        (_set("calls", 0, "operations", to=-1), "'calls' holds something that is not an integer"),
        (_set("weights", to=["layer/w", "layer/w"]), "'weights' names something twice"),
        (_set("versions", to={"tvm": 0.27}), "'versions' holds something that is not text"),
        (_set("surprise", to=1), "missing or unknown: surprise"),
        (lambda document: document.pop("source"), "missing or unknown: source"),
    ],
)
def test_a_forged_manifest_is_refused(copy: Path, change: Callable[[dict[str, object]], object], reason: str) -> None:
    forge(copy, change)
    assert_refused(copy, MANIFEST)
    with pytest.raises(ArtifactError, match=reason):
        verify_members(copy)


def test_weights_that_the_file_lacks_are_refused(copy: Path) -> None:
    forge(copy, _set("weights", to=["layer/w"]))
    with pytest.raises(ArtifactError, match="does not hold the weights"):
        load(copy)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 100_000, '{"version": ' + "9" * 5000 + "}", "\xff"])
def test_a_manifest_of_rubbish_is_refused(copy: Path, text: str) -> None:
    (copy / MANIFEST).write_bytes(text.encode("latin-1"))
    assert_refused(copy, MANIFEST)


def test_white_space_and_key_order_count(artifact: Path) -> None:
    data = (artifact / MANIFEST).read_bytes()
    document = json.loads(data)
    for other in (
        json.dumps(document, sort_keys=True).encode(),
        json.dumps(dict(reversed(document.items())), indent=1).encode() + b"\n",
    ):
        with pytest.raises(ArtifactError, match="does not match its hash"):
            parse_manifest(other, "x")
    assert render_manifest(parse_manifest(data, "x")) == data


# Tensor files


@settings(max_examples=60, deadline=None)
@given(
    tensors=st.dictionaries(
        st.text(st.characters(exclude_categories=("Cs",)), min_size=1).filter(lambda name: name[:2] != "__"),
        st.sampled_from(DTYPES).flatmap(
            lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5))
        ),
        max_size=6,
    )
)
def test_the_safetensors_library_reads_what_greencc_writes(tensors: dict[str, np.ndarray]) -> None:
    file = BytesIO()
    write_tensors(file, tensors)
    theirs = safetensors.numpy.load(file.getvalue())
    ours = map_tensors(_aligned(file.getvalue()), "file")
    assert list(ours) == list(tensors)
    for name, array in tensors.items():
        np.testing.assert_array_equal(theirs[name], array, strict=True)
        np.testing.assert_array_equal(ours[name], array, strict=True)
        assert ours[name].ctypes.data % ALIGNMENT == 0 or array.size == 0


def test_greencc_refuses_what_it_can_not_use_in_place() -> None:
    tight = safetensors.numpy.save({"a": np.zeros(3, np.float32), "b": np.zeros(3, np.float32)})
    with pytest.raises(ArtifactError, match="does not start at a multiple of 64"):
        map_tensors(_aligned(tight), "file")


def _aligned(data: bytes) -> np.ndarray:
    raw = np.empty(len(data) + 64, np.uint8)
    start = -raw.ctypes.data % 64
    raw[start : start + len(data)] = np.frombuffer(data, np.uint8)
    return raw[start : start + len(data)]


def _file(header: str, data: bytes = b"", length: int | None = None) -> np.ndarray:
    text = header.encode() + b" " * (-(8 + len(header)) % 64)
    return _aligned((len(text) if length is None else length).to_bytes(8, "little") + text + data)


def _entry(dtype: object = "U8", shape: object = (4,), offsets: object = (0, 4)) -> str:
    return json.dumps({"t": {"dtype": dtype, "shape": shape, "data_offsets": offsets}})


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (_aligned(b""), "not a safetensors file"),
        (_aligned(b"\x02\0\0\0\0\0\0\0"), "not a safetensors file"),
        (_file("{}", length=2**63), "not a safetensors file"),
        (_file("{}", length=1), "not a safetensors file"),
        (_file("nonsense"), "not valid JSON"),
        (_file("[]"), "not a JSON object"),
        (_file("[" * 100_000), "not valid JSON"),
        (_file('{"t": {}, "t": {}}'), "a name occurs twice"),
        (_file('{"t": 3}'), "unreadable entry"),
        (_file(_entry(dtype="F8"), bytes(4)), "unreadable entry"),
        (_file(_entry(dtype=None), bytes(4)), "unreadable entry"),
        (_file(_entry(shape=[-4]), bytes(4)), "unreadable entry"),
        (_file(_entry(shape=[True, 4]), bytes(4)), "unreadable entry"),
        (_file(_entry(offsets=[0]), bytes(4)), "unreadable entry"),
        (_file(_entry(offsets=[0, 4, 8]), bytes(4)), "unreadable entry"),
        (_file(_entry(offsets=[4, 0]), bytes(4)), "offsets that don't fit"),
        (_file(_entry(offsets=[1, 5]), bytes(5)), "offsets that don't fit"),
        (_file(_entry(shape=[2**62, 4]), bytes(4)), "offsets that don't fit"),
        (_file(_entry(shape=[0, 2**70], offsets=[0, 0])), "impossible shape"),
        (_file(_entry(shape=[1] * 1000, offsets=[0, 1]), bytes(1)), "impossible shape"),
        (_file(_entry(), bytes(3)), "offsets that don't fit"),
        (_file(_entry(), bytes(5)), "1 bytes follow"),
    ],
)
def test_hostile_tensor_files_are_refused(data: np.ndarray, reason: str) -> None:
    with pytest.raises(ArtifactError, match=reason):
        map_tensors(data, "file")


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=300))
def test_random_bytes_never_crash_the_tensor_reader(data: bytes) -> None:
    with contextlib.suppress(ArtifactError):
        map_tensors(_aligned(data), "file")


@pytest.mark.parametrize("name", ["__metadata__", "__pad.0"])
def test_reserved_names_are_refused(name: str) -> None:
    with pytest.raises(GreenccError, match="is reserved"):
        write_tensors(BytesIO(), {name: np.zeros(1, np.float32)})


def test_element_types_that_the_format_lacks_are_refused() -> None:
    with pytest.raises(GreenccError, match="complex64"):
        write_tensors(BytesIO(), {"c": np.zeros(1, np.complex64)})


def test_a_spec_reads_well() -> None:
    assert str(TensorSpec("ids", "int64", ("batch", "seq", 3))) == "ids: int64[batch, seq, 3]"
