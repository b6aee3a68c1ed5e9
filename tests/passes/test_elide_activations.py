"""elide-activations: what goes, what stays and why, and that every bit of every output is kept."""

from __future__ import annotations

import functools
from collections.abc import Callable

import builders
import elision_cases
import numpy as np
import pytest
import tvm
from builders import assert_equal, const, graph, rewritten
from elision_cases import SHAPE, Case
from tvm import relax
from tvm.relax import op as R

from greencc.errors import UserError
from greencc.ir import bindings_of, span_of
from greencc.passes.base import PassContext, PassResult
from greencc.passes.elide_activations import ElideActivations
from greencc.passes.registry import parse_pipeline

PASS = ElideActivations()
REMOVED, REFUSED = list(elision_cases.removed()), list(elision_cases.refused())


@functools.cache
def generated() -> tuple[tvm.IRModule, PassResult]:
    """The generated graph, and what the pass makes of it."""
    before = elision_cases.module_of(REMOVED + REFUSED)
    return before, PASS.run(before, PassContext())


def named_calls(module: tvm.IRModule) -> set[tuple[str, str]]:
    """(node name, operator) of every call that carries a name."""
    values = [binding.value for binding in bindings_of(module["main"])]
    return {(span_of(v), v.op.name) for v in values if isinstance(v, relax.Call) and span_of(v) is not None}


def marked(case: Case) -> tuple[str, str]:
    return next(pair for pair in named_calls(generated()[0]) if pair[0] == case.name)


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.name)
def test_near_miss_stays(case: Case) -> None:
    _, result = generated()
    assert marked(case) in named_calls(result.module)
    found = [(r.condition, r.reason) for r in result.refusals if r.node == case.name]
    reasons = {c.number: c.reason for c in PASS.conditions}
    assert found == [(case.condition, reasons.get(case.condition, "this condition is gone"))]


@pytest.mark.parametrize("case", REMOVED, ids=lambda case: case.name)
def test_activation_goes(case: Case) -> None:
    assert marked(case) not in named_calls(generated()[1].module)


def test_the_generated_graph_is_large() -> None:
    assert len(REMOVED) >= 60
    assert len(REFUSED) >= 60
    assert len({case.name for case in REMOVED + REFUSED}) == len(REMOVED) + len(REFUSED)
    assert {case.condition for case in REFUSED} >= {c.number for c in PASS.conditions}


def test_every_output_keeps_its_bits() -> None:
    before, result = generated()
    relax.analysis.well_formed(result.module)
    both = tvm.IRModule(
        {name: module["main"].with_attr("global_symbol", name) for name, module in
         (("before", before), ("after", result.module))}
    )  # fmt: skip
    machine = relax.VirtualMachine(tvm.compile(both, tvm.target.Target({"kind": "llvm"})), tvm.cpu())
    names = ["b", "p", "w", "z", "row", *(case.name for case in REMOVED + REFUSED)]
    for seed in range(8):
        arrays = [tvm.runtime.tensor(a) for a in elision_cases.inputs(seed)]
        for name, old, new in zip(names, machine["before"](*arrays), machine["after"](*arrays), strict=True):
            assert old.numpy().dtype == new.numpy().dtype
            assert old.numpy().tobytes() == new.numpy().tobytes(), (name, seed)


def test_a_second_run_finds_nothing() -> None:
    _, result = generated()
    again = PASS.run(result.module, PassContext())
    assert again.rewrites == 0
    tvm.ir.assert_structural_equal(again.module, result.module)


def test_rewrites_are_counted_by_rule() -> None:
    _, result = generated()
    assert sum(result.counts.values()) == result.rewrites >= len(REMOVED)
    assert set(result.counts) == {
        "nil", "constant", "where", "dropout", "merged", "canonical", "absorbed", "argmax", "sigmoid",
    }  # fmt: skip


Body = Callable[..., object]
# Before, after, number of rewrites: structure, not only effect.
STRUCTURES: dict[str, tuple[Body, Body, int]] = {
    "relu of relu of relu": (
        lambda e, x: e(R.nn.relu(e(R.nn.relu(e(R.nn.relu(x)))))),
        lambda e, x: e(R.nn.relu(x)),
        2,
    ),
    "clips intersect": (
        lambda e, x: e(R.clip(e(R.clip(x, 0, 4)), 2, 6)),
        lambda e, x: e(R.clip(x, 2.0, 4.0)),
        1,
    ),
    "four clips": (
        lambda e, x: e(R.clip(e(R.clip(e(R.clip(e(R.clip(x, 0, 9)), -1, 8)), 1, 9)), 0, 7)),
        lambda e, x: e(R.clip(x, 1.0, 7.0)),
        3,
    ),
    "clips that do not meet": (
        lambda e, x: e(R.clip(e(R.clip(x, 0, 1)), 2, 3)),
        lambda e, x: e(R.full(SHAPE, const(2))),
        1,
    ),
    "relu of clip": (
        lambda e, x: e(R.nn.relu(e(R.clip(x, -1, 6)))),
        lambda e, x: e(R.clip(x, 0.0, 6.0)),
        1,
    ),
    "where becomes relu, which goes": (
        lambda e, x: e(R.where(e(R.greater(y := e(R.nn.relu(x)), const(0))), y, const(0))),
        lambda e, x: e(R.nn.relu(x)),
        1,
    ),
    "maximum becomes relu, then merges": (
        lambda e, x: e(R.clip(e(R.maximum(e(R.clip(x, -3, 3)), const(0))), -1, 2)),
        lambda e, x: e(R.clip(x, 0.0, 2.0)),
        2,
    ),
    "dropout": (
        lambda e, x: [e(e(R.nn.dropout(e(R.exp(x))))[0])],
        lambda e, x: [e(R.exp(x))],
        1,
    ),
    "sigmoid compared": (
        lambda e, x: e(R.greater(e(R.sigmoid(e(R.round(x)))), const(0.3))),
        lambda e, x: e(R.greater(e(R.round(x)), const(-0.5))),
        1,
    ),
    "argmax of softmax": (
        lambda e, x: e(R.argmax(e(R.nn.softmax(e(R.round(e(R.clip(x, 0, 9)))))), 1)),
        lambda e, x: e(R.argmax(e(R.round(e(R.clip(x, 0, 9)))), 1)),
        1,
    ),
    "a merge with a shared value is none, but a no-op goes": (
        lambda e, x: [y := e(R.clip(x, 0, 4)), e(R.nn.relu(y)), e(R.exp(y))],
        lambda e, x: [y := e(R.clip(x, 0, 4)), y, e(R.exp(y))],
        1,
    ),
}


@pytest.mark.parametrize("name", STRUCTURES)
def test_structure(name: str) -> None:
    before, after, rewrites = STRUCTURES[name]
    assert_equal(rewritten(PASS, graph(before, x=SHAPE), rewrites), graph(after, x=SHAPE))


def test_symbolic_shapes_are_kept() -> None:
    shape = ("batch", 8)
    module = graph(lambda e, x: e(R.clip(e(R.clip(x, 0, 1)), 2, 3)), x=shape)
    expected = graph(lambda e, x: e(R.full(list(x.ty.shape.values), const(2))), x=shape)
    assert_equal(rewritten(PASS, module), expected)


def test_a_rewritten_call_keeps_its_source_name() -> None:
    module = graph(lambda e, x: e(R.clip(e(R.clip(x, 0, 4)), 2, 6)), x=SHAPE)
    assert named_calls(rewritten(PASS, module)) == {("clip.2", "relax.clip")}


def test_branches_are_visited_too() -> None:
    builder = relax.BlockBuilder()
    y = relax.Var("y", relax.TensorType(SHAPE, "float32"))
    with builder.function("branch", [y], private=True):
        with builder.dataflow():
            out = builder.emit_output(relax.Tuple([builder.emit(R.nn.relu(builder.emit(R.nn.relu(y))))]))
        branch = builder.emit_func_output(out)
    c, x = relax.Var("c", relax.TensorType((), "bool")), relax.Var("x", relax.TensorType(SHAPE, "float32"))
    with builder.function("main", [c, x]):
        call = relax.Call(branch, [x])
        builder.emit_func_output(builder.emit(relax.If(c, call, call)))
    module = builder.get()
    result = PASS.run(module, PassContext())
    assert result.rewrites == 1
    assert builders.ops(result.module).count("nn.relu") == 1


INEXACT = ElideActivations(exact=False)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (lambda e, x: e(R.nn.relu(e(R.sigmoid(x)))), lambda e, x: e(R.sigmoid(x))),
        (lambda e, x: e(R.clip(e(R.nn.relu(x)), 0, 6)), lambda e, x: e(R.clip(x, 0.0, 6.0))),
        (lambda e, x: e(R.maximum(const(0), x)), lambda e, x: e(R.nn.relu(x))),
        (lambda e, x: e(R.argmax(e(R.nn.softmax(x)), 1)), lambda e, x: e(R.argmax(x, 1))),
        (lambda e, x: e(R.less(e(R.sigmoid(x)), const(0.5))), lambda e, x: e(R.less(x, const(0)))),
    ],
    ids=["NaN", "NaN in a merge", "signed zero", "ties", "centre of sigmoid"],
)
def test_inexact_waives_nan_zero_and_ties(before: Body, after: Body) -> None:
    module = graph(before, x=SHAPE)
    assert PASS.run(module, PassContext()).rewrites == 0
    assert_equal(rewritten(INEXACT, module), graph(after, x=SHAPE))


def test_inexact_still_needs_the_same_numbers() -> None:
    module = graph(lambda e, x: e(R.nn.relu(e(R.tanh(x)))), x=SHAPE)
    assert [r.condition for r in INEXACT.run(module, PassContext()).refusals] == [1]


def test_options_parse() -> None:
    assert parse_pipeline("elide-activations{exact=false}") == (INEXACT,)
    with pytest.raises(UserError, match="has no option 'fast'"):
        parse_pipeline("elide-activations{fast=true}")


# How TVM lowers the activations, by which every promise about NaN and -0.0 stands: (operator, NaN, -0.0).
LOWERING: dict[str, tuple[Callable[[relax.Expr], relax.Expr], float, float]] = {
    "relu": (R.nn.relu, 0.0, 0.0),
    "maximum": (lambda x: R.maximum(x, const(0)), 0.0, 0.0),
    "maximum, constant first": (lambda x: R.maximum(const(0), x), np.nan, -0.0),
    "minimum": (lambda x: R.minimum(x, const(0)), 0.0, 0.0),
    "minimum, constant first": (lambda x: R.minimum(const(0), x), np.nan, -0.0),
    "clip": (lambda x: R.clip(x, 0, 6), 6.0, 0.0),
    "clip around 0": (lambda x: R.clip(x, -1, 6), 6.0, -0.0),
    "leaky relu": (lambda x: R.nn.leakyrelu(x, 0.1), np.nan, -0.0),
    "abs": (R.abs, np.nan, 0.0),
    "where greater": (lambda x: R.where(R.greater(x, const(0)), x, const(0)), 0.0, 0.0),
    "where greater or equal": (lambda x: R.where(R.greater_equal(x, const(0)), x, const(0)), 0.0, -0.0),
}


def test_lowering_of_nan_and_signed_zero() -> None:
    module = graph(lambda e, x: [e(make(x)) for make, _, _ in LOWERING.values()], x=(2,))
    found = builders.run_by_tvm(module, np.array([np.nan, -0.0], "float32"))
    for (name, (_, nan, zero)), got in zip(LOWERING.items(), found, strict=True):
        np.testing.assert_array_equal(got, np.array([nan, zero], "float32"), err_msg=name)
        assert np.signbit(got[1]) == np.signbit(zero), name
