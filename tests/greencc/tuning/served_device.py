"""A server for tests: `greencc serve-device` with a device that sleeps, so that many take turns on few cores."""

from __future__ import annotations

import argparse
import json
import sys
import time
from functools import partial

from greencc.tuning.devices import LocalDevice
from greencc.tuning.measure import Measurement
from greencc.tuning.program import Program
from greencc.tuning.serve import Described, Service, log_line, serve


class SlowDevice(LocalDevice):
    """Measures as a local device does, after a while in which it does nothing."""

    def __init__(self, target: Described, seconds: float) -> None:
        super().__init__(target, timeout=2.5)
        self._seconds = seconds

    def measure(self, candidate: Program, reference: Program, thorough: bool = False) -> Measurement:
        """See Device."""
        time.sleep(self._seconds)
        return super().measure(candidate, reference, thorough)


def main() -> None:
    """Serve until a signal comes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("tracker", type=int)
    parser.add_argument("--key", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--target", type=json.loads, required=True)
    parser.add_argument("--seconds", type=float, default=0.0)
    parser.add_argument("--token", default="")
    options = parser.parse_args()
    service = Service(
        Described("cpu", 1, options.target),
        ("127.0.0.1", options.tracker),
        options.key,
        ports=range(options.port, options.port + 1),
        token=options.token,
        open_device=partial(SlowDevice, seconds=options.seconds),
    )
    serve(service, lambda message: print(log_line(message), file=sys.stderr, flush=True))


if __name__ == "__main__":
    main()
