"""Types of tests that run command lines in this process; conftest.py has what runs them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

Outcome: TypeAlias = tuple[int, str, str]
"""Exit status, stdout and stderr."""
Greencc: TypeAlias = Callable[..., Outcome]
