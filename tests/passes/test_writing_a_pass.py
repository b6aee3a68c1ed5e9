"""docs/writing_a_pass.md shows a pass and its tests; both are run here as they stand on the page."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "writing_a_pass.md"
NAME = "greencc.passes.multiply_by_reciprocal"


@pytest.fixture(scope="module")
def page():
    """The two code blocks of the page as modules: the pass and its tests."""
    sources = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    modules = []
    for name, source in zip((NAME, "test_multiply_by_reciprocal"), sources, strict=True):
        modules.append(ModuleType(name))
        sys.modules[name] = modules[-1]
        exec(compile(source, f"{PAGE.name}: {name}", "exec"), modules[-1].__dict__)
    yield modules
    for module in modules:
        del sys.modules[module.__name__]


def run_tests(module: ModuleType) -> list[str]:
    """Names of the module's tests that fail."""
    failed = []
    for name, test in vars(module).items():
        if name.startswith("test_"):
            try:
                test()
            except Exception:
                failed.append(name)
    return failed


def test_the_tests_on_the_page_pass(page):
    assert run_tests(page[1]) == []


@pytest.mark.parametrize("number", [1, 2, 3])
def test_the_tests_on_the_page_hold_every_condition(page, monkeypatch, number):
    cls = page[0].MultiplyByReciprocal
    assert f"{number}." in cls.__doc__
    monkeypatch.setattr(cls, "conditions", tuple(c for c in cls.conditions if c.number != number))
    assert run_tests(page[1]) == ["test_refuses_with_a_reason"]


def test_the_page_names_what_exists(page):
    text = PAGE.read_text(encoding="utf-8")
    root = PAGE.parents[1]
    for path in re.findall(r"`((?:passes|tests|docs)/[\w/]+\.\w+)`", text):
        assert (root / path).exists(), path
