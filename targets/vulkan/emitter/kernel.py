"""A lowered device function to a compute shader."""

from __future__ import annotations

from collections.abc import Iterable

from tvm import ir, tirx

from greencc.targets.gpu.capabilities import Capabilities
from greencc.targets.vulkan.emitter.bounds import SIZE, of_type
from greencc.targets.vulkan.emitter.context import Context, Variable
from greencc.targets.vulkan.emitter.expressions import Expressions
from greencc.targets.vulkan.emitter.helpers import definitions
from greencc.targets.vulkan.emitter.memory import Binding, Memory
from greencc.targets.vulkan.emitter.shader import BufferParameter, ScalarParameter, Shader
from greencc.targets.vulkan.emitter.statements import Statements
from greencc.targets.vulkan.emitter.types import EXTENSIONS, dtype_of, element

# Bytes of push constants that every device has, and where the scalars begin in them.
_PUSH_BYTES, _FIRST_SLOT, _SLOT = 128, 16, 8
_AXES = ("x", "y", "z")


class _Scalar:
    """A scalar parameter: declared in 32 bits, in 64 bits or in both, as it is used."""

    def __init__(self, var: tirx.Var, name: str, dtype: str) -> None:
        self.var, self.name, self.dtype = var, name, dtype
        self.narrow = self.wide = False

    def as_narrow(self, lane: int) -> str:
        self.narrow = True
        return self.name

    def as_wide(self, lane: int) -> str:
        self.wide = True
        return f"{self.name}_wide"


def emit(name: str, func: tirx.PrimFunc, gpu: Capabilities) -> Shader:
    """The compute shader of a device function.

    Raises GreenccError, naming the kernel, for what has no counterpart in a shader and for what exceeds the device.
    """
    context = Context(name, gpu)
    expressions = Expressions(context)
    statements = Statements(context, expressions)
    bindings, scalars = _parameters(context, func)
    statements.write(func.body)
    x, y, z = (statements.workgroup.get(f"threadIdx.{axis}", 1) for axis in _AXES)
    workgroup = (x, y, z)
    _check(context, workgroup, statements.shared_bytes, bindings.values())
    count = len(scalars)
    in_uniform = _FIRST_SLOT + _SLOT * count > _PUSH_BYTES
    lines = [*_interface(context, bindings, scalars, in_uniform), *statements.shared_declarations]
    body = [f"{'  ' * line.depth}{line.text}" for line in context.lines if line.text]
    main = ["void main() {", *_identifiers(), *_scalar_lines(scalars, in_uniform, gpu), *body, "}"]
    features = [feature for feature in EXTENSIONS if feature in context.requires]
    extensions = sorted({extension for feature in features for extension in EXTENSIONS[feature]})
    head = [
        "#version 460",
        *(f"#extension {extension} : require" for extension in (*extensions, "GL_EXT_control_flow_attributes")),
        f"layout(local_size_x = {workgroup[0]}, local_size_y = {workgroup[1]}, local_size_z = {workgroup[2]}) in;",
    ]
    if context.uses_barrier:
        # A barrier orders accesses to shared memory. Those to storage buffers, as on CUDA, take a fence of their own.
        fence = "groupMemoryBarrier(); " if _is_shared(bindings.values()) else ""
        head.append(f"#define WORKGROUP_BARRIER {fence}barrier()")
    source = "\n".join([*head, *lines, *definitions(context.helpers), *main, ""])
    order: dict[tirx.Var, Binding | _Scalar] = {**bindings, **scalars}
    parameters = tuple(_described(order[var]) for var in func.params)
    launch = tuple(str(tag) for tag in (func.attrs or {}).get("tirx.kernel_launch_params", ()))
    requires = tuple(sorted(context.requires))
    subgroup = gpu.subgroup if "subgroup" in requires else None
    return Shader(source, parameters, launch, workgroup, requires, subgroup, statements.shared_bytes, in_uniform)


def _parameters(context: Context, func: tirx.PrimFunc) -> tuple[dict[tirx.Var, Binding], dict[tirx.Var, _Scalar]]:
    bindings: dict[tirx.Var, Binding] = {}
    scalars: dict[tirx.Var, _Scalar] = {}
    for var in func.params:
        unique = context.name(var.name)
        if isinstance(var.ty, ir.PointerType):
            bindings[var] = Binding(len(bindings), unique)
            context.memory[var] = Memory(bindings[var], context.element(str(var.ty.element_type)))
            continue
        scalar = scalars[var] = _Scalar(var, unique, dtype_of(var))
        if scalar.dtype == "int64":
            context.bounds[var] = SIZE
            context.variables[var] = Variable(narrow=scalar.as_narrow, wide=scalar.as_wide)
        else:
            context.element(scalar.dtype)
            if not scalar.dtype.startswith(("float", "bfloat")):
                context.bounds[var] = of_type(scalar.dtype)
            context.variables[var] = Variable((unique,))
    return bindings, scalars


def _interface(
    context: Context, bindings: dict[tirx.Var, Binding], scalars: dict[tirx.Var, _Scalar], in_uniform: bool
) -> list[str]:
    """Declarations of the storage buffers, the push constants and, for many scalars, the uniform buffer."""
    declared = [line for binding in bindings.values() for line in binding.declarations(context.uses_barrier)]
    members = []
    for i, scalar in enumerate(scalars.values()):
        at = _SLOT * i + (0 if in_uniform else _FIRST_SLOT)
        kind = _slot_type(scalar)
        members.append(f"layout(offset = {at}) {kind} s{i};")
    base = "layout(offset = 0) uvec3 base;"
    push = [base] if in_uniform else [base, *members]
    lines = [*declared, f"layout(push_constant, std430) uniform Push {{ {' '.join(push)} }} push;"]
    if in_uniform:
        lines.append(
            f"layout(set = 0, binding = {len(bindings)}, std140) uniform Scalars {{ {' '.join(members)} }} scalars;"
        )
    return lines


def _slot_type(scalar: _Scalar) -> str:
    if scalar.dtype == "int64":
        return "int64_t" if scalar.wide and not scalar.narrow else "int"
    # A bool is a number; a float16 its bits.
    return {"bool": "int", "float16": "uint"}.get(scalar.dtype, element(scalar.dtype).register)


def _identifiers() -> list[str]:
    lines = []
    for axis in _AXES:
        lines.append(f"  int blockIdx_{axis} = int(gl_WorkGroupID.{axis} + push.base.{axis});")
        lines.append(f"  int threadIdx_{axis} = int(gl_LocalInvocationID.{axis});")
    return lines


def _scalar_lines(scalars: dict[tirx.Var, _Scalar], in_uniform: bool, gpu: Capabilities) -> list[str]:
    lines = []
    for i, scalar in enumerate(scalars.values()):
        slot = f"{'scalars' if in_uniform else 'push'}.s{i}"
        if scalar.dtype != "int64":
            register = element(scalar.dtype, gpu.has_float16).register
            value = {"bool": f"{slot} != 0", "float16": f"{register}(unpackHalf2x16({slot}).x)"}.get(scalar.dtype, slot)
            lines.append(f"  {register} {scalar.name} = {value};")
            continue
        if scalar.narrow:
            lines.append(f"  int {scalar.name} = {slot};")
        if scalar.wide:
            lines.append(f"  int64_t {scalar.name}_wide = int64_t({slot});")
    return lines


def _described(parameter: Binding | _Scalar) -> BufferParameter | ScalarParameter:
    if isinstance(parameter, Binding):
        return BufferParameter(parameter.access, parameter.bytes)
    return ScalarParameter(parameter.dtype, parameter.narrow)


def _is_shared(bindings: Iterable[Binding]) -> bool:
    """Whether a storage buffer is read as well as written."""
    return any(binding.is_read and binding.is_written for binding in bindings)


def _check(context: Context, workgroup: tuple[int, int, int], shared_bytes: int, bindings: Iterable[Binding]) -> None:
    gpu = context.gpu
    threads = workgroup[0] * workgroup[1] * workgroup[2]
    if threads > gpu.max_threads:
        raise context.fail(f"a workgroup of {threads} threads, of which the device allows {gpu.max_threads}")
    for binding in bindings:
        if (binding.bytes or 0) > gpu.max_buffer_bytes:
            raise context.fail(
                f"the buffer '{binding.name}' has {binding.bytes} bytes, of which the device allows "
                f"{gpu.max_buffer_bytes} in one"
            )
    if shared_bytes > gpu.shared_bytes:
        raise context.fail(f"{shared_bytes} bytes of shared memory, of which the device has {gpu.shared_bytes}")
