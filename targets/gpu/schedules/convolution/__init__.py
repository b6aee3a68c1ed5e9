"""Convolutions and other sums of products over windows, with everything elementwise behind them in one kernel.

    out[n, k, y, x] = f(sum_{c, r, q} data(n, group of k, y, x, c, r, q) * weight(k, c, r, q), ...)

The data's factor is any expression: padding, stride and dilation are in its indices, and a padded copy is never made.
Where filters share data, the sum is a matrix product (`gemm`): filters are rows, positions of the output are columns,
and the columns' elements are gathered as they are needed (implicit GEMM: Chetlur et al., arXiv:1410.0759). Where each
channel has a filter or two of its own, and for pooling, a thread computes an output by itself (`window`).
"""
