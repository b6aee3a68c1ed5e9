"""`greencc tune` and `greencc serve-device`."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import click

from greencc.cli.compiling import model_options, read_model_options
from greencc.cli.shared import show, threads_option, working
from greencc.options import parse_seconds, parse_sizes

_INTERRUPTED, _FAULT = 130, 1


@click.command("tune")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--db", required=True, type=click.Path(path_type=Path), metavar="DIR", help="Folder that keeps records.")
@model_options
@click.option(
    "--trials", type=int, metavar="N", help="Stop when the database holds N plans of the model. [default: no limit]"
)
@click.option("--time-budget", metavar="TIME", help="Stop after this long: 90s, 10m, 2h. [default: no limit]")
@click.option(
    "--stop-when-unprofitable",
    type=int,
    metavar="RUNS",
    help="Stop when further gains aren't expected to pay for their energy within so many runs of the model.",
)
@click.option(
    "--tune-at",
    multiple=True,
    metavar="DIM=N,N,...",
    help="Sizes of an open dimension to time kernels at. [default: 16 and 128, or the lowest of a batch]",
)
@click.option("--rpc", metavar="HOST:PORT", help="Measure on the devices of this tracker. [default: this machine]")
@click.option("--rpc-key", metavar="KEY", help="The key that the devices are registered with.")
@click.option(
    "--token-file",
    type=click.Path(path_type=Path),
    help="Holds what the devices ask for. [default: GREENCC_DEVICE_TOKEN]",
)
@click.option("--dry-run", is_flag=True, help="Only list what would be tuned.")
@click.option("--report", type=click.Path(path_type=Path), metavar="FILE.html", help="Also write a page with plots.")
@click.option("--json", "as_json", is_flag=True, help="Print events to stdout, a JSON object a line; the last: result.")
def tune_command(
    model: Path,
    db: Path,
    target: str,
    threads: int | None,
    trials: int | None,
    time_budget: str | None,
    stop_when_unprofitable: int | None,
    tune_at: Sequence[str],
    rpc: str | None,
    rpc_key: str | None,
    token_file: Path | None,
    dry_run: bool,
    report: Path | None,
    as_json: bool,
    **asked: Any,
) -> int:
    """Find the fastest schedules of a model's kernels by measuring.

    Kernels that the database knows are not measured again: an interrupted session goes on where it was. Use the result
    with `greencc compile --tune-db DIR`.
    """
    from greencc import api
    from greencc.render.session import SessionView

    seconds = parse_seconds(time_budget, "--time-budget")
    arguments: dict[str, Any] = {
        "options": read_model_options(asked),
        "target": target,
        "threads": threads,
        "trials": trials,
        "seconds": seconds,
        "profitable_runs": stop_when_unprofitable,
        "tune_at": parse_sizes(tune_at, "--tune-at"),
        "rpc": rpc,
        "rpc_key": rpc_key,
        "token_file": token_file,
        "dry_run": dry_run,
        "report": report,
    }
    with _events() as stdout, working() as progress, SessionView(trials, seconds, not as_json) as view:

        def listen(event: Mapping[str, Any]) -> None:
            progress.pause()
            view(event)
            if as_json:
                _write(stdout, event)

        result = api.tune(model, db, listen=listen, progress=progress, **arguments)
    if as_json:
        _write(sys.stdout, {"event": "result", **result})
    else:
        show(result, False, "tuning_plan" if dry_run else "tuning_report")
    if result.get("error"):
        print(f"greencc: error: {result['error']}", file=sys.stderr)
        return _FAULT
    return _INTERRUPTED if result.get("interrupted") else 0


@click.command("serve-device")
@click.option("--rpc", required=True, metavar="HOST:PORT", help="The RPC tracker.")
@click.option("--rpc-key", required=True, metavar="KEY", help="The key that tuners ask the tracker for.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on: who reaches it runs code.")
@click.option("--port", default="9090..9199", show_default=True, metavar="N|LO..HI", help="Port to listen on.")
@click.option("--target", default="cpu", metavar="cpu|vulkan[:N]|cuda[:N]", help="The device. [default: cpu]")
@threads_option
@click.option(
    "--token-file", type=click.Path(path_type=Path), help="What tuners must know. [default: GREENCC_DEVICE_TOKEN]"
)
def serve_device_command(
    rpc: str, rpc_key: str, host: str, port: str, target: str, threads: int | None, token_file: Path | None
) -> None:
    """Offer a device of this machine to tuners, through a TVM RPC tracker.

    Whoever reaches the port and the tracker can run any code here.
    """
    from greencc import api
    from greencc.tuning.serve import log_line

    def log(message: str) -> None:
        print(log_line(message), file=sys.stderr, flush=True)

    api.serve_device(rpc, rpc_key, host=host, port=port, target=target, threads=threads, token_file=token_file, log=log)


@contextmanager
def _events() -> Iterator[TextIO]:
    """What was stdout before libraries were kept from it."""
    sys.stdout.flush()
    with os.fdopen(os.dup(1), "w") as stream:
        yield stream


def _write(stream: TextIO, event: Mapping[str, Any]) -> None:
    print(json.dumps(event, allow_nan=False), file=stream, flush=True)
