"""TIR statements to GLSL."""

from __future__ import annotations

from collections.abc import Callable

from tvm import ir, tirx

from greencc.targets.vulkan.emitter import calls, loads, matrices
from greencc.targets.vulkan.emitter.bounds import counter
from greencc.targets.vulkan.emitter.context import Context, Variable
from greencc.targets.vulkan.emitter.expressions import Expressions
from greencc.targets.vulkan.emitter.memory import Array, Binding, Fragment, Memory
from greencc.targets.vulkan.emitter.types import Element, dtype_of

# Calls that give the memory of a buffer another type.
_VIEWS = ("tirx.buffer_data", "tirx.reinterpret")
# Attributes that tell other backends something, and mean nothing for a shader.
_IGNORED = (
    "storage_alignment", "pragma_auto_unroll_max_step", "pragma_unroll_explicit", "compute_scope", "device_scope",
    "reduce_scope", "fragment_layout", "fragment_shape",
)  # fmt: skip


class Statements:
    """Writes the statements of one kernel."""

    def __init__(self, context: Context, expressions: Expressions) -> None:
        self.context = context
        self.expressions = expressions
        self.shared_declarations: list[str] = []
        self.shared_bytes = 0
        self.workgroup: dict[str, int] = {}
        self._rules: dict[type, Callable[[tirx.Stmt], None]] = {
            tirx.SeqStmt: self._sequence,
            tirx.Bind: lambda s: self.expressions.bind(s.var, s.value),
            tirx.BufferStore: lambda s: loads.store(self.expressions, s),
            tirx.AllocBuffer: self._allocate,
            tirx.DeclBuffer: self._declare,
            tirx.AttrStmt: self._attribute,
            tirx.For: self._loop,
            tirx.While: self._while,
            tirx.IfThenElse: self._if,
            tirx.Evaluate: lambda s: calls.evaluate(self.expressions, s.value),
            tirx.AssertStmt: lambda s: None,  # a shader can't report anything
        }
        self._words = {"Break": "break;", "Continue": "continue;", "Return": "return;"}

    def write(self, statement: tirx.Stmt) -> None:
        """Write a statement and all that it holds."""
        if type(statement).__name__ in self._words:
            self.context.emit(self._words[type(statement).__name__])
            return
        rule = self._rules.get(type(statement))
        if rule is None:
            raise self.context.fail(f"no rule for the TIR node {type(statement).__name__}")
        if isinstance(statement, (tirx.SeqStmt, tirx.AttrStmt)):
            rule(statement)
            return
        if isinstance(statement, tirx.Bind):
            self.context.analyzer.bind(statement.var, statement.value, allow_override=True)
        with self.context.statement():
            rule(statement)

    def _sequence(self, statement: tirx.SeqStmt) -> None:
        for part in statement.seq:
            self.write(part)

    def _block(self, head: str, body: tirx.Stmt) -> None:
        self.context.emit(f"{head} {{")
        with self.context.nested():
            self.write(body)

    def _if(self, statement: tirx.IfThenElse) -> None:
        self._block(f"if ({self.expressions.value(statement.condition)})", statement.then_case)
        if statement.else_case is not None:
            self._block("} else", statement.else_case)
        self.context.emit("}")

    def _loop(self, statement: tirx.For) -> None:
        context, expressions = self.context, self.expressions
        if statement.kind in (tirx.ForKind.VECTORIZED, tirx.ForKind.THREAD_BINDING):
            raise context.fail(f"a loop of kind {tirx.ForKind(statement.kind).name} has not been lowered")
        var = statement.loop_var
        start = expressions.index(statement.min)
        begins_at_zero = isinstance(statement.min, tirx.IntImm) and int(statement.min) == 0
        stop = expressions.index(statement.extent)
        stop = context.temporary("int", stop if begins_at_zero else f"({start} + {stop})", "stop")
        step = "1" if statement.step is None else expressions.index(statement.step)
        name = context.name(var.name)
        context.variables[var] = Variable((name,))
        context.bounds[var] = counter(expressions.bounds(statement.min), expressions.bounds(statement.extent))
        context.analyzer.bind(var, ir.Range.from_min_extent(statement.min, statement.extent), allow_override=True)
        unroll = statement.kind == tirx.ForKind.UNROLLED or "pragma_unroll" in (statement.annotations or {})
        next_value = f"++{name}" if step == "1" else f"{name} += {step}"
        head = f"for (int {name} = {start}; {name} < {stop}; {next_value})"
        self._block(f"[[unroll]] {head}" if unroll else head, statement.body)
        context.emit("}")

    def _while(self, statement: tirx.While) -> None:
        context = self.context
        context.emit("while (true) {")
        with context.nested(), context.statement():
            context.emit(f"if (!{self.expressions.value(statement.condition)}) break;")
            self.write(statement.body)
        context.emit("}")

    def _allocate(self, statement: tirx.AllocBuffer) -> None:
        context, buffer = self.context, statement.buffer
        scope, kind = str(buffer.ty.storage_scope), context.element(str(buffer.ty.dtype))
        if scope in matrices.SCOPES:
            count = self._count(buffer, scope) * int(buffer.ty.dtype.dtype.lanes)
            place = Fragment(context.name(buffer.name), count, matrices.SCOPES[scope], context.reserve())
            context.memory[buffer] = Memory(place, kind)
            return
        if scope not in ("shared", "shared.dyn", "local"):
            raise context.fail(f"the buffer '{buffer.name}' is in '{scope}' memory, for which there is no rule")
        context.memory[buffer] = Memory(self._array(buffer, kind, scope), kind)

    def _array(self, buffer: tirx.Var, kind: Element, scope: str) -> Array:
        """Declare an array for a buffer; of vectors where GLSL has them."""
        name, lanes = self.context.name(buffer.name), int(buffer.ty.dtype.dtype.lanes)
        count = self._count(buffer, scope)
        # Bytes that matrices are loaded from can't lie in words.
        is_packed = scope != "local" and kind.is_narrow and kind.bits == 8 and self.context.gpu.has_tensor_int8
        glsl = kind.storage if is_packed else kind.register
        declared = None if is_packed else loads.vector_of(glsl, lanes)
        if is_packed:
            self.context.need("int8")
        if declared is None:
            declared, count, lanes = glsl, count * lanes, 1
        if scope == "local":
            self.context.emit(f"{declared} {name}[{count}];")
        else:
            self.shared_declarations.append(f"shared {declared} {name}[{count}];")
            self.shared_bytes += count * lanes * (1 if is_packed else _register_bytes(glsl))
        return Array(name, count, scope != "local", lanes, is_packed)

    def _count(self, buffer: tirx.Var, scope: str) -> int:
        count = 1
        for extent in buffer.ty.shape:
            if not isinstance(extent, tirx.IntImm):
                raise self.context.fail(
                    f"the size of '{buffer.name}' in {scope} memory is not known when it is compiled"
                )
            count *= int(extent)
        return count

    def _declare(self, statement: tirx.DeclBuffer) -> None:
        context, buffer, data = self.context, statement.buffer, statement.data
        while isinstance(data, ir.Call) and isinstance(data.op, ir.Op) and data.op.name in _VIEWS:
            data = data.args[0]
        source = context.memory.get(data) if isinstance(data, tirx.Var) else None
        if source is None:
            raise context.fail(f"the memory of buffer '{buffer.name}' is {type(data).__name__}, which is no parameter")
        kind = context.element(str(buffer.ty.dtype))
        lanes = int(buffer.ty.dtype.dtype.lanes)
        if isinstance(source.place, Array) and (kind.dtype != source.element.dtype or lanes != source.place.lanes):
            # TVM puts buffers whose lives don't overlap in the same memory, of which GLSL has one type: no bits pass
            # from one to the other.
            scope = "shared" if source.place.is_shared else "local"
            context.memory[buffer] = Memory(self._array(buffer, kind, scope), kind)
            return
        if isinstance(source.place, Binding) and source.place.bytes is None:
            source.place.bytes = static_bytes(buffer, kind)
        context.memory[buffer] = Memory(source.place, kind)

    def _attribute(self, statement: tirx.AttrStmt) -> None:
        key = statement.attr_key
        if key == "thread_extent":
            self._bind_thread(statement)
        elif key not in _IGNORED:
            raise self.context.fail(f"no rule for the attribute '{key}'")
        self.write(statement.body)

    def _bind_thread(self, statement: tirx.AttrStmt) -> None:
        context, tag, var = self.context, statement.node.thread_tag, statement.node.var
        group, _, axis = tag.partition(".")
        if axis not in ("x", "y", "z") or group not in ("blockIdx", "threadIdx"):
            raise context.fail(f"no rule for threads named '{tag}'")
        extent = self.expressions.bounds(statement.value)
        if group == "threadIdx":
            if not isinstance(statement.value, tirx.IntImm):
                raise context.fail(f"the extent of {tag} is not known when it is compiled")
            if self.workgroup.setdefault(tag, int(statement.value)) != int(statement.value):
                raise context.fail(f"two extents of {tag}: {self.workgroup[tag]} and {int(statement.value)}")
        name = tag.replace(".", "_")
        context.variables[var] = Variable((name,))
        zero = self.expressions.bounds(tirx.IntImm(dtype_of(var), 0))
        context.bounds[var] = counter(zero, extent)
        whole = ir.Range.from_min_extent(tirx.IntImm(dtype_of(var), 0), statement.value)
        context.analyzer.bind(var, whole, allow_override=True)


def static_bytes(buffer: tirx.Var, kind: Element) -> int | None:
    """The size of a buffer in bytes, None when it is known at run time only."""
    count = int(buffer.ty.dtype.dtype.lanes)
    for extent in buffer.ty.shape:
        if not isinstance(extent, tirx.IntImm):
            return None
        count *= int(extent)
    return count * kind.bits // 8


def _register_bytes(register: str) -> int:
    return {"float16_t": 2, "double": 8, "int64_t": 8, "uint64_t": 8}.get(register, 4)
