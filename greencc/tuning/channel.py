"""Messages between two processes over pipes: a JSON object and byte strings, whole and in time or not at all."""

from __future__ import annotations

import json
import os
import select
import struct
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_FRAME = struct.Struct(">4sI")
_MAGIC = b"gcct"
_LONGEST_HEADER = 1 << 24
_CHUNK = 1 << 20


class ChannelError(Exception):
    """The other side can't be talked to any more."""


class Closed(ChannelError):
    """The other side has gone."""


class TimedOut(ChannelError):
    """The other side took too long."""


class Garbled(ChannelError):
    """What came is no message."""


@dataclass(frozen=True)
class Message:
    """A message.

    Attributes:
        header: what JSON can hold.
        blobs: what it can't.
    """

    header: Mapping[str, Any]
    blobs: tuple[bytes, ...] = ()


class Channel:
    """One side of a pair of pipes, which it owns.

    Args:
        incoming: file descriptor to read from.
        outgoing: file descriptor to write to.
    """

    def __init__(self, incoming: int, outgoing: int) -> None:
        self._incoming, self._outgoing = incoming, outgoing
        os.set_blocking(incoming, False)
        os.set_blocking(outgoing, False)

    def send(self, header: Mapping[str, Any], blobs: Sequence[bytes] = (), timeout: float | None = None) -> None:
        """Send a message.

        Raises:
            Closed, TimedOut: it didn't arrive.
        """
        deadline = _deadline(timeout)
        text = json.dumps({"header": dict(header), "blobs": [len(blob) for blob in blobs]}).encode()
        for part in (_FRAME.pack(_MAGIC, len(text)), text, *blobs):
            self._write(part, deadline)

    def receive(self, timeout: float | None = None) -> Message:
        """The next message.

        Raises:
            Closed, TimedOut, Garbled: there is none.
        """
        deadline = _deadline(timeout)
        magic, length = _FRAME.unpack(self._read(_FRAME.size, deadline))
        if magic != _MAGIC or length > _LONGEST_HEADER:
            raise Garbled("what came is no message")
        try:
            frame = json.loads(self._read(length, deadline))
            header, lengths = dict(frame["header"]), [int(length) for length in frame["blobs"]]
        except (ValueError, KeyError, TypeError) as error:
            raise Garbled(f"what came is no message: {error}") from error
        return Message(header, tuple(self._read(length, deadline) for length in lengths))

    def close(self) -> None:
        """Close both pipes."""
        for descriptor in (self._incoming, self._outgoing):
            os.close(descriptor)

    def _write(self, data: bytes, deadline: float | None) -> None:
        left = memoryview(data)
        while left:
            _wait(self._outgoing, select.POLLOUT, deadline)
            try:
                left = left[os.write(self._outgoing, left[:_CHUNK]) :]
            except BlockingIOError:
                continue
            except OSError as error:
                raise Closed("the other side has gone") from error

    def _read(self, count: int, deadline: float | None) -> bytes:
        parts: list[bytes] = []
        while count:
            _wait(self._incoming, select.POLLIN, deadline)
            try:
                part = os.read(self._incoming, min(count, _CHUNK))
            except BlockingIOError:
                continue
            except OSError as error:
                raise Closed("the other side has gone") from error
            if not part:
                raise Closed("the other side has gone")
            parts.append(part)
            count -= len(part)
        return b"".join(parts)


def _deadline(timeout: float | None) -> float | None:
    return None if timeout is None else time.monotonic() + timeout


def _wait(descriptor: int, event: int, deadline: float | None) -> None:
    poll = select.poll()
    poll.register(descriptor, event)
    left = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1e3
    if not poll.poll(left):
        raise TimedOut("it takes too long")
