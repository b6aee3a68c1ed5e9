"""A packed artifact: one file to ship, whose members are compressed without loss.

It saves bytes on the wire and on disk. It saves none when the model runs: a packed artifact is expanded to a folder
once, and weights are read from there as they are.

The file begins with a magic number and the length of a header. The header is JSON: for each member its name, its size
and SHA-256 as in the manifest, how its bytes are ordered, and the length of its compressed stream. The streams
(Zstandard, RFC 8878) follow in that order. Before weights are compressed, the bytes of numbers wider than one are put
apart: all first bytes of a tensor, then all second ones. Signs and exponents then stand side by side, which have few
values; the low bytes of a mantissa have nothing to save (docs/decisions/0013).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import zstandard

from greencc.artifact.bundle import Array
from greencc.artifact.format import GOLDEN, WEIGHTS, check_destination, take_place
from greencc.artifact.manifest import MANIFEST, MEMBERS
from greencc.artifact.tensors import tensor_spans
from greencc.artifact.verify import verify_members
from greencc.caching import cache_folder
from greencc.errors import ArtifactError, UserError
from greencc.npz import check_writable

MAGIC = b"greencc pack 1\n\x00"
_LENGTH_BYTES = 8
_MOST_HEADER = 1 << 20
# No member of an artifact is larger than 1 TB.
_MOST_MEMBER = 1 << 40
_LEVEL = 12
_SHA256 = re.compile(r"[0-9a-f]{64}")
_PLAIN, _PLANES = "plain", "planes"
_NAMES = (MANIFEST, *MEMBERS)


def pack(artifact: Path, file: Path) -> dict[str, int]:
    """Write the packed form of an artifact; gives the bytes of each member in it.

    Raises:
        ArtifactError: the artifact is damaged.
        UserError: the file can't be written.
    """
    check_writable(file)
    verified = verify_members(artifact)
    contents = {MANIFEST: np.frombuffer((artifact / MANIFEST).read_bytes(), np.uint8), **verified.data}
    entries, streams = [], []
    for name in _NAMES:
        data = contents[name]
        order = _PLANES if name in (WEIGHTS, GOLDEN) else _PLAIN
        stream = _compress(data, order, name)
        digest = hashlib.sha256(data.data).hexdigest()
        entries.append(
            {"name": name, "bytes": data.size, "sha256": digest, "order": order, "packed": len(stream)}
        )
        streams.append(stream)
    header = json.dumps({"members": entries}, separators=(",", ":"), sort_keys=True).encode()
    staged = file.parent / f".{file.name}.{secrets.token_hex(8)}.tmp"
    try:
        with staged.open("wb") as out:
            out.write(MAGIC + len(header).to_bytes(_LENGTH_BYTES, "little") + header)
            for stream in streams:
                out.write(stream)
            out.flush()
            os.fsync(out.fileno())
        staged.replace(file)
    except OSError as error:
        raise UserError(f"{file}: can't be written: {error}") from error
    finally:
        staged.unlink(missing_ok=True)
    return {name: len(stream) for name, stream in zip(_NAMES, streams, strict=True)}


def unpack(file: Path, artifact: Path) -> None:
    """Expand a packed artifact to a folder; what comes out is byte for byte what was packed.

    Raises:
        ArtifactError: the file is no packed artifact, damaged, or not of this version. Nothing has been written.
        UserError: the folder can't be written.
    """
    destination = check_destination(artifact)
    staged = destination.parent / f".{destination.name}.{secrets.token_hex(8)}.tmp"
    try:
        staged.mkdir()
        for name, data in _members(file):
            (staged / name).write_bytes(data.data)
        verify_members(staged)
        take_place(staged, destination)
    except OSError as error:
        raise UserError(f"{artifact}: can't write the artifact: {error}") from error
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def artifact_folder(path: Path) -> Path:
    """The folder of an artifact: `path` itself, or what the packed file `path` is expanded to. Raises as `expanded`."""
    return expanded(path) if is_packed(path) else path


def expanded(file: Path) -> Path:
    """The folder in the user's cache that a packed artifact has been expanded to; it is, if it has not been.

    Raises:
        ArtifactError: the file is damaged.
        UserError: the cache can't be written.
    """
    try:
        with file.open("rb") as stream:
            key = str(_header(stream, file)[0]["sha256"])
    except OSError as error:
        raise ArtifactError(f"{file}: can't be read: {error}") from error
    if not _SHA256.fullmatch(key):
        raise ArtifactError(f"{file}: its header does not list an artifact's members")
    folder = cache_folder() / "artifacts" / key
    manifest = folder / MANIFEST
    if not manifest.is_file() or hashlib.sha256(manifest.read_bytes()).hexdigest() != key:
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{file}: can't be expanded to {folder.parent}: {error}") from error
        unpack(file, folder)
    return folder


def is_packed(path: Path) -> bool:
    """Whether a path is a file that begins like a packed artifact."""
    try:
        with path.open("rb") as stream:
            return stream.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def _members(file: Path) -> Iterator[tuple[str, Array]]:
    """(name, bytes) of every member, each checked against the header."""
    try:
        with file.open("rb") as stream:
            for entry in _header(stream, file):
                name, size, packed = str(entry["name"]), int(entry["bytes"]), int(entry["packed"])
                content = stream.read(packed)
                if len(content) != packed:
                    raise ArtifactError(f"{file}: {name} is truncated")
                data = _expand(content, size, str(entry["order"]), f"{file}: {name}")
                if hashlib.sha256(data.data).hexdigest() != entry["sha256"]:
                    raise ArtifactError(f"{file}: {name} is damaged: its SHA-256 is not the header's")
                yield name, data
            if stream.read(1):
                raise ArtifactError(f"{file}: bytes follow the last member")
    except OSError as error:
        raise ArtifactError(f"{file}: can't be read: {error}") from error


def _header(stream: BinaryIO, file: Path) -> list[dict[str, str | int]]:
    """The header's entries: exactly the members of an artifact, in order, with sane sizes."""
    if stream.read(len(MAGIC)) != MAGIC:
        raise ArtifactError(f"{file}: not a packed artifact of this version")
    length = int.from_bytes(stream.read(_LENGTH_BYTES), "little")
    if not 2 <= length <= _MOST_HEADER:
        raise ArtifactError(f"{file}: its header's length is wrong")
    try:
        document = json.loads(stream.read(length))
        entries = [dict(entry) for entry in document["members"]]
        names = [entry["name"] for entry in entries]
        sizes = [entry[key] for entry in entries for key in ("bytes", "packed")]
        orders = [entry["order"] for entry in entries]
        digests = [entry["sha256"] for entry in entries]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ArtifactError(f"{file}: its header is damaged ({type(error).__name__})") from error
    sane = all(type(size) is int and 0 <= size <= _MOST_MEMBER for size in sizes)
    known = all(order in (_PLAIN, _PLANES) for order in orders) and all(isinstance(one, str) for one in digests)
    if names != list(_NAMES) or not sane or not known:
        raise ArtifactError(f"{file}: its header does not list an artifact's members")
    return entries


def _compress(data: Array, order: str, name: str) -> bytes:
    ordered = _put_apart(data, name) if order == _PLANES else data
    return zstandard.ZstdCompressor(level=_LEVEL, write_content_size=True).compress(ordered.data)


def _expand(content: bytes, size: int, order: str, where: str) -> Array:
    """The bytes of a member. Never more than `size` are made, whatever the stream claims."""
    made = np.empty(size, np.uint8)
    filled = 0
    try:
        with zstandard.ZstdDecompressor().stream_reader(content) as reader:
            while filled < size:
                count = reader.readinto(made[filled : filled + (1 << 24)].data)
                if count == 0:
                    raise ArtifactError(f"{where} is damaged: its stream is too short")
                filled += count
            if reader.read(1):
                raise ArtifactError(f"{where} is damaged: its stream is too long")
    except zstandard.ZstdError as error:
        raise ArtifactError(f"{where} is damaged: {error}") from error
    return _put_together(made, where) if order == _PLANES else made


def _put_apart(data: Array, name: str) -> Array:
    """The bytes of a tensor file with those of each tensor's numbers put apart; its header stays in front."""
    ordered = data.copy()
    for begin, end, width in tensor_spans(data, name):
        ordered[begin:end] = data[begin:end].reshape(-1, width).T.reshape(-1)
    return ordered


def _put_together(ordered: Array, where: str) -> Array:
    """What `_put_apart` made, as it was: the header says where tensors lie."""
    data = ordered.copy()
    for begin, end, width in tensor_spans(ordered, where):
        data[begin:end] = ordered[begin:end].reshape(width, -1).T.reshape(-1)
    return data

