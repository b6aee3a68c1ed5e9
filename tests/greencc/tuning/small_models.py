"""Models of a few layers, as ONNX files."""

from __future__ import annotations

from pathlib import Path

from benchmarks import perceptrons


def perceptron(folder: Path, layers: int = 2, width: int = 64, rows: int | str = 16, seed: int = 0) -> Path:
    """x [rows, width] -> `layers` times a product by [width, width], a bias and Tanh -> y [rows, width]."""
    path = folder / f"perceptron-{layers}-{width}-{rows}-{seed}.onnx"
    return perceptrons.perceptron(path, [width] * (layers + 1), rows, seed)
