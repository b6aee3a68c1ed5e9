"""How far int8 is from single precision: ranges found at run time against fixed ones, and weights' errors in the mean.

Every model is calibrated by some samples and judged on others: relative L2 of its first output, over all of them.

Usage: python -m benchmarks.calibration [MODEL...] [--results FILE]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import greencc
from benchmarks import bert_onnx, models, samples
from benchmarks.compress import SHAPES, tokens
from greencc import api
from greencc.observers import OBSERVERS

LEARNT_FROM, JUDGED_ON = 16, 32

Arrays = dict[str, np.ndarray]


def minilm() -> tuple[Path, dict[str, tuple[int, ...]], Arrays]:
    """MiniLM's last hidden state on passages of BoolQ."""
    rows = models.boolq_rows(0, 4 * (LEARNT_FROM + JUDGED_ON))
    passages = list(dict.fromkeys(row.passage for row in rows))[: LEARNT_FROM + JUDGED_ON]
    return bert_onnx.encoder_onnx(models.minilm_hf()), dict(SHAPES), tokens(passages)


def magika() -> tuple[Path, dict[str, tuple[int, ...]], Arrays]:
    """Magika on pieces of files."""
    return models.magika(), {"bytes": (1, 2048)}, samples.magika_files(LEARNT_FROM + JUDGED_ON)


def ppocr_rec() -> tuple[Path, dict[str, tuple[int, ...]], Arrays]:
    """PP-OCRv4 recognition on lines of text."""
    return models.ppocr_rec(), {"x": (1, 3, 48, 320)}, samples.text_lines(LEARNT_FROM + JUDGED_ON)


MODELS: dict[str, Callable[[], tuple[Path, dict[str, tuple[int, ...]], Arrays]]] = {
    "minilm": minilm,
    "magika": magika,
    "ppocr-rec": ppocr_rec,
}


def distances(model: Path, shapes: dict[str, tuple[int, ...]], data: Arrays) -> dict[str, float]:
    """Relative L2 to single precision of each way to quantise."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        calib = [{key: array[i : i + 1] for key, array in data.items() if key in shapes} for i in range(LEARNT_FROM)]
        api.compile(model, folder / "float32", shapes=shapes)
        wanted = _outputs(folder / "float32", shapes, data)
        found: dict[str, float] = {}
        for label, options in _ways().items():
            api.compile(model, folder / "int8", shapes=shapes, calib=calib, **options)
            got = _outputs(folder / "int8", shapes, data)
            found[label] = float(np.linalg.norm(got - wanted) / np.linalg.norm(wanted))
            print(f"  {label}: {found[label]:.3g}", file=sys.stderr, flush=True)
        return found


def _ways() -> dict[str, dict[str, Any]]:
    ways: dict[str, dict[str, Any]] = {}
    for ranges in ("", *OBSERVERS):
        for correct in ("false", "true"):
            option = f"measure=false,correct-bias={correct}" + (f",ranges={ranges}" if ranges else "")
            label = f"{ranges or 'at run time'}, {'means corrected' if correct == 'true' else 'as it is'}"
            ways[label] = {"passes": f"{_pipeline()},smooth-activations,quantize-int8{{{option}}}"}
    return ways


def _pipeline() -> str:
    from greencc.passes.registry import default_pipeline, names

    return ",".join(names(default_pipeline()))


def _outputs(artifact: Path, shapes: dict[str, tuple[int, ...]], data: Arrays) -> np.ndarray:
    model = greencc.load(artifact)
    judged = range(LEARNT_FROM, LEARNT_FROM + JUDGED_ON)
    runs = [model({key: data[key][i : i + 1] for key in shapes}) for i in judged]
    return np.stack([next(iter(outputs.values())) for outputs in runs])


def main(arguments: list[str]) -> int:
    """Measure the named models, or all, and print their figures."""
    parser = argparse.ArgumentParser(description="Distances of int8 from float32, by how ranges are found.")
    parser.add_argument("names", nargs="*", metavar="MODEL", help=f"of: {', '.join(MODELS)}")
    parser.add_argument("--results", type=Path, help="a JSON file for all that was measured")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.names if name not in MODELS]
    if unknown:
        parser.error(f"unknown model {unknown[0]!r}; known: {', '.join(MODELS)}")
    results = {}
    for name in options.names or MODELS:
        print(f"{name}: {MODELS[name].__doc__}", file=sys.stderr, flush=True)
        results[name] = distances(*MODELS[name]())
    print(json.dumps(results, indent=1))
    if options.results is not None:
        options.results.write_text(json.dumps(results, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
