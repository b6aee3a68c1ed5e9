"""What threads do together: barriers, atomic sums, exchange of values within a subgroup."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvm import ir, tirx

from greencc.targets.vulkan.emitter import loads
from greencc.targets.vulkan.emitter.memory import Array, Fragment, Memory
from greencc.targets.vulkan.emitter.types import dtype_of

if TYPE_CHECKING:
    from greencc.targets.vulkan.emitter.expressions import Expressions


def synchronise(expressions: Expressions, expr: ir.Call) -> None:
    """A barrier for the threads of a workgroup or of a subgroup."""
    context, scope = expressions.context, str(expr.args[0].value)
    if scope in ("shared", "shared.dyn"):
        context.uses_barrier = True
        context.emit("WORKGROUP_BARRIER;")
    elif scope == "warp":
        need_subgroup(expressions, "a barrier")
        context.emit("subgroupBarrier();")
    else:
        raise context.fail(f"threads of several workgroups can't wait for each other: a barrier of scope '{scope}'")


def atomic_add(expressions: Expressions, expr: ir.Call, lane: int) -> str:
    """Add to an element of memory; gives what was there before."""
    context = expressions.context
    memory, index = pointer(expressions, expr.args[0])
    if isinstance(memory.place, Fragment):
        raise context.fail(f"an atomic sum in the fragment '{memory.place.name}'")
    value = expressions.value(expr.args[1], lane)
    kind = memory.element
    if isinstance(memory.place, Array):
        if not memory.place.is_shared or kind.register not in ("int", "uint") or kind.is_narrow:
            raise context.fail(f"an atomic sum of {kind.dtype} in the array '{memory.place.name}'")
        return context.temporary(kind.register, f"atomicAdd({memory.place.name}[{index}], {value})", "before")
    memory.place.is_read = memory.place.is_written = True
    if kind.dtype in ("int32", "uint32"):
        before = context.name("before")
        context.emit(f"{kind.register} {before} = atomicAdd({memory.place.view(kind.storage)}[{index}], {value});")
        return before
    if kind.dtype != "float32":
        raise context.fail(f"an atomic sum of {kind.dtype}")
    # Compare and swap: atomic sums of floats are an extension that few devices have.
    place, bits, seen = f"{memory.place.view('uint')}[{context.temporary('int', index, 'at')}]", "before", "seen"
    bits, seen, added = context.name("before"), context.name("seen"), context.name("added")
    context.emit(f"float {added} = {value};")
    context.emit(f"uint {seen}, {bits} = {place};")
    context.emit("do {")
    context.emit(f"  {seen} = {bits};")
    context.emit(f"  {bits} = atomicCompSwap({place}, {seen}, floatBitsToUint(uintBitsToFloat({seen}) + {added}));")
    context.emit(f"}} while ({bits} != {seen});")
    return f"uintBitsToFloat({bits})"


def shuffle(expressions: Expressions, expr: ir.Call, lane: int) -> str:
    """The value that another thread of the subgroup has; `width` threads exchange among themselves."""
    context, name = expressions.context, expr.op.name
    need_subgroup(expressions, "an exchange of values")
    _, value, which, width, _ = expr.args
    if not isinstance(width, tirx.IntImm) or int(width) & (int(width) - 1):
        raise context.fail("an exchange of values among a number of threads that is no constant power of two")
    operand, at = expressions.value(value, lane), expressions.index(which, lane)
    own = "int(gl_SubgroupInvocationID)"
    last = int(width) - 1
    if name.endswith("_xor"):
        source = f"({own} ^ ({at}))"
    elif name.endswith("_up"):
        # A thread without a partner keeps its value.
        source = f"(({own} & {last}) >= ({at}) ? {own} - ({at}) : {own})"
    elif name.endswith("_down"):
        source = f"(({own} & {last}) + ({at}) <= {last} ? {own} + ({at}) : {own})"
    else:
        source = f"(({own} & {~last}) | (({at}) & {last}))"
    return f"subgroupShuffle({operand}, uint({source}))"


def active_mask(expressions: Expressions, expr: ir.Call, lane: int) -> str:
    """All threads take part: `shuffle` doesn't look at the mask."""
    return "4294967295u" if expressions.context.element(dtype_of(expr)).is_unsigned else "-1"


def need_subgroup(expressions: Expressions, what: str) -> None:
    """Refuse what depends on the size of a subgroup on a device that doesn't fix it."""
    context = expressions.context
    if context.gpu.subgroup is None:
        raise context.fail(f"{what} within a subgroup, whose size the device doesn't fix")
    context.need("subgroup")


def pointer(expressions: Expressions, expr: tirx.Expr) -> tuple[Memory, str]:
    """The memory that an address is in, and the index of the element there."""
    context = expressions.context
    name = expr.op.name if isinstance(expr, ir.Call) and isinstance(expr.op, ir.Op) else ""
    if name == "tirx.address_of" and isinstance(expr.args[0], ir.TensorLoad):
        (index,) = loads.flat_index(context, expr.args[0].source, expr.args[0].indices)
        return loads.memory_of(context, expr.args[0].source), expressions.index(index)
    if name == "tirx.tvm_access_ptr":
        data = expr.args[1]
        if isinstance(data, ir.Call) and isinstance(data.op, ir.Op) and data.op.name == "tirx.buffer_data":
            data = data.args[0]
        if isinstance(data, tirx.Var):
            return loads.memory_of(context, data), expressions.index(expr.args[2])
    raise context.fail("an address that is not that of an element of a buffer")
