"""Products without matrix units, from the CUDA source that they become: remainders of tiles in every direction."""

from pathlib import Path

import numpy as np
import pytest
from host_cuda import HostKernel
from test_tensor_core import product, values

from greencc.targets.base import Scheduled
from greencc.targets.cuda.target import CudaTarget
from greencc.targets.gpu.schedules.matmul import MatmulRule


@pytest.mark.parametrize(("rows", "columns"), [(70, 200), (4, 70)])
def test_nothing_is_stored_behind_the_last_column(rows: int, columns: int, tmp_path: Path) -> None:
    func = product(rows, columns, 64, "float32", "float32")
    outcome = MatmulRule(CudaTarget("sm_80")).apply(func, frozenset())
    assert isinstance(outcome, Scheduled), outcome
    kernel = HostKernel(outcome.func.with_attr("global_symbol", "mm"), tmp_path)
    a, b, bias = (values(shape, "float32", i) for i, shape in enumerate([(rows, 64), (64, columns), (columns,)]))
    memory = np.full(rows * columns + 1024, 77, np.float32)
    out = memory[: rows * columns].reshape(rows, columns)
    kernel(A=a, B=b, bias=bias, D=out)
    np.testing.assert_allclose(out, np.maximum(a @ b + bias, 0), rtol=0, atol=1e-4)
    assert (memory[rows * columns :] == 77).all()
