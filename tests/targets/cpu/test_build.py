"""The machine code of one module is the same whenever it is generated."""

from running import function, host
from tvm import relax, tirx

from greencc.targets.lower import lower


def test_code_with_symbolic_sizes_is_the_same_every_time() -> None:
    batch, rows = tirx.Var("batch", "int64"), tirx.Var("rows", "int64")

    def body(emit, x, y):
        joined = emit(relax.op.concat([x, y], axis=1))
        return [emit(relax.op.nn.softmax(joined)), emit(relax.op.nn.relu(x)), emit(relax.op.sum(joined, axis=[2]))]

    module = function({"x": ((batch, rows, 3), "float32"), "y": ((batch, 2, 3), "float32")}, body)
    libraries = {host().build(lower(module, host()).module).library for _ in range(6)}
    assert len(libraries) == 1
