import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from greencc.targets.packing import ColumnPanels


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
