"""Artifact version 1: a folder of manifest.json, code.so, weights.safetensors and golden.safetensors.

One for a GPU holds its kernels besides (`greencc.artifact.manifest.KERNELS`).

Written whole or not at all: everything goes to a new folder beside the destination, which then takes its
place. The same model compiled twice by the same versions gives the same bytes: nothing tells the time or a
path.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import os
import secrets
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version as package_version
from pathlib import Path

import numpy as np

from greencc.artifact.bundle import Array, Compiled
from greencc.artifact.manifest import (
    FORMAT,
    KERNELS,
    MANIFEST,
    MEMBERS,
    Manifest,
    Member,
    Source,
    members_for,
    render_manifest,
)
from greencc.artifact.tensors import map_tensors, write_tensors
from greencc.artifact.verify import verify_members
from greencc.errors import ArtifactError, UserError
from greencc.version import __version__

CODE, GOLDEN, WEIGHTS = MEMBERS
_INPUT, _OUTPUT = "input.", "output."
_FILES = {MANIFEST, *MEMBERS, *(name for names in KERNELS.values() for name in names)}

Runner = Callable[[Path, Mapping[str, Array]], Mapping[str, Array]]
"""Loads the artifact at a path and runs it on inputs: how the golden outputs are made."""


@dataclass(frozen=True)
class Artifact:
    """An artifact read back, every byte verified.

    Attributes:
        path: the artifact's folder.
        manifest: its manifest.
        weights: views of the memory-mapped file, in call order, each at a multiple of 64 bytes.
        golden_inputs: inputs of the golden pair.
        golden_outputs: what the compiling machine got from them; empty when it could not run the code
            (an artifact compiled for another machine).
        kernels: what a GPU runs, by name of the member; nothing for a CPU.
    """

    path: Path
    manifest: Manifest
    weights: Mapping[str, Array]
    golden_inputs: Mapping[str, Array]
    golden_outputs: Mapping[str, Array]
    kernels: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def code(self) -> Path:
        """The shared object."""
        return self.path / CODE


def check_destination(path: Path) -> Path:
    """The folder that `write_artifact` would write for `path`, links resolved.

    Raises:
        UserError: something other than a greencc artifact is already there, or its parent is not a folder.
            Asked before a compilation, this spares the user the wait.
    """
    resolved = Path(os.path.realpath(path))
    try:
        if not resolved.parent.is_dir():
            raise UserError(f"{path}: {resolved.parent} is not a folder: create it first")
        if resolved.exists() and not _is_artifact(resolved):
            raise UserError(f"{path} exists and is not a greencc artifact: remove it or choose another path")
    except OSError as error:
        raise UserError(f"{path}: {error}") from error
    return resolved


def write_artifact(
    path: Path,
    compiled: Compiled,
    *,
    source: Source,
    golden_inputs: Mapping[str, Array],
    run: Runner | None,
) -> Manifest:
    """Write an artifact, or leave `path` as it was.

    Args:
        path: the folder to write. A greencc artifact that is already there is replaced.
        compiled: what the target built.
        source: the model file's name and hash.
        golden_inputs: a small set of inputs, by name.
        run: runs the staged artifact on them to get the golden outputs; None when the machine can't run it.

    Returns:
        The manifest as written.

    Raises:
        UserError: `path` holds something else, or can't be written.
        GreenccError: what `run` raises, or a weight that the format can't hold.
    """
    destination = check_destination(path)
    staged = destination.parent / f".{destination.name}.{secrets.token_hex(8)}.tmp"
    golden = {_INPUT + name: array for name, array in golden_inputs.items()}
    try:
        staged.mkdir()
        _write(staged / CODE, compiled.library)
        for name, data in compiled.kernels.items():
            _write(staged / name, data)
        _write_tensors(staged / WEIGHTS, compiled.weights)
        _write_tensors(staged / GOLDEN, golden)
        manifest = _write_manifest(staged, compiled, source)
        if run is not None:
            outputs = run(staged, golden_inputs)
            _write_tensors(staged / GOLDEN, golden | {_OUTPUT + name: outputs[name] for name in outputs})
            manifest = _write_manifest(staged, compiled, source)
        take_place(staged, destination)
    except OSError as error:
        raise UserError(f"{path}: can't write the artifact: {error}") from error
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return manifest


def read_artifact(path: Path) -> Artifact:
    """Verify every byte of the artifact at `path` and map its tensors.

    Raises:
        ArtifactError: see `verify_members`; also a tensor file that breaks its format.
    """
    verified = verify_members(path)
    weights = map_tensors(verified.data[WEIGHTS], f"{path}: {WEIGHTS}")
    if weights.keys() != set(verified.manifest.weights):
        raise ArtifactError(f"{path}: {WEIGHTS} does not hold the weights that {MANIFEST} lists")
    golden = map_tensors(verified.data[GOLDEN], f"{path}: {GOLDEN}")
    return Artifact(
        path,
        verified.manifest,
        {name: weights[name] for name in verified.manifest.weights},
        _with_prefix(golden, _INPUT),
        _with_prefix(golden, _OUTPUT),
        {name: verified.data[name].tobytes() for name in _kernels_of(verified.manifest)},
    )


def _kernels_of(manifest: Manifest) -> tuple[str, ...]:
    return KERNELS.get(str(manifest.target.get("kind")), ())


def _with_prefix(tensors: Mapping[str, Array], prefix: str) -> dict[str, Array]:
    return {name.removeprefix(prefix): array for name, array in tensors.items() if name.startswith(prefix)}


def _write_manifest(folder: Path, compiled: Compiled, source: Source) -> Manifest:
    manifest = Manifest(
        versions={
            "greencc": __version__,
            "tvm": package_version("apache-tvm"),
            "tvm-ffi": package_version("apache-tvm-ffi"),
        },
        inputs=compiled.inputs,
        outputs=compiled.outputs,
        weights=tuple(compiled.weights),
        symbols=dict(compiled.symbols),
        target=dict(compiled.target),
        calls=compiled.calls,
        report=dict(compiled.report),
        members={name: _member(folder / name) for name in members_for(compiled.target)},
        source=source,
    )
    _write(folder / MANIFEST, render_manifest(manifest))
    return manifest


def _member(file: Path) -> Member:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return Member(file.stat().st_size, digest.hexdigest())


def _write(file: Path, data: bytes) -> None:
    with file.open("wb") as stream:
        stream.write(data)
        _flush(stream.fileno())


def _write_tensors(file: Path, tensors: Mapping[str, Array]) -> None:
    # The old file may be mapped by the model that has just been run on it: replace it, don't overwrite it.
    file.unlink(missing_ok=True)
    with file.open("wb") as stream:
        write_tensors(stream, {name: np.asarray(array, order="C") for name, array in tensors.items()})
        stream.flush()
        _flush(stream.fileno())


def _flush(descriptor: int) -> None:
    os.fsync(descriptor)


def _is_artifact(path: Path) -> bool:
    """Whether a folder holds a greencc artifact, whole or damaged, and nothing of the user's."""
    if not path.is_dir() or {entry.name for entry in path.iterdir()} - _FILES:
        return False
    try:
        document = json.loads((path / MANIFEST).read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(document, dict) and document.get("format") == FORMAT


def take_place(staged: Path, destination: Path) -> None:
    """Put `staged` at `destination`. A reader sees the old artifact or the new one, never half of one."""
    _flush_folder(staged)
    if not destination.exists():
        staged.rename(destination)
    elif not _exchange(staged, destination):
        # No atomic exchange on this system: for a moment there is no artifact, but never a wrong one.
        aside = staged.with_suffix(".old")
        destination.rename(aside)
        try:
            staged.rename(destination)
        except OSError:
            aside.rename(destination)
            raise
        shutil.rmtree(aside, ignore_errors=True)
    _flush_folder(destination.parent)


def _exchange(a: Path, b: Path) -> bool:
    """Swap two paths in one step where the system can (Linux): what was at `b` is then at `a`."""
    if sys.platform != "linux":
        return False
    at_cwd, exchange = -100, 2
    libc = ctypes.CDLL(None, use_errno=True)
    return hasattr(libc, "renameat2") and libc.renameat2(at_cwd, os.fsencode(a), at_cwd, os.fsencode(b), exchange) == 0


def _flush_folder(path: Path) -> None:
    if os.name == "posix":
        with contextlib.suppress(OSError):  # some file systems can't sync a folder; the data is safe already
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
