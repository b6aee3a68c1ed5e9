"""Records as hypothesis draws them."""

from __future__ import annotations

from hypothesis import strategies as st
from made_records import TIMES, trial

from greencc.tuning.records import Failed, Measured, Trial


@st.composite
def trials(draw: st.DrawFn) -> Trial:
    """Trials of few kernels, sizes, plans and times, so that they meet."""
    sizes = draw(st.sampled_from([{}, {"s0": (16,)}, {"s0": (16, 128)}, {"s0": (1, 1), "s1": (16, 128)}]))
    points = len(next(iter(sizes.values()))) if sizes else 1
    ratios = st.sampled_from([0.25, 0.5, 0.5, 0.9, 0.995, 1.0, 1.5])
    seconds = draw(st.lists(ratios, min_size=points, max_size=points))
    spread = draw(st.sampled_from([0.0, 0.02, 0.2]))
    fails = draw(st.integers(0, 5)) == 0
    outcome = Failed("a reason") if fails else Measured(tuple(seconds), (spread,) * points, (1.0,) * points)
    return trial(
        draw(st.integers(0, 6)),
        outcome,
        workload=draw(st.sampled_from(["a" * 16, "b" * 16])),
        sizes=sizes,
        at=draw(st.sampled_from(TIMES)),
    )
