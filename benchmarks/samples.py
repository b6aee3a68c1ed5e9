"""Samples to compress image and file models by: local files, and lines of text in Debian's fonts.

`recognised` is a script for `--metric`: one less each line's character error rate.
"""

from __future__ import annotations

import subprocess
import sysconfig
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx

from benchmarks import cache, models

# Of magika's configuration: bytes from each end of a file, of blocks that white space is taken off, and what fills up.
_EACH_END, _BLOCK, _FILL, _LEAST = 1024, 4096, 256, 8
_MOST_OF_A_KIND = 150
FONTS = ("fonts-dejavu-core", "fonts-liberation2", "fonts-freefont-ttf")
_HEIGHT, _WIDTH, _LONGEST = 48, 320, 24


def magika_files(count: int) -> dict[str, np.ndarray]:
    """What magika reads of `count` local files of many kinds: int32 [count, 2048].

    Its package's description: the first bytes without leading white space, then the last without trailing.
    """
    rows = []
    for file in _local_files():
        content = file.read_bytes()
        first = content[:_BLOCK].lstrip()[:_EACH_END]
        last = content[-_BLOCK:].rstrip()[-_EACH_END:]
        row = np.full(2 * _EACH_END, _FILL, np.int32)
        row[: len(first)] = list(first)
        row[len(row) - len(last) :] = list(last)
        rows.append(row)
        if len(rows) == count:
            return {"bytes": np.stack(rows)}
    raise models.FetchError(f"this machine has {len(rows)} suitable files, not {count}")


def _local_files() -> Iterator[Path]:
    """Files of this machine, at most so many of a suffix."""
    seen: Counter[str] = Counter()
    for folder in (Path(sysconfig.get_paths()["purelib"]), Path("/usr/share"), Path("/usr/lib"), Path("/usr/bin")):
        for file in sorted(folder.rglob("*")):
            if file.is_symlink() or not file.is_file() or seen[file.suffix] >= _MOST_OF_A_KIND:
                continue
            if _LEAST <= file.stat().st_size < 1 << 26:
                seen[file.suffix] += 1
                yield file


def text_lines(count: int) -> dict[str, np.ndarray]:
    """Lines of BoolQ's passages in several fonts: float32 x [count, 3, 48, 320], int32 label.text [count, 24].

    A text is filled up with -1. Its characters are numbered as in the recognition model's outputs, 0 being its blank.
    """
    from PIL import Image, ImageDraw, ImageFont

    numbers = {character: i for i, character in enumerate(characters())}
    fonts = [ImageFont.truetype(str(font), 34) for font in _fonts()]
    rng = np.random.default_rng(0)
    images, labels = [], []
    for text in _phrases(count):
        font = fonts[int(rng.integers(len(fonts)))]
        left, top, right, bottom = font.getbbox(text)
        canvas = Image.new("L", (int(right - left) + 16, _HEIGHT), int(rng.integers(200, 256)))
        place = (8 - left, (_HEIGHT - (bottom - top)) // 2 - top)
        ImageDraw.Draw(canvas).text(place, text, fill=int(rng.integers(0, 80)), font=font)
        width = min(_WIDTH, canvas.width)
        pixels = np.asarray(canvas.resize((width, _HEIGHT)), np.float32)
        pixels += rng.normal(0, 4, pixels.shape).astype(np.float32)
        image = np.zeros((3, _HEIGHT, _WIDTH), np.float32)
        image[:, :, :width] = (pixels / 255 - 0.5) / 0.5
        images.append(image)
        label = np.full(_LONGEST, -1, np.int32)
        label[: len(text)] = [numbers[character] for character in text]
        labels.append(label)
    return {"x": np.stack(images), "label.text": np.stack(labels)}


def characters() -> list[str]:
    """What the recognition model's outputs stand for, the blank first."""
    properties = {entry.key: entry.value for entry in onnx.load(models.ppocr_rec()).metadata_props}
    return ["", *properties["character"].splitlines(), " "]


def _phrases(count: int) -> Iterator[str]:
    """Words of passages in a row, as long as fits."""
    known = set(characters())
    made = 0
    for row in models.boolq_rows():
        line = ""
        for word in row.passage.split():
            longer = f"{line} {word}".strip()
            if len(longer) <= _LONGEST:
                line = longer
                continue
            if len(line) >= 8 and set(line) <= known:
                yield line
                made += 1
                if made == count:
                    return
            line = word if len(word) <= _LONGEST else ""


def _fonts() -> list[Path]:
    """Upright text fonts of Debian's packages, fetched once."""

    def fill(folder: Path) -> None:
        command = ["apt-get", "download", "-q", *FONTS]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        packages = sorted(folder.glob("*.deb"))
        if done.returncode or len(packages) != len(FONTS):
            raise models.FetchError(f"apt-get can't download {', '.join(FONTS)}: {done.stderr.strip()[-200:]}")
        for package in packages:
            subprocess.run(["dpkg-deb", "-x", str(package), str(folder)], check=True)

    folder = cache.entry("fonts/debian", fill)
    liberation = [f"Liberation{kind}-Regular.ttf" for kind in ("Sans", "Serif", "Mono")]
    names = ("DejaVuSans.ttf", "DejaVuSerif.ttf", *liberation, "FreeSans.ttf", "FreeSerif.ttf")
    return [next(folder.rglob(name)) for name in names]


def recognised(outputs: Mapping[str, np.ndarray], labels: Mapping[str, np.ndarray]) -> np.ndarray:
    """1 - the character error rate of each line: float64 [lines]. Outputs are probabilities [lines, steps, characters].

    The best character of each step is read, repetitions and blanks left out (CTC, greedily).
    """
    from rapidfuzz.distance import Levenshtein

    best = next(iter(outputs.values())).argmax(axis=2)
    scores = []
    for steps, label in zip(best, labels["label.text"], strict=True):
        changes = np.concatenate([[True], steps[1:] != steps[:-1]])
        read = [int(step) for step in steps[changes] if step]
        wanted = [int(number) for number in label if number >= 0]
        scores.append(1 - Levenshtein.distance(read, wanted) / len(wanted))
    return np.array(scores)
