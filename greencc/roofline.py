"""Measured times beside what the work needs at least: rates, and shares of the machine's limits.

The model is the roofline (Williams, Waterman and Patterson, 2009): a kernel is bound by arithmetic or by memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from greencc.artifact.bundle import ARITHMETIC, Array, KernelCall, TensorSpec
from greencc.limits import Limits
from greencc.runtime.profile import KernelTime
from greencc.symbolic import evaluate


@dataclass(frozen=True)
class KernelRate:
    """What one kernel launch reached.

    Attributes:
        kernel: its name.
        nodes: the source model's nodes that it computes.
        milliseconds: time of the launch.
        operations: arithmetic operations that the computation needs; None where unknown.
        bytes: what it has to read and write at least; None where unknown.
        arithmetic: what its products are computed with.
        operations_per_second: from the two; None where unknown.
        bytes_per_second: likewise.
        share_of_arithmetic: of the machine's limit for `arithmetic`.
        share_of_bandwidth: of the machine's memory bandwidth; above 1 where operands come from a cache.
    """

    kernel: str
    nodes: tuple[str, ...]
    milliseconds: float
    operations: int | None
    bytes: int | None
    arithmetic: str
    operations_per_second: float | None
    bytes_per_second: float | None
    share_of_arithmetic: float | None
    share_of_bandwidth: float | None


def rates(times: Iterable[KernelTime], symbols: Mapping[str, int], limits: Limits | None) -> tuple[KernelRate, ...]:
    """What each launch of a profile reached.

    Args:
        times: the launches.
        symbols: sizes of the inputs' symbolic dimensions.
        limits: the machine's; None where they aren't known, and so no shares of them.
    """
    return tuple(_rate(launch, symbols, limits) for launch in times)


def _rate(launch: KernelTime, symbols: Mapping[str, int], limits: Limits | None) -> KernelRate:
    call, seconds = launch.call, launch.milliseconds / 1e3
    operations, moved = (evaluate(amount, symbols) for amount in (call.operations, call.bytes))
    speed = operations / seconds if operations else None
    traffic = moved / seconds if moved else None
    return KernelRate(
        call.kernel,
        call.nodes,
        launch.milliseconds,
        operations,
        moved,
        call.arithmetic,
        speed,
        traffic,
        None if speed is None or limits is None else speed / limits.operations(call.arithmetic),
        None if traffic is None or limits is None else traffic / limits.bandwidth,
    )


def operations_of(calls: Sequence[KernelCall], symbols: Mapping[str, int]) -> dict[str, int]:
    """Operations of one run by arithmetic. Kernels whose operations are unknown don't count."""
    totals = dict.fromkeys(ARITHMETIC, 0)
    for call in calls:
        totals[call.arithmetic] += evaluate(call.operations, symbols) or 0
    return totals


def share_of_arithmetic(operations: Mapping[str, int], milliseconds: float, limits: Limits) -> float:
    """Which share of a run's time its arithmetic would take at the machine's limits."""
    return sum(count / limits.operations(kind) for kind, count in operations.items()) / (milliseconds / 1e3)


def symbol_values(specs: Iterable[TensorSpec], arrays: Mapping[str, Array]) -> dict[str, int]:
    """Sizes of the symbolic dimensions of a model's inputs."""
    return {
        dim: size
        for spec in specs
        for dim, size in zip(spec.shape, arrays[spec.name].shape, strict=True)
        if isinstance(dim, str)
    }
