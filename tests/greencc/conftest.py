"""Fixtures of tests that run command lines."""

from __future__ import annotations

import pytest
from command_lines import Greencc, Outcome

from greencc import cli


@pytest.fixture
def run_cli(capfd: pytest.CaptureFixture[str]) -> Greencc:
    """Run a command line in this process; returns its exit status, stdout and stderr."""

    def run(*arguments: object) -> Outcome:
        capfd.readouterr()
        with pytest.raises(SystemExit) as caught:
            cli.main([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        assert isinstance(caught.value.code, int)
        return caught.value.code, out, err

    return run
