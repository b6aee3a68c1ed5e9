"""What pyproject.toml can't say: wheels built with GREENCC_BUILD_VULKAN=1 hold the compiled Vulkan runtime.

Such a wheel is for one platform and one version of TVM, the one that is installed where it is built:

    GREENCC_BUILD_VULKAN=1 pip wheel --no-build-isolation --no-deps .
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

BUNDLES = os.environ.get("GREENCC_BUILD_VULKAN") == "1"


class BuildPython(build_py):
    """Copies the sources, then compiles the runtime beside them."""

    def run(self) -> None:
        """Raises UserError or GreenccError where the runtime can't be compiled: the wheel would not hold it."""
        super().run()
        if BUNDLES and not self.editable_mode:
            sys.path.insert(0, str(Path(__file__).resolve().parent))
            from greencc.runtime.vulkan import LIBRARY_NAME
            from greencc.runtime.vulkan_build import build_sidecar

            build_sidecar(print, Path(self.build_lib) / "greencc" / "runtime" / "lib" / LIBRARY_NAME)


class PlatformWheel(bdist_wheel):
    """The runtime does not depend on the version of Python, but on the platform."""

    def get_tag(self) -> tuple[str, str, str]:
        """Any Python 3, this platform."""
        _, _, platform = super().get_tag()
        return ("py3", "none", platform)


class PlatformDistribution(Distribution):
    """One whose wheels are for a platform."""

    def has_ext_modules(self) -> bool:
        """Yes: the runtime is machine code."""
        return True


if BUNDLES:
    setup(cmdclass={"build_py": BuildPython, "bdist_wheel": PlatformWheel}, distclass=PlatformDistribution)
else:
    setup()
