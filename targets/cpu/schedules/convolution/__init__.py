"""Two-dimensional convolutions of NCHW data by constant weights, with everything elementwise behind them in one kernel.

    out[n, k, y, x] = f(sum_{c, r, q} in[n, c, y*sy + r*dy - top, x*sx + q*dx - left] * w[k, c, r, q], ...)

Operands are float32; or bytes whose products are summed in int32: then `depth` neighbouring channels of a position make
one 32-bit word, and what is said of channels below holds for such words.

Vectors run over positions of the output. A band of output rows is one run of positions `y * pitch + x`, where `pitch`
is the distance between rows of the source: a filter tap then reads a run of the source that begins elsewhere, in whole
vectors, for any width. The positions between two rows of the output are computed and dropped (2 of 58 for a 3 x 3
filter on 56 columns). Each vector of the source serves `rows` output channels, whose weights lie side by side.

The source is the input itself where nothing is padded and the stride is 1. Otherwise it is a padded copy, split by
stride into phases (columns 0, 2, 4... apart from 1, 3, 5...), so that taps still read whole vectors: of all the input,
or in each task of what its band needs.

Channels of the source lie pages apart. Where several blocks of output channels read the same vectors, a task copies the
vectors of a tile into a panel first, in the order of the sum, and all its blocks read that: in a row, and aligned.

By a plan that was found by tuning, vectors may run over output channels instead, so that an image of few positions
leaves no vector half empty; and the tail may be evaluated on sums that are still in registers. See `Plan`.
"""
