"""A process that works for this one and may crash or hang without harm to it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from greencc.tuning.channel import Channel, ChannelError, Closed, Message, TimedOut

# The parent's search path, and nothing of the folder that happens to be the current one.
_BOOT = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from importlib import import_module; "
    "import_module(sys.argv[2]).main(int(sys.argv[3]), int(sys.argv[4]), json.loads(sys.argv[5]))"
)
_START_SECONDS = 90.0
_DYING_SECONDS = 5.0


class ChildFailed(Exception):
    """The process crashed, or gave no answer in time; it has been ended. The message says which."""


class Child:
    """A Python process that answers one message at a time.

    It runs `main(incoming, outgoing, options)` of a module: file descriptors for a Channel, whose first message says
    that it is ready. It ends when this process closes its side, and so when this process ends, however it does.

    Args:
        module: name of the module.
        options: what `main` gets besides, as JSON.
        environment: variables that it gets in addition.

    Raises:
        ChildFailed: it didn't start.
    """

    def __init__(self, module: str, options: Mapping[str, Any], environment: Mapping[str, str]) -> None:
        its_incoming, outgoing = os.pipe()
        incoming, its_outgoing = os.pipe()
        path = [os.path.abspath(entry) for entry in sys.path]
        arguments = (json.dumps(path), module, str(its_incoming), str(its_outgoing), json.dumps(dict(options)))
        errors = None if os.environ.get("GREENCC_DEBUG") == "1" else subprocess.DEVNULL
        try:
            # A group of its own: Ctrl-C in the terminal is for this process, which then ends its children.
            self._process = subprocess.Popen(
                [sys.executable, "-c", _BOOT, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                pass_fds=(its_incoming, its_outgoing),
                start_new_session=True,
                env={**os.environ, **environment},
            )
        except OSError as error:
            os.close(incoming)
            os.close(outgoing)
            raise ChildFailed(f"can't be started: {error.strerror}") from error
        finally:
            os.close(its_incoming)
            os.close(its_outgoing)
        self._channel = Channel(incoming, outgoing)
        self._turn = threading.Lock()
        self._open = True
        try:
            self._exchange(None, (), _START_SECONDS)
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        """Number of the process."""
        return self._process.pid

    def ask(self, header: Mapping[str, Any], blobs: Sequence[bytes], timeout: float) -> Message:
        """Its answer. After a failure it has ended.

        Raises:
            ChildFailed: there was none within `timeout` seconds.
        """
        with self._turn:
            return self._exchange(header, blobs, timeout)

    def close(self) -> None:
        """End it, whatever it does. Safe from other threads than the one that asks, which is then told of a crash."""
        self._kill()
        with self._turn:
            if self._open:
                self._open = False
                self._channel.close()

    def _exchange(self, header: Mapping[str, Any] | None, blobs: Sequence[bytes], timeout: float) -> Message:
        if not self._open:
            raise ChildFailed("has been ended")
        try:
            if header is not None:
                self._channel.send(header, blobs, timeout)
            return self._channel.receive(timeout)
        except TimedOut:
            self._kill()
            raise ChildFailed(f"no result within {timeout:g} s") from None
        except Closed:
            raise ChildFailed(self._fate()) from None
        except ChannelError as error:
            self._kill()
            raise ChildFailed(f"answered with garbage ({error})") from error

    def _fate(self) -> str:
        """How it came to its end."""
        try:
            status = self._process.wait(_DYING_SECONDS)
        except subprocess.TimeoutExpired:
            self._kill()
            return "stopped answering"
        if status >= 0:
            return f"ended with status {status}"
        name = signal.Signals(-status).name if -status in set(signal.Signals) else f"signal {-status}"
        return f"crashed with {name}{' (out of memory?)' if -status == signal.SIGKILL else ''}"

    def _kill(self) -> None:
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
