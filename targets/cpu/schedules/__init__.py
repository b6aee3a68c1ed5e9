"""The CPU's schedule rules, in order: the first that applies to a kernel wins."""

from __future__ import annotations

from typing import TYPE_CHECKING

from greencc.targets.base import Rule
from greencc.targets.cpu.schedules.attention_rule import AttentionRule
from greencc.targets.cpu.schedules.convolution.rule import ConvolutionRule
from greencc.targets.cpu.schedules.depthwise.rule import DepthwiseRule
from greencc.targets.cpu.schedules.elementwise import ElementwiseRule
from greencc.targets.cpu.schedules.fallback import FallbackRule
from greencc.targets.cpu.schedules.matmul import MatmulRule
from greencc.targets.cpu.schedules.quantize_rows import NORMALIZE_RULE, QUANTIZE_RULE
from greencc.targets.cpu.schedules.quantize_rows_rule import QuantizeRowsRule
from greencc.targets.cpu.schedules.rows.rule import RowsRule
from greencc.targets.cpu.schedules.rowwise import RowwiseRule
from greencc.targets.cpu.schedules.tiled_reduction import TiledReductionRule

if TYPE_CHECKING:
    from greencc.targets.cpu.target import CpuTarget


def rules(target: CpuTarget) -> tuple[Rule, ...]:
    """Matmuls and convolutions first (they hold the time), then single passes over rows, then the rest.

    Emitted kernels name their rule; only that one is asked.
    """
    return (
        MatmulRule(target),
        ConvolutionRule(target),
        DepthwiseRule(target),
        RowsRule(target),
        RowwiseRule(target),
        TiledReductionRule(target),
        ElementwiseRule(target),
        FallbackRule(target),
        AttentionRule(target),
        QuantizeRowsRule(target, QUANTIZE_RULE),
        QuantizeRowsRule(target, NORMALIZE_RULE),
    )
