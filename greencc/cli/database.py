"""`greencc db`: what can be done with tuning databases."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from greencc.cli.shared import json_option, show, working


@click.group("db", no_args_is_help=False)
def db_group() -> None:
    """Keep tuning databases: folders that `greencc tune` writes to."""


_folders = click.argument("folders", metavar="DIR...", nargs=-1, required=True, type=click.Path(path_type=Path))


@db_group.command("ls")
@_folders
@json_option
def db_ls_command(folders: Sequence[Path], as_json: bool) -> None:
    """Show which kernels were tuned, for what, and what it brought."""
    from greencc import api

    with working():
        result = api.db_ls(folders)
    show(result, as_json, "database_list")


@db_group.command("merge")
@_folders
@click.option("-o", "out", type=click.Path(path_type=Path), help="Folder to unite them in. [default: the first]")
@json_option
def db_merge_command(folders: Sequence[Path], out: Path | None, as_json: bool) -> None:
    """Unite databases, and make one file of many."""
    from greencc import api

    with working() as progress:
        progress("merging")
        result = api.db_merge(folders, out)
    show(result, as_json, "merge_report")


@db_group.command("prune")
@_folders
@click.option("--keep", type=int, metavar="K", help="Plans of a kernel that stay, the fastest. [default: 64]")
@click.option("--failures", type=float, metavar="DAYS", help="How long failures stay. [default: 30]")
@click.option("--other-versions", is_flag=True, help="Also remove what other versions of TVM or greencc measured.")
@json_option
def db_prune_command(
    folders: Sequence[Path], keep: int | None, failures: float | None, other_versions: bool, as_json: bool
) -> None:
    """Remove what is of little use, and say how much that was.

    The plans that a compilation takes stay.
    """
    from greencc import api

    with working() as progress:
        progress("pruning")
        result = api.db_prune(folders, keep=keep, failures=failures, other_versions=other_versions)
    show(result, as_json, "prune_report")


@db_group.command("export")
@_folders
@click.option("-o", "out", type=click.Path(path_type=Path), help="File to write. [default: stdout]")
@json_option
def db_export_command(folders: Sequence[Path], out: Path | None, as_json: bool) -> None:
    """Write the best plan of every kernel as one JSON object.

    The file can be named wherever a database is only read.
    """
    from greencc import api

    with working():
        result = api.db_export(folders, out)
    show(result, as_json or out is None, "export_report")
