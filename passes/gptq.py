"""GPTQ: levels of a weight in groups that make up for one another's rounding.

GPTQ, arXiv:2210.17323: rows of the weight are rounded one after the other, and what rounding one changes in the product
is taken back, as far as least squares can, by the rows still to come. With the Hessian H = x^T x and H^-1 = U^T U, U
upper triangular, a row's error e changes row j behind it by -e * U[k, j] / U[k, k] (algorithm 1).

U is the inverse of the upper triangular R with H = R R^T, and its blocks on the diagonal are those of R inverted. So
only blocks are inverted here, one for each group: what the groups before one change in it follows from R and from all
their errors at once, since R^T (weight - changed) is zero where least squares chose.

The product's error is the sum over all rows of (R[k, k] * e)^2: R[k, k]^2 is a row's importance for its group's scheme.

Rows are taken in their own order. The paper's other order, by decreasing diagonal of H, would put rows of one group far
apart: kernels would have to gather them, or the scales.
"""

from __future__ import annotations

import numpy as np

from greencc.passes.grouped import GroupedWeight, Scheme, joined, output_error, round_to_nearest, scheme_of


def gptq(weight: np.ndarray, gram: np.ndarray, group: int, bits: int, damping: float = 0.1) -> GroupedWeight:
    """A weight in groups, its levels chosen for small errors in the product rather than in the weight.

    The scheme of a group is made from its rows as they are when it begins. Inputs that the data never show, whose row
    and column of `gram` are 0, have nothing to make up for: their weights become the nearest levels of their group.

    Args:
        weight: float32 [K, N], finite.
        gram: x^T x over calibration data, x [rows, K]: float64 [K, K], finite.
        group: rows that share a scale; the last group may be smaller.
        bits: of a level.
        damping: what is added to the diagonal of `gram`, as a part of its mean (the paper's section 3.3). More of it
            trusts the data less: 0.1 loses nothing with many samples, and with few is better than the paper's 0.01 on
            data that were not seen (docs/decisions/0018-weights-in-groups.md).

    Returns what rounding to the nearest gives where that is no worse by `output_error`, or where `gram` is singular in
    spite of `damping`.
    """
    nearest = round_to_nearest(weight, group, bits)
    factor = _factor(gram + damping * np.mean(np.diag(gram)) * np.eye(len(gram)))
    if factor is None:
        return nearest
    made = _compensated(weight, factor, group, bits)
    errors = [output_error(one.values - weight, gram) for one in (made, nearest)]
    return made if errors[0] < errors[1] else nearest


def _factor(hessian: np.ndarray) -> np.ndarray | None:
    """The upper triangular R with R R^T = `hessian`; None where that is not positive definite."""
    try:
        # Cholesky's lower factor of the rows and columns from last to first.
        return np.asarray(np.linalg.cholesky(hessian[::-1, ::-1])[::-1, ::-1])
    except np.linalg.LinAlgError:
        return None


def _compensated(weight: np.ndarray, factor: np.ndarray, group: int, bits: int) -> GroupedWeight:
    """The weight in levels, each row's error made up for by the rows behind it."""
    levels, errors = np.empty(weight.shape, np.int8), np.empty(weight.shape)
    schemes: list[Scheme] = []
    importance = np.diag(factor) ** 2
    for first in range(0, len(weight), group):
        rows = slice(first, min(first + group, len(weight)))
        inverse = np.linalg.inv(factor[rows, rows])
        left = weight[rows] + inverse.T @ (factor[:first, rows].T @ errors[:first])
        scheme = scheme_of(left.astype(np.float32), bits, importance[rows])
        for k, row in enumerate(left):
            levels[first + k] = scheme.levels(row)
            error = row - scheme.values(levels[first + k])
            left[k + 1 :] -= (inverse[k, k + 1 :] / inverse[k, k])[:, None] * error
        errors[rows] = weight[rows] - scheme.values(levels[rows])
        schemes.append(scheme)
    return joined(levels, schemes, weight, group)
