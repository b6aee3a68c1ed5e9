"""Depthwise convolutions of NCHW data: each channel by filters of its own, everything elementwise behind them included.

    out[n, c * m + j, y, x] = f(sum_{r, q} in[n, c, y*sy + r*dy - top, x*sx + q*dx - left] * w[c * m + j, 0, r, q], ...)

A band of output rows of a channel is computed from a padded copy of the input rows that it needs, split by column
stride into phases (columns 0, 2, 4... apart from 1, 3, 5...). It stays in the first cache, and taps read whole vectors
from it. A register tile holds neighbouring outputs of several rows: each vector of the copy is loaded once and
multiplied by a column of the filter, one weight for each row of outputs that it belongs to.

Tiles at the end of a row or band overlap those before, so that all are whole.
"""
