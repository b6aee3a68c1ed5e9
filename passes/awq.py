"""AWQ: factors that leave the weights of large inputs more levels.

AWQ, arXiv:2306.00978, equation 4: a product with a weight in groups is matmul(x * (1 / s), q(s * w)), the factors s [K]
being the inputs' mean sizes to some power. Rows of large inputs are then large in their groups, and rounding changes
less of them.
"""

from __future__ import annotations

import numpy as np

from greencc.passes.grouped import output_error, round_to_nearest

# Powers that are tried beside 0, evenly spaced up to 1.
_POWERS = 20
# Inputs count as large as this part of the largest one at least: factors stay within what half precision holds.
_LEAST_SIZE = 1e-4


def awq_factors(weight: np.ndarray, mean_sizes: np.ndarray, gram: np.ndarray, group: int, bits: int) -> np.ndarray:
    """The factors s that make the error of matmul(x * (1 / s), q(s * weight)) least: float32 [K].

    q rounds to the nearest level. Factors are ones where none of the powers gains anything.

    Args:
        weight: float32 [K, N], finite.
        mean_sizes: mean |x| of each input over calibration data: [K], finite.
        gram: x^T x over the same data: float64 [K, K].
        group: rows that share a scale.
        bits: of a level.
    """
    best = np.ones(len(weight), np.float32)
    lowest = _error(weight, best, gram, group, bits)
    sizes = np.maximum(mean_sizes, _LEAST_SIZE * np.max(mean_sizes))
    if not sizes.all():
        return best
    for step in range(1, _POWERS + 1):
        powers = sizes ** (step / _POWERS)
        factors = (powers / np.sqrt(powers.min() * powers.max())).astype(np.float32)
        error = _error(weight, factors, gram, group, bits)
        if error < lowest:
            best, lowest = factors, error
    return best


def _error(weight: np.ndarray, factors: np.ndarray, gram: np.ndarray, group: int, bits: int) -> float:
    # In double precision: differences of nearly equal numbers decide, and the factors are stored as they are.
    levels = round_to_nearest(weight * factors[:, None], group, bits).values.astype(np.float64)
    return output_error(levels / factors.astype(np.float64)[:, None] - weight, gram)
