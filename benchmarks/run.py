"""Compiles real models and times them against ONNX Runtime and OpenVINO, in one process and in interleaved blocks.

Raw results go to a JSON file with a stamp of the machine; the table is made from that file.

Usage: python -m benchmarks.run [MODEL...] [--repeat N] [--results FILE] [--table FILE]
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from benchmarks import bert_onnx, models
from greencc import GreenccError, api

RESULTS = Path(__file__).resolve().parent / "results"
# What decides whether outputs are right.
REFERENCE = "onnxruntime"
PEERS = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}


@dataclass(frozen=True)
class Case:
    """A model to time.

    Attributes:
        model: path of what greencc compiles.
        peer: path of the same model as ONNX; None when `model` is ONNX itself.
        shapes: fixed shapes by input name; with `dynamic`, the shapes that are timed.
        dynamic: bounds of the dimensions that stay symbolic.
    """

    model: Callable[[], Path]
    peer: Callable[[], Path] | None = None
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    dynamic: dict[str, tuple[int, int]] = field(default_factory=dict)


def _inputs(batch: int, sequence: int) -> dict[str, tuple[int, ...]]:
    return dict.fromkeys(("input_ids", "attention_mask", "token_type_ids"), (batch, sequence))


def _minilm(batch: int, sequence: int, dynamic: dict[str, tuple[int, int]] | None = None) -> Case:
    def peer() -> Path:
        return bert_onnx.encoder_onnx(models.minilm_hf())

    return Case(models.minilm_hf, peer, _inputs(batch, sequence), dynamic or {})


CASES = {
    "minilm-1x16": _minilm(1, 16),
    "minilm-1x64": _minilm(1, 64),
    "minilm-1x128": _minilm(1, 128),
    "minilm-1x256": _minilm(1, 256),
    "minilm-8x128": _minilm(8, 128),
    "minilm-1x128-any": _minilm(1, 128, {"batch": (1, 8), "sequence": (1, 512)}),
    "bert-base-1x128": Case(bert_onnx.random_onnx, shapes=_inputs(1, 128)),
    "magika": Case(models.magika, shapes={"bytes": (1, 2048)}),
    "ppocr-rec": Case(models.ppocr_rec, shapes={"x": (1, 3, 48, 320)}),
    "ppocr-cls": Case(models.ppocr_cls, shapes={"x": (1, 3, 48, 192)}),
    "resnet50": Case(lambda: models.light_networks()["light_resnet50"]),
    "squeezenet": Case(lambda: models.light_networks()["light_squeezenet"]),
    "shufflenet": Case(lambda: models.light_networks()["light_shufflenet"]),
}


def measure(name: str, repeat: int | None) -> dict[str, Any]:
    """Compile case `name` and time it: what `greencc compile --json` and `greencc bench --json` print."""
    case = CASES[name]
    model = case.model()
    with tempfile.TemporaryDirectory() as folder:
        artifact = Path(folder) / name
        fixed = {} if case.dynamic else case.shapes
        compiled = api.compile(model, artifact, shapes=fixed, dynamic=case.dynamic)
        peer = case.peer() if case.peer is not None else model
        timed = api.bench(artifact, vs=PEERS, model=peer, shapes={} if fixed else case.shapes, repeat=repeat)
    return {"name": name, "compile": compiled | {"artifact": name}, "bench": timed}


def table(results: dict[str, Any]) -> Table:
    """The table of a results file."""
    stamp = results["results"][0]["bench"]["environment"] if results["results"] else {}
    made = Table(title=f"{results['date']}, {stamp.get('cpu', 'unknown CPU')}", title_justify="left", box=SIMPLE_HEAD)
    made.add_column("model", no_wrap=True)
    made.add_column("kernels", justify="right")
    made.add_column("greencc ms", justify="right")
    for title in PEERS.values():
        made.add_column(f"{title} ms", justify="right")
        made.add_column("ratio", no_wrap=True)
    for column in ("agree", "J"):
        made.add_column(column, justify="right")
    for row in results["results"]:
        compiled, timed = row["compile"], row["bench"]
        joules = timed["energy"]["joules"]
        cells = []
        for name in PEERS:
            low, high = timed["ratio_interval_95"][name]
            cells.append(f"{timed['peers'][name]['latency_ms']['median']:.2f}")
            cells.append(f"[bold]{timed['ratio'][name]:.2f}[/] {low:.2f}..{high:.2f}")
        made.add_row(
            row["name"],
            str(compiled["kernels"]),
            f"{timed['latency_ms']['median']:.2f}",
            *cells,
            _agreement(timed["peers"]),
            "unknown" if joules is None else f"{joules:.3f}",
        )
    if results["results"]:
        means = {name: _geometric_mean(row["bench"]["ratio"][name] for row in results["results"]) for name in PEERS}
        made.add_section()
        made.add_row("geometric mean", "", "", *(cell for m in means.values() for cell in ("", f"{m:.2f}")))
    return made


def _agreement(peers: dict[str, Any]) -> str:
    differing = [PEERS[name] for name, peer in peers.items() if not peer["agrees"]]
    return f"NOT {', '.join(differing)}" if differing else "yes"


def _geometric_mean(values: Iterable[float]) -> float:
    logarithms = [math.log(value) for value in values]
    return math.exp(sum(logarithms) / len(logarithms))


def show(results: dict[str, Any]) -> None:
    """Print the table of a results file, and below it what failed."""
    console = Console(width=120, highlight=False)
    console.print(table(results))
    for name, reason in results["failed"].items():
        console.print(f"{name}: {reason}", markup=False)


def main(arguments: list[str]) -> int:
    """Measure the named cases, or all; 1 when a model failed or disagrees with ONNX Runtime."""
    parser = argparse.ArgumentParser(description="Time compiled models against other runtimes.")
    parser.add_argument("names", nargs="*", metavar="MODEL", help=f"of: {', '.join(CASES)}")
    parser.add_argument("--repeat", type=int, help="timed runs of each engine; else two seconds' worth")
    parser.add_argument(
        "--results", type=Path, help="where raw results go; else benchmarks/results/DATE.json"
    )
    parser.add_argument(
        "--table", type=Path, metavar="FILE", help="print the table of an earlier results file"
    )
    options = parser.parse_args(arguments)
    if options.table is not None:
        show(json.loads(options.table.read_text()))
        return 0
    unknown = [name for name in options.names if name not in CASES]
    if unknown:
        parser.error(f"unknown model {unknown[0]!r}; known: {', '.join(CASES)}")
    now = datetime.now(timezone.utc)
    results: dict[str, Any] = {"date": now.strftime("%Y-%m-%d"), "results": [], "failed": {}}
    for name in options.names or CASES:
        print(f"{name}: compiling and timing", file=sys.stderr, flush=True)
        try:
            results["results"].append(measure(name, options.repeat))
        except (GreenccError, models.FetchError) as error:
            results["failed"][name] = str(error)
    file = options.results or RESULTS / f"{now.strftime('%Y-%m-%dT%H%M%SZ')}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(results, indent=1) + "\n")
    show(results)
    print(f"raw results: {file}", file=sys.stderr)
    agree = all(row["bench"]["peers"][REFERENCE]["agrees"] for row in results["results"])
    return 0 if agree and not results["failed"] else 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
