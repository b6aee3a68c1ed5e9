"""The same tests on the ways that other devices take: no push descriptors, memory that the host can't map."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.vulkan

FOLDER = Path(__file__).resolve().parent
FILES = ("test_launch.py", "test_batching.py", "test_sidecar_memory.py", "test_threads.py")


@pytest.mark.parametrize(
    "variables",
    [
        {"GREENCC_VULKAN_PUSH_DESCRIPTORS": "0", "GREENCC_VULKAN_UNIFIED": "0"},
        {"GREENCC_VULKAN_PUSH_DESCRIPTORS": "1", "GREENCC_VULKAN_UNIFIED": "0"},
    ],
    ids=["sets-staging", "push-staging"],
)
def test_the_other_ways(variables: dict[str, str]) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, *(str(FOLDER / name) for name in FILES)],
        env={**os.environ, **variables, "GREENCC_TESTS_REQUIRE": "vulkan", "PYTEST_ADDOPTS": ""},
        cwd=FOLDER.parents[3],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert "skipped" not in done.stdout
