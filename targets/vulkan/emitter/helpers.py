"""Functions that shaders may call, as GLSL. Only those that a shader uses become part of it.

Every function is made for a register type T.
"""

from __future__ import annotations

import re

from greencc.errors import GreenccError
from greencc.targets.vulkan.emitter.double_trigonometry import DOUBLE_TRIGONOMETRY
from greencc.targets.vulkan.emitter.doubles import DOUBLES
from greencc.targets.vulkan.emitter.exponentials import EXPONENTIALS
from greencc.targets.vulkan.emitter.rounding import ROUNDING
from greencc.targets.vulkan.emitter.trigonometry import TRIGONOMETRY

_FUNCTIONS = {
    **{(name, "float"): function for name, function in {**EXPONENTIALS, **TRIGONOMETRY}.items()},
    **DOUBLES,
    **DOUBLE_TRIGONOMETRY,
    **ROUNDING,
}
_CONSTANTS = (
    "#define INFINITY uintBitsToFloat(0x7f800000u)",
    "#define NOT_A_NUMBER uintBitsToFloat(0x7fc00000u)",
    "#define DOUBLE_INFINITY packDouble2x32(uvec2(0u, 0x7ff00000u))",
    "#define DOUBLE_NOT_A_NUMBER packDouble2x32(uvec2(0u, 0x7ff80000u))",
)

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
    "infinity": "float infinity() { return INFINITY; }",
    "count_ones": "int count_ones(uint64_t x) { uvec2 w = unpackUint2x32(x); return bitCount(w.x) + bitCount(w.y); }",
    "count_leading_zeros": (
        "int count_leading_zeros(uint64_t x) { uvec2 w = unpackUint2x32(x); "
        "return w.y != 0u ? 31 - findMSB(w.y) : 63 - findMSB(w.x); }"
    ),
    "dot4_of_bytes": (
        "int dot4_of_bytes(int a, int b) { ivec4 x = bitfieldExtract(ivec4(a, a >> 8, a >> 16, a >> 24), 0, 8); "
        "ivec4 y = bitfieldExtract(ivec4(b, b >> 8, b >> 16, b >> 24), 0, 8); "
        "return x.x * y.x + x.y * y.y + x.z * y.z + x.w * y.w; }"
    ),
    # OpSDotKHR with the capabilities DotProduct and DotProductInput4x8BitPacked.
    "dot4_packed": (
        'spirv_instruction(extensions = ["SPV_KHR_integer_dot_product"], capabilities = [6019, 6018], id = 4450) '
        "int dot4_packed(int a, int b, spirv_literal int format);"
    ),
    "round_bfloat16": (
        "float round_bfloat16(float x) { uint b = floatBitsToUint(x); return (b & 0x7fffffffu) > 0x7f800000u ? "
        "uintBitsToFloat(b | 0x400000u) : uintBitsToFloat((b + 0x7fffu + ((b >> 16) & 1u)) & 0xffff0000u); }"
    ),
}


def is_defined(name: str, kind: str) -> bool:
    """Whether there is a function of a name for a register type."""
    return name in _GENERIC or (name, kind) in _FUNCTIONS


def definitions(used: set[tuple[str, str]]) -> list[str]:
    """The definitions of functions, each behind those that it calls."""
    made: dict[tuple[str, str], str] = {}

    def make(name: str, kind: str) -> None:
        if (name, kind) in made:
            return
        if name in _GENERIC:
            made[name, kind] = _typed(_GENERIC[name], kind)
            return
        function = _FUNCTIONS.get((name, kind))
        if function is None:
            raise GreenccError(f"vulkan: no function '{name}' of {kind}")
        for needed in function.calls:
            make(*needed)
        made[name, kind] = function.source

    for name, kind in sorted(used):
        make(name, kind)
    return [*_CONSTANTS, *made.values()] if made else []


def _typed(source: str, kind: str) -> str:
    return re.sub(r"\bT\b", kind, source)
