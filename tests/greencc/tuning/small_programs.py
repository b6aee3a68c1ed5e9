"""Programs of one small kernel each: a right one, and others that go wrong in every way."""

from __future__ import annotations

import functools

import numpy as np
from tvm import tirx
from tvm.script import tirx as T

from greencc.targets.base import Scheduled
from greencc.targets.cpu.target import CpuTarget, host_target
from greencc.targets.tuning.alone import Kernel, build_alone
from greencc.tuning.program import Contents, Operand, Program

COUNT = 1000
WEIGHT = np.linspace(1, 2, COUNT, dtype=np.float32)


def target() -> CpuTarget:
    """This machine's CPU, with one thread."""
    return host_target(threads=1)


@T.prim_func(s_tir=True)
def _product(x: T.Buffer((COUNT,), "float32"), w: T.Buffer((COUNT,), "float32"), y: T.Buffer((COUNT,), "float32")):
    for i in range(COUNT):
        y[i] = x[i] * w[i]


@T.prim_func(s_tir=True)
def _backwards(x: T.Buffer((COUNT,), "float32"), w: T.Buffer((COUNT,), "float32"), y: T.Buffer((COUNT,), "float32")):
    for i in range(COUNT):
        y[COUNT - 1 - i] = w[COUNT - 1 - i] * x[COUNT - 1 - i]


@T.prim_func(s_tir=True)
def _repeated(x: T.Buffer((COUNT,), "float32"), w: T.Buffer((COUNT,), "float32"), y: T.Buffer((COUNT,), "float32")):
    for j in range(500):
        for i in range(COUNT):
            y[i] = T.if_then_else(j < 499, T.sin(x[i] + T.Cast("float32", j)), x[i] * w[i])


@T.prim_func(s_tir=True)
def _wrong(x: T.Buffer((COUNT,), "float32"), w: T.Buffer((COUNT,), "float32"), y: T.Buffer((COUNT,), "float32")):
    for i in range(COUNT):
        y[i] = x[i] * w[i] + T.float32(0.001)


@T.prim_func(s_tir=True)
def _crashing(x: T.Buffer((COUNT,), "float32"), w: T.Buffer((COUNT,), "float32"), y: T.Buffer((COUNT,), "float32")):
    for i in range(COUNT):
        y[T.Cast("int64", i) + T.int64(1 << 50)] = x[i] * w[i]


@T.prim_func(s_tir=True)
def _endless(x: T.Buffer((COUNT,), "float32"), w: T.Buffer((COUNT,), "float32"), y: T.Buffer((COUNT,), "float32")):
    y[0] = x[0] * w[0]
    while y[0] < T.float32(1e30):
        y[0] = x[0] * w[0]


@T.prim_func(s_tir=True)
def _greedy(x: T.Buffer((COUNT,), "float32"), w: T.Buffer((COUNT,), "float32"), y: T.Buffer((COUNT,), "float32")):
    large = T.alloc_buffer((1 << 38,), "float32")
    for i in range(COUNT):
        large[T.Cast("int64", i) * T.int64(1 << 28)] = x[i]
    for i in range(COUNT):
        y[i] = large[T.Cast("int64", i) * T.int64(1 << 28)] * w[i]


KERNELS = {
    "product": _product,
    "backwards": _backwards,
    "repeated": _repeated,
    "wrong": _wrong,
    "crashing": _crashing,
    "endless": _endless,
    "greedy": _greedy,
}


@functools.cache
def program(name: str) -> Program:
    """The program of a kernel, built once."""
    return build(KERNELS[name])


def build(func: tirx.PrimFunc, copies: int = 2) -> Program:
    """The program of a kernel with such parameters."""
    alone = build_alone(Kernel(func, frozenset({1}), 1), Scheduled(func, "test"), target(), {1: WEIGHT}, copies)
    operands = (Operand("float32", ((COUNT,),)),)
    return Program.pack(Contents(alone.code.library, alone.weights, alone.copies, operands))


@T.prim_func(s_tir=True)
def symbolic_product(x: T.handle, w: T.handle, y: T.handle):
    """The product of arrays whose size is known at run time."""
    n = T.int64()
    x_ = T.match_buffer(x, (n,), "float32")
    w_ = T.match_buffer(w, (n,), "float32")
    y_ = T.match_buffer(y, (n,), "float32")
    for i in range(n):
        with T.sblock("product"):
            vi = T.axis.spatial(n, i)
            y_[vi] = x_[vi] * w_[vi]
