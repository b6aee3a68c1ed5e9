"""The table pass x model: rewrites and refusals of the default pipeline on the real models.

Usage: python -m benchmarks.pass_table [--models NAME,...] [--passes LIST] [-o FOLDER]

Prints Markdown and, with -o, writes it to FOLDER as pass_table.md, beside pass_table.json, which has every
report and every refusal with its node. A model that can't be had or imported is listed with the reason, and
the exit status is then 1.
"""

from __future__ import annotations

import argparse
import functools
import json
import re
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import export_minilm, models
from greencc.errors import GreenccError
from greencc.importers.base import Imported
from greencc.importers.huggingface import import_huggingface
from greencc.importers.onnx import import_onnx
from greencc.passes.base import Pass
from greencc.passes.pipeline import PassReport, run_pipeline
from greencc.passes.registry import default_pipeline, parse_pipeline, storing_passes

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Case:
    """A model and how it is imported. `find` may fetch or make the file."""

    find: Callable[[], Path]
    shapes: Shapes = field(default_factory=dict)
    dynamic: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    def load(self) -> Imported:
        """The model as a Relax module."""
        path = self.find()
        load = import_huggingface if path.is_dir() else import_onnx
        return load(path, shapes=self.shapes, dynamic=self.dynamic)


def cases() -> dict[str, Case]:
    """The real models by name, in the order of the table's columns."""
    exports = {
        f"minilm-{variant.replace('_', '-')}": Case(functools.partial(_export, variant))
        for variant in export_minilm.VARIANTS
    }
    return {
        "minilm": Case(models.minilm_hf),
        **exports,
        "minilm-int8": Case(models.minilm_int8),
        "magika": Case(models.magika),
        "ppocr-rec": Case(models.ppocr_rec, shapes={"x": (1, 3, 48, 320)}),
        "ppocr-cls": Case(models.ppocr_cls, shapes={"x": (1, 3, 48, 192)}),
        "silero-ifless": Case(models.silero_ifless),
        **{
            name.replace("_", "-"): Case(functools.partial(Path, path))
            for name, path in models.light_networks().items()
        },
    }


def measure(case: Case, passes: Sequence[Pass]) -> dict[str, Any]:
    """What the importer and each pass did to one model, as JSON values."""
    started = time.perf_counter()
    imported = case.load()
    seconds = time.perf_counter() - started
    reports = run_pipeline(imported.module, passes).reports
    return {
        "source_sha256": imported.source_sha256,
        "source_nodes": imported.nodes,
        "source_edges": imported.edges,
        "import_seconds": round(seconds, 3),
        "passes": [report.as_json() for report in reports],
        **_sizes(reports),
    }


def markdown(results: Mapping[str, Mapping[str, Any]], failures: Mapping[str, str]) -> str:
    """One row per pass of the pipeline, one column per model; then the refusals by reason."""
    names = list(results)
    lines = ["Rewrites (refusals in brackets) of each pass of the default pipeline, in order.", ""]
    lines += _table(["pass", *names], _pass_rows(results))
    lines += ["", "Nodes and edges. Source: as the file counts them; before and after: of the pipeline.", ""]
    keys = ("source_nodes", "nodes_before", "nodes_after", "source_edges", "edges_before", "edges_after")
    rows = [[key.replace("_", " "), *(str(results[name].get(key, "")) for name in names)] for key in keys]
    lines += _table(["", *names], rows)
    lines += ["", "What was rewritten, by pass and kind.", ""]
    lines += _table(["pass", "kind", *names], _split_rows(results, "counts"))
    lines += ["", "What was refused, by pass and legality condition.", ""]
    lines += _table(["pass", "condition", *names], _split_rows(results, "refused_by_reason"))
    if failures:
        lines += ["", "Not in the table:", ""]
        lines += [f"- {name}: {reason}" for name, reason in failures.items()]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str]) -> int:
    """Make the table; 1 when a model is missing from it."""
    known = cases()
    parser = argparse.ArgumentParser(description="Rewrites and refusals of every pass on the real models.")
    parser.add_argument("--models", help=f"names, comma-separated; known: {', '.join(known)}")
    parser.add_argument("--passes", help="as greencc compile --passes; the default pipeline if left out")
    parser.add_argument("-o", "--output", type=Path, help="folder for pass_table.json and pass_table.md")
    options = parser.parse_args(arguments)
    wanted = options.models.split(",") if options.models else list(known)
    unknown = [name for name in wanted if name not in known]
    if unknown:
        parser.error(f"unknown model '{unknown[0]}'; known: {', '.join(known)}")
    by_default = (*default_pipeline(), *storing_passes())
    passes = by_default if options.passes is None else parse_pipeline(options.passes)
    results: dict[str, dict[str, Any]] = {}
    failures: dict[str, str] = {}
    for name in wanted:
        print(f"{name} ...", file=sys.stderr, flush=True)
        try:
            results[name] = measure(known[name], passes)
        except (GreenccError, models.FetchError) as error:
            failures[name] = _without_folders(str(error))
    text = markdown(results, failures)
    if options.output is not None:
        options.output.mkdir(parents=True, exist_ok=True)
        report = {"models": results, "failures": failures}
        (options.output / "pass_table.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        (options.output / "pass_table.md").write_text(text, encoding="utf-8")
    print(text, end="")
    return 1 if failures else 0


def _export(variant: str) -> Path:
    return export_minilm.minilm_exports()[variant]


def _without_folders(message: str) -> str:
    """`message` with files named, not placed: the table is the same on every machine."""
    return re.sub(r"(?<![\w.])/(?:[^\s/:]+/)+", "", message)


def _sizes(reports: Sequence[PassReport]) -> dict[str, int]:
    if not reports:
        return {}
    first, last = reports[0], reports[-1]
    return {
        "nodes_before": first.nodes_before,
        "nodes_after": last.nodes_after,
        "edges_before": first.edges_before,
        "edges_after": last.edges_after,
    }


def _pass_rows(results: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    columns = [result["passes"] for result in results.values()]
    rows = []
    for position in range(max((len(column) for column in columns), default=0)):
        reports = [column[position] for column in columns]
        cells = [f"{r['rewrites']} ({r['refused']})" if r["refused"] else str(r["rewrites"]) for r in reports]
        rows.append([reports[0]["name"], *cells])
    return rows


def _split_rows(results: Mapping[str, Mapping[str, Any]], key: str) -> list[list[str]]:
    """Rows of a count that every report splits by kind or reason, a pass's runs summed."""
    totals: dict[tuple[str, str], dict[str, int]] = {}
    for model, result in results.items():
        for report in result["passes"]:
            for kind, count in report[key].items():
                row = totals.setdefault((report["name"], kind), {})
                row[model] = row.get(model, 0) + count
    return [
        [name, kind, *(str(row.get(model, "")) for model in results)] for (name, kind), row in sorted(totals.items())
    ]


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    rule = ["---"] * len(header)
    return [f"| {' | '.join(row)} |" for row in (header, rule, *rows)]


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
