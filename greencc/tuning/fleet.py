"""Devices of other machines, which `greencc serve-device` has registered with an RPC tracker."""

from __future__ import annotations

import json
import queue
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

from tvm import rpc

from greencc.errors import UserError
from greencc.tuning.credentials import proof, read_token
from greencc.tuning.devices import (
    MEASURE_SECONDS,
    MOST_REFERENCE_RUNS,
    REFERENCE_SECONDS,
    THOROUGH_SECONDS,
    DeviceLost,
    Place,
    measurement_of,
)
from greencc.tuning.faults import one_line
from greencc.tuning.measure import Measurement
from greencc.tuning.pool import Pool
from greencc.tuning.program import MOST_COPIES, Program
from greencc.tuning.tracker import Address, Offer, Tracker, TrackerError, check_key, parse_address
from greencc.version import __version__

T = TypeVar("T")

CHALLENGE, DESCRIBE, MEASURE = (f"greencc.tuning.{name}" for name in ("challenge", "describe", "measure"))
"""The functions of a server. See greencc.tuning.serve."""
_CONNECT_SECONDS = 20.0
# Beside what a device takes itself: to load the reference, to begin again after a crash, and the way there and back.
_WAY_SECONDS = 25.0
# A server ends a session that is older: one whose client has gone without a word. Another one follows.
_SESSION_SECONDS = 3600
_LOOK_SECONDS = 2.0
# So long after it was refused, a server is asked again what it is.
_REFUSED_SECONDS = 60.0
_PATIENCE_SECONDS = 30.0
_FAULTS = (RuntimeError, ValueError, OSError, AttributeError)
"""What TVM's client raises when a server fails, or has gone."""


class Refused(Exception):
    """A server that can't measure for this session. The message is a phrase."""


class RemoteDevice:
    """A device behind a server.

    Args:
        offer: the server, as the tracker gave it.
        token: what it wants to be proven, or nothing.
        seconds: how long a measurement may take on the device itself; four times as long when it is thorough.

    Raises:
        Refused: it is no server of greencc's, or one for others.
        DeviceLost: it doesn't answer.
    """

    def __init__(self, offer: Offer, token: str, seconds: float = MEASURE_SECONDS) -> None:
        self._address, self._seconds = offer.address, seconds
        self._holds, self._run_seconds = "", 0.0
        self._session: Any = None
        self._fields = in_time(lambda: self._open(offer, token), _CONNECT_SECONDS)

    @property
    def name(self) -> str:
        """See Device."""
        return f"{self._address[0]}:{self._address[1]}"

    @property
    def address(self) -> Address:
        """Of its server."""
        return self._address

    def describe(self) -> dict[str, object]:
        """See Device."""
        return dict(self._fields)

    def measure(self, candidate: Program, reference: Program, thorough: bool = False) -> Measurement:
        """See Device."""
        session = self._session
        if session is None:
            raise DeviceLost("closed")
        header = json.dumps({"thorough": thorough, "reference": reference.digest})
        sent = b"" if self._holds == reference.digest else reference.data

        def call() -> Any:
            return json.loads(str(session.get_function(MEASURE)(header, candidate.data, sent)))

        own = self._seconds + MOST_REFERENCE_RUNS * self._run_seconds
        own *= THOROUGH_SECONDS / MEASURE_SECONDS if thorough else 1
        first = self._seconds + (REFERENCE_SECONDS if sent and self._seconds >= MEASURE_SECONDS else 0.0)
        answer = in_time(call, first + own + _WAY_SECONDS)
        try:
            if "lost" in answer:
                raise DeviceLost(str(answer["lost"]))
            self._holds = reference.digest
            found = measurement_of(answer)
        except (KeyError, TypeError, ValueError) as error:
            raise DeviceLost(f"it answered otherwise than greencc does ({one_line(error)})") from error
        self._run_seconds = MOST_COPIES * sum(found.reference)
        return found

    def close(self) -> None:
        """See Device. The server is free again when the measurement that is under way has ended."""
        session, self._session = self._session, None
        if session is not None:
            _hang_up(session)

    def _open(self, offer: Offer, token: str) -> Mapping[str, object]:
        session = rpc.connect(*offer.address, offer.match_key, _SESSION_SECONDS)
        try:
            fields = _introduce(session, token)
        except BaseException:
            _hang_up(session)
            raise
        self._session = session
        return fields


def _introduce(session: Any, token: str) -> Mapping[str, object]:
    """Show the token to a server, and ask what it is."""
    try:
        challenge = session.get_function(CHALLENGE)
    except AttributeError as error:
        raise Refused("it is no device that greencc serves") from error
    try:
        answer = json.loads(str(session.get_function(DESCRIBE)(proof(token, str(challenge())))))
        if "refused" in answer:
            raise Refused(str(answer["refused"]))
        for name, own in (("TVM", version("apache-tvm")), ("greencc", __version__)):
            if answer[name.lower()] != own:
                raise Refused(f"it runs {name} {answer[name.lower()]}, this session {own}")
        fields: Mapping[str, object] = answer["describes"]
    except (KeyError, TypeError, ValueError) as error:
        raise Refused(f"it answers otherwise than greencc does ({one_line(error)})") from error
    return fields


def _hang_up(session: Any) -> None:
    """End a session, as soon as nothing is under way in it: references to it may live on in errors."""

    def end() -> None:
        with suppress(*_FAULTS):
            session.get_function("CloseRPCConnection")()

    threading.Thread(target=end, daemon=True).start()


class Fleet:
    """All servers of a key that are devices like `target`. They join while measurements go on, and may leave.

    Args:
        tracker: HOST:PORT of the RPC tracker that servers are registered with.
        key: theirs.
        target: what devices must be.
        token_file: holds what servers want to be proven; None for the environment's GREENCC_DEVICE_TOKEN, if any.
        log: told, in a line, of devices that join, are refused, or leave.
        patience: seconds to wait for one to join when there is none.
        seconds: see RemoteDevice.

    Attributes:
        pool: those that have joined. Closing it lets all servers go.

    Raises:
        UserError: the tracker can't be reached, no server is free, or all are other devices.
    """

    def __init__(
        self,
        tracker: str,
        key: str,
        target: Place,
        *,
        token_file: Path | None = None,
        log: Callable[[str], None] = lambda message: None,
        patience: float = _PATIENCE_SECONDS,
        seconds: float = MEASURE_SECONDS,
    ) -> None:
        self._tracker, self._key, self._token = Tracker(parse_address(tracker)), check_key(key), read_token(token_file)
        # As JSON brings it back from there.
        self._fields = json.loads(json.dumps(target.describe()))
        self._log, self._seconds = log, seconds
        self._refused: dict[Address, float] = {}
        self.pool = Pool((), patience, log)
        reasons = self._first_look(patience)
        if not self.pool.devices:
            where = f"no device under --rpc-key {key} at {self._tracker}"
            if reasons:
                raise UserError(f"{where} can be used: {'; '.join(reasons)}")
            raise UserError(f"{where} is free: start one with greencc serve-device --rpc {tracker} --rpc-key {key}")
        threading.Thread(target=self._keep_looking, daemon=True, name="greencc-fleet").start()

    def _first_look(self, patience: float) -> list[str]:
        """Wait for a first device: those that were started together with this session take a while."""
        until, told = time.monotonic() + patience, False
        while True:
            reasons = self._look()
            if self.pool.devices or reasons or time.monotonic() >= until:
                return reasons
            if not told:
                self._log(f"waiting for a device under --rpc-key {self._key} at {self._tracker}")
            told = True
            time.sleep(_LOOK_SECONDS / 4)

    def _keep_looking(self) -> None:
        reachable = True
        while not self.pool.closed.wait(_LOOK_SECONDS):
            try:
                self._look()
                reachable = True
            except TrackerError as error:
                if reachable:
                    self._log(f"no more devices can join: {error}")
                reachable = False

    def _look(self) -> list[str]:
        """Let servers join that are free and not known yet; says why others can't."""
        servers, free = self._tracker.servers(self._key)
        now = time.monotonic()
        self._refused = {a: since for a, since in self._refused.items() if now - since < _REFUSED_SECONDS}
        ours = {device.address for device in self.pool.devices if isinstance(device, RemoteDevice)}
        if servers <= ours | self._refused.keys():
            return []
        reasons = []
        # Refused servers are held until all are seen: the tracker would offer them again.
        held = []
        for _ in range(free):
            offer = self._tracker.request(self._key)
            if offer is None or self.pool.closed.is_set():
                break
            name = f"{offer.address[0]}:{offer.address[1]}"
            try:
                device = RemoteDevice(offer, self._token, self._seconds)
                held.append(device)
                self._check(device)
            except (Refused, DeviceLost) as error:
                if offer.address not in self._refused:
                    self._log(f"device {name} is not used: {error}")
                self._refused[offer.address] = time.monotonic()
                reasons.append(f"{name}: {error}")
                continue
            held.remove(device)
            self.pool.add(device)
            self._log(f"device {name} joins")
        for refused in held:
            refused.close()
        return reasons

    def _check(self, device: RemoteDevice) -> None:
        """Refuse a device that is another than the target."""
        fields = device.describe()
        differing = [
            f"{name} is {_text(fields.get(name))}, not {_text(wanted)}"
            for name, wanted in self._fields.items()
            if fields.get(name) != wanted
        ]
        if differing:
            raise Refused(f"it is another target: {'; '.join(differing)}")


def in_time(work: Callable[[], T], seconds: float) -> T:
    """What `work` returns, which talks to a server.

    Raises:
        DeviceLost: it takes longer, and is left to itself; or the server fails.
        Refused: `work` raises it.
    """
    results: queue.SimpleQueue[T | BaseException] = queue.SimpleQueue()

    def run() -> None:
        try:
            results.put(work())
        except (*_FAULTS, Refused) as error:
            results.put(error)

    # TVM's client can't be interrupted: a thread that waits for a hanging server stays until the end.
    threading.Thread(target=run, daemon=True).start()
    try:
        result = results.get(timeout=seconds)
    except queue.Empty:
        raise DeviceLost(f"no answer within {seconds:g} s") from None
    if isinstance(result, Refused):
        raise result
    if isinstance(result, BaseException):
        raise DeviceLost(f"its server failed, or has gone ({one_line(result)})") from result
    return result


def _text(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
