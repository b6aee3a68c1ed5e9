"""How GPUs take activations in bytes."""

from __future__ import annotations

from dataclasses import dataclass

from greencc.targets.int8.levels import Levels


@dataclass(frozen=True)
class SignedWords(Levels):
    """Words of four signed bytes."""

    depth: int = 4
    activation: str = "int8"
