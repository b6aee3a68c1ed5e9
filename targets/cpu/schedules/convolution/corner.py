"""Which part of the output a task computes."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tvm import tirx


@dataclass(frozen=True)
class Corner:
    """Where results begin: image n, block of output channels of a group, output row y."""

    n: tirx.Expr
    group: tirx.Expr
    block: tirx.Expr
    y: tirx.Expr

    def at_block(self, block: tirx.Expr) -> Corner:
        """The same of another block."""
        return replace(self, block=block)
