"""Proof that an artifact's files are the ones that were written: every byte of every member, nothing more."""

from __future__ import annotations

import hashlib
import mmap
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from greencc.artifact.bundle import Array
from greencc.artifact.manifest import MANIFEST, Manifest, Member, parse_manifest
from greencc.errors import ArtifactError


@dataclass(frozen=True)
class VerifiedMembers:
    """An artifact whose hashes are right.

    Attributes:
        path: the artifact's folder.
        manifest: its parsed manifest.
        data: uint8[bytes] by member name: private memory maps, so what was hashed is what is used even when
            a newer artifact takes the folder's place.
    """

    path: Path
    manifest: Manifest
    data: Mapping[str, Array]


def verify_members(path: Path) -> VerifiedMembers:
    """Check the manifest and every member of the artifact at `path`; read nothing else.

    Raises:
        ArtifactError: `path` is not an artifact, or one of its members is corrupt, truncated, missing, extra
            or not a regular file. The message names the member.
    """
    manifest = read_manifest(path)
    extra = sorted({entry.name for entry in path.iterdir()} - {MANIFEST, *manifest.members})
    if extra:
        raise ArtifactError(f"{path}: {extra[0]} is not part of the artifact: remove it")
    data = {name: _verified(path, name, manifest.members[name]) for name in manifest.members}
    return VerifiedMembers(path, manifest, data)


def read_manifest(path: Path) -> Manifest:
    """Parse the manifest of the artifact at `path` and check its own hash, but not the other members.

    Raises:
        ArtifactError: `path` is not an artifact, or its manifest is damaged.
    """
    if not path.is_dir():
        problem = "is not a folder" if path.exists() else "does not exist"
        raise ArtifactError(f"{path}: {problem}; a greencc artifact is a folder with a {MANIFEST}")
    return parse_manifest(_map_file(path, MANIFEST).tobytes(), str(path))


def _verified(path: Path, name: str, expected: Member) -> Array:
    data = _map_file(path, name)
    if data.size != expected.bytes:
        raise ArtifactError(f"{path}: {name} is damaged: {data.size} bytes instead of {expected.bytes}")
    if hashlib.sha256(data.data).hexdigest() != expected.sha256:
        raise ArtifactError(f"{path}: {name} is damaged: its SHA-256 is not the manifest's")
    return data


def _map_file(path: Path, name: str) -> Array:
    """A regular file's bytes as a private memory map: pages are shared with other processes until written.

    The map is writable because DLPack, as TVM reads it, can't describe read-only memory. Nothing writes to
    it, and what did would change this process's copy alone.
    """
    try:
        with open(path / name, "rb", opener=_open_regular) as file:
            if file.seek(0, 2) == 0:
                return np.empty(0, np.uint8)
            return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY), np.uint8)
    except FileNotFoundError as error:
        raise ArtifactError(f"{path}: {name} is missing") from error
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path}: {name} can't be read: {error}") from error


def _open_regular(file: str, flags: int) -> int:
    """Open for `open`, but never a pipe or a device, where opening or reading could block for ever."""
    descriptor = os.open(file, flags | getattr(os, "O_NONBLOCK", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError("not a regular file")
    return descriptor
