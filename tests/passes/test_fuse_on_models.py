"""The fuse passes on a real encoder: what must be found in it, from either importer, and nothing left."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import tvm
from builders import ops

from benchmarks.export_minilm import VARIANTS
from greencc.importers.huggingface import import_huggingface
from greencc.importers.onnx import import_onnx
from greencc.ops import ATTENTION, AttentionAttrs
from greencc.passes.base import PassContext
from greencc.passes.graph import Graph
from greencc.passes.registry import default_pipeline

LAYERS, HEADS, HEAD_DIM = 6, 12, 32


def optimised(module: tvm.IRModule) -> tuple[tvm.IRModule, list[str]]:
    """The module after the default pipeline, and the refusals of the fuse passes."""
    refusals = []
    for pass_ in default_pipeline():
        result = pass_.run(module, PassContext())
        module = result.module
        if pass_.name.startswith("fuse-"):
            refusals += [f"{r.pass_name} at {r.node}: {r.reason}" for r in result.refusals]
    return module, refusals


@pytest.fixture(scope="module")
def sources(minilm_hf: Path, minilm_onnx: Path, minilm_int8: Path, minilm_exports: dict[str, Path]) -> dict[str, Path]:
    return {"directory": minilm_hf, "onnx": minilm_onnx, "int8": minilm_int8, **minilm_exports}


@pytest.mark.network
@pytest.mark.parametrize("source", ["directory", "onnx", "int8", *VARIANTS])
def test_minilm_is_fused_whole(source: str, sources: dict[str, Path]) -> None:
    path = sources[source]
    imported = import_huggingface if source == "directory" else import_onnx
    module, refusals = optimised(imported(path, shapes={}, dynamic={}).module)
    count = Counter(ops(module))
    assert refusals == []
    assert count["nn.layer_norm"] == 2 * LAYERS + 1
    assert count["nn.gelu"] == count[ATTENTION] == LAYERS
    # Per layer: the merged projections, attention's output, and the feed-forward pair.
    assert count["matmul"] == 4 * LAYERS
    assert not {"nn.softmax", "erf", "permute_dims", "strided_slice"} & set(count)
    calls = [value for _, value in Graph(module, module["main"]).definitions()]
    fused = [c for c in calls if isinstance(c, tvm.relax.Call) and c.op.name == ATTENTION]
    for call in fused:
        assert all(arg.same_as(call.args[0]) for arg in call.args[:3])
        attrs = AttentionAttrs.of(call)
        assert (attrs.heads, attrs.head_dim) == (HEADS, HEAD_DIM)
        assert sorted((attrs.q_offset, attrs.k_offset, attrs.v_offset)) == [0, 384, 768]
