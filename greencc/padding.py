"""What is to be known of an artifact whose padding was elided: which rows of its outputs are zeros.

The passes' side of it is in passes/elide_padding.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from greencc.artifact.bundle import Array

# The symbol of the number of real tokens in an artifact's sizes.
TOKENS_SYMBOL = "tokens"


@dataclass(frozen=True)
class ElidedPadding:
    """Padding that is not computed.

    Attributes:
        mask: the input [batch, sequence] that is 0 where a token is padding.
        outputs: names of outputs [batch, sequence, ...] that are zeros there.
    """

    mask: str
    outputs: tuple[str, ...]

    @staticmethod
    def of(fields: Any) -> ElidedPadding | None:
        """From the fields that `as_json` gives, or that an attribute of a function holds; None from None."""
        return None if fields is None else ElidedPadding(str(fields["mask"]), tuple(map(str, fields["outputs"])))

    def as_json(self) -> dict[str, object]:
        """The fields as JSON values."""
        return {**asdict(self), "outputs": list(self.outputs)}

    def blank(self, outputs: Mapping[str, Array], inputs: Mapping[str, Array]) -> dict[str, Array]:
        """`outputs` of a model that computes its padding, with zeros where padding was elided."""
        real = inputs[self.mask] != 0

        def blanked(array: Array) -> Array:
            rows = real.reshape(*real.shape, *(1 for _ in array.shape[2:]))
            return np.where(rows, array, np.zeros((), array.dtype))

        return {name: blanked(array) if name in self.outputs else array for name, array in outputs.items()}

    def tokens(self, inputs: Mapping[str, Array]) -> int:
        """How many tokens are computed."""
        return max(1, int(np.count_nonzero(inputs[self.mask])))
