"""The tools: what they refuse is a fault with the kernel's name; what they made is kept; without them a hint."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from greencc.errors import GreenccError, UserError
from greencc.targets.vulkan.emitter import spirv

SOURCE = "#version 460\nlayout(local_size_x = 1) in;\nvoid main() {}\n"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def test_a_module_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    first = spirv.compile_all({"a": SOURCE, "b": SOURCE + "\n"})
    assert all(module[:4] == b"\x03\x02\x23\x07" for module in first.values())

    def refuse(*_: object) -> None:
        raise AssertionError("compiled again")

    monkeypatch.setattr(spirv, "_run", refuse)
    assert spirv.compile_all({"a": SOURCE, "b": SOURCE + "\n"}) == first


def test_a_damaged_cache_is_made_again(tmp_path: Path) -> None:
    first = spirv.compile_all({"a": SOURCE})
    (kept,) = (tmp_path / "greencc" / "spirv").rglob("*.spv")
    kept.write_bytes(b"\x03\x02\x23")
    assert spirv.compile_all({"a": SOURCE}) == first
    assert kept.read_bytes() == first["a"]


def test_a_source_that_does_not_compile_names_the_kernel() -> None:
    with pytest.raises(GreenccError, match=r"vulkan: kernel 'mine': glslang refuses it: .*undeclared identifier"):
        spirv.compile_all({"mine": SOURCE.replace("{}", "{ nothing = 1; }")})


def test_an_invalid_module_names_the_kernel() -> None:
    # An integer addition that gives a float; glslang believes whatever is declared.
    declared = "#extension GL_EXT_spirv_intrinsics : require\nspirv_instruction(id = 128) float add(int a, int b);\n"
    source = SOURCE.replace("layout", f"{declared}shared float a;\nlayout", 1).replace("{}", "{ a = add(1, 2); }")
    with pytest.raises(GreenccError, match=r"vulkan: kernel 'mine': spirv-(opt|val) refuses it: .*IAdd"):
        spirv.compile_all({"mine": source})


def test_without_the_tools_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    spirv.find_tools.cache_clear()
    try:
        with pytest.raises(UserError, match=r"needs glslang.*pip install 'greencc\[vulkan\]'"):
            spirv.compile_all({"a": SOURCE})
    finally:
        spirv.find_tools.cache_clear()
