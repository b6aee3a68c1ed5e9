"""Small graphs for pass tests, and the checks that every rewrite gets: effect, idempotence, refusals."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Sequence

import numpy as np
import reference
import tvm
from tvm import ir, relax, tirx

from greencc.errors import GreenccError
from greencc.ir import bindings_of, make_span, relax_functions
from greencc.passes.base import Pass, PassContext, PassResult, RewritePass
from greencc.passes.graph import Graph

Shape = Sequence[int | str]
Emit = Callable[[relax.Expr], relax.Var]


def graph(body: Callable[..., object], /, **inputs: object) -> tvm.IRModule:
    """The module of `body(emit, *inputs)`, which returns one value or several.

    An input is given by its shape, or by (shape, dtype); a string in a shape is a symbolic dimension.
    Each call is named after its operator and its number, e.g. "matmul.3".
    """
    symbols: dict[str, tirx.Var] = {}

    def dims(shape: Shape) -> list[object]:
        return [symbols.setdefault(d, tirx.Var(d, "int64")) if isinstance(d, str) else d for d in shape]

    params = []
    for name, spec in inputs.items():
        shape, kind = spec if spec and isinstance(spec[0], tuple) else (spec, "float32")
        params.append(relax.Var(name, relax.TensorType(dims(shape), kind)))
    block = relax.BlockBuilder()
    count = 0

    def emit(value: relax.Expr) -> relax.Var:
        nonlocal count
        count += 1
        if isinstance(value, relax.Call):
            node = f"{value.op.name.split('.')[-1]}.{count}"
            value = relax.Call(value.op, value.args, value.attrs, value.ty_args, make_span(node))
        return block.emit(value)

    with block.function("main", params):
        with block.dataflow():
            result = body(emit, *params)
            results = list(result) if isinstance(result, (tuple, list)) else [result]
            output = block.emit_output(relax.Tuple(results))
        block.emit_func_output(output)
    return block.finalize()


def const(value: object, dtype: str = "float32") -> relax.Expr:
    """A constant of any shape."""
    return relax.const(np.asarray(value, dtype), dtype)


def random(*shape: int, seed: int = 0) -> np.ndarray:
    """Normal float32 values, the same in every run."""
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype("float32")


def ops(module: tvm.IRModule) -> list[str]:
    """Operators of a module in execution order, without the "relax." prefix."""
    return [
        binding.value.op.name.removeprefix("relax.")
        for _, function in relax_functions(module)
        for binding in bindings_of(function)
        if isinstance(binding.value, relax.Call) and isinstance(binding.value.op, ir.Op)
    ]


def the_call(module: tvm.IRModule, op: str) -> relax.Call:
    """The only call of an operator."""
    graph_ = Graph(module, module["main"])
    found = [v for _, v in graph_.definitions() if isinstance(v, relax.Call) and v.op.name == op]
    assert len(found) == 1, ops(module)
    return found[0]


def run(pass_: Pass, module: tvm.IRModule) -> PassResult:
    """What the pass makes of the module, checked for well-formedness."""
    result = pass_.run(module, PassContext())
    assert relax.analysis.check_well_formed(result.module), result.module
    return result


def rewritten(pass_: Pass, module: tvm.IRModule, rewrites: int = 1) -> tvm.IRModule:
    """The module after the pass, which must make this many rewrites, and none when it runs again."""
    result = run(pass_, module)
    assert result.rewrites == rewrites, (result.rewrites, result.refusals, ops(result.module))
    again = run(pass_, result.module)
    assert again.rewrites == 0, again.counts
    tvm.ir.assert_structural_equal(again.module, result.module)
    return result.module


def assert_equal(module: tvm.IRModule, expected: tvm.IRModule) -> None:
    """The modules are the same but for names and source positions."""
    tvm.ir.assert_structural_equal(module, expected, map_free_vars=True)


def assert_unmatched(pass_: Pass, module: tvm.IRModule) -> None:
    """The form is another one: no rewrite, and no refusal either."""
    result = run(pass_, module)
    assert result.rewrites == 0
    assert result.refusals == ()
    tvm.ir.assert_structural_equal(result.module, module)


def assert_refused(pass_: RewritePass, module: tvm.IRModule, number: int, reason: str) -> None:
    """Condition `number` alone stands between the pass and a rewrite of the module.

    Without the condition the pass rewrites, or makes what has no type, or another one.
    """
    result = run(pass_, module)
    assert result.rewrites == 0, ops(result.module)
    assert {(r.condition, r.reason) for r in result.refusals} == {(number, reason)}
    assert all(r.pass_name == pass_.name and "." in r.node for r in result.refusals)
    left = tuple(c for c in pass_.conditions if c.number != number)
    unguarded = type("Unguarded", (type(pass_),), {"conditions": left})()
    # TVM's own checks of types speak through these errors.
    with warnings.catch_warnings(), contextlib.suppress(GreenccError, RuntimeError, TypeError, ValueError):
        warnings.simplefilter("ignore")
        assert unguarded.run(module, PassContext()).rewrites > 0


def assert_same_values(
    before: tvm.IRModule,
    after: tvm.IRModule,
    *inputs: np.ndarray,
    rtol: float,
    atol: float,
    by_tvm: bool = False,
) -> None:
    """Both modules compute the same: in float64 by numpy, and with `by_tvm` in float32 by TVM."""
    expected = reference.evaluate(before, *inputs)
    pairs = [(expected, reference.evaluate(after, *inputs))]
    if by_tvm:
        pairs += [(expected, run_by_tvm(module, *inputs)) for module in (before, after)]
    for wanted, got in pairs:
        for a, b in zip(wanted, got, strict=True):
            np.testing.assert_allclose(b, a, rtol=rtol, atol=atol)


def run_by_tvm(module: tvm.IRModule, *inputs: np.ndarray) -> list[np.ndarray]:
    """Outputs of TVM's default pipeline on the CPU."""
    machine = relax.VirtualMachine(tvm.compile(module, tvm.target.Target({"kind": "llvm"})), tvm.cpu())
    return [out.numpy() for out in machine["main"](*[tvm.runtime.tensor(i) for i in inputs])]
