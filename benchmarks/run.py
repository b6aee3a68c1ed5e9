"""Compiles real models and times them against ONNX Runtime and OpenVINO, in one process and in interleaved blocks.

torch.compile and llama.cpp join in where they are installed (pip install '.[bench,torch,llama]').

Raw results go to a JSON file with a stamp of the machine and its measured limits; the table is made from that file.
`--check` compares the ratios with those that baseline.json holds for this kind of CPU.

Usage: python -m benchmarks.run [MODEL...] [--repeat N] [--results FILE] [--table FILE] [--check] [--keep]
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from benchmarks import bert_gguf, bert_onnx, models
from greencc import GreenccError, api
from greencc.limits import Limits, measure_limits
from greencc.npz import write_npz
from greencc.peers import RUNTIMES, missing_packages
from greencc.roofline import share_of_arithmetic
from greencc.targets.cpu.target import host_target

RESULTS = Path(__file__).resolve().parent / "results"
BASELINE = Path(__file__).resolve().parent / "baseline.json"
# What decides whether outputs are right.
REFERENCE = "onnxruntime"
# The columns of the table, and further ones for what is installed.
PEERS = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
OPTIONAL_PEERS = {"torch": "torch.compile", "llama.cpp": "llama.cpp"}
TITLES = PEERS | OPTIONAL_PEERS
# Characters of a line, with all peers.
_WIDEST = 300
# A ratio is worse than the stored one when even the lower end of its interval is that many times larger.
ALLOWANCE = 1.1


@dataclass(frozen=True)
class Case:
    """A model to time.

    Attributes:
        model: path of what greencc compiles.
        peer: path of the same model as ONNX; None when `model` is ONNX itself.
        shapes: fixed shapes by input name; with `dynamic`, the shapes that are timed.
        dynamic: bounds of the dimensions that stay symbolic.
        options: further options of `greencc.compile`.
        gguf: path of the same model as GGUF, for llama.cpp; None where it has no such architecture.
        inputs: what is run; generated where None.
        peers: what is run for each column of the table.
    """

    model: Callable[[], Path]
    peer: Callable[[], Path] | None = None
    gguf: Callable[[], Path] | None = None
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    dynamic: dict[str, tuple[int, int]] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    inputs: Callable[[], dict[str, np.ndarray]] | None = None
    peers: dict[str, str] = field(default_factory=lambda: {name: name for name in PEERS})


def _inputs(batch: int, sequence: int) -> dict[str, tuple[int, ...]]:
    return dict.fromkeys(("input_ids", "attention_mask", "token_type_ids"), (batch, sequence))


def _minilm(batch: int, sequence: int, **fields: Any) -> Case:
    def peer() -> Path:
        return bert_onnx.encoder_onnx(models.minilm_hf())

    return Case(models.minilm_hf, peer, lambda: bert_gguf.encoder_gguf(peer()), _inputs(batch, sequence), **fields)


def padded_batch(batch: int = 8, shortest: int = 16, longest: int = 128) -> dict[str, np.ndarray]:
    """Sequences of evenly spaced lengths, padded behind their ends."""
    lengths = np.linspace(shortest, longest, batch).astype(np.int64)
    mask = (np.arange(longest) < lengths[:, None]).astype(np.int64)
    ids = np.random.default_rng(0).integers(999, 30000, mask.shape)
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}


_INT8: dict[str, Any] = {
    "options": {"quantize": "int8"},
    "peers": {"onnxruntime": "onnxruntime-int8", "openvino": "openvino"},
}

CASES = {
    "minilm-1x16": _minilm(1, 16),
    "minilm-1x64": _minilm(1, 64),
    "minilm-1x128": _minilm(1, 128),
    "minilm-1x256": _minilm(1, 256),
    "minilm-8x128": _minilm(8, 128),
    "minilm-1x128-any": _minilm(1, 128, dynamic={"batch": (1, 8), "sequence": (1, 512)}),
    "minilm-8x16..128-padded": _minilm(8, 128, options={"elide_padding": "attention_mask"}, inputs=padded_batch),
    "minilm-1x128-int8": _minilm(1, 128, **_INT8),
    "bert-base-1x128": Case(
        bert_onnx.random_onnx,
        gguf=lambda: bert_gguf.encoder_gguf(bert_onnx.random_onnx()),
        shapes=_inputs(1, 128),
    ),
    "magika": Case(models.magika, shapes={"bytes": (1, 2048)}),
    "ppocr-rec": Case(models.ppocr_rec, shapes={"x": (1, 3, 48, 320)}),
    "ppocr-rec-int8": Case(models.ppocr_rec, shapes={"x": (1, 3, 48, 320)}, **_INT8),
    "ppocr-cls": Case(models.ppocr_cls, shapes={"x": (1, 3, 48, 192)}),
    "resnet50": Case(lambda: models.light_networks()["light_resnet50"]),
    "resnet50-int8": Case(lambda: models.light_networks()["light_resnet50"], **_INT8),
    "squeezenet": Case(lambda: models.light_networks()["light_squeezenet"]),
    "shufflenet": Case(lambda: models.light_networks()["light_shufflenet"]),
}


def measure(name: str, repeat: int | None) -> dict[str, Any]:
    """Compile case `name` and time it: what `greencc compile --json` and `greencc bench --json` print.

    The peers' entries stand under the names of the table's columns.
    """
    case = CASES[name]
    model = case.model()
    with tempfile.TemporaryDirectory() as folder:
        artifact = Path(folder) / name
        fixed = {} if case.dynamic else case.shapes
        compiled = api.compile(model, artifact, shapes=fixed, dynamic=case.dynamic, **case.options)
        peer = case.peer() if case.peer is not None else model
        given: dict[str, Any] = {"shapes": {} if fixed else case.shapes}
        if case.inputs is not None:
            given = {"inputs": Path(folder) / "inputs.npz"}
            write_npz(given["inputs"], case.inputs())
        files = [peer]
        if case.gguf is not None and not missing_packages("llama.cpp"):
            files.append(case.gguf())
        suffixes = {file.suffix for file in files}
        engines = case.peers | {
            name: name for name in OPTIONAL_PEERS if not missing_packages(name) and RUNTIMES[name].suffix in suffixes
        }

        def against(engines: dict[str, str]) -> dict[str, Any]:
            return api.bench(artifact, vs=list(engines.values()), model=files, repeat=repeat, **given)

        try:
            timed = against(engines)
        except GreenccError as error:  # not every model can be had in an optional peer
            if engines == case.peers:
                raise
            print(f"{name}: {error}", file=sys.stderr, flush=True)
            engines = case.peers
            timed = against(engines)
    for part in ("peers", "ratio", "ratio_interval_95"):
        timed[part] = {column: timed[part][engine] for column, engine in engines.items()}
    return {
        "name": name,
        "engines": engines,
        "compile": compiled | {"artifact": name},
        "bench": timed,
    }


def add_shares(results: dict[str, Any], measured: Sequence[Limits]) -> None:
    """Write the machine's limits, the best of several measurements, and each model's share of them into `results`.

    A neighbour can only lower what is measured of a limit.
    """
    limits = Limits(**{name: max(asdict(one)[name] for one in measured) for name in asdict(measured[0])})
    results["limits"] = asdict(limits)
    for row in results["results"]:
        timed = row["bench"]
        row["share_of_limit"] = share_of_arithmetic(timed["operations"], timed["latency_ms"]["median"], limits)


def table(results: dict[str, Any]) -> Table:
    """The table of a results file."""
    stamp = results["results"][0]["bench"]["environment"] if results["results"] else {}
    title = f"{results['date']}, {stamp.get('cpu', 'unknown CPU')}"
    made = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    made.add_column("model", no_wrap=True)
    made.add_column("kernels", justify="right", no_wrap=True)
    made.add_column("greencc\nms", justify="right", no_wrap=True)
    made.add_column("of\nlimit", justify="right", no_wrap=True)
    columns = [name for name in TITLES if any(name in row["bench"]["peers"] for row in results["results"])]
    for title in (TITLES[name] for name in columns):
        made.add_column(f"{title}\nms", justify="right", no_wrap=True)
        made.add_column("ratio", no_wrap=True)
    for column in ("agree", "J"):
        made.add_column(column, justify="right", no_wrap=True)
    for row in results["results"]:
        compiled, timed = row["compile"], row["bench"]
        joules = timed["energy"]["joules"]
        cells = []
        for name in columns:
            if name not in timed["peers"]:
                cells += ["", ""]
                continue
            low, high = timed["ratio_interval_95"][name]
            cells.append(f"{timed['peers'][name]['latency_ms']['median']:.2f}")
            cells.append(f"[bold]{timed['ratio'][name]:.2f}[/] {low:.2f}..{high:.2f}")
        made.add_row(
            row["name"],
            str(compiled["kernels"]),
            f"{timed['latency_ms']['median']:.2f}",
            f"{row['share_of_limit']:.0%}",
            *cells,
            _agreement(timed),
            "unknown" if joules is None else f"{joules:.3f}",
        )
    exact = [row["bench"]["ratio"] for row in results["results"] if not row["bench"]["approximated_by"]]
    if exact:
        # Only over models that all of them ran: else a mean says which models a peer lacks.
        means = [
            _geometric_mean(ratio[name] for ratio in exact) if all(name in ratio for ratio in exact) else None
            for name in columns
        ]
        made.add_section()
        cells = [cell for mean in means for cell in ("", "" if mean is None else f"{mean:.2f}")]
        made.add_row("geometric mean of float32", "", "", "", *cells)
    return made


def _agreement(timed: dict[str, Any]) -> str:
    """Whether the outputs agree; of a model that approximates, how far they are apart (relative L2)."""
    if timed["approximated_by"]:
        apart = timed["peers"]["openvino"]["relative_l2"]
        return "?" if apart is None else f"L2 {apart:.3f}"
    differing = [
        TITLES[name]
        for name, peer in timed["peers"].items()
        if not (peer["agrees"] or (name in RUNTIMES and RUNTIMES[name].approximates))
    ]
    return f"NOT {', '.join(differing)}" if differing else "yes"


def _geometric_mean(values: Iterable[float]) -> float:
    logarithms = [math.log(value) for value in values]
    return math.exp(sum(logarithms) / len(logarithms))


def regressions(results: dict[str, Any], baseline: dict[str, dict[str, dict[str, float]]]) -> list[str]:
    """What is slower, beside the peers, than `baseline` says for the CPU of `results`: one line each.

    A baseline is {CPU: {model: {peer: ratio}}}. Models that it lacks are not judged.
    """
    found = []
    for row in results["results"]:
        stored = baseline.get(row["bench"]["environment"]["cpu"], {}).get(row["name"], {})
        for peer, before in stored.items():
            if peer not in row["bench"]["ratio"]:
                continue
            low, _ = row["bench"]["ratio_interval_95"][peer]
            if low > ALLOWANCE * before:
                now = row["bench"]["ratio"][peer]
                allowed = f"allowed: {ALLOWANCE} times that"
                found.append(f"{row['name']}: {now:.2f} of {TITLES[peer]}, was {before:.2f} ({allowed})")
    return found


def updated(
    results: dict[str, Any], baseline: dict[str, dict[str, dict[str, float]]]
) -> dict[str, dict[str, dict[str, float]]]:
    """`baseline` with the ratios of `results` in it."""
    changed = {cpu: dict(rows) for cpu, rows in baseline.items()}
    for row in results["results"]:
        ratios = {peer: round(value, 3) for peer, value in row["bench"]["ratio"].items()}
        changed.setdefault(row["bench"]["environment"]["cpu"], {})[row["name"]] = ratios
    return changed


def show(results: dict[str, Any]) -> None:
    """Print the table of a results file, and below it what failed."""
    made = table(results)
    wide = Console(width=_WIDEST, highlight=False)
    console = Console(width=wide.measure(made).maximum, highlight=False)
    console.print(made)
    limits = results["limits"]
    console.print(
        f"limits: {limits['float32'] / 1e9:.0f} GFLOP/s float32, {limits['int8'] / 1e9:.0f} Gop/s int8, "
        f"{limits['bandwidth'] / 1e9:.1f} GB/s; an int8 model's peer is ONNX Runtime's dynamic quantisation"
    )
    for name, reason in results["failed"].items():
        console.print(f"{name}: {reason}", markup=False)


def main(arguments: list[str]) -> int:
    """Measure the named cases, or all; 1 when a model failed or disagrees with ONNX Runtime."""
    parser = argparse.ArgumentParser(description="Time compiled models against other runtimes.")
    parser.add_argument("names", nargs="*", metavar="MODEL", help=f"of: {', '.join(CASES)}")
    parser.add_argument("--repeat", type=int, help="timed runs of each engine; else two seconds' worth")
    parser.add_argument("--results", type=Path, help="where raw results go; else benchmarks/results/DATE.json")
    parser.add_argument("--table", type=Path, metavar="FILE", help="print the table of an earlier results file")
    parser.add_argument("--check", action="store_true", help="fail where a ratio is worse than the stored one")
    parser.add_argument("--keep", action="store_true", help="store the ratios for this kind of CPU")
    options = parser.parse_args(arguments)
    if options.table is not None:
        show(json.loads(options.table.read_text()))
        return 0
    unknown = [name for name in options.names if name not in CASES]
    if unknown:
        parser.error(f"unknown model {unknown[0]!r}; known: {', '.join(CASES)}")
    now = datetime.now(timezone.utc)
    print("measuring the machine's limits", file=sys.stderr, flush=True)
    limits = [measure_limits(host_target())]
    results: dict[str, Any] = {"date": now.strftime("%Y-%m-%d"), "limits": {}, "results": [], "failed": {}}
    for name in options.names or CASES:
        print(f"{name}: compiling and timing", file=sys.stderr, flush=True)
        try:
            results["results"].append(measure(name, options.repeat))
        except (GreenccError, models.FetchError) as error:
            results["failed"][name] = str(error)
    limits.append(measure_limits(host_target()))
    add_shares(results, limits)
    file = options.results or RESULTS / f"{now.strftime('%Y-%m-%dT%H%M%SZ')}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(results, indent=1) + "\n")
    show(results)
    print(f"raw results: {file}", file=sys.stderr)
    baseline = json.loads(BASELINE.read_text()) if BASELINE.is_file() else {}
    slower = regressions(results, baseline) if options.check else []
    for line in slower:
        print(f"slower: {line}", file=sys.stderr)
    if options.keep:
        BASELINE.write_text(json.dumps(updated(results, baseline), indent=1, sort_keys=True) + "\n")
    exact = [row["bench"] for row in results["results"] if not row["bench"]["approximated_by"]]
    agree = all(timed["peers"][REFERENCE]["agrees"] for timed in exact)
    return 0 if agree and not results["failed"] and not slower else 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
