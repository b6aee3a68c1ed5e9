"""How TIR's types are held in GLSL: in registers, in memory, and as literals.

Registers hold 32-bit numbers for everything narrower, because arithmetic on 8 and 16 bits is an optional feature while
memory of them is nearly everywhere; results of arithmetic are wrapped to their width. Bool is an int8 in memory,
bfloat16 a uint16 whose bits are the upper half of a float32.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from tvm import ir, tirx

from greencc.errors import GreenccError

# Extensions by what a kernel requires; the names are those of kernels.json.
EXTENSIONS = {
    "int64": ("GL_EXT_shader_explicit_arithmetic_types_int64",),
    "float64": ("GL_EXT_shader_explicit_arithmetic_types_float64",),
    "float16": ("GL_EXT_shader_explicit_arithmetic_types_float16",),
    "int8": ("GL_EXT_shader_explicit_arithmetic_types_int8",),
    "storage8": ("GL_EXT_shader_8bit_storage",),
    "storage16": ("GL_EXT_shader_16bit_storage",),
    "matrix": ("GL_KHR_cooperative_matrix", "GL_KHR_memory_scope_semantics"),
    "subgroup": ("GL_KHR_shader_subgroup_basic", "GL_KHR_shader_subgroup_shuffle"),
    "dot4": ("GL_EXT_spirv_intrinsics",),
    "float_controls": ("GL_EXT_spirv_intrinsics",),
}


@dataclass(frozen=True)
class Element:
    """A scalar type.

    Attributes:
        dtype: TVM's name of it.
        register: GLSL type that holds a value.
        storage: GLSL type of an element of a storage buffer.
        bits: width in memory.
        requires: what memory of this type requires.
    """

    dtype: str
    register: str
    storage: str
    bits: int
    requires: tuple[str, ...] = ()

    @property
    def is_float(self) -> bool:
        """Whether it is a floating-point type."""
        return self.dtype.startswith(("float", "bfloat"))

    @property
    def is_unsigned(self) -> bool:
        """Whether it is an unsigned integer."""
        return self.dtype.startswith("uint")

    @property
    def is_narrow(self) -> bool:
        """Whether it is an integer narrower than its register, so that arithmetic must wrap."""
        return self.bits < 32 and not self.is_float and self.dtype != "bool"

    @property
    def is_wide(self) -> bool:
        """Whether it is a 64-bit integer."""
        return self.dtype in ("int64", "uint64")


_ELEMENTS = {
    element.dtype: element
    for element in (
        Element("bool", "bool", "int8_t", 8, ("storage8",)),
        Element("int8", "int", "int8_t", 8, ("storage8",)),
        Element("uint8", "uint", "uint8_t", 8, ("storage8",)),
        Element("int16", "int", "int16_t", 16, ("storage16",)),
        Element("uint16", "uint", "uint16_t", 16, ("storage16",)),
        Element("int32", "int", "int", 32),
        Element("uint32", "uint", "uint", 32),
        Element("int64", "int64_t", "int64_t", 64, ("int64",)),
        Element("uint64", "uint64_t", "uint64_t", 64, ("int64",)),
        Element("float16", "float", "float16_t", 16, ("storage16",)),
        Element("bfloat16", "float", "uint16_t", 16, ("storage16",)),
        Element("float32", "float", "float", 32),
        Element("float64", "double", "double", 64, ("float64",)),
    )
}
_NATIVE_FLOAT16 = Element("float16", "float16_t", "float16_t", 16, ("storage16", "float16"))


def element(dtype: str, has_float16: bool = False) -> Element:
    """The scalar type of a TVM dtype of any number of lanes; float16 is held as such if the device has it."""
    name = dtype.split("x")[0] if "x" in dtype else dtype
    if name == "float16" and has_float16:
        return _NATIVE_FLOAT16
    found = _ELEMENTS.get(name)
    if found is None:
        raise GreenccError(f"vulkan: the type {dtype} has no counterpart in GLSL")
    return found


def dtype_of(expr: tirx.Expr) -> str:
    """The dtype of an expression, with its lanes; "handle" for a pointer."""
    return str(expr.ty.dtype) if isinstance(expr.ty, ir.PrimType) else "handle"


def lanes_of(expr: tirx.Expr) -> int:
    """The number of lanes of an expression."""
    return int(expr.ty.dtype.lanes) if isinstance(expr.ty, ir.PrimType) else 1


def integer_literal(value: int, kind: Element) -> str:
    """A constant of an integer type or bool."""
    if kind.dtype == "bool":
        return "true" if value else "false"
    bits = 64 if kind.is_wide else 32
    value &= (1 << bits) - 1
    suffix = "ul" if kind.is_wide else "u"
    if kind.is_unsigned:
        return f"{value}{suffix}"
    if value < 1 << (bits - 1):
        return f"{value}{'l' if kind.is_wide else ''}"
    if value == 1 << (bits - 1):  # its absolute value is no signed literal
        return f"{kind.register}({value}{suffix})"
    return f"({value - (1 << bits)}{'l' if kind.is_wide else ''})"


def float_literal(value: float, kind: Element) -> str:
    """A constant of a floating-point type, the same to the last bit."""
    if kind.dtype == "float64":
        bits = struct.unpack("<Q", struct.pack("<d", value))[0]
        if value != value or value in (float("inf"), float("-inf")):
            return f"packDouble2x32(uvec2({bits & 0xFFFFFFFF}u, {bits >> 32}u))"
        return f"({value!r}lf)"
    single = _to_single(value)
    if single != single or single in (float("inf"), float("-inf")):
        text = f"uintBitsToFloat({struct.unpack('<I', struct.pack('<f', single))[0]}u)"
    else:
        digits = repr(single)
        text = digits if single >= 0 and not digits.startswith("-") else f"({digits})"
    return f"float16_t({text})" if kind.register == "float16_t" else text


def _to_single(value: float) -> float:
    try:
        return float(struct.unpack("<f", struct.pack("<f", value))[0])
    except OverflowError:
        return float("inf") if value > 0 else float("-inf")
