"""The process that builds: it has the compiler loaded, and makes programs of one task after another."""

from __future__ import annotations

import math
import pickle
import signal
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from tvm import ir

from greencc.artifact.bundle import Array
from greencc.errors import GreenccError
from greencc.targets.base import Declined, Scheduled, Target
from greencc.targets.cpu import build as _cpu_build  # noqa: F401  loaded before the first build has to wait for it
from greencc.targets.lower import schedule_kernel
from greencc.targets.tuning.alone import Kernel, build_alone
from greencc.targets.tuning.space import Plan, TunableRule
from greencc.tuning.channel import Channel, ChannelError
from greencc.tuning.faults import FAULTS, one_line
from greencc.tuning.program import MOST_COPIES, Contents, Operand, Program, random_array

_GRACE_SECONDS = 2.0
# Launches of a program by default. Several, because a run has a cost of its own; few of large kernels, because a short
# run is less likely to be disturbed; one where weights take much memory.
_LEAST_COPIES = 2
_RUN_BYTES, _LARGE_BYTES = 4 << 20, 32 << 20
# Weights repeat themselves after so many rows and columns; primes, so that a wrong index is seen all the same.
_MATRIX_PERIOD, _PERIOD = 61, 13


def main(incoming: int, outgoing: int, options: Mapping[str, Any]) -> None:
    """Build until the asking process has gone: see Child.

    A question holds a rule's name, a plan and seconds that it may take; a blob beside it is the task from now on. The
    answer is the program.
    """
    channel = Channel(incoming, outgoing)
    task: OpenedTask | None = None
    try:
        channel.send({"ready": True})
        while True:
            message = channel.receive()
            # The asking process ends this one when time is up. Should it have gone, this one ends by itself.
            signal.setitimer(signal.ITIMER_REAL, message.header["timeout"] + _GRACE_SECONDS)
            try:
                if message.blobs:
                    task = None
                    task = OpenedTask(*pickle.loads(message.blobs[0]))
                if task is None:
                    raise GreenccError("there is no task")
                program = task.program(message.header["rule"], message.header["plan"])
            except FAULTS as error:
                channel.send({"failed": one_line(error)})
            else:
                channel.send({}, (program.data,))
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
    except ChannelError:
        return


class OpenedTask:
    """A task that programs are made of; arguments are the fields of `builders.Task`."""

    def __init__(
        self,
        func: str,
        constants: Sequence[int],
        results: int,
        target: Target,
        sizes: Sequence[Mapping[str, int]],
        copies: int,
    ) -> None:
        self._kernel = Kernel(ir.load_json(func), frozenset(constants), results)
        self._target, self._sizes = target, sizes
        self._copies = copies or self._suitable_copies()

    def program(self, rule: str | None, plan: Plan | None) -> Program:
        """The kernel, scheduled by a plan of a rule.

        Raises:
            GreenccError: no rule takes it.
        """
        scheduled = self._schedule(rule, plan)
        if isinstance(scheduled, Declined):
            raise GreenccError(scheduled.reason)
        alone = build_alone(self._kernel, scheduled, self._target, self._weights, self._copies)
        contents = Contents(
            alone.code.library, alone.weights, alone.copies, self._operands, len(self._sizes), alone.code.kernels
        )
        return Program.pack(contents)

    def _schedule(self, rule: str | None, plan: Plan | None) -> Scheduled | Declined:
        func, constants, rules = self._kernel.func, self._kernel.constants, self._target.rules()
        if rule is None:
            return schedule_kernel(func, constants, rules)
        found = next((r for r in rules if r.name == rule and isinstance(r, TunableRule)), None)
        return Declined(f"the target has no rule '{rule}'") if found is None else found.apply(func, constants, plan)

    @cached_property
    def _weights(self) -> dict[int, Array]:
        """Logical arrays of the constants: every candidate gets the same ones."""
        shapes = {i: self._kernel.shape(i, dict(self._sizes[0])) for i in sorted(self._kernel.constants)}
        return {i: weight_array(shape, self._dtype(i), i) for i, shape in shapes.items()}

    @cached_property
    def _operands(self) -> tuple[Operand, ...]:
        return tuple(
            Operand(self._dtype(i), tuple(self._kernel.shape(i, dict(size)) for size in self._sizes))
            for i in self._kernel.operands
        )

    def _dtype(self, parameter: int) -> str:
        return str(self._kernel.func.params[parameter].ty.dtype)

    def _suitable_copies(self) -> int:
        weights = sum(weight.nbytes for weight in self._weights.values())
        if weights > _LARGE_BYTES:
            return 1
        others = [i for i in range(len(self._kernel.func.params)) if i not in self._kernel.constants]
        moved = weights + sum(self._bytes(i, dict(self._sizes[-1])) for i in others)
        return min(max(_RUN_BYTES // max(moved, 1), _LEAST_COPIES), MOST_COPIES)

    def _bytes(self, parameter: int, sizes: dict[str, int]) -> int:
        return math.prod(self._kernel.shape(parameter, sizes)) * np.dtype(self._dtype(parameter)).itemsize


def weight_array(shape: Sequence[int], dtype: str, seed: int) -> Array:
    """A constant: random, but periodic, so that large ones are made, packed and sent in little time.

    Floats are positive, for they may be variances or divisors; those of matrices are small, so that sums of hundreds
    of products don't leave the range in which functions behind them differ from constants.
    """
    period = _MATRIX_PERIOD if len(shape) <= 2 else _PERIOD
    rng = np.random.default_rng(seed)
    periods = tuple(min(dim, period) for dim in shape)
    tile = random_array(periods, dtype, rng)
    if tile.dtype.kind == "f":
        tile[...] = rng.uniform(0.5, 1.5, periods) / (8 if len(shape) > 1 else 1)
    found: Array = tile[np.ix_(*(np.arange(dim) % size for dim, size in zip(shape, periods, strict=True)))]
    return found if shape else tile
