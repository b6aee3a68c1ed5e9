"""Source models -> Relax. The format follows from what MODEL is: a file's suffix, or a directory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from greencc.errors import ModelError

if TYPE_CHECKING:
    from greencc.importers.base import Imported


def import_model(
    model: Path, *, shapes: Mapping[str, tuple[int, ...]], dynamic: Mapping[str, tuple[int, int]]
) -> Imported:
    """Import an .onnx file or a Hugging Face directory.

    Args:
        model: the file or directory.
        shapes: fixed shapes by input name.
        dynamic: inclusive bounds by dimension name.

    Raises:
        ModelError: no such model, another format, or a damaged one.
        UserError: `shapes` or `dynamic` do not fit the model.
    """
    if not model.exists():
        raise ModelError(f"{model}: no such file or directory")
    if model.is_dir():
        from greencc.importers.huggingface import import_huggingface

        return import_huggingface(model, shapes=shapes, dynamic=dynamic)
    if model.suffix == ".onnx":
        from greencc.importers.onnx import import_onnx

        return import_onnx(model, shapes=shapes, dynamic=dynamic)
    raise ModelError(f"{model}: unknown format '{model.suffix}'; greencc reads .onnx and Hugging Face directories")
