"""Progress on stderr, for work that takes more than a second and for nothing shorter."""

from __future__ import annotations

import sys
import threading
import time
from types import TracebackType
from typing import Any

_PATIENCE_SECONDS = 1.0


class Progress:
    """A callable that is told what is being done; a context manager that ends its display.

    On a terminal it is one line with a spinner, gone at the end. Elsewhere it is a line of text for each
    message, with the seconds passed: nothing in it depends on the terminal's width.
    """

    def __init__(self) -> None:
        self._message = "working"
        self._started = time.perf_counter()
        self._status: Any = None
        self._lock = threading.Lock()
        self._ended = self._paused = False
        self._visible = False
        self._timer = self._new_timer()

    def __enter__(self) -> Progress:
        self._timer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()
        with self._lock:
            self._ended = True
            if self._status is not None:
                self._status.stop()

    def __call__(self, message: str) -> None:
        """Say what is being done now."""
        with self._lock:
            self._message = message
            if self._visible:
                self._update()
            elif self._paused:
                self._paused = False
                self._timer = self._new_timer()
                self._timer.start()

    def pause(self) -> None:
        """Show nothing until the next message: something else is shown meanwhile."""
        with self._lock:
            self._timer.cancel()
            self._visible, self._paused = False, True
            if self._status is not None:
                self._status.stop()
                self._status = None

    def _new_timer(self) -> threading.Timer:
        timer = threading.Timer(_PATIENCE_SECONDS, self._show)
        timer.daemon = True
        return timer

    def _show(self) -> None:
        from rich.console import Console

        with self._lock:
            if self._ended or self._paused:
                return
            self._visible = True
            console = Console(stderr=True)
            if console.is_terminal:
                self._status = console.status("")
                self._status.start()
            self._update()

    def _update(self) -> None:
        if self._status is not None:
            from rich.text import Text

            self._status.update(Text(self._message))
        else:
            print(f"[{time.perf_counter() - self._started:6.1f} s] {self._message}", file=sys.stderr, flush=True)
