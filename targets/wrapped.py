"""A target that is another one but for what a subclass changes."""

from __future__ import annotations

from collections.abc import Sequence

import tvm

from greencc.targets.base import Code, Rule, Target


class WrappedTarget:
    """Hands everything on to another target. See Target."""

    def __init__(self, target: Target) -> None:
        self._target = target

    @property
    def kind(self) -> str:
        """See Target."""
        return self._target.kind

    @property
    def threads(self) -> int:
        """See Target."""
        return self._target.threads

    @property
    def runs_here(self) -> bool:
        """See Target."""
        return self._target.runs_here

    @property
    def place(self) -> str:
        """See Target."""
        return self._target.place

    @property
    def alignment(self) -> int:
        """See Target."""
        return self._target.alignment

    def describe(self) -> dict[str, object]:
        """See Target."""
        return self._target.describe()

    def legalize(self, module: tvm.IRModule) -> tvm.IRModule:
        """See Target."""
        return self._target.legalize(module)

    def rules(self) -> Sequence[Rule]:
        """See Target."""
        return self._target.rules()

    def build(self, module: tvm.IRModule) -> Code:
        """See Target."""
        return self._target.build(module)
