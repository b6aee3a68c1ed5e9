"""Talks to TVM's RPC tracker, which knows the servers of a network by key.

TVM's own client waits without end, for a server to become free and for a tracker that doesn't answer; here everything
has its time. The protocol is that of tvm.rpc.tracker: a length and JSON, after a magic number.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

from tvm.rpc import base

from greencc.errors import UserError

Address: TypeAlias = tuple[str, int]
_SECONDS = 5.0


class TrackerError(UserError):
    """A tracker that can't be reached, or is none."""


@dataclass(frozen=True)
class Offer:
    """A server that is free for whoever shows the key that the tracker gave out for it."""

    address: Address
    match_key: str


@dataclass(frozen=True)
class Tracker:
    """A tracker on the network."""

    address: Address

    def servers(self, key: str) -> tuple[frozenset[Address], int]:
        """Addresses of the servers of a key, busy ones too, and how many of them are free.

        Raises:
            TrackerError: the tracker can't be asked.
        """
        _, summary = self._ask([base.TrackerCode.SUMMARY])
        found = {(str(s["addr"][0]), int(s["addr"][1])) for s in summary["server_info"] if s["key"] == f"server:{key}"}
        return frozenset(found), int(summary["queue_info"].get(key, {"free": 0})["free"])

    def request(self, key: str) -> Offer | None:
        """A free server of a key; None where none becomes free soon.

        Raises:
            TrackerError: the tracker can't be asked.
        """
        try:
            _, (host, port, match_key) = self._ask([base.TrackerCode.REQUEST, key, "", 1])
        except _NoAnswer:
            return None
        return Offer((str(host), int(port)), str(match_key))

    def _ask(self, question: list[Any]) -> list[Any]:
        with self._connected() as connection:
            try:
                base.sendjson(connection, question)
                answer = base.recvjson(connection)
            except TimeoutError as error:
                raise _NoAnswer(f"{self} doesn't answer") from error
        if not isinstance(answer, list) or len(answer) != 2 or answer[0] != base.TrackerCode.SUCCESS:
            raise TrackerError(f"{self} answers with an error: {answer}")
        return answer

    @contextmanager
    def _connected(self) -> Iterator[socket.socket]:
        try:
            with socket.create_connection(self.address, timeout=_SECONDS) as connection:
                connection.sendall(struct.pack("<i", base.RPC_TRACKER_MAGIC))
                if struct.unpack("<i", base.recvall(connection, 4))[0] != base.RPC_TRACKER_MAGIC:
                    raise TrackerError(f"{self} is no RPC tracker")
                yield connection
        except (OSError, ValueError) as error:
            raise TrackerError(
                f"{self} can't be reached ({error}): start one with python -m tvm.exec.rpc_tracker "
                f"--host {self.address[0]} --port {self.address[1]}"
            ) from error

    def __str__(self) -> str:
        return f"the RPC tracker at {self.address[0]}:{self.address[1]}"


class _NoAnswer(TrackerError):
    pass


def parse_address(text: str, option: str = "--rpc") -> Address:
    """`HOST:PORT` as an address.

    Raises:
        UserError: it is not written so.
    """
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise UserError(f"{option} {text}: write the tracker's address as HOST:PORT, as in 127.0.0.1:9190")
    return host.strip("[]"), int(port)


def check_key(key: str) -> str:
    """The key, if servers and clients can agree on it.

    Raises:
        UserError: it is empty, or has blanks in it.
    """
    if not key or key.split() != [key]:
        raise UserError(f"--rpc-key {key!r}: a key is one word that names a kind of device")
    return key
