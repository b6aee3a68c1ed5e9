"""Compiling the sidecar: what is missing is named, and what was made is found again."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from greencc.errors import GreenccError, UserError
from greencc.runtime import vulkan, vulkan_build
from greencc.targets.vulkan.backend import register


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("GREENCC_VULKAN_LIB", raising=False)
    monkeypatch.setattr(vulkan, "bundle_folder", lambda: tmp_path / "bundle")


def compiler(folder: Path, script: str) -> str:
    """A program that stands for the C++ compiler."""
    path = folder / "compiler"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IEXEC)
    return str(path)


def test_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match=r"no C\+\+ compiler: install one \(Debian and Ubuntu: apt install g\+\+\)"):
        vulkan_build.build_sidecar()


def test_a_compiler_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler -O3")
    with pytest.raises(UserError, match="CXX names 'no-such-compiler', which is not installed"):
        vulkan_build.build_sidecar()


def test_no_headers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CXX", compiler(tmp_path, 'case "$*" in *-fsyntax-only*) exit 1;; esac; echo 1.0'))
    with pytest.raises(UserError, match=r"does not find Vulkan's headers .* apt install libvulkan-dev"):
        vulkan_build.build_sidecar()


def test_sources_that_do_not_compile(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = 'case "$*" in *" -c "*) echo "a.cc: in function"; echo "a.cc:3: error: no such thing" >&2; exit 1;; esac'
    monkeypatch.setenv("CXX", compiler(tmp_path, script))
    with pytest.raises(GreenccError, match=r"does not compile \(\w+\.cc\): a\.cc:3: error: no such thing"):
        vulkan_build.build_sidecar()
    assert not list(vulkan.cached_builds().rglob("*.so"))


def test_a_build_is_made_once_for_each_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With a compiler that only writes what it was told to make."""
    script = f"""
case "$*" in *--version*) cat {tmp_path}/version; exit;; esac
echo run >> {tmp_path}/log
while [ $# -gt 1 ]; do if [ "$1" = -o ]; then echo made > "$2"; fi; shift; done
"""
    monkeypatch.setenv("CXX", compiler(tmp_path, script))
    (tmp_path / "version").write_text("1.0")
    said: list[str] = []
    first = vulkan_build.build_sidecar(said.append)
    sources = len(list(vulkan.sources_folder().glob("*.cc")))
    # The headers, each source, and linking.
    assert len((tmp_path / "log").read_text().splitlines()) == sources + 2
    assert len(said) == sources + 1
    assert said[-1] == "linking the Vulkan runtime"
    assert vulkan.find_sidecar() == first
    assert vulkan_build.build_sidecar(said.append) == first
    assert len(said) == sources + 1, "nothing is made again"
    (tmp_path / "version").write_text("2.0")
    second = vulkan_build.build_sidecar()
    assert second != first
    assert vulkan.find_sidecar() == second
    assert [path.name for path in second.parent.iterdir()] == [vulkan.LIBRARY_NAME]
    (tmp_path / "version").write_text("1.0")
    vulkan_build.build_sidecar()
    assert vulkan.find_sidecar() == first


def test_warnings_are_errors_only_where_that_is_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Later compilers warn of more."""
    script = """
case "$*" in *-fsyntax-only*) exit;; *-Werror*) echo "error: warned" >&2; exit 1;; esac
while [ $# -gt 1 ]; do if [ "$1" = -o ]; then echo made > "$2"; fi; shift; done
"""
    monkeypatch.setenv("CXX", compiler(tmp_path, script))
    monkeypatch.setenv("GREENCC_VULKAN_WERROR", "1")
    with pytest.raises(GreenccError, match="error: warned"):
        vulkan_build.build_sidecar()
    monkeypatch.delenv("GREENCC_VULKAN_WERROR")
    assert vulkan_build.build_sidecar().is_file()


def test_a_cache_that_can_not_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CXX", compiler(tmp_path, "true"))
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(UserError, match=rf"can't be written to {tmp_path}/cache/greencc/vulkan/sidecar-.*: Not a dir"):
        vulkan_build.build_sidecar()


def test_a_cache_that_can_not_be_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is found there, and TVM is imported as it is without Vulkan. (The superuser searches everything.)"""

    def refuse(*arguments: object) -> None:
        raise PermissionError(13, "Permission denied")

    builds = vulkan.cached_builds()
    monkeypatch.setattr(vulkan, "cached_builds", lambda: builds)
    monkeypatch.setattr(Path, "glob", refuse)
    with pytest.raises(UserError, match="not built on this machine"):
        vulkan.find_sidecar()
    monkeypatch.setattr(vulkan, "cached_builds", refuse)
    monkeypatch.setattr(vulkan, "_loaded", [])
    register()


def test_sources_are_installed() -> None:
    """They are package data: a wheel that lacks them can't build anything."""
    names = {path.name for path in vulkan.sources_folder().iterdir()}
    assert {"registry.cc", "stream.cc", "device.h"} <= names
