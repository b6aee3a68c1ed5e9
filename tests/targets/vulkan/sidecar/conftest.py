"""The first Vulkan device."""

from __future__ import annotations

import pytest
from vulkan_rig import ADD, SCALE, Rig, module


@pytest.fixture
def rig() -> Rig:
    return Rig()


@pytest.fixture(scope="session")
def kernels() -> object:
    return module(add=ADD, scale=SCALE)
