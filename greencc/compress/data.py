"""The three parts that a search splits its samples into."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from greencc.errors import UserError
from greencc.samples import Dataset

# Shares of the samples that sensitivities and ranges are learnt from, and that steps are accepted on.
_CALIBRATION, _SELECTION = 0.2, 0.4
# An interval from fewer samples says nothing.
_FEWEST = 8


@dataclass(frozen=True)
class Splits:
    """Numbers of runs, disjoint: to learn from, to accept steps on, and to judge the result once."""

    calibration: tuple[int, ...]
    selection: tuple[int, ...]
    judged: tuple[int, ...]


def split(dataset: Dataset) -> Splits:
    """Three disjoint parts of the runs, by a fixed permutation.

    Raises:
        UserError: there are too few.
    """
    order = [int(i) for i in np.random.default_rng(0).permutation(dataset.runs)]
    first = round(_CALIBRATION * len(order))
    second = first + round(_SELECTION * len(order))
    parts = Splits(tuple(order[:first]), tuple(order[first:second]), tuple(order[second:]))
    fewest = min(map(len, (parts.selection, parts.judged))) * dataset.batch
    if fewest < _FEWEST or not parts.calibration:
        needed = int(np.ceil(_FEWEST / _SELECTION))
        raise UserError(
            f"{dataset.name}: {dataset.runs * dataset.batch} sample(s) are too few to learn from, "
            f"choose by and judge on: give at least {needed}"
        )
    return parts
