"""What commands share: options that mean the same everywhere, progress on stderr, results on stdout."""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from typing import Any, TextIO

import click

from greencc.progress import Progress

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object to stdout, nothing else.")
threads_option = click.option("--threads", type=int, metavar="N", help="Threads of one run. [default: physical cores]")
device_option = click.option(
    "--device", metavar="KIND:N", help="Which of several GPUs to run on, as in vulkan:1. [default: the first]"
)


@contextmanager
def working() -> Iterator[Progress]:
    """Show progress, and keep stdout clean: libraries that print get stderr instead."""
    with _stdout_to_stderr(), warnings.catch_warnings(), Progress() as progress:
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = _warn
        yield progress


def _warn(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """A warning as one line, without the place in the source that raised it."""
    print("greencc: warning:", " ".join(str(message).split()), file=sys.stderr)


@contextmanager
def _stdout_to_stderr() -> Iterator[None]:
    """Send to stderr what Python and native code print to stdout meanwhile."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def show(result: Mapping[str, Any], as_json: bool, view: str) -> None:
    """Print a result: as JSON, or by a view of `greencc.render`."""
    if as_json:
        print(json.dumps(result, indent=2, allow_nan=False))
    else:
        from greencc import render

        render.show(getattr(render, view)(result))
    sys.stdout.flush()
