"""Source models -> Relax. The format follows from what MODEL is: a file's suffix, or a directory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from greencc.errors import ModelError

if TYPE_CHECKING:
    from greencc.importers.base import Imported


def import_model(
    model: Path,
    *,
    shapes: Mapping[str, tuple[int, ...]],
    dynamic: Mapping[str, tuple[int, int]],
    outputs: Sequence[str] | None = None,
) -> Imported:
    """Import an .onnx file or a Hugging Face directory.

    Args:
        model: the file or directory.
        shapes: fixed shapes by input name.
        dynamic: inclusive bounds by dimension name.
        outputs: what the user wants of the model; None for what it gives by default. A format whose outputs are
            a choice builds those; one whose outputs are fixed has all of them, to be dropped by a pass.

    Raises:
        ModelError: no such model, another format, or a damaged one.
        UserError: `shapes`, `dynamic` or `outputs` do not fit the model.
    """
    if not model.exists():
        raise ModelError(f"{model}: no such file or directory")
    if model.is_dir():
        from greencc.importers.huggingface import import_huggingface

        chosen = {} if outputs is None else {"outputs": outputs}
        return import_huggingface(model, shapes=shapes, dynamic=dynamic, **chosen)
    if model.suffix == ".onnx":
        from greencc.importers.onnx import import_onnx

        return import_onnx(model, shapes=shapes, dynamic=dynamic)
    raise ModelError(f"{model}: unknown format '{model.suffix}'; greencc reads .onnx and Hugging Face directories")
