"""A process that writes records until it is killed, and reports each one when it is told that it exists.

Usage: record_writer.py FOLDER SEED [COUNT [MOST_BYTES_OF_A_FILE]]
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path

from made_records import SCOPE, note, trial

from greencc.errors import UserError
from greencc.tuning.database import Database
from greencc.tuning.records import Failed

folder, seed, count = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 10**9
if len(sys.argv) > 4:
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[4]), resource.RLIM_INFINITY))
writer = Database(folder).writer(SCOPE)
for number in range(seed * 1_000_000 + 1, seed * 1_000_000 + 1 + count):
    workload = f"{number // 10:016x}"
    writer.note(note(workload))
    try:
        writer.append(trial(number, Failed("long " * 40) if number % 7 == 0 else 0.5, workload=workload))
    except UserError as error:
        print("error", error, flush=True)
        break
    print(number, flush=True)
