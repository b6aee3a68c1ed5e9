"""A session may be killed at any moment, and again and again: what it reported is there, and nothing else is lost."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from greencc import api

HERE = Path(__file__).parent
KILLS, TRIALS = 20, 60


def test_20_kills_lose_nothing_that_was_reported(tmp_path: Path) -> None:
    arguments = [tmp_path / "db", KILLS, TRIALS, 7]
    made = subprocess.run(
        [sys.executable, HERE / "killed_sessions.py", *map(str, arguments)],
        check=True, capture_output=True, text=True, timeout=120, cwd=HERE,
    )  # fmt: skip
    result = json.loads(made.stdout)
    assert result["killed"] > KILLS // 2
    assert len(result["reported"]) > TRIALS // 3
    assert set(result["reported"]) <= set(result["held"])
    assert len(set(result["held"])) == TRIALS
    listed = api.db_ls([tmp_path / "db"])
    assert not any(listed["damaged"].values())
