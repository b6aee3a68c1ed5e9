"""Sizes of symbolic dimensions below which a model makes no sense: some tensor in it would have no elements.

A kernel that reads from an empty tensor reads memory that isn't its own, so such sizes are refused with the inputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import tvm
from tvm import relax, sym, tirx

from greencc.errors import UserError
from greencc.ir import SYMBOL_LOWER_ATTR, SYMBOL_UPPER_ATTR, bindings_of, relax_functions, shape_of

_LARGEST = 1 << 20


def require_elements(module: tvm.IRModule, asked: Mapping[str, tuple[int, int]]) -> tvm.IRModule:
    """`module` with lower bounds that keep every tensor from being empty.

    Args:
        module: as imported.
        asked: the bounds that the user set, by dimension name.

    Raises:
        UserError: the user's lower bound is less than that.
    """
    main = module["main"]
    lower, upper = (
        {str(name): int(value) for name, value in ((main.attrs or {}).get(attr) or {}).items()}
        for attr in (SYMBOL_LOWER_ATTR, SYMBOL_UPPER_ATTR)
    )
    least: dict[str, int] = {}
    for dim in _sizes(module):
        symbols = list(tirx.analysis.undefined_vars(tirx.Evaluate(dim)))
        if len(symbols) == 1 and not dim.same_as(symbols[0]):
            name = symbols[0].name
            start = max(lower.get(name, 1), least.get(name, 1))
            least[name] = _least(dim, symbols[0], start, upper.get(name, _LARGEST))
    raised = {name: value for name, value in least.items() if value > lower.get(name, 1)}
    for name, value in raised.items():
        if name in asked:
            low, high = asked[name]
            raise UserError(f"--dynamic {name}={low}..{high}: a tensor of the model is empty below {name}={value}")
    if not raised:
        return module
    result = module.clone()
    bounds = {**lower, **raised}
    result.update_func(module.get_global_var("main"), main.with_attr(SYMBOL_LOWER_ATTR, bounds))
    return result


def _sizes(module: tvm.IRModule) -> Iterator[tirx.Expr]:
    """The symbolic sizes of all tensors, each expression once."""
    seen: set[str] = set()
    for _, function in relax_functions(module):
        for var in (*function.params, *(binding.var for binding in bindings_of(function))):
            fields = var.ty.fields if isinstance(var.ty, relax.TupleType) else [var.ty]
            for ty in fields:
                for dim in shape_of(ty) or [] if isinstance(ty, relax.TensorType) else []:
                    if not isinstance(dim, tirx.IntImm) and str(dim) not in seen:
                        seen.add(str(dim))
                        yield dim


def _least(dim: tirx.Expr, symbol: tirx.Var, low: int, high: int) -> int:
    """The least value of `symbol` from `low` to `high` for which `dim` is at least 1: sizes grow with their symbol."""

    def fits(value: int) -> bool:
        analyzer = sym.Analyzer()
        analyzer.bind(symbol, tirx.const(value, "int64"))
        size = analyzer.simplify(dim)
        return not isinstance(size, tirx.IntImm) or int(size) >= 1

    if fits(low) or not fits(high):
        return low
    while low + 1 < high:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high
