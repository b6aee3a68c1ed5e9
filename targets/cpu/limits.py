"""Kernels that do nothing but reach a limit of the machine: what a profile divides by."""

from __future__ import annotations

from tvm import relax, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from greencc.artifact.bundle import Compiled, KernelCall, TensorSpec
from greencc.targets.cpu.intrinsics.dot import dot_product
from greencc.targets.cpu.schedules.registers import Register, registers
from greencc.targets.cpu.target import CpuTarget
from greencc.targets.tir import i64, ramp

# Independent sums: more than an instruction's latency times its throughput, fewer than there are registers.
_CHAINS = 12
# Columns that a word of activations is multiplied with, and words in turn: what a register tile does.
_DOT_COLUMNS, _DOT_WORDS = 3, 64
# Steps of a task: some milliseconds.
_STEPS = 1 << 20
# Bytes of a task that reads memory, and streams that it reads side by side.
_CHUNK = 1 << 20
_STREAMS = 4


def fma_limit(target: CpuTarget) -> tuple[Compiled, int]:
    """A kernel of float32 multiply-adds on registers, and the operations of one run (a multiply-add is 2)."""
    lanes = target.lanes()
    with IRBuilder() as ib, T.prim_func(s_tir=True):
        x = T.arg("x", T.buffer((lanes,), "float32"))
        out = T.arg("out", T.buffer((target.threads, lanes), "float32"))
        T.func_attr({"tirx.noalias": True})
        with T.parallel(i64(0), i64(target.threads)) as task:
            sums = registers(_CHAINS, lanes)
            factor = tirx.BufferLoad(x, [ramp(i64(0), lanes)])
            for c, item in enumerate(sums):
                item.fill(c)
            with T.serial(i64(0), i64(_STEPS)):
                for item in sums:
                    item.store(item.value * factor + factor)
            T.buffer_store(out, _total(sums), [task, ramp(i64(0), lanes)])
    operations = 2 * _CHAINS * lanes * _STEPS * target.threads
    return _compiled(ib.get(), target, (lanes,), "float32", (target.threads, lanes), operations), operations


def dot_limit(target: CpuTarget) -> tuple[Compiled, int]:
    """A kernel of int8 products summed in int32 on registers, and the operations of one run."""
    dot = dot_product(target)
    wide = dot.lanes * dot.depth
    shape = (_DOT_COLUMNS * wide + _DOT_WORDS * 4,)
    with IRBuilder() as ib, T.prim_func(s_tir=True):
        x = T.arg("x", T.buffer(shape, "int8"))
        out = T.arg("out", T.buffer((target.threads, dot.lanes), "int32"))
        T.func_attr({"tirx.noalias": True})
        with T.parallel(i64(0), i64(target.threads)) as task:
            sums = registers(_CHAINS, dot.lanes, "int32")
            weights = [tirx.BufferLoad(x, [ramp(i64(c * wide), wide)]) for c in range(_DOT_COLUMNS)]
            for c, item in enumerate(sums):
                item.fill(c)
            with T.serial(i64(0), i64(_STEPS)) as step:
                # As in a product, a word meets several columns. Words come from memory: products that don't change
                # from step to step would be computed once.
                for row in range(_CHAINS // _DOT_COLUMNS):
                    first = tirx.bitwise_and(step + i64(row), i64(_DOT_WORDS - 1)) * i64(4)
                    own = 1 if dot.depth == 1 else 4
                    bytes_ = tirx.BufferLoad(x, [ramp(i64(_DOT_COLUMNS * wide) + first, own)])
                    word = dot.spread(bytes_, dot.activation)
                    for column in range(_DOT_COLUMNS):
                        item = sums[row * _DOT_COLUMNS + column]
                        item.store(dot.multiply(item.value, word, weights[column]))
            T.buffer_store(out, _total(sums), [task, ramp(i64(0), dot.lanes)])
    operations = 2 * _CHAINS * wide * _STEPS * target.threads
    return _compiled(ib.get(), target, shape, "int8", (target.threads, dot.lanes), operations), operations


def bandwidth_limit(target: CpuTarget, size: int) -> tuple[Compiled, int]:
    """A kernel that reads `size` bytes, rounded up to whole chunks for every thread, and how many it reads."""
    lanes = target.lanes()
    chunks = -(-size // (_CHUNK * target.threads))
    elements = _CHUNK // 4
    stream = elements // _STREAMS
    shape = (target.threads, chunks, elements)
    with IRBuilder() as ib, T.prim_func(s_tir=True):
        x = T.arg("x", T.buffer(shape, "float32"))
        out = T.arg("out", T.buffer((target.threads, lanes), "float32"))
        T.func_attr({"tirx.noalias": True})
        with T.parallel(i64(0), i64(target.threads)) as task:
            sums = registers(_STREAMS, lanes)
            with T.serial(i64(0), i64(chunks)) as chunk, T.serial(i64(0), i64(stream // lanes)) as step:
                for s, item in enumerate(sums):
                    where = ramp(i64(s * stream) + step * i64(lanes), lanes)
                    item.store(item.value + tirx.BufferLoad(x, [task, chunk, where]))
            T.buffer_store(out, _total(sums), [task, ramp(i64(0), lanes)])
    read = target.threads * chunks * _CHUNK
    return _compiled(ib.get(), target, shape, "float32", (target.threads, lanes), None), read


def _total(sums: list[Register]) -> tirx.Expr:
    return sum((item.value for item in sums[1:]), sums[0].value)


def _compiled(
    kernel: tirx.PrimFunc,
    target: CpuTarget,
    given: tuple[int, ...],
    dtype: str,
    made: tuple[int, ...],
    operations: int | None,
) -> Compiled:
    """A model of one input and one output that is nothing but `kernel`."""
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType(given, dtype))
    out = "int32" if dtype == "int8" else dtype
    with builder.function("main", [x]):
        with builder.dataflow():
            gv = builder.add_func(kernel, "limit")
            result = builder.emit_output(
                relax.Tuple([builder.emit(relax.call_tir(gv, [x], relax.TensorType(made, out)))])
            )
        builder.emit_func_output(result)
    return Compiled(
        library=target.build(builder.get()).library,
        weights={},
        inputs=(TensorSpec("x", dtype, given),),
        outputs=(TensorSpec("out", out, made),),
        symbols={},
        target=target.describe(),
        calls=(KernelCall("limit", (), operations),),
        report={},
    )
