"""Reading and writing a kernel's buffers, by element and by vector.

Neighbouring elements of a storage buffer, the first of which is provably aligned, are read and written as one vector:
of floats as vec2 or vec4, of narrower types as one, two or four 32-bit words. Everything else goes by element.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tvm import ir, tirx

from greencc.targets.vulkan.emitter.memory import Array, Binding, Fragment, Memory
from greencc.targets.vulkan.emitter.types import Element, dtype_of, lanes_of

if TYPE_CHECKING:
    from greencc.targets.vulkan.emitter.context import Context
    from greencc.targets.vulkan.emitter.expressions import Expressions

# GLSL vectors by the scalar type of a view and the number of elements.
_VECTORS = {
    "float": {2: "vec2", 4: "vec4"},
    "int": {2: "ivec2", 4: "ivec4"},
    "uint": {1: "uint", 2: "uvec2", 4: "uvec4"},
}


def load(expressions: Expressions, expr: ir.TensorLoad, lane: int) -> str:
    """One lane of a load."""
    context = expressions.context
    memory = memory_of(context, expr.source)
    lanes = lanes_of(expr)
    (offset,) = flat_index(context, expr.source, expr.indices)
    if isinstance(memory.place, Binding):
        memory.place.is_read = True
        chunk = vector_width(context, memory, offset, lanes)
        if chunk > 1:
            index = _vector_index(expressions, offset, chunk, lane // chunk)
            return vector_element(context, memory, index, chunk, lane % chunk)
        view = memory.place.view(memory.element.storage)
        context.requires.update(memory.element.requires)
        return from_storage(context, f"{view}[{expressions.index(offset, lane)}]", memory.element)
    if isinstance(memory.place, Fragment):
        raise context.fail(f"an element of the fragment '{memory.place.name}' is read")
    if memory.place.lanes == 1:
        text = f"{memory.place.name}[{expressions.index(offset, lane)}]"
        return from_storage(context, text, memory.element) if memory.place.is_packed else text
    vector = vector_of(memory.element.register, memory.place.lanes)
    assert vector is not None
    whole = context.temporary(vector, f"{memory.place.name}[{expressions.index(offset)}]", "w")
    return f"{whole}.{'xyzw'[lane]}"


def vector_of(glsl: str, lanes: int) -> str | None:
    """The GLSL type of so many lanes of a scalar type, None where there is none."""
    return glsl if lanes == 1 else _VECTORS.get(glsl, {}).get(lanes)


def load_word(expressions: Expressions, expr: ir.TensorLoad, index: int) -> str | None:
    """A 32-bit word of a load of narrow elements, in a uint; None where they can't be loaded as words."""
    context = expressions.context
    memory = memory_of(context, expr.source)
    (offset,) = flat_index(context, expr.source, expr.indices)
    width = vector_width(context, memory, offset, lanes_of(expr))
    if width == 1 or not isinstance(memory.place, Binding) or memory.element.bits >= 32:
        return None
    memory.place.is_read = True
    words = width * memory.element.bits // 32
    return _word(context, memory, _vector_index(expressions, offset, width, index // words), words, index % words)


def store(expressions: Expressions, statement: tirx.BufferStore) -> None:
    """A store of all lanes. Every lane is computed before the first one is written."""
    context = expressions.context
    memory = memory_of(context, statement.buffer)
    (offset,) = flat_index(context, statement.buffer, statement.indices)
    lanes = max(lanes_of(offset), lanes_of(statement.value))
    register = memory.element.register
    values = [expressions.value(statement.value, lane) for lane in range(lanes)]
    if lanes > 1:
        values = [context.temporary(register, value) for value in values]
    if isinstance(memory.place, Fragment):
        raise context.fail(f"an element of the fragment '{memory.place.name}' is written")
    if isinstance(memory.place, Array) and memory.place.lanes > 1:
        vector = vector_of(register, lanes)
        context.emit(f"{memory.place.name}[{expressions.index(offset)}] = {vector}({', '.join(values)});")
        return
    if isinstance(memory.place, Array):
        for lane, value in enumerate(values):
            stored = to_storage(context, value, memory.element) if memory.place.is_packed else value
            context.emit(f"{memory.place.name}[{expressions.index(offset, lane)}] = {stored};")
        return
    memory.place.is_written = True
    chunk = vector_width(context, memory, offset, lanes)
    if chunk > 1:
        base = context.temporary("int", _scaled(expressions, offset, chunk))
        for first in range(0, lanes, chunk):
            target = f"[{base}]" if first == 0 else f"[{base} + {first // chunk}]"
            glsl, packed = _packed(context, memory.element, values[first : first + chunk])
            context.emit(f"{memory.place.view(glsl)}{target} = {packed};")
        return
    view = memory.place.view(memory.element.storage)
    context.requires.update(memory.element.requires)
    for lane, value in enumerate(values):
        context.emit(f"{view}[{expressions.index(offset, lane)}] = {to_storage(context, value, memory.element)};")


def memory_of(context: Context, buffer: tirx.Var) -> Memory:
    """Where a buffer lies."""
    found = context.memory.get(buffer)
    if found is None:
        raise context.fail(f"the buffer '{buffer.name}' is not declared")
    return found


def vector_width(context: Context, memory: Memory, offset: tirx.Expr, lanes: int) -> int:
    """How many neighbouring elements one access moves; 1 where alignment can't be proven."""
    if lanes == 1 or not isinstance(offset, tirx.Ramp) or not _is_one(offset.stride):
        return 1
    widths = (4, 2) if memory.element.bits == 32 else tuple(128 // memory.element.bits >> i for i in range(3))
    if memory.element.bits == 64 or not isinstance(memory.place, Binding):
        return 1
    for width in widths:
        if lanes % width == 0 and is_aligned(context, offset.base, width):
            return width
    return 1


def is_aligned(context: Context, index: tirx.Expr, width: int) -> bool:
    """Whether an index is provably a multiple of `width`."""
    found = context.analyzer.modular_set(index)
    return int(found.coeff) % width == 0 and int(found.base) % width == 0


def vector_element(context: Context, memory: Memory, index: str, width: int, lane: int) -> str:
    """An element of the vector of `width` elements at `index`, counted in such vectors."""
    assert isinstance(memory.place, Binding)
    kind = memory.element
    if kind.bits == 32:
        glsl = _VECTORS[kind.storage][width]
        whole = context.temporary(glsl, f"{memory.place.view(glsl)}[{index}]", "w")
        return f"{whole}.{'xyzw'[lane]}"
    each = 32 // kind.bits
    word = _word(context, memory, index, width // each, lane // each)
    return from_word(context, word, kind, lane % each)


def _word(context: Context, memory: Memory, index: str, words: int, word: int) -> str:
    """A word of the vector of `words` words at `index`, counted in such vectors."""
    assert isinstance(memory.place, Binding)
    glsl = _VECTORS["uint"][words]
    whole = context.temporary(glsl, f"{memory.place.view(glsl)}[{index}]", "w")
    return whole if words == 1 else f"{whole}.{'xyzw'[word]}"


def from_storage(context: Context, text: str, kind: Element) -> str:
    """An element of a storage buffer in its register type."""
    if kind.dtype == "bool":
        return f"(int({text}) != 0)"
    if kind.dtype == "bfloat16":
        return f"uintBitsToFloat(uint({text}) << 16)"
    return text if kind.storage == kind.register else f"{kind.register}({text})"


def to_storage(context: Context, text: str, kind: Element) -> str:
    """A register's value as an element of a storage buffer."""
    if kind.dtype == "bool":
        return f"int8_t({text} ? 1 : 0)"
    if kind.dtype == "bfloat16":
        return f"uint16_t(floatBitsToUint({context.helper('round_bfloat16')}({text})) >> 16)"
    return text if kind.storage == kind.register else f"{kind.storage}({text})"


def from_word(context: Context, word: str, kind: Element, part: int) -> str:
    """One of the two or four elements in a 32-bit word."""
    if kind.dtype in ("float16", "bfloat16"):
        if kind.dtype == "bfloat16":
            return f"uintBitsToFloat({word} & 0xffff0000u)" if part else f"uintBitsToFloat({word} << 16)"
        text = f"unpackHalf2x16({word}).{'xy'[part]}"
        return text if kind.register == "float" else f"float16_t({text})"
    if kind.dtype == "bool":
        return f"(({word} & {0xFF << 8 * part}u) != 0u)"
    if kind.is_unsigned:
        return f"bitfieldExtract({word}, {kind.bits * part}, {kind.bits})"
    return f"bitfieldExtract(int({word}), {kind.bits * part}, {kind.bits})"


def _packed(context: Context, kind: Element, values: Sequence[str]) -> tuple[str, str]:
    """The type and the value of a vector that holds some elements."""
    if kind.bits == 32:
        glsl = _VECTORS[kind.storage][len(values)]
        return glsl, f"{glsl}({', '.join(values)})"
    each = 32 // kind.bits
    words = [to_word(context, kind, values[i : i + each]) for i in range(0, len(values), each)]
    glsl = _VECTORS["uint"][len(words)]
    return glsl, words[0] if len(words) == 1 else f"{glsl}({', '.join(words)})"


def to_word(context: Context, kind: Element, values: Sequence[str]) -> str:
    """A 32-bit word of two or four elements."""
    if kind.dtype == "float16":
        return f"packHalf2x16(vec2({', '.join(values)}))"
    if kind.dtype == "bfloat16":
        rounded = [f"floatBitsToUint({context.helper('round_bfloat16')}({value}))" for value in values]
        return f"(({rounded[0]} >> 16) | ({rounded[1]} & 0xffff0000u))"
    if kind.dtype == "bool":
        return "(" + " | ".join(f"({value} ? {1 << 8 * i}u : 0u)" for i, value in enumerate(values)) + ")"
    mask = (1 << kind.bits) - 1
    return "(" + " | ".join(f"((uint({value}) & {mask}u) << {kind.bits * i})" for i, value in enumerate(values)) + ")"


def _vector_index(expressions: Expressions, offset: tirx.Ramp, width: int, step: int) -> str:
    """The index of a vector of `width` elements, some steps behind the first."""
    base = _scaled(expressions, offset, width)
    return f"{base} + {step}" if step else base


def _scaled(expressions: Expressions, offset: tirx.Ramp, width: int) -> str:
    """The index of a vector of `width` elements."""
    return f"({expressions.index(offset.base)} >> {width.bit_length() - 1})"


def flat_index(context: Context, buffer: tirx.Var, indices: Sequence[tirx.Expr]) -> Sequence[tirx.Expr]:
    """The index into flat memory; an offset of the buffer in it is added."""
    if len(indices) != 1:
        raise context.fail(f"the buffer '{buffer.name}' has {len(indices)} dimensions: it has not been flattened")
    (index,) = indices
    start = buffer.ty.elem_offset
    if start is not None and not (isinstance(start, tirx.IntImm) and int(start) == 0):
        if isinstance(index, tirx.Ramp):
            index = tirx.Ramp(_sum(index.base, start), index.stride, index.lanes)
        else:
            index = _sum(index, start)
    lanes = int(buffer.ty.dtype.dtype.lanes)
    place = memory_of(context, buffer).place
    if lanes == 1 or (isinstance(place, Array) and place.lanes == lanes):
        return [index]
    # An array of vectors that is declared as one of their elements.
    if lanes_of(index) > 1:
        raise context.fail(f"several vectors of the buffer '{buffer.name}' are accessed at once")
    dtype = dtype_of(index)
    return [tirx.Ramp(tirx.Mul(index, tirx.IntImm(dtype, lanes)), tirx.IntImm(dtype, 1), lanes)]


def _sum(index: tirx.Expr, start: tirx.Expr) -> tirx.Expr:
    same = dtype_of(index) == dtype_of(start)
    return tirx.Add(index, start if same else tirx.Cast(dtype_of(index), start))


def _is_one(expr: tirx.Expr) -> bool:
    return isinstance(expr, tirx.IntImm) and int(expr) == 1
