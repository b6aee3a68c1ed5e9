"""Compiles real models for CUDA architectures, on a machine that may have neither a GPU nor a toolkit.

Usage: python -m benchmarks.cuda_models [MODEL...] [--arch sm_80 --arch sm_90 ...]

Of each artifact the machine code is read again: it is an ELF file for the architecture and holds every kernel.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import bert_onnx, models
from benchmarks.compress import SHAPES
from greencc import api
from greencc.runtime.cuda import read_table
from greencc.targets.cuda.elf import read_cubin

ARCHITECTURES = ("sm_80", "sm_90", "sm_120")


def _light(name: str) -> Callable[[], tuple[Path, dict[str, Any]]]:
    return lambda: (models.light_networks()[f"light_{name}"], {})


def _encoder() -> Path:
    return bert_onnx.encoder_onnx(models.minilm_hf())


SIZES = {"batch": (1, 8), "sequence": (1, 512)}
MODELS: dict[str, Callable[[], tuple[Path, dict[str, Any]]]] = {
    "minilm": lambda: (_encoder(), {"shapes": dict(SHAPES)}),
    "minilm-any-size": lambda: (_encoder(), {"dynamic": SIZES}),
    "minilm-int8": lambda: (_encoder(), {"shapes": dict(SHAPES), "quantize": "int8-all"}),
    "weight-int8-encoder": lambda: (models.minilm_int8(), {"dynamic": SIZES}),
    "magika": lambda: (models.magika(), {"dynamic": {"unk__214": (1, 16)}}),
    "ppocr-rec": lambda: (models.ppocr_rec(), {"shapes": {"x": (1, 3, 48, 320)}}),
    "ppocr-cls": lambda: (models.ppocr_cls(), {"shapes": {"x": (2, 3, 48, 192)}}),
    "silero": lambda: (models.silero_ifless(), {"shapes": {"input": (1, 576)}}),
    **{name: _light(name) for name in models.LIGHT},
}


def compile_one(name: str, arch: str, folder: Path) -> str:
    """Compile a model and check its machine code; says what came out."""
    path, options = MODELS[name]()
    artifact = folder / f"{name}-{arch}"
    started = time.perf_counter()
    report = api.compile(path, artifact, target=f"cuda:{arch}", **options)
    seconds = time.perf_counter() - started
    code = (artifact / "kernels.cubin").read_bytes()
    cubin = read_cubin(code)
    missing = set(read_table((artifact / "kernels.json").read_bytes())) - set(cubin.kernels)
    if missing or f"sm_{cubin.capability}" != arch:
        raise SystemExit(f"{name} for {arch}: code for sm_{cubin.capability}, without {sorted(missing)}")
    launches = f"{report['kernels']:>3} launches"
    return f"{len(cubin.kernels):>4} kernels, {len(code) / 1e3:>8.0f} kB, {launches}, {seconds:>5.1f} s"


def main() -> int:
    """Compile what was asked for."""
    parser = argparse.ArgumentParser(description="real models for CUDA architectures")
    parser.add_argument("models", nargs="*", help=f"of {', '.join(MODELS)}; all when none is named")
    parser.add_argument("--arch", action="append", help=f"default: {', '.join(ARCHITECTURES)}")
    options = parser.parse_args()
    unknown = sorted(set(options.models) - MODELS.keys())
    if unknown:
        parser.error(f"no model is called {unknown[0]}; known: {', '.join(MODELS)}")
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        for name in options.models or MODELS:
            for arch in options.arch or ARCHITECTURES:
                print(f"{name:<22}{arch:<8}{compile_one(name, arch, Path(folder))}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
