"""The command line, `greencc`."""

from greencc.cli.main import cli, main

__all__ = ["cli", "main"]
