"""The pass that computes the real tokens of a padded batch only."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import tvm
from tvm import ir, relax, tirx

from greencc.errors import UserError
from greencc.ir import (
    OUTPUTS_ATTR,
    PADDING_ATTR,
    SYMBOL_LOWER_ATTR,
    SYMBOL_UPPER_ATTR,
    dim_text,
    operands,
    shape_of,
    span_of,
    with_span,
)
from greencc.kernels import kernel
from greencc.kernels.padding import TOKENS
from greencc.ops import ATTENTION, AttentionAttrs, packed_attention
from greencc.padding import TOKENS_SYMBOL, ElidedPadding
from greencc.passes.base import Condition, Pass, PassContext, PassResult, Refusal
from greencc.passes.graph import Builder, Graph, eliminate_dead, rebuild
from greencc.passes.mask_values import MaskValues, mask_values
from greencc.passes.row_wise import Batch, Leads, leads_of, packed_shape, picks_tokens
from greencc.symbolic import evaluate

# A key is out of sight when so much is taken from its score: exp of it is 0, unless scores lie 9,900 apart.
_OUT_OF_SIGHT = -1e4


@dataclass(frozen=True)
class Sizes:
    """Numbers for the symbolic sizes, with which masks are followed: `batch` sequences of `longest` places."""

    batch: int
    longest: int
    by_name: Mapping[str, int]


@dataclass(frozen=True)
class Attention:
    """An attention whose mask is computed from the mask input.

    Attributes:
        masks: what is added to its scores, for some sizes; None for what can't be followed.
    """

    masks: tuple[tuple[Sizes, MaskValues | None], ...]

    def depends_on_own_key(self) -> bool:
        """Whether each score depends on its own key's element of the mask, or on none."""
        return all(values is not None and _is_of_own_key(values, sizes) for sizes, values in self.masks)

    def keeps_real_keys(self) -> bool:
        """Whether nothing is added to the score of a real key."""
        return all(values is None or bool((values.real == 0).all()) for _, values in self.masks)

    def hides_padded_keys(self) -> bool:
        """Whether a padded key does not count."""
        return all(values is None or bool((values.padded <= _OUT_OF_SIGHT).all()) for _, values in self.masks)


def _is_of_own_key(values: MaskValues, sizes: Sizes) -> bool:
    """Whether values [B, heads, S, S], up to axes of length 1, depend on the mask's [b, k] only."""
    if values.source.ndim != 4 or values.source.shape[3] != sizes.longest:
        return False
    own = np.arange(sizes.batch * sizes.longest).reshape(sizes.batch, 1, 1, sizes.longest)
    return bool(((values.source == -1) | (values.source == own)).all())


@dataclass(frozen=True)
class Leak:
    """A use of a value of which only the real tokens will be computed.

    Attributes:
        is_output: the value is an output of the model, or single tokens of it are picked.
        is_zero: its padded rows are zeros in any case.
    """

    is_output: bool
    is_zero: bool
    explicit: bool


def _anchors(check: Callable[[Attention], bool]) -> Callable[[object], bool]:
    return lambda match: not isinstance(match, Attention) or check(match)


def _leaks(check: Callable[[Leak], bool]) -> Callable[[object], bool]:
    return lambda match: not isinstance(match, Leak) or check(match)


@dataclass(frozen=True)
class ElidePadding(Pass):
    """Compute the real tokens only: pack them behind each other, and spread the results again.

    A batch [B, S] of sequences with a mask of zeros and ones becomes [1, N], its N real tokens. Operators that treat
    each token by itself run on those; attention gets the place where each sequence starts. What leaves the region,
    the model's outputs for example, is spread over [B, S] again with zeros where the padding was. Tokens may lie
    anywhere: padding on the left, or in the middle, is elided as well. The mask input must hold zeros and ones.
    Legal when
    1. each element of an attention's mask is a function of its own key's element of the mask input;
    2. nothing is added to the score of a real key;
    3. at least 10,000 is taken from the score of a padded key, so that its probability is 0;
    4. what is computed from padded rows elsewhere sees zeros that it saw before, because they were multiplied with
        the mask, or else it is an output or picks single tokens (the first, for example);
    5. such outputs change where the padding was: that is done only when `mask` names the mask input.

    Without `mask`, the pass elides only what no output depends on: in models with mean pooling inside the graph.

    Options:
        mask: name of the mask input.
    """

    mask: str = ""

    name: ClassVar[str] = "elide-padding"
    conditions: ClassVar[tuple[Condition[object], ...]] = (
        Condition(
            1, "an attention's mask is no function of its keys' mask alone", _anchors(Attention.depends_on_own_key)
        ),
        Condition(2, "an attention's mask changes the scores of real tokens", _anchors(Attention.keeps_real_keys)),
        Condition(3, "an attention sees padded tokens", _anchors(Attention.hides_padded_keys)),
        Condition(4, "an operator mixes real and padded tokens", _leaks(lambda u: u.is_output or u.is_zero)),
        Condition(5, "an output has padded rows", _leaks(lambda u: not u.is_output or u.is_zero or u.explicit)),
    )

    def run(self, module: tvm.IRModule, context: PassContext) -> PassResult:
        """Rewrite main. Raises UserError when `mask` names no input, or when its padding can't be elided."""
        main = module["main"]
        candidates = [param for param in main.params if _may_be_mask(param)]
        if self.mask:
            candidates = [param for param in candidates if param.name == self.mask]
            if not candidates:
                names = ", ".join(str(param.name) for param in main.params)
                raise UserError(
                    f"--elide-padding {self.mask}: no input [batch, sequence] has this name; inputs: {names}"
                )
        elided = ElidedPadding.of(_attribute(main, PADDING_ATTR))
        if elided is not None:
            if self.mask not in ("", elided.mask):
                raise UserError(f"--elide-padding {self.mask}: padding by '{elided.mask}' is elided already")
            return PassResult(module, 0)
        graph = Graph(module, main)
        refusals: list[Refusal] = []
        for mask in candidates:
            region = _Region(graph, mask, bool(self.mask))
            refused = [found for node, match in region.matches() if (found := self._refusal(node, match))]
            refusals.extend(refused)
            if region.anchors and not refused:
                counts = {"attention": len(region.anchors)}
                return PassResult(region.rewritten(module, self.name), len(region.anchors), counts=counts)
        if self.mask:
            first = f"{refusals[0].node}: {refusals[0].reason}" if refusals else "no attention is masked by it"
            raise UserError(f"--elide-padding {self.mask}: padding can't be elided; {first}")
        return PassResult(module, 0, tuple(refusals))

    def _refusal(self, node: str, match: object) -> Refusal | None:
        failed = next((c for c in self.conditions if not c.holds(match)), None)
        return None if failed is None else Refusal(self.name, node, failed.number, failed.reason)


@dataclass
class _Region:
    """The values that are computed, row by row, from attentions that one input masks.

    Attributes:
        anchors: those attentions.
    """

    graph: Graph
    mask: relax.Var
    explicit: bool
    anchors: list[relax.Var] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._batch = Batch(*(shape_of(self.mask.ty) or []))
        self._sizes = tuple(_choices_of_sizes(self.graph.function, self.mask))
        self._calls = {
            var: value
            for var, value in self.graph.definitions()
            if isinstance(value, relax.Call) and isinstance(value.op, ir.Op)
        }
        self._leads: dict[relax.Var, Leads] = {}
        self._inner: dict[relax.Var, None] = {}
        self._followed: dict[relax.Expr, tuple[tuple[Sizes, MaskValues | None], ...]] = {}
        derived = self._derived_from_mask()
        for var, call in self._calls.items():
            if (
                call.op.name == ATTENTION
                and len(call.args) == 4
                and call.args[3] in derived
                and all(self._batch.runs_through(arg) for arg in call.args[:3])
            ):
                self.anchors.append(var)
                self._inner[var] = None
                continue
            leads = leads_of(self._batch, call, var)
            if leads is None:
                continue
            self._leads[var] = leads
            if any(lead == TOKENS and arg in self._inner for arg, lead in zip(call.args, leads, strict=True)):
                self._inner[var] = None

    def _derived_from_mask(self) -> set[relax.Expr]:
        found: set[relax.Expr] = {self.mask}
        for var, value in self.graph.definitions():
            if any(use in found for use in operands(value)):
                found.add(var)
        return found

    # -- legality ------------------------------------------------------------------------------------------

    def matches(self) -> list[tuple[str, object]]:
        """Every attention of the region, and every use outside it, with the node where it is."""
        found: list[tuple[str, object]] = []
        for var in self.anchors:
            call = self._calls[var]
            found.append((_node(var, call), Attention(self._follow(call.args[3]))))
        for var in self._inner:
            found.extend(self._leaks(var))
        return found

    def _follow(self, expr: relax.Expr) -> tuple[tuple[Sizes, MaskValues | None], ...]:
        if expr not in self._followed:  # layers share a mask
            self._followed[expr] = tuple(
                (sizes, mask_values(self.graph, expr, self.mask, sizes.by_name)) for sizes in self._sizes
            )
        return self._followed[expr]

    def _leaks(self, var: relax.Var) -> list[tuple[str, Leak]]:
        """The uses of an inner value that are not inner themselves."""
        node = _node(var, self._calls[var])
        is_zero = self._is_zero(var)
        found: list[tuple[str, Leak]] = []
        if self.graph.is_result(var):
            found.append((node, Leak(is_output=True, is_zero=is_zero, explicit=self.explicit)))
        for user in dict.fromkeys(self.graph.users(var)):
            call = self._calls.get(user)
            if call is None:
                is_output = isinstance(self.graph.value(user), relax.Tuple) and self.graph.is_result(user)
                found.append((node, Leak(is_output, is_zero, self.explicit)))
            elif not self._stays_packed(user, call, var):
                picks = picks_tokens(self._batch, call, var)
                found.append((_node(user, call), Leak(picks, is_zero, self.explicit)))
        return found

    def _stays_packed(self, user: relax.Var, call: relax.Call, var: relax.Var) -> bool:
        """Whether a call reads an inner value only where it will be packed."""
        if user not in self._inner:
            return False
        leads = (TOKENS, TOKENS, TOKENS, None) if call.op.name == ATTENTION else self._leads[user]
        return all(lead == TOKENS for arg, lead in zip(call.args, leads, strict=True) if arg.same_as(var))

    def _is_zero(self, var: relax.Var) -> bool:
        """Whether a value is zero in padded rows: a product with what is computed from the mask and zero there."""
        call = self._calls[var]
        if call.op.name != "relax.multiply":
            return False
        return any(
            self._leads[var][i] == TOKENS and all(self._is_zero_mask(*item) for item in self._follow(arg))
            for i, arg in enumerate(call.args)
            if arg not in self._inner
        )

    def _is_zero_mask(self, sizes: Sizes, values: MaskValues | None) -> bool:
        """Whether values [B, S, ...] are zero where the mask's [b, s] is."""
        if values is None or (values.padded != 0).any():
            return False
        own = np.arange(sizes.batch * sizes.longest).reshape(sizes.batch, sizes.longest)
        own = own.reshape(*own.shape, *(1 for _ in values.source.shape[2:]))
        return values.source.shape[:2] == own.shape[:2] and bool((values.source == own).all())

    # -- rewriting -----------------------------------------------------------------------------------------

    def rewritten(self, module: tvm.IRModule, owner: str) -> tvm.IRModule:
        """`module` with the region packed."""
        packer = _Packer(self.graph, self.mask, self._batch, self._calls, self._leads, set(self.anchors))
        leaking = [var for var in self._inner if self._leaks(var)]
        replacements = {var: functools.partial(packer.spread, var) for var in leaking}
        function = eliminate_dead(rebuild(self.graph.function, replacements, owner=owner))
        results = list(operands(self.graph.value(self.graph.function.body.body)))
        names = [str(name) for name in _attribute(function, OUTPUTS_ATTR) or range(len(results))]
        outputs = [name for name, var in zip(names, results, strict=True) if var in self._inner]
        result = module.clone()
        attribute = ElidedPadding(str(self.mask.name), tuple(outputs)).as_json()
        result.update_func(module.get_global_var("main"), function.with_attr(PADDING_ATTR, attribute))
        return result


class _Packer:
    """Builds the packed values that the leaks of a region need."""

    def __init__(
        self,
        graph: Graph,
        mask: relax.Var,
        batch: Batch,
        calls: Mapping[relax.Var, relax.Call],
        leads: Mapping[relax.Var, Leads],
        anchors: set[relax.Var],
    ) -> None:
        self._graph, self._mask, self._batch = graph, mask, batch
        self._calls, self._leads, self._anchors = calls, leads, anchors
        self._tokens = tirx.Var(TOKENS_SYMBOL, "int64")
        self._packed: dict[tuple[relax.Expr, str], relax.Expr] = {}
        self._starts: relax.Var | None = None
        self._places: relax.Var | None = None

    def spread(self, var: relax.Var, builder: Builder) -> relax.Expr:
        """An inner value over [B, S] again, with zeros where the padding was."""
        if self._starts is None:
            counted = builder.emit(kernel("token_starts", [self._mask]))
            self._starts = builder.emit(relax.TupleGetItem(counted, 0))
            count = builder.emit(relax.TupleGetItem(counted, 1))
            shape = builder.emit(relax.op.tensor_to_shape(count))
            builder.match_cast(shape, relax.ShapeType([self._tokens]))
            self._places = builder.emit(kernel("token_places", [self._mask, self._starts], [self._tokens]))
        for needed in self._in_order(var):
            if (needed, TOKENS) not in self._packed:
                self._packed[needed, TOKENS] = builder.emit(self._repeated(builder, needed))
        return kernel("unpack_tokens", [self._packed[var, TOKENS], self._mask, self._starts])

    def _in_order(self, var: relax.Var) -> list[relax.Var]:
        """The row-wise values and attentions that a value is computed from by tokens, first to last, and itself."""
        needed: set[relax.Expr] = set()
        pending: list[relax.Expr] = [var]
        while pending:
            found = pending.pop()
            if found not in needed and (found in self._leads or found in self._anchors):
                needed.add(found)
                pending.extend(arg for arg, lead in self._operands(found) if lead == TOKENS)
        return [found for found in self._calls if found in needed]

    def _operands(self, var: relax.Expr) -> list[tuple[relax.Expr, str | None]]:
        call = self._calls[var]
        leads = (TOKENS, TOKENS, TOKENS, None) if var in self._anchors else self._leads[var]
        return list(zip(call.args, leads, strict=True))

    def _repeated(self, builder: Builder, var: relax.Var) -> relax.Expr:
        """The call that defines a value, on packed operands."""
        call = self._calls[var]
        args = [arg if lead is None else self._operand(builder, arg, lead) for arg, lead in self._operands(var)]
        if var in self._anchors:
            q, k, v = args[:3]
            return with_span(packed_attention(q, k, v, self._starts, AttentionAttrs.of(call)), span_of(call))
        args = [
            packed_shape(list(arg.values), self._tokens) if isinstance(arg, relax.ShapeExpr) else arg for arg in args
        ]
        return relax.Call(call.op, args, call.attrs, call.ty_args, call.span)

    def _operand(self, builder: Builder, expr: relax.Expr, lead: str) -> relax.Expr:
        if (expr, lead) not in self._packed:
            gathered = kernel("pack_tokens", [expr, self._places], [self._batch.longest], lead=lead)
            self._packed[expr, lead] = builder.emit(gathered)
        return self._packed[expr, lead]


def _may_be_mask(param: relax.Var) -> bool:
    """Whether an input is [batch, sequence], and sequences may have more than one token."""
    dims = shape_of(param.ty) or []
    return len(dims) == 2 and not (isinstance(dims[1], tirx.IntImm) and int(dims[1]) == 1)


def _node(var: relax.Var, call: relax.Call) -> str:
    return span_of(call) or str(var.name)


def _attribute(function: relax.Function, name: str) -> Any:
    return None if function.attrs is None else function.attrs.get(name)


def _choices_of_sizes(function: relax.Function, mask: relax.Var) -> list[Sizes]:
    """Small numbers for the symbolic sizes, within their bounds; two choices where there are symbols."""
    bounds = [
        {str(name): int(size) for name, size in (_attribute(function, attribute) or {}).items()}
        for attribute in (SYMBOL_LOWER_ATTR, SYMBOL_UPPER_ATTR)
    ]
    dims = [dim for param in function.params for dim in shape_of(param.ty) or []]
    names = list(dict.fromkeys(str(dim.name) for dim in dims if isinstance(dim, tirx.Var)))
    choices = []
    for first, step in ((2, 1), (3, 2)) if names else ((0, 0),):
        sizes = {}
        for i, name in enumerate(names):
            size = max(first + i * step, bounds[0].get(name, 1))
            sizes[name] = min(size, bounds[1].get(name, size))
        batch, longest = (evaluate(dim_text(dim), sizes) or 0 for dim in shape_of(mask.ty) or [])
        choices.append(Sizes(batch, longest, sizes))
    return choices
