"""What tuning brings: sessions of a fixed length, then the tuned artifact against the untuned one, by turns.

Usage: python -m benchmarks.tuning [MODEL...] [--minutes 10] [--databases DIR] [--results FILE]

Prints the whole model's ratio at each size, and which share of the gap to the machine's limit is closed over the
kernels that were below 90% of it.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import greencc
from benchmarks import bert_onnx, models
from greencc import ModelOptions, api
from greencc.benchmark import make_inputs
from greencc.energy.meter import choose_meter
from greencc.runtime.features import cpu_name, physical_cores
from greencc.runtime.model import Model
from greencc.timing import measure, ratio_of

BELOW = 0.9
"""Of their limit: kernels whose gap counts."""
UNFRIENDLY = bert_onnx.BertSize(layers=4, hidden=312, heads=12, feed_forward=1200)
IDS = ("input_ids", "attention_mask", "token_type_ids")


@dataclass(frozen=True)
class Case:
    """A model, how it is tuned, and what it is timed at.

    Attributes:
        source: the model's file or folder.
        options: what becomes of it before it is scheduled.
        shapes: shapes by input name, for each time that it is timed; an empty mapping where all are fixed.
        tune_at: sizes of open dimensions.
        target: as `--target` takes it.
    """

    source: Callable[[], Path]
    options: ModelOptions
    shapes: tuple[Mapping[str, tuple[int, ...]], ...] = ({},)
    tune_at: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    target: str = "cpu"


def _ids(length: int) -> dict[str, tuple[int, ...]]:
    return dict.fromkeys(IDS, (1, length))


CASES = {
    "minilm": Case(models.minilm_hf, ModelOptions(shapes=_ids(128))),
    "unfriendly": Case(lambda: bert_onnx.random_onnx(UNFRIENDLY), ModelOptions(shapes=_ids(37))),
    "ppocr-rec": Case(models.ppocr_rec, ModelOptions(shapes={"x": (1, 3, 48, 320)})),
    "minilm-dynamic": Case(
        models.minilm_hf,
        ModelOptions(dynamic={"batch": (1, 8), "sequence": (1, 512)}),
        tuple(_ids(length) for length in (7, 16, 64, 128, 200)),
        {"sequence": (16, 128)},
    ),
    "minilm-int8": Case(models.minilm_hf, ModelOptions(shapes=_ids(128), quantize="int8-all")),
    "squeezenet": Case(lambda: models.light_networks()["light_squeezenet"], ModelOptions()),
    "resnet50": Case(lambda: models.light_networks()["light_resnet50"], ModelOptions()),
    "minilm-vulkan": Case(models.minilm_hf, ModelOptions(shapes=_ids(128)), target="vulkan"),
}


def tuned(name: str, minutes: float, database: Path) -> dict[str, Any]:
    """A session, and what it brought."""
    case = CASES[name]
    path = case.source()
    session = api.tune(
        path, database, options=case.options, target=case.target, tune_at=case.tune_at, seconds=60 * minutes
    )
    asked = {key: value for key, value in vars(case.options).items() if value not in (None, {})}
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        loaded: dict[str, Model] = {}
        for kind, db in (("untuned", None), ("tuned", database)):
            api.compile(path, folder / kind, target=case.target, tune_db=db, **asked)
            loaded[kind] = greencc.load(folder / kind)
        timed = [_compared(loaded, shapes) for shapes in case.shapes]
    return {
        "session": {key: session[key] for key in ("seconds", "new_trials", "failures", "payback", "limits", "stopped")},
        "closed": closed_share(session["tasks"]),
        "sizes": timed,
        "tasks": session["tasks"],
    }


def _compared(loaded: Mapping[str, Model], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Both artifacts on the same inputs, by turns."""
    given = make_inputs(loaded["untuned"], shapes)
    outputs = {kind: model(given) for kind, model in loaded.items()}
    apart = max(
        float(np.max(np.abs(outputs["tuned"][name].astype(np.float64) - array), initial=0.0))
        for name, array in outputs["untuned"].items()
    )
    runs = {kind: partial(model, given) for kind, model in loaded.items()}
    series = measure(runs, choose_meter().meter, None, lambda message: None)
    ratio = ratio_of(series["tuned"], series["untuned"])
    times = {kind: each.summary()["median"] for kind, each in series.items()}
    size = {name: list(array.shape) for name, array in given.items()}
    return {
        "inputs": size, "milliseconds": times, "ratio": ratio.value, "interval_95": [ratio.low, ratio.high],
        "max_abs_difference": apart,
    }  # fmt: skip


def closed_share(tasks: list[dict[str, Any]]) -> float | None:
    """The share of the gap to the limit that is closed, over kernels whose default is below BELOW of it."""
    gap = won = 0.0
    for task in tasks:
        if task["default_us"] is None or task["limit_us"] is None:
            continue
        default, limit = sum(task["default_us"]), sum(task["limit_us"])
        if limit < BELOW * default:
            gap += task["launches"] * (default - limit)
            won += task["launches"] * default * (1 - task["ratio"])
    return won / gap if gap else None


def main() -> int:
    """Tune and compare what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"of {', '.join(CASES)}; all for CPUs by default")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--databases", type=Path, help="keep the databases here, a folder for each model")
    parser.add_argument("--results", type=Path)
    arguments = parser.parse_args()
    names = arguments.models or [name for name, case in CASES.items() if case.target == "cpu"]
    unknown = [name for name in names if name not in CASES]
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}; known: {', '.join(CASES)}")
    results: dict[str, Any] = {
        "environment": {"cpu": cpu_name(), "cores": physical_cores(), "system": platform.platform(terse=True)},
        "minutes": arguments.minutes,
        "models": {},
    }
    with tempfile.TemporaryDirectory() as text:
        folder = arguments.databases or Path(text)
        for name in names:
            found = results["models"][name] = tuned(name, arguments.minutes, folder / name)
            for timed in found["sizes"]:
                low, high = timed["interval_95"]
                shape = next(iter(timed["inputs"].values()))
                before, after = (timed["milliseconds"][kind] for kind in ("untuned", "tuned"))
                print(f"{name:16} {shape!s:18} {before:9.3f} -> {after:9.3f} ms {timed['ratio']:.3f} "
                      f"({low:.3f}-{high:.3f}), apart {timed['max_abs_difference']:.1e}")  # fmt: skip
            share, session = found["closed"], found["session"]
            closed = "no kernel below it" if share is None else f"{share:.0%} of the gap closed"
            print(f"{name:16} {session['new_trials']} trials in {session['seconds']:.0f} s; "
                  f"kernels below {BELOW:.0%} of their limit: {closed}", flush=True)  # fmt: skip
            if arguments.results is not None:
                arguments.results.write_text(json.dumps(results, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
