"""Models on a GPU beside this machine's CPU: greencc's code for both, and ONNX Runtime, by turns in one process.

Usage: python -m benchmarks.gpu [MODEL...] [--target vulkan|cuda|...] [--results FILE]

Prints times, ratios, and what a run asks of the device: dispatches, barriers, submits, waits, copies.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

import greencc
from benchmarks import bert_onnx, models
from benchmarks.compress import SHAPES
from greencc import api
from greencc.energy.meter import choose_meter
from greencc.runtime.features import cpu_name, physical_cores
from greencc.runtime.profile import device_work
from greencc.timing import measure, ratio_of

Shapes = dict[str, tuple[int, ...]]

MODELS: dict[str, Callable[[], tuple[Path, Shapes, dict[str, Any]]]] = {
    "minilm": lambda: (bert_onnx.encoder_onnx(models.minilm_hf()), dict(SHAPES), {}),
    "minilm-int8": lambda: (bert_onnx.encoder_onnx(models.minilm_hf()), dict(SHAPES), {"quantize": "int8-all"}),
    "magika": lambda: (models.magika(), {"bytes": (1, 2048)}, {}),
    "ppocr-rec": lambda: (models.ppocr_rec(), {"x": (1, 3, 48, 320)}, {}),
    "squeezenet": lambda: (models.light_networks()["light_squeezenet"], {}, {}),
    "resnet50": lambda: (models.light_networks()["light_resnet50"], {}, {}),
}


def compare(name: str, target: str) -> dict[str, Any]:
    """Times of one model on `target`, on the CPU, and in ONNX Runtime."""
    path, shapes, options = MODELS[name]()
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        loaded = {}
        for kind in (target, "cpu"):
            api.compile(path, folder / kind.replace(":", "-"), shapes=shapes, target=kind, **options)
            loaded[kind] = greencc.load(folder / kind.replace(":", "-"))
        given = dict(loaded["cpu"].artifact.golden_inputs)
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = physical_cores()
        settings.log_severity_level = 3
        session = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
        wanted = session.run(None, given)[0]
        got = next(iter(loaded[target](given).values()))
        distance = float(np.linalg.norm(got.astype(np.float64) - wanted) / max(np.linalg.norm(wanted), 1e-30))
        programs: dict[str, Callable[[], object]] = {kind: partial(model, given) for kind, model in loaded.items()}
        programs["onnxruntime"] = lambda: session.run(None, given)
        series = measure(programs, choose_meter().meter)
        ratios = {other: ratio_of(series[target], series[other]) for other in ("cpu", "onnxruntime")}
        return {
            "model": name,
            "target": dict(loaded[target].artifact.manifest.target),
            "relative_l2": distance,
            "milliseconds": {kind: one.summary() for kind, one in series.items()},
            "ratio": {other: [ratio.value, ratio.low, ratio.high] for other, ratio in ratios.items()},
            "device_work": device_work(loaded[target], given),
            "kernels": len(loaded[target].artifact.manifest.calls),
        }


def line(row: dict[str, Any], target: str) -> str:
    """A row of the table."""
    work = row["device_work"] or {}
    times = [row["milliseconds"][kind]["median"] for kind in (target, "cpu", "onnxruntime")]
    counts = "".join(f"{work.get(name, 0):>11}" for name in ("dispatches", "barriers", "submits", "waits"))
    ratio = "".join(f"{row['ratio'][other][0]:>9.2f}" for other in ("cpu", "onnxruntime"))
    shown = "".join(f"{ms:>11.2f}" for ms in times)
    return f"{row['model']:<14}{shown}{ratio}{row['relative_l2']:>10.1e}{counts}"


def main() -> int:
    """Measure, print, and write what was asked for."""
    parser = argparse.ArgumentParser(description="greencc on a GPU beside the CPU")
    parser.add_argument("models", nargs="*", help=f"of {', '.join(MODELS)}; all when none is named")
    parser.add_argument("--target", default="vulkan", help="what to compile for")
    parser.add_argument("--results", type=Path, help="write raw results to this file")
    options = parser.parse_args()
    unknown = sorted(set(options.models) - MODELS.keys())
    if unknown:
        parser.error(f"no model is called {unknown[0]}; known: {', '.join(MODELS)}")
    titles = (options.target, "cpu", "onnxruntime")
    print(f"{'model':<14}" + "".join(f"{title:>11}" for title in titles), end="")
    print(f"{'/cpu':>9}{'/ort':>9}{'rel. L2':>10}{'dispatches':>11}{'barriers':>11}{'submits':>11}{'waits':>11}")
    rows = []
    for name in options.models or MODELS:
        rows.append(compare(name, options.target))
        print(line(rows[-1], options.target), flush=True)
    if options.results:
        environment = {"cpu": cpu_name(), "system": platform.platform(terse=True)}
        options.results.write_text(json.dumps({"environment": environment, "rows": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
