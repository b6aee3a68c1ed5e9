"""Fixtures that tests share: real models, artifacts compiled once, and the switch that turns a condition off.

Models and artifacts lie in the cache outside the tree (see benchmarks/cache.py), so a second run compiles
only what has changed.
"""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest

from benchmarks import bert_onnx, cache, export_minilm, models

if TYPE_CHECKING:
    from greencc.runtime.model import Model

# How long an example takes says more of what else runs on the machine than of the code.
hypothesis.settings.register_profile("greencc", deadline=None)
hypothesis.settings.load_profile("greencc")

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("greencc", "passes", "targets")
# Sources change with every edit; the artifacts of older ones are of no more use.
KEPT_SOURCE_VERSIONS = 3


# The Vulkan runtime reads this when it starts. Any message of the layer fails the test in which it appears.
os.environ.setdefault("GREENCC_VULKAN_VALIDATION", "sync")
os.environ.setdefault("GREENCC_VULKAN_WERROR", "1")
# CI says what must be there: then what is missing is a failure, not a skip.
VULKAN_REQUIRED = "vulkan" in os.environ.get("GREENCC_TESTS_REQUIRE", "").split(",")


def pytest_addoption(parser: pytest.Parser) -> None:
    """--update-golden rewrites the generated files of tests/golden."""
    parser.addoption("--update-golden", action="store_true", help="rewrite the golden files")


def pytest_configure() -> None:
    """GREENCC_TEST_DISABLE=pass-name:N takes a pass's condition N away, for tests/disable_conditions.py."""
    if wanted := os.environ.get("GREENCC_TEST_DISABLE"):
        disable_condition(wanted)


@functools.cache
def vulkan_missing() -> str | None:
    """What a test on a Vulkan device lacks here, or None. The runtime for it is built first, where it isn't yet."""
    from greencc.errors import GreenccError
    from greencc.runtime import vulkan
    from greencc.runtime.vulkan_build import build_sidecar

    try:
        if not os.environ.get("GREENCC_VULKAN_LIB"):
            build_sidecar()
        return None if vulkan.devices() else "this machine has no Vulkan device"
    except GreenccError as error:
        return str(error)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests with the marker `vulkan` need a device, the validation layer and what the runtime is built with."""
    if item.get_closest_marker("vulkan") is None or os.environ.get("GREENCC_TESTS_GPU") == "cuda":
        return
    missing = vulkan_missing()
    if missing is None:
        return
    if VULKAN_REQUIRED:
        pytest.fail(missing, pytrace=False)
    pytest.skip(missing)


@pytest.fixture(autouse=True)
def no_validation_messages() -> Iterator[None]:
    """Fails a test during which Vulkan's validation layer found something."""
    yield
    vulkan = sys.modules.get("greencc.runtime.vulkan")
    if vulkan is not None and vulkan.is_loaded():
        messages = vulkan.validation_messages()
        assert not messages, "\n".join(messages)


def disable_condition(text: str) -> None:
    """Take the numbered condition `pass-name:N` away from a pass of the registry, for this process."""
    from greencc.passes.registry import PASSES

    name, _, number = text.partition(":")
    cls: Any = PASSES.get(name)
    left = () if cls is None else tuple(c for c in cls.conditions if str(c.number) != number)
    if cls is None or len(left) == len(cls.conditions):
        raise pytest.UsageError(f"GREENCC_TEST_DISABLE={text}: no pass has this condition")
    cls.conditions = left


@functools.cache
def source_key() -> str:
    """A key of everything in the tree that decides what `compile` writes."""
    parts: list[str | bytes] = []
    for folder in SOURCES:
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts += [str(path.relative_to(ROOT)), path.read_bytes()]
    return cache.key(parts)


def content_key(path: Path) -> str:
    """A key of a model's bytes: the file and what lies beside it under its name, or a directory's files."""
    files = [path, *path.parent.glob(f"{path.name}.*")] if path.is_file() else sorted(path.iterdir())
    digest = hashlib.sha256()
    for file in sorted(files):
        if file.is_file():
            digest.update(f"{file.name}:{cache.file_sha256(file)}\n".encode())
    return digest.hexdigest()


@pytest.fixture(scope="session")
def compiled_path() -> Callable[..., Path]:
    """`compiled_path(model, **options)`: the artifact of a model, compiled now or by an earlier run.

    The options are those of `greencc.compile`. The artifact must not be changed: it is shared.
    """
    folder = Path("artifacts") / source_key()
    place = cache.cache_root() / folder
    place.mkdir(parents=True, exist_ok=True)
    os.utime(place)
    versions = sorted(place.parent.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
    for old in versions[KEPT_SOURCE_VERSIONS:]:
        shutil.rmtree(old, ignore_errors=True)

    def compile_once(model: Path, **options: Any) -> Path:
        import greencc

        name = cache.key([content_key(model), repr(sorted(options.items()))])

        def fill(draft: Path) -> None:
            greencc.compile(model, draft / "artifact", **options)

        return cache.entry(str(folder / name), fill) / "artifact"

    return compile_once


@pytest.fixture(scope="session")
def compiled(compiled_path: Callable[..., Path]) -> Callable[..., Model]:
    """`compiled(model, **options)`: a loaded model, compiled now or by an earlier run."""
    loaded: dict[Path, Model] = {}

    def load_once(model: Path, **options: Any) -> Model:
        import greencc

        path = compiled_path(model, **options)
        if path not in loaded:
            loaded[path] = greencc.load(path)
        return loaded[path]

    return load_once


@pytest.fixture(scope="session")
def minilm_hf() -> Path:
    return models.minilm_hf()


@pytest.fixture(scope="session")
def minilm_onnx(minilm_hf: Path) -> Path:
    """MiniLM's float32 encoder as ONNX, written by onnx.helper: no torch."""
    return bert_onnx.encoder_onnx(minilm_hf)


@pytest.fixture(scope="session")
def minilm_exports() -> dict[str, Path]:
    """MiniLM's encoder as torch's exporters write it, by the names in benchmarks.export_minilm.VARIANTS."""
    return export_minilm.minilm_exports()


@pytest.fixture(scope="session")
def bert_base_onnx() -> Path:
    """A BERT-base encoder with random weights, 436 MB."""
    return bert_onnx.random_onnx()


@pytest.fixture(scope="session")
def minilm_int8() -> Path:
    return models.minilm_int8()


@pytest.fixture(scope="session")
def magika() -> Path:
    return models.magika()


@pytest.fixture(scope="session")
def ppocr_rec() -> Path:
    return models.ppocr_rec()


@pytest.fixture(scope="session")
def ppocr_cls() -> Path:
    return models.ppocr_cls()


@pytest.fixture(scope="session")
def silero_ifless() -> Path:
    return models.silero_ifless()


@pytest.fixture(scope="session")
def light_networks() -> dict[str, Path]:
    return models.light_networks()


@pytest.fixture(scope="session")
def boolq_rows() -> list[models.BoolQRow]:
    """Rows 0-1634 of BoolQ's development set."""
    return models.boolq_rows()
