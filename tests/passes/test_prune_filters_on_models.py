"""prune-filters on real image models: what goes, and what is computed then."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import reference
import tvm
from masked_channels import masked
from tvm import relax

from greencc.importers import import_model
from greencc.ir import same_type
from greencc.passes.base import PassContext
from greencc.passes.pipeline import run_pipeline
from greencc.passes.prune_filters import PruneFilters
from greencc.passes.registry import default_pipeline
from greencc.pipeline import constant_bytes

FRACTION = 0.25


def optimised(path: Path, shape: tuple[int, ...]) -> tvm.IRModule:
    imported = import_model(path, shapes={"x": shape}, dynamic={}, outputs=None)
    return run_pipeline(imported.module, default_pipeline(), PassContext()).module


@pytest.mark.network
def test_the_direction_classifier_computes_what_it_did_without_reading_the_channels(ppocr_cls: Path) -> None:
    """Residual connections, depthwise convolutions, gates, a pool, and a product behind a mean."""
    module = optimised(ppocr_cls, (1, 3, 48, 192))
    result = PruneFilters(FRACTION).run(module, PassContext())
    assert (result.rewrites, len(result.refusals)) == (22, 4)
    x = np.random.default_rng(0).standard_normal((1, 3, 48, 192)).astype(np.float32)
    (wanted,), (found,) = (reference.evaluate(m, x) for m in (masked(module, FRACTION), result.module))
    (whole,) = reference.evaluate(module, x)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-9)
    assert np.abs(found - whole).max() > 1e-6


@pytest.mark.network
def test_text_recognition_loses_a_third_of_its_bytes_and_keeps_its_output(ppocr_rec: Path) -> None:
    module = optimised(ppocr_rec, (1, 3, 48, 320))
    result = PruneFilters(FRACTION).run(module, PassContext())
    assert relax.analysis.check_well_formed(result.module)
    assert same_type(result.module["main"].ret_ty.fields[0], module["main"].ret_ty.fields[0])
    (value,) = result.module["main"].body.body.ty.fields
    assert same_type(value, module["main"].ret_ty.fields[0])
    assert result.rewrites == 20
    reasons = sorted(refusal.reason for refusal in result.refusals)
    assert reasons == ["an operator on the channels is not understood", "no channel would go"]
    assert constant_bytes(result.module) / constant_bytes(module) == pytest.approx(0.69, abs=0.01)
