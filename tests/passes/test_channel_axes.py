from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from tvm import tirx

from greencc.passes.channel_axes import ChannelAxis, reshaped

CHANNELS, AXIS = 6, 1
BEFORE = [(2, CHANNELS, 2, 3), (1, CHANNELS, 4), (4, CHANNELS), (2, CHANNELS, 1, 1)]


def dims(shape):
    return [tirx.IntImm("int64", size) for size in shape]


def shapes(total):
    """All shapes of up to four axes with so many elements."""
    sizes = [size for size in range(1, total + 1) if total % size == 0]
    return [s for rank in range(1, 5) for s in itertools.product(sizes, repeat=rank) if math.prod(s) == total]


@pytest.mark.parametrize("before", BEFORE)
def test_each_index_of_the_new_axis_holds_elements_of_its_channel_and_of_those_tied_to_it(before):
    numbers = np.arange(CHANNELS)
    spread = [1] * len(before)
    spread[AXIS] = CHANNELS
    channels = np.broadcast_to(numbers.reshape(spread), before)
    found = 0
    for behind in shapes(math.prod(before)):
        result = reshaped(ChannelAxis(AXIS, numbers), dims(before), dims(behind))
        if result is None:
            continue
        found += 1
        axis, rows = result
        assert rows.shape[1] == len(axis.numbers) == behind[axis.axis]
        first = {int(number): int(rows[0][column]) for row in rows for column, number in enumerate(row)}
        tied = np.vectorize(first.get)(channels.reshape(behind))
        others = [1] * len(behind)
        others[axis.axis] = behind[axis.axis]
        np.testing.assert_array_equal(tied, np.broadcast_to(axis.numbers.reshape(others), behind))
    assert found > 5


@pytest.mark.parametrize(
    ("before", "behind", "numbers"),
    [
        ((2, 3, 4), (2, 12), np.repeat(range(3), 4)),
        ((4, 3), (12,), np.tile(range(3), 4)),
        ((2, 2, 3, 2), (2, 12), np.tile(np.repeat(range(3), 2), 2)),
        ((2, 3, 1, 1), (2, 3), range(3)),
        ((2, 3, 4), (3, 8), None),
        ((2, 3, 4), (2, 2, 6), None),
    ],
)
def test_merged_axes_repeat_channels(before, behind, numbers):
    axis = before.index(3)
    result = reshaped(ChannelAxis(axis, np.arange(3)), dims(before), dims(behind))
    if numbers is None:
        assert result is None
    else:
        np.testing.assert_array_equal(result[0].numbers, numbers)


def test_open_dimensions_may_stand_before_and_behind():
    batch, width = tirx.Var("n", "int64"), tirx.Var("w", "int64")
    source = ChannelAxis(1, np.arange(6))
    axis, rows = reshaped(source, [batch, *dims([6, 1]), width], [batch, *dims([6]), width])
    assert (axis.axis, rows.shape) == (1, (1, 6))
    axis, rows = reshaped(source, [batch, *dims([6]), width], [batch, *dims([2, 3]), width])
    assert (axis.axis, rows.tolist()) == (2, [[0, 1, 2], [3, 4, 5]])
    assert reshaped(source, [batch, *dims([6]), width], [width, *dims([6]), batch]) is None


def test_tensors_without_elements_have_no_channels_to_follow():
    for channels, before, behind in ((0, (1, 0, 4), (1, 0)), (6, (0, 6, 2), (0, 12)), (6, (2, 6, 0), (12, 0))):
        assert reshaped(ChannelAxis(1, np.arange(channels)), dims(before), dims(behind)) is None
