"""Lowers small Relax functions for a GPU and runs them: on a Vulkan device, or on what GREENCC_TESTS_GPU names."""

from __future__ import annotations

import os
from functools import cache

import numpy as np
import tvm

from greencc.targets.base import Target
from greencc.targets.lower import Lowered, lower
from greencc.targets.registry import make_target
from greencc.verification import Library


@cache
def device() -> Target:
    """The device that tests run on."""
    return make_target(os.environ.get("GREENCC_TESTS_GPU", "vulkan"))


class GpuRunner:
    """A lowered and built module that can be called several times."""

    def __init__(self, module: tvm.IRModule, target: Target | None = None) -> None:
        self.target = target or device()
        self.lowered: Lowered = lower(module, self.target)
        self.code = self.target.build(self.lowered.module)
        self._library = Library(self.code, self.lowered.weights, self.target.place)

    @property
    def rules(self) -> set[str]:
        """Names of the schedule rules that were chosen."""
        return set(self.lowered.rules.values())

    def __call__(self, *arrays: np.ndarray) -> list[np.ndarray]:
        return self._library(list(arrays))
