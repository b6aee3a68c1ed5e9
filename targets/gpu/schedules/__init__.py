"""The schedule rules of GPUs, in order: the first that applies to a kernel wins."""

from __future__ import annotations

from greencc.targets.base import Rule
from greencc.targets.gpu.capabilities import GpuTarget
from greencc.targets.gpu.schedules.attention_rule import AttentionRule
from greencc.targets.gpu.schedules.convolution.rule import ConvolutionRule, WindowRule
from greencc.targets.gpu.schedules.elementwise import ElementwiseRule
from greencc.targets.gpu.schedules.fallback import FallbackRule
from greencc.targets.gpu.schedules.matmul import FewRowsRule, MatmulRule
from greencc.targets.gpu.schedules.quantize_rows import NORMALIZE_RULE, QUANTIZE_RULE
from greencc.targets.gpu.schedules.quantize_rows_rule import QuantizeRowsRule
from greencc.targets.gpu.schedules.rowwise import RowwiseRule
from greencc.targets.gpu.schedules.tensor_core import TensorCoreRule


def rules(target: GpuTarget) -> tuple[Rule, ...]:
    """Products and convolutions first (they hold the time), then passes over rows, then the rest.

    Behind those come the rules of kernels that are emitted with their schedule, which alone are asked for them.
    """
    return (
        TensorCoreRule(target),
        MatmulRule(target),
        FewRowsRule(target),
        ConvolutionRule(target),
        WindowRule(target),
        RowwiseRule(target),
        ElementwiseRule(target),
        FallbackRule(target),
        AttentionRule(target),
        QuantizeRowsRule(target, QUANTIZE_RULE),
        QuantizeRowsRule(target, NORMALIZE_RULE),
    )
