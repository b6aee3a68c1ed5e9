"""The passes by name, the default pipeline, and the parsing of `--passes a,b{option=value}`."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from difflib import get_close_matches

from greencc.errors import UserError
from greencc.passes.base import Pass
from greencc.passes.cluster_weights import ClusterWeights
from greencc.passes.drop_layers import DropLayers
from greencc.passes.elide_activations import ElideActivations
from greencc.passes.elide_padding import ElidePadding
from greencc.passes.equalize_channels import EqualizeChannels
from greencc.passes.fold_constants import FoldConstants
from greencc.passes.fuse_attention import FuseAttention
from greencc.passes.fuse_batch_norm import FuseBatchNorm
from greencc.passes.fuse_gelu import FuseGelu
from greencc.passes.fuse_integer_products import FuseIntegerProducts
from greencc.passes.fuse_layer_norm import FuseLayerNorm
from greencc.passes.fuse_parallel_matmul import FuseParallelMatmul
from greencc.passes.fuse_rms_norm import FuseRmsNorm
from greencc.passes.fuse_rotary import FuseRotary
from greencc.passes.fuse_silu import FuseSilu
from greencc.passes.fuse_transpose_matmul import FuseTransposeMatmul
from greencc.passes.prune_channels import PruneChannels
from greencc.passes.prune_dead_nodes import PruneDeadNodes
from greencc.passes.prune_filters import PruneFilters
from greencc.passes.prune_heads import PruneHeads
from greencc.passes.quantize_int8 import QuantizeInt8
from greencc.passes.quantize_tables import QuantizeTables
from greencc.passes.quantize_weights import QuantizeWeights
from greencc.passes.sink_dequantize import SinkDequantize
from greencc.passes.smooth_activations import SmoothActivations
from greencc.passes.sparsify import Sparsify
from greencc.passes.store_levels import StoreLevels

# name -> class, explicit: nothing registers itself by being imported.
PASSES: dict[str, type[Pass]] = {
    PruneDeadNodes.name: PruneDeadNodes,
    FuseIntegerProducts.name: FuseIntegerProducts,
    SinkDequantize.name: SinkDequantize,
    FoldConstants.name: FoldConstants,
    ElideActivations.name: ElideActivations,
    FuseBatchNorm.name: FuseBatchNorm,
    FuseAttention.name: FuseAttention,
    FuseRotary.name: FuseRotary,
    FuseParallelMatmul.name: FuseParallelMatmul,
    FuseTransposeMatmul.name: FuseTransposeMatmul,
    FuseLayerNorm.name: FuseLayerNorm,
    FuseRmsNorm.name: FuseRmsNorm,
    FuseGelu.name: FuseGelu,
    FuseSilu.name: FuseSilu,
    ElidePadding.name: ElidePadding,
    DropLayers.name: DropLayers,
    PruneHeads.name: PruneHeads,
    PruneChannels.name: PruneChannels,
    EqualizeChannels.name: EqualizeChannels,
    PruneFilters.name: PruneFilters,
    Sparsify.name: Sparsify,
    ClusterWeights.name: ClusterWeights,
    SmoothActivations.name: SmoothActivations,
    QuantizeInt8.name: QuantizeInt8,
    QuantizeTables.name: QuantizeTables,
    QuantizeWeights.name: QuantizeWeights,
    StoreLevels.name: StoreLevels,
}

_ITEM = re.compile(r"\s*([a-z0-9-]+)\s*(?:\{([^{}]*)\})?\s*(?:,|$)")


def default_pipeline() -> tuple[Pass, ...]:
    """The passes that `compile` runs when the user names none, in order."""
    return (
        # Phase 1, tidy: patterns see each value once, and no layout operator that does nothing.
        PruneDeadNodes(),
        FuseIntegerProducts(),  # before folding, which makes float32 of weights in bytes
        SinkDequantize(),
        FoldConstants(),
        # Phase 2, fuse operators into larger ones. Each line says what it must come after.
        FuseBatchNorm(),
        FuseLayerNorm(),
        FuseRmsNorm(),  # after layer norm, whose second half is an RMS norm of the centred values
        FuseGelu(),
        FuseSilu(),
        FuseRotary(),
        FuseAttention(),  # after rotary, which moves the transpose behind itself, where attention absorbs it
        FuseParallelMatmul(),  # after attention, which alone makes it pay: it reads merged columns in place
        FuseTransposeMatmul(),  # after attention, whose form has transposes before its matmuls
        # Phase 3, elide: after fusion, so that an activation inside a fused form is not taken apart.
        ElideActivations(),
        ElidePadding(),  # after all fusion: it repeats what there is on other shapes
        # Phase 4, sweep: what fusing and eliding left without users, or made equal to something else.
        FoldConstants(),
        PruneDeadNodes(),
    )


def storing_passes() -> tuple[Pass, ...]:
    """The passes that `compile` runs behind all others, those that the user asks for included, unless passes are named.

    They store weights in forms that no other pass looks for.
    """
    return (StoreLevels(),)


def parse_pipeline(text: str) -> tuple[Pass, ...]:
    """Passes from `a,b{x=1,y=2}`. An unknown name or option is a UserError that lists the known ones."""
    passes: list[Pass] = []
    position = 0
    while position < len(text):
        item = _ITEM.match(text, position)
        if item is None or item.end() == position:
            raise UserError(f"--passes: can't read '{text[position:]}'; write a,b{{option=value}}")
        passes.append(make_pass(item.group(1), _parse_options(item.group(1), item.group(2) or "")))
        position = item.end()
    return tuple(passes)


def make_pass(name: str, options: dict[str, str]) -> Pass:
    """The pass `name` with its options given as text."""
    if name not in PASSES:
        close = get_close_matches(name, PASSES, n=1)
        hint = f" (did you mean '{close[0]}'?)" if close else ""
        raise UserError(f"--passes: unknown pass '{name}'{hint}; known: {', '.join(sorted(PASSES))}")
    cls = PASSES[name]
    fields = {f.name.replace("_", "-"): f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    values: dict[str, object] = {}
    for key, text in options.items():
        if key not in fields:
            raise UserError(f"--passes: pass '{name}' has no option '{key}'; it has: {', '.join(fields) or 'none'}")
        values[fields[key].name] = _convert(name, key, fields[key].type, text)
    return cls(**values)


def names(passes: Sequence[Pass]) -> list[str]:
    """Command-line names of a pipeline's passes."""
    return [p.name for p in passes]


def _parse_options(name: str, text: str) -> dict[str, str]:
    options: dict[str, str] = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        key, equals, value = part.partition("=")
        if not equals or not value.strip():
            raise UserError(f"--passes: option '{part}' of pass '{name}' isn't written as option=value")
        options[key.strip().replace("_", "-")] = value.strip()
    return options


def _convert(name: str, key: str, kind: object, text: str) -> object:
    kind_name = kind if isinstance(kind, str) else getattr(kind, "__name__", str(kind))
    try:
        if kind_name == "bool":
            return {"true": True, "false": False}[text.lower()]
        return {"int": int, "float": float, "str": str}[kind_name](text)
    except (KeyError, ValueError) as error:
        raise UserError(f"--passes: '{text}' is no {kind_name} for option '{key}' of pass '{name}'") from error
