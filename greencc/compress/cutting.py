"""Where an optimised module is cut into stages: at narrow places, and at the ends of its layers."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import tvm
from tvm import relax, tirx

from greencc.ir import (
    INPUTS_ATTR,
    OUTPUTS_ATTR,
    bindings_of,
    constant_array,
    dtype_of,
    is_call,
    operands,
    shape_of,
    substitute,
)
from greencc.passes.base import node_name
from greencc.passes.blocks import Block, find_blocks
from greencc.passes.graph import publish, symbols_of

RESULT = "output."
"""Before the names of the model's outputs, which values between stages can't have."""
# A place is narrow when at most so many times the bytes of the narrowest one around cross it.
_NARROW = 1.5
# All cuts together may be so wide: a search keeps what crosses them for each of its calibration runs.
_MOST_BYTES = 1 << 24
# What an open dimension counts as when bytes are compared.
_OPEN_SIZE = 64
# Bytes of a shape or a tuple: no place to cut.
_UNKNOWN = 1 << 40
_HEAVY = ("relax.matmul", "relax.nn.conv2d")
# A binding and the block that it stands in.
Bound = tuple[relax.Binding, relax.BindingBlock]


@dataclass(frozen=True)
class Stage:
    """A part of the model.

    Attributes:
        module: its main takes the values that live before the stage and returns those that live behind it.
        nodes: names of the operators in it.
    """

    module: tvm.IRModule
    nodes: frozenset[str]


@dataclass(frozen=True)
class Layer:
    """Stages that can be passed over: one of the model's repeated layers.

    Attributes:
        node: name of the operator that it ends with.
        first: number of its first stage.
        end: number of the stage behind its last.
        before: name of the value that goes in.
        behind: name of the value that comes out, which the other takes the place of.
    """

    node: str
    first: int
    end: int
    before: str
    behind: str


@dataclass(frozen=True)
class Cut:
    """The stages of a module, and the layers that whole stages make up."""

    stages: list[Stage]
    layers: list[Layer]


def cut(module: tvm.IRModule, count: int, with_layers: bool = False) -> Cut:
    """Stages of `module`: at most `count`, cut where little lives and with about equally many products each.

    With `with_layers` no stage lies in two layers, or in a layer and outside, and there may be some more of them.
    """
    main = module["main"]
    pairs = [(binding, block) for block in main.body.blocks for binding in block.bindings]
    has_branches = any(isinstance(binding.value, relax.If) for binding, _ in pairs)
    blocks = _separated(main, pairs) if with_layers and not has_branches else {}
    bindings = [binding for binding, _ in pairs]
    lives = _live_values(main, bindings)
    # A shape that lives is no array to hand on.
    blocks = {span: block for span, block in blocks.items() if all(_width(lives[place]) < _UNKNOWN for place in span)}
    ends = {place for places in blocks for place in places}
    # A branch reads what it likes.
    places = [] if has_branches else _places(bindings, lives, ends, count)
    edges = [0, *sorted({*places, *ends} - {0}), len(bindings)]
    names = dict(zip(main.params, map(str, main.attrs[INPUTS_ATTR]), strict=True))
    for place in edges[1:-1]:
        for var in lives[place]:
            names.setdefault(var, f"value{len(names)}")
    stages = [
        _stage(module, pairs[low:high], lives[low], None if high == len(bindings) else lives[high], names)
        for low, high in itertools.pairwise(edges)
    ]
    layers = [
        Layer(block.node, edges.index(first), edges.index(end), names[block.before], names[block.behind])
        for (first, end), block in blocks.items()
    ]
    return Cut(stages, layers)


def _separated(main: relax.Function, pairs: list[Bound]) -> dict[tuple[int, int], Block]:
    """Layers by where they begin and end; what is computed among theirs but not from their input moves before them."""
    found = {}
    for block in find_blocks(main):
        place = {binding.var: i + 1 for i, (binding, _) in enumerate(pairs)} | dict.fromkeys(main.params, 0)
        first, end = place[block.before], place[block.behind]
        reached, inside, others = {block.before}, [], []
        for pair in pairs[first:end]:
            if any(use in reached for use in _used(pair[0].value)):
                reached.add(pair[0].var)
                inside.append(pair)
            else:
                others.append(pair)
        pairs[first:end] = [*others, *inside]
        if end < len(pairs) and isinstance(pairs[end - 1][0].value, relax.Call):
            found[first + len(others), end] = block
    return found


def _places(
    bindings: Sequence[relax.Binding], lives: Sequence[Sequence[relax.Var]], ends: set[int], count: int
) -> list[int]:
    """Where to cut besides the ends of layers: numbers of the bindings that begin another stage."""
    widths = np.array([_width(live) for live in lives])
    heavy = np.cumsum([0, *(_is_heavy(binding.value) for binding in bindings)])
    parts = max(1, min(count, int(heavy[-1])))
    around = max(heavy[-1] / parts / 2, 1)

    def is_narrow(place: int) -> bool:
        near = np.abs(heavy[1:-1] - heavy[place]) <= around
        return bool(widths[place] <= min(_NARROW * widths[1:-1][near].min(), _UNKNOWN - 1))

    allowed = [place for place in range(1, len(bindings)) if is_narrow(place)]
    if not allowed:
        return []
    # Of equally narrow places the last, behind what a product is fused with.
    shares = [heavy[-1] * i / parts for i in range(1, parts)]
    wanted = {min(allowed, key=lambda i: (abs(heavy[i] - share), widths[i], -i)) for share in shares}
    taken = {int(heavy[end]) for end in ends}
    chosen = sorted((i for i in wanted if int(heavy[i]) not in taken), key=lambda i: int(widths[i]))
    kept = np.cumsum([sum(int(widths[end]) for end in ends), *(int(widths[i]) for i in chosen)])[1:]
    return [i for i, total in zip(chosen, kept, strict=True) if total <= _MOST_BYTES]


def _is_heavy(value: relax.Expr) -> bool:
    """Whether it is a product or a convolution with a constant."""
    constant = any(constant_array(use) is not None for use in operands(value))
    return constant and any(is_call(value, name) for name in _HEAVY)


def _live_values(main: relax.Function, bindings: Sequence[relax.Binding]) -> list[list[relax.Var]]:
    """What lives before each binding, and behind the last: what is read from there on and made before it.

    Parameters with symbolic dimensions live on: they say what the symbols are.
    """
    givers = [param for param in main.params if any(True for _ in symbols_of(param.ty))]
    live: dict[relax.Var, None] = dict.fromkeys(_used(main.body.body))
    found = [list(live)]
    for binding in reversed(bindings):
        live.pop(binding.var, None)
        live.update(dict.fromkeys(_used(binding.value)))
        found.append(list(dict.fromkeys([*live, *givers])))
    return [list(main.params), *found[-2::-1]]


def _used(value: relax.Expr) -> list[relax.Var]:
    uses = [value] if isinstance(value, relax.Var) else operands(value)
    return [use for use in uses if isinstance(use, relax.Var)]


def _width(live: Sequence[relax.Var]) -> int:
    return sum(map(_bytes, live))


def _bytes(var: relax.Var) -> int:
    shape = shape_of(var.ty)
    if shape is None:
        return _UNKNOWN
    sizes = [int(dim) if isinstance(dim, tirx.IntImm) else _OPEN_SIZE for dim in shape]
    return prod(sizes) * np.dtype(str(dtype_of(var.ty))).itemsize


def _stage(
    module: tvm.IRModule,
    bindings: Sequence[Bound],
    before: Sequence[relax.Var],
    behind: Sequence[relax.Var] | None,
    names: Mapping[relax.Var, str],
) -> Stage:
    """The stage of some bindings, with the blocks that they come from; `behind` is None for the last one."""
    main, builder = module["main"], relax.BlockBuilder()
    # What was made by another stage, perhaps as a dataflow variable, is a parameter here.
    params: dict[relax.Expr, relax.Expr] = {var: relax.Var(names[var], var.ty) for var in before}
    blocks: list[relax.BindingBlock] = []
    for block, members in itertools.groupby(bindings, key=lambda pair: pair[1]):
        kind = relax.DataflowBlock if isinstance(block, relax.DataflowBlock) else relax.BindingBlock
        blocks.append(kind([_with_values(builder, binding, params) for binding, _ in members]))
    if behind is None:
        returned = main.body.body
        outputs = [RESULT + str(name) for name in main.attrs[OUTPUTS_ATTR]]
    else:
        returned = relax.Tuple(list(behind))
        outputs = [names[var] for var in behind]
    returned = builder.normalize(substitute(returned, params))
    result = relax.Var("result", returned.ty)
    blocks.append(relax.BindingBlock([relax.VarBinding(result, returned)]))
    body = publish(builder.normalize(relax.SeqExpr(blocks, result)))
    attrs = {key: main.attrs[key] for key in main.attrs.keys()}  # noqa: SIM118 (not a mapping)
    attrs |= {INPUTS_ATTR: [names[var] for var in before], OUTPUTS_ATTR: outputs}
    function = relax.Function(list(params.values()), body, result.ty, main.is_pure).with_attrs(attrs)
    staged = module.clone()
    staged.update_func(module.get_global_var("main"), function)
    nodes = frozenset(node_name(b.var, b.value) for b in bindings_of(function) if isinstance(b.value, relax.Call))
    return Stage(staged, nodes)


def _with_values(
    builder: relax.BlockBuilder, binding: relax.Binding, values: Mapping[relax.Expr, relax.Expr]
) -> relax.Binding:
    new = builder.normalize(substitute(binding.value, values))
    if isinstance(binding, relax.MatchCast):
        return relax.MatchCast(binding.var, new, binding.ty)
    return relax.VarBinding(binding.var, new)
