"""Which sidecar is loaded, and what is said when there is none that fits."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from greencc.errors import UserError
from greencc.runtime import vulkan

ROOT = Path(__file__).resolve().parents[4]


def marker(tvm: str, tvm_ffi: str) -> bytes:
    return f"\0greencc-vulkan-abi:tvm={tvm};tvm_ffi={tvm_ffi};\0".encode()


def library(path: Path, tvm: str, tvm_ffi: str) -> Path:
    """A file that says which versions it was built for, as the sidecar does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\x7fELF" + bytes(100) + marker(tvm, tvm_ffi) + bytes(100))
    return path


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """Empty places that a sidecar can be in."""
    monkeypatch.delenv("GREENCC_VULKAN_LIB", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(vulkan, "bundle_folder", lambda: tmp_path / "bundle")
    return {
        "chosen": tmp_path / "chosen.so",
        "bundled": tmp_path / "bundle" / vulkan.LIBRARY_NAME,
        "cached": vulkan.cached_builds() / "gcc" / vulkan.LIBRARY_NAME,
    }


def test_the_chosen_one_then_the_bundled_one_then_the_cached_one(
    places: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="not built on this machine: run `greencc devices --build-vulkan`"):
        vulkan.find_sidecar()
    for name in ("cached", "bundled"):
        library(places[name], *vulkan.installed_abi())
        assert vulkan.find_sidecar() == places[name]
    monkeypatch.setenv("GREENCC_VULKAN_LIB", str(places["chosen"]))
    with pytest.raises(UserError, match=r"GREENCC_VULKAN_LIB names .*chosen\.so, which is no file"):
        vulkan.find_sidecar()
    library(places["chosen"], "0", "0")
    assert vulkan.find_sidecar() == places["chosen"]


def test_a_bundled_one_for_another_tvm_gives_way(places: dict[str, Path]) -> None:
    library(places["bundled"], "0.1", "0.2")
    assert vulkan.find_sidecar() == places["bundled"], "so that its version is complained of"
    library(places["cached"], *vulkan.installed_abi())
    assert vulkan.find_sidecar() == places["cached"]


def test_the_build_that_was_made_last_is_found(places: dict[str, Path]) -> None:
    first = library(places["cached"], *vulkan.installed_abi())
    second = library(first.parent.parent / "clang" / vulkan.LIBRARY_NAME, *vulkan.installed_abi())
    os.utime(first, (1, 1))
    assert vulkan.find_sidecar() == second
    os.utime(second, (0, 0))
    assert vulkan.find_sidecar() == first


def test_builds_of_other_sources_or_versions_are_not_found(
    places: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library(places["cached"], *vulkan.installed_abi())
    here = vulkan.cached_builds()
    with monkeypatch.context() as patch:
        patch.setattr(vulkan, "installed_abi", lambda: ("0.27.1", "0.1.14"))
        assert vulkan.cached_builds() != here
    (tmp_path / "sources").mkdir()
    (tmp_path / "sources/a.cc").write_text("// other")
    monkeypatch.setattr(vulkan, "sources_folder", lambda: tmp_path / "sources")
    assert vulkan.cached_builds() != here
    with pytest.raises(UserError, match="not built"):
        vulkan.find_sidecar()


def python(program: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", program], env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (marker("0.26.0", "0.1.9"), "was built for TVM 0.26.0 and tvm-ffi 0.1.9, here are "),
        (b"something else", "is no Vulkan runtime of greencc: run `greencc devices --build-vulkan`"),
    ],
)
def test_a_library_that_does_not_fit_is_not_loaded(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "library.so"
    path.write_bytes(content)
    program = """
from greencc.runtime import vulkan
try: vulkan.devices()
except Exception as error: print(type(error).__name__, error)
"""
    done = python(program, GREENCC_VULKAN_LIB=str(path))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"UserError {'the Vulkan runtime ' if 'was built' in message else ''}{path} ")
    assert message in done.stdout
    assert len(done.stdout.splitlines()) == 1


def test_the_hook_of_tvm_is_silent_without_a_sidecar(tmp_path: Path) -> None:
    program = """
import os
before = dict(os.environ)
from greencc.targets.vulkan.backend import register
register()
import tvm_ffi
print(tvm_ffi.get_global_func("device_api.vulkan", allow_missing=True), dict(os.environ) == before)
"""
    done = python(program, GREENCC_VULKAN_LIB="", XDG_CACHE_HOME=str(tmp_path))
    assert (done.returncode, done.stdout, done.stderr) == (0, "None True\n", "")


@pytest.mark.vulkan
def test_the_hook_of_tvm_makes_it_know_vulkan() -> None:
    program = """
import os
import tvm
before = dict(os.environ)
from greencc.targets.vulkan.backend import register
register()
register()
print(tvm.vulkan(0).exist, tvm.vulkan(99).exist, tvm.vulkan(0).max_threads_per_block > 0, dict(os.environ) == before)
print(tvm.target.Target({"kind": "vulkan", "from_device": 0}).attrs["max_shared_memory_per_block"] > 0)
"""
    done = python(program)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["True", "False", "True", "True", "True"]
