import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from greencc.targets.packing import ChannelBlocks, ColumnPanels, WordBlocks


@given(rows=st.integers(1, 9), columns=st.integers(1, 40), width=st.integers(1, 17))
def test_every_weight_is_at_its_place_and_the_rest_is_zero(rows: int, columns: int, width: int) -> None:
    layout = ColumnPanels(width)
    weight = np.arange(1, rows * columns + 1, dtype=np.float32).reshape(rows, columns)
    packed = layout.pack(weight)
    assert packed.shape == layout.shape(rows, columns)
    for k in range(rows):
        for j in range(columns):
            assert packed[j // width, k, j % width] == weight[k, j]
    assert packed.sum() == weight.sum()


def test_packing_keeps_the_element_type() -> None:
    assert ColumnPanels(4).pack(np.ones((2, 3), np.int8)).dtype == np.int8


@given(
    groups=st.integers(1, 3), each=st.integers(1, 5), channels=st.integers(1, 6), width=st.integers(1, 4),
    depth=st.sampled_from([1, 2, 4]),
)  # fmt: skip
def test_words_hold_neighbouring_channels(groups: int, each: int, channels: int, width: int, depth: int) -> None:
    weight = np.arange(1, groups * each * channels * 2 + 1, dtype=np.int8).reshape(groups * each, channels, 1, 2)
    layout = WordBlocks(width, groups, depth, "int16")
    packed = layout.pack(weight)
    assert packed.dtype == np.int16
    assert packed.shape == layout.shape(*weight.shape)
    blocks = -(-each // width)
    for k, c, q in np.ndindex(groups * each, channels, 2):
        block, place = k // each * blocks + k % each // width, k % each % width
        assert packed[block, c // depth, 0, q, place * depth + c % depth] == weight[k, c, 0, q]
    assert packed.sum() == weight.sum()


def test_words_of_one_channel_are_blocks_of_channels() -> None:
    weight = np.arange(60, dtype=np.int8).reshape(5, 4, 3, 1)
    packed = WordBlocks(2, 1, 1, "int8").pack(weight)
    np.testing.assert_array_equal(packed, ChannelBlocks(2, 1).pack(weight))
