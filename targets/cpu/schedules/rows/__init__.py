"""Reductions over rows and what hangs on them (softmax, layer norm, means), in as few passes as the sums allow.

    for tasks (parallel): for their rows:
        for vectors of the row: every stage that waits for no sum of this pass    # softmax: the maximum
        for vectors of the row: ...                                               # softmax: exp, and its sum
        for vectors of the row: ...                                               # softmax: exp / sum

A pass takes several vectors side by side, each with sums of its own, because an addition takes longer than what is
added; what is left at the end of a row is taken in halves of a vector, quarters, and so on. What one stage makes for
another of the same pass stays in registers; what a later pass reads is kept in a row of its own or in the output's.

A map is a single pass; its rows are as many of the last axes as lie side by side in all that it reads, so that images
of 7 x 7 positions are rows of 49, and what fills no vector is at the end of those.
"""
