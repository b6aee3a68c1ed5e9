"""How often a sentence encoder finds the passage that answers a question: BoolQ's development set, rows 0-1634.

The 1,635 questions are compared with all distinct passages by the cosine of mean-pooled embeddings; a question
counts when the nearest passage is its own. The same token ids go to greencc's artifact and to ONNX Runtime.

Usage: python -m benchmarks.retrieval [--rows N]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

import greencc
from benchmarks import bert_onnx, models

Encoder = Callable[[Mapping[str, np.ndarray]], np.ndarray]
"""Token ids, mask and types, each int64 [batch, sequence], to hidden states float32 [batch, sequence, hidden]."""
LONGEST = 128
BATCH = 8
THREADS = 2
DYNAMIC = {"batch": (1, BATCH), "sequence": (1, LONGEST)}


def accuracy(encode: Encoder, tokenizer: Tokenizer, rows: Sequence[models.BoolQRow]) -> float:
    """Share of questions, from 0 to 1, whose nearest passage is their own."""
    passages = list(dict.fromkeys(row.passage for row in rows))
    place = {passage: i for i, passage in enumerate(passages)}
    questions = embeddings(encode, tokenizer, [row.question for row in rows])
    nearest = np.argmax(questions @ embeddings(encode, tokenizer, passages).T, axis=1)
    return float(np.mean(nearest == [place[row.passage] for row in rows]))


def embeddings(encode: Encoder, tokenizer: Tokenizer, texts: Sequence[str]) -> np.ndarray:
    """Unit vectors, float32 [texts, hidden]: means over the real tokens. Texts of similar length share a batch."""
    tokenizer.enable_truncation(LONGEST)
    tokenizer.no_padding()
    ids = [encoding.ids for encoding in tokenizer.encode_batch(list(texts))]
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    found: dict[int, np.ndarray] = {}
    for start in range(0, len(order), BATCH):
        members = order[start : start + BATCH]
        batch = np.zeros((len(members), len(ids[members[-1]])), np.int64)
        mask = np.zeros_like(batch)
        for row, member in enumerate(members):
            batch[row, : len(ids[member])] = ids[member]
            mask[row, : len(ids[member])] = 1
        hidden = encode({"input_ids": batch, "attention_mask": mask, "token_type_ids": np.zeros_like(batch)})
        means = (hidden * mask[:, :, None]).sum(1) / mask.sum(1)[:, None]
        found.update(zip(members, means / np.linalg.norm(means, axis=1, keepdims=True), strict=True))
    return np.stack([found[i] for i in range(len(texts))]).astype(np.float32)


def of_artifact(path: Path) -> Encoder:
    """The encoder that an artifact holds."""
    model = greencc.load(path, threads=THREADS)
    return lambda inputs: model(inputs)["last_hidden_state"]


def of_onnx(path: Path) -> Encoder:
    """The same, run by ONNX Runtime."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda inputs: np.asarray(session.run(["last_hidden_state"], dict(inputs))[0])


def main(arguments: list[str]) -> int:
    """Print both accuracies as JSON; 1 when they differ by more than a thousandth."""
    parser = argparse.ArgumentParser(description="Retrieval accuracy on BoolQ, greencc beside ONNX Runtime.")
    parser.add_argument("--rows", type=int, default=1635, help="rows from the start of the development set")
    rows = models.boolq_rows(0, parser.parse_args(arguments).rows)
    directory = models.minilm_hf()
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    with tempfile.TemporaryDirectory() as folder:
        artifact = Path(folder) / "minilm"
        greencc.compile(directory, artifact, dynamic=DYNAMIC)
        ours = accuracy(of_artifact(artifact), tokenizer, rows)
    theirs = accuracy(of_onnx(bert_onnx.encoder_onnx(directory)), tokenizer, rows)
    print(json.dumps({"questions": len(rows), "greencc": ours, "onnxruntime": theirs}))
    return int(abs(ours - theirs) > 0.001)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
