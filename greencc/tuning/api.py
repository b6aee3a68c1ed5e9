"""The functions of `greencc.api` that have to do with tuning. They load what they need when they are called."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from greencc.errors import UserError
from greencc.model_options import ModelOptions

AnyPath = str | PathLike[str]
Progress = Callable[[str], None]


def _silent(message: str) -> None:
    pass


def tune(
    model: AnyPath,
    db: AnyPath,
    *,
    options: ModelOptions | None = None,
    target: str = "cpu",
    threads: int | None = None,
    trials: int | None = None,
    seconds: float | None = None,
    profitable_runs: int | None = None,
    tune_at: Mapping[str, Sequence[int]] | None = None,
    rpc: str | None = None,
    rpc_key: str | None = None,
    token_file: AnyPath | None = None,
    dry_run: bool = False,
    report: AnyPath | None = None,
    listen: Callable[[dict[str, Any]], None] = lambda event: None,
    progress: Progress = _silent,
) -> dict[str, Any]:
    """Find the fastest schedules of a model's kernels by measuring, and keep them in a database.

    Args:
        model: as for `compile`.
        db: the folder of the database; made where there is none. Its records for this target are built on.
        options: what becomes of the model before it is scheduled, as for `compile`.
        target, threads: as for `compile`.
        trials: stop when the database holds so many plans of the model's kernels, earlier sessions' included.
        seconds: stop after so long.
        profitable_runs: stop when further gains aren't expected to pay for their energy within so many runs.
        tune_at: sizes of symbolic dimensions, by name, at which kernels are timed; a plan counts by the size where it
            does worst. None for usual ones.
        rpc: HOST:PORT of a TVM RPC tracker whose devices measure; None for this machine.
        rpc_key: the key that they are registered with.
        token_file: holds what they ask for; None for the environment's GREENCC_DEVICE_TOKEN, if it is set.
        dry_run: only list what would be tuned.
        report: an HTML file to write, with plots.
        listen: told of every event, a dictionary; docs/tuning.md lists them.
        progress: told what is being done before and after the session.

    Returns:
        What `tune --json` prints last.

    Raises:
        UserError: the request doesn't fit the model, a package is missing, or nothing can measure.
        GreenccError: a fault of greencc. What was measured is in the database.
    """
    from greencc.tuning.packages import require_packages

    require_packages(report is not None)
    from greencc.tuning.command import TuneRequest, tune_model
    from greencc.tuning.session import Budget

    model = Path(model)
    if not model.exists():
        raise UserError(f"{model}: there is no such file or folder")
    from greencc.targets.registry import make_target

    request = TuneRequest(
        database=Path(db),
        budget=Budget(trials, seconds, profitable_runs),
        tune_at=dict(tune_at or {}),
        fleet=rpc,
        fleet_key=rpc_key,
        token_file=None if token_file is None else Path(token_file),
        dry_run=dry_run,
        report=None if report is None else Path(report),
    )
    chosen = make_target(target, threads)
    return tune_model(model, chosen, options or ModelOptions(), request, listen=listen, progress=progress)


def db_ls(folders: Sequence[AnyPath]) -> dict[str, Any]:
    """What tuning databases hold; see `greencc.tuning.maintenance.listing`."""
    from greencc.tuning.maintenance import listing

    return listing(list(map(Path, folders)))


def db_merge(folders: Sequence[AnyPath], out: AnyPath | None = None) -> dict[str, Any]:
    """Unite tuning databases in `out`, or in the first; see `greencc.tuning.maintenance.merge`."""
    from greencc.tuning.maintenance import merge

    return merge(list(map(Path, folders)), Path(folders[0] if out is None else out))


def db_prune(
    folders: Sequence[AnyPath],
    *,
    keep: int | None = None,
    failures: float | None = None,
    other_versions: bool = False,
) -> dict[str, Any]:
    """Remove what is of little use from tuning databases; see `greencc.tuning.maintenance.prune`."""
    from greencc.tuning.maintenance import FAILURE_DAYS, KEEP, prune

    days = FAILURE_DAYS if failures is None else failures
    return prune(list(map(Path, folders)), KEEP if keep is None else keep, days, other_versions)


def db_export(folders: Sequence[AnyPath], out: AnyPath | None = None) -> dict[str, Any]:
    """The best plans of tuning databases, and a file of them; see `greencc.tuning.maintenance.export`."""
    from greencc.tuning.maintenance import export

    return export(list(map(Path, folders)), None if out is None else Path(out))


def serve_device(
    rpc: str,
    rpc_key: str,
    *,
    host: str = "127.0.0.1",
    port: str = "9090..9199",
    target: str = "cpu",
    threads: int | None = None,
    token_file: AnyPath | None = None,
    log: Progress = _silent,
) -> None:
    """Offer a device of this machine to tuners, until the process gets SIGTERM or SIGINT. In the main thread only.

    Args:
        rpc: HOST:PORT of the RPC tracker.
        rpc_key: the key that tuners ask the tracker for.
        host: address to listen on. TVM's RPC runs any code for whoever reaches it.
        port: the port to listen on, or bounds LO..HI, of which the first free one is taken.
        target: `cpu`, `vulkan:N` or `cuda:N`: a device of this machine.
        threads: threads of a run; None for the physical cores. Of no meaning for GPUs.
        token_file: holds what tuners must know, too; None for what GREENCC_DEVICE_TOKEN says, if anything.
        log: told of every event.

    Raises:
        UserError: a request is wrong, the device isn't there, or the address can't be listened on.
    """
    from greencc.targets.registry import make_target
    from greencc.tuning.credentials import read_token
    from greencc.tuning.serve import Described, Service, parse_ports, serve
    from greencc.tuning.tracker import check_key, parse_address

    tracker, ports = parse_address(rpc), parse_ports(port)
    token = read_token(None if token_file is None else Path(token_file))
    chosen = make_target(target, threads)
    if not chosen.runs_here:
        raise UserError(f"--target {target}: it is no device of this machine")
    device = Described(chosen.place, chosen.threads, chosen.describe())
    serve(Service(device, tracker, check_key(rpc_key), host, ports, token), log)
