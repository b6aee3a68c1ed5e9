"""Functions that shaders may call, as GLSL. Only those that a shader uses become part of it.

Every function is made for a register type T.
"""

from __future__ import annotations

import re

from greencc.errors import GreenccError
from greencc.targets.vulkan.emitter.mathematics import FUNCTIONS

_GENERIC = {
    "select": "T select(bool c, T a, T b) { return c ? a : b; }",
    # With NaN they are what the CPU target gives: the second operand.
    "least": "T least(T a, T b) { return a < b ? a : b; }",
    "largest": "T largest(T a, T b) { return a > b ? a : b; }",
    "remainder": "T remainder(T a, T b) { return a - (a / b) * b; }",
    "floor_quotient": (
        "T floor_quotient(T a, T b) { T q = a / b; return ((a ^ b) < T(0)) && (q * b != a) ? q - T(1) : q; }"
    ),
    "floor_remainder": (
        "T floor_remainder(T a, T b) { T r = a - (a / b) * b; return r != T(0) && ((r ^ b) < T(0)) ? r + b : r; }"
    ),
    "float_remainder": "T float_remainder(T a, T b) { return a - trunc(a / b) * b; }",
    "float_floor_quotient": "T float_floor_quotient(T a, T b) { return floor(a / b); }",
    "float_floor_remainder": "T float_floor_remainder(T a, T b) { return a - floor(a / b) * b; }",
    "round_bfloat16": (
        "float round_bfloat16(float x) { uint b = floatBitsToUint(x); return (b & 0x7fffffffu) > 0x7f800000u ? "
        "uintBitsToFloat(b | 0x400000u) : uintBitsToFloat((b + 0x7fffu + ((b >> 16) & 1u)) & 0xffff0000u); }"
    ),
}


def definitions(used: set[tuple[str, str]]) -> list[str]:
    """The definitions of functions, each behind those that it calls."""
    made: dict[tuple[str, str], str] = {}

    def make(name: str, kind: str) -> None:
        if (name, kind) in made:
            return
        if name in _GENERIC:
            made[name, kind] = _typed(_GENERIC[name], kind)
            return
        function = FUNCTIONS.get((name, kind))
        if function is None:
            raise GreenccError(f"vulkan: no function '{name}' of {kind}")
        for needed in function.calls:
            make(*needed)
        made[name, kind] = function.source

    for name, kind in sorted(used):
        make(name, kind)
    return list(made.values())


def _typed(source: str, kind: str) -> str:
    return re.sub(r"\bT\b", kind, source)
