"""A process for tests of Child: does what it is told, right or wrong."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from typing import Any

from greencc.tuning.channel import Channel


def main(incoming: int, outgoing: int, options: Mapping[str, Any]) -> None:
    """See Child."""
    if options.get("start") == "crash":
        os._exit(3)
    channel = Channel(incoming, outgoing)
    channel.send({"ready": True})
    while True:
        message = channel.receive()
        match message.header["do"]:
            case "echo":
                channel.send(message.header, message.blobs)
            case "garbage":
                os.write(outgoing, b"0123456789" * 10)
            case "half":
                os.write(outgoing, b"gcct")
                os._exit(0)
            case "signal":
                os.kill(os.getpid(), signal.Signals[message.header["signal"]])
            case "sleep":
                time.sleep(60)
            case "print":
                print("{} gcct garbage", flush=True)
                os.system("echo more garbage")
                channel.send({})
