"""The wheel, the symbolic links and the editable install all hold one copy of each module."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# Folder of the tree -> where its files are installed.
PACKAGES = {"greencc": "greencc", "passes": "greencc/passes", "targets": "greencc/targets"}


def tree_files() -> set[str]:
    """Files of the three code folders under their installed names; links between them are not followed."""
    found = set()
    for folder, package in PACKAGES.items():
        for directory, _, names in os.walk(ROOT / folder):
            inside = Path(directory).relative_to(ROOT / folder)
            if "__pycache__" not in inside.parts:
                found |= {(Path(package) / inside / name).as_posix() for name in names}
    return found


def build_wheel(folder: Path, **variables: str) -> Path:
    """The wheel, built from a copy so that the tree gets no build folder."""
    copy, out = folder / "tree", folder / "wheel"
    copy.mkdir()
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    ignored = shutil.ignore_patterns("__pycache__")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, copy / package, symlinks=True, ignore=ignored)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    done = subprocess.run(
        [*command, "--wheel-dir", str(out), str(copy)],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(tmp_path_factory.mktemp("packaging"))


def test_wheel_holds_the_tree_once(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if ".dist-info/" not in name]
    assert len(names) == len(set(names))
    assert set(names) == tree_files()


@pytest.mark.slow
@pytest.mark.vulkan
def test_wheel_with_the_vulkan_runtime(tmp_path: Path) -> None:
    """GREENCC_BUILD_VULKAN=1: the tree and the library, for this platform and any Python 3; found where it lies."""
    built = build_wheel(tmp_path, GREENCC_BUILD_VULKAN="1")
    assert "-py3-none-" in built.name
    assert not built.name.endswith("-any.whl")
    with zipfile.ZipFile(built) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        archive.extractall(tmp_path / "installed")
    (library,) = names - tree_files()
    assert library.startswith("greencc/runtime/lib/libgreencc_vulkan.")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path / 'installed')!r})\n"
        "from greencc.runtime.vulkan import devices, find_sidecar\n"
        "print(find_sidecar(), devices()[0]['index'])"
    )
    environment = {name: value for name, value in os.environ.items() if name != "GREENCC_VULKAN_LIB"}
    environment["XDG_CACHE_HOME"] = str(tmp_path)
    done = subprocess.run(
        [sys.executable, "-I", "-c", code], env=environment, capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert done.stdout.split() == [str(tmp_path / "installed" / library), "0"]


def test_installed_wheel_imports_its_own_modules(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "import greencc, greencc.passes, greencc.targets\n"
        "print(greencc.__file__, greencc.passes.__file__, greencc.targets.__file__, sep='\\n')"
    )
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    folder = tmp_path / "greencc"
    assert done.stdout.split() == [
        str(folder / "__init__.py"),
        str(folder / "passes/__init__.py"),
        str(folder / "targets/__init__.py"),
    ]


@pytest.mark.parametrize("name", ["passes", "targets"])
def test_link_leads_to_the_folder(name: str) -> None:
    link = ROOT / "greencc" / name
    assert link.is_symlink()
    assert os.readlink(link) == f"../{name}"


def test_import_is_light() -> None:
    code = "import sys, greencc; print(sorted({'tvm', 'tvm_ffi', 'onnx', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_sources_name_no_second_copy() -> None:
    """ruff bans `import passes`; this holds where ruff is not run."""
    for folder in PACKAGES:
        for path in (ROOT / folder).rglob("*.py"):
            for line in path.read_text(encoding="utf-8").splitlines():
                assert not line.startswith(("import passes", "import targets", "from passes", "from targets")), path
