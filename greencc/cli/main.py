"""The command line: arguments become calls of `greencc.api`, results become JSON or tables.

Exit status: 0 done; 1 a fault of greencc; 2 the user's input or request is wrong; 3 the accuracy budget could
not be met. An error is one line on stderr; GREENCC_DEBUG=1 adds the traceback. docs/cli.md is the contract.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

import click

from greencc import __version__
from greencc.cli import artifacts, compiling, database, tuning
from greencc.errors import GreenccError

_CONTEXT = {"help_option_names": ["-h", "--help"]}
_INTERRUPTED = 130


@click.group(context_settings=_CONTEXT, no_args_is_help=False)
@click.version_option(__version__, message="greencc %(version)s")
def cli() -> None:
    """Compile trained models into smaller, cheaper machine code, measured in joules."""


for _command in (
    compiling.compile_command,
    tuning.tune_command,
    tuning.serve_device_command,
    database.db_group,
    artifacts.run_command,
    artifacts.bench_command,
    artifacts.inspect_command,
    artifacts.verify_command,
    artifacts.pack_command,
    artifacts.unpack_command,
    artifacts.devices_command,
):
    cli.add_command(_command)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Entry point: run a command and exit with its status."""
    sys.exit(_run(arguments))


def _run(arguments: Sequence[str] | None) -> int:
    """The exit status of a command line."""
    try:
        outcome = cli.main(args=arguments, prog_name="greencc", standalone_mode=False)
        return outcome if isinstance(outcome, int) else 0
    except GreenccError as error:
        return _fail(str(error), error.exit_status)
    except click.ClickException as error:
        command = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else "greencc"
        return _fail(f"{error.format_message().rstrip('.')} (see {command} --help)", 2)
    except (KeyboardInterrupt, click.Abort):
        return _fail("interrupted", _INTERRUPTED)
    except BrokenPipeError:
        # Whoever read our output has gone; keep the interpreter's own flush at exit from complaining.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:  # the last resort: a fault of ours still is one line
        kind, text = type(error).__name__, str(error)
        return _fail(f"{kind}: {text} (a fault of greencc; GREENCC_DEBUG=1 shows where)", 1)


def _fail(message: str, status: int) -> int:
    if os.environ.get("GREENCC_DEBUG") == "1":
        traceback.print_exc()
    print("greencc: error:", " ".join(message.split()), file=sys.stderr)
    return status
