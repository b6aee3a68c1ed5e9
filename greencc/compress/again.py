"""The drop of a compressed artifact, measured again on other data: what `greencc verify --data` does."""

from __future__ import annotations

from pathlib import Path

from greencc.artifact.manifest import Manifest
from greencc.compress.metrics import Drop, make_metric
from greencc.compress.search import References, measure_drop
from greencc.importers import import_model
from greencc.padding import ElidedPadding
from greencc.runtime.model import Model
from greencc.samples import read_dataset
from greencc.targets.cpu.target import host_target
from greencc.verification import open_reference


def measure_again(model: Model, metric: str, original: Path, data: Path) -> Drop:
    """The drop of a loaded artifact against the original model.

    Args:
        model: the artifact.
        metric: as `make_metric` reads it.
        original: the model that it was compiled from.
        data: an .npz of samples, with labels if the metric takes any.

    Raises:
        UserError: the data or the original don't fit.
    """
    manifest: Manifest = model.artifact.manifest
    fixed = {
        spec.name: tuple(int(dim) for dim in spec.shape)
        for spec in manifest.inputs
        if all(isinstance(dim, int) for dim in spec.shape)
    }
    dynamic = {name: (low, high) for name, (low, high) in manifest.symbols.items() if high is not None}
    outputs = tuple(spec.name for spec in manifest.outputs)
    module = import_model(original, shapes=fixed, dynamic=dynamic, outputs=outputs).module
    dataset = read_dataset(data, module["main"], option="--data")
    elided = ElidedPadding.of(manifest.report.get("elided_padding"))
    references = References(dataset, open_reference(original, module, host_target(model.threads)), outputs, elided)
    return measure_drop(make_metric(metric), dataset, references, model, range(dataset.runs))
