from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from greencc import api
from greencc.cli import main
from greencc.errors import UserError
from greencc.tuning.credentials import VARIABLE, proof, read_token
from greencc.tuning.devices import DeviceLost, TrialFailed
from greencc.tuning.measure import Measurement
from greencc.tuning.program import Program
from greencc.tuning.serve import Described, Service, Session, log_line, parse_ports
from greencc.tuning.tracker import check_key, parse_address

REFERENCE = Program(b"reference")


class Echo:
    """A device that answers as the candidate's bytes say."""

    name = "echo"

    def __init__(self, target: Described) -> None:
        self.references: list[Program] = []

    def describe(self) -> dict[str, object]:
        return {}

    def measure(self, candidate: Program, reference: Program, thorough: bool = False) -> Measurement:
        self.references.append(reference)
        if candidate.data == b"fail":
            raise TrialFailed("wrong result")
        if candidate.data == b"lose":
            raise DeviceLost("unplugged")
        return Measurement((2.0 if thorough else 1.0,), (0.5,), (4.0,))

    def close(self) -> None:
        pass


@pytest.fixture
def session() -> Session:
    target = Described("cpu", 2, {"kind": "cpu", "features": ["avx2"]})
    return Session(Service(target, ("127.0.0.1", 1), "key", token="open sesame", open_device=Echo))


def ask(session: Session, candidate: bytes, reference: bytes = b"", thorough: bool = False) -> dict[str, Any]:
    question = {"thorough": thorough, "reference": REFERENCE.digest}
    answer: dict[str, Any] = json.loads(session.measure(json.dumps(question), candidate, reference))
    return answer


def test_nothing_is_measured_before_the_token_is_proven(session: Session) -> None:
    assert ask(session, b"x", REFERENCE.data) == {"lost": "it was not shown the token"}
    assert "refused" in json.loads(session.describe(proof("open sesame", "")))
    challenge = session.challenge()
    assert "refused" in json.loads(session.describe(proof("open barley", challenge)))
    assert "lost" in ask(session, b"x", REFERENCE.data)
    described = json.loads(session.describe(proof("open sesame", challenge)))
    assert described["describes"] == {"kind": "cpu", "features": ["avx2"]}
    assert ask(session, b"x", REFERENCE.data)["seconds"] == [1.0]


def test_challenges_differ(session: Session) -> None:
    assert session.challenge() != session.challenge()


def test_outcomes_are_handed_on_and_the_reference_is_kept(session: Session) -> None:
    session.describe(proof("open sesame", session.challenge()))
    assert ask(session, b"x") == {"lost": "it has another reference"}
    found = ask(session, b"x", REFERENCE.data, thorough=True)
    assert (found["seconds"], found["spread"], found["reference"]) == ([2.0], [0.5], [4.0])
    assert ask(session, b"fail") == {"failed": "wrong result", "reference": False}
    assert ask(session, b"lose") == {"lost": "unplugged"}
    assert ask(session, b"x")["seconds"] == [1.0]
    other = json.dumps({"thorough": False, "reference": Program(b"other").digest})
    assert json.loads(session.measure(other, b"x", b"")) == {"lost": "it has another reference"}


@pytest.mark.parametrize(("text", "ports"), [("9090", range(9090, 9091)), ("9090..9199", range(9090, 9200))])
def test_ports(text: str, ports: range) -> None:
    assert parse_ports(text) == ports


@pytest.mark.parametrize("text", ["", "x", "0", "99999", "9199..9090", "9090..", "..9090", "1..2..3", "-1"])
def test_what_is_no_port(text: str) -> None:
    with pytest.raises(UserError, match=r"--port .*: write a port, or bounds as in 9090\.\.9199"):
        parse_ports(text)


def test_addresses_and_keys() -> None:
    assert parse_address("host.example:9190") == ("host.example", 9190)
    assert parse_address("[::1]:9190") == ("::1", 9190)
    for text in ("host", ":1", "host:", "host:0", "host:x", "host:70000"):
        with pytest.raises(UserError, match="write the tracker's address as HOST:PORT"):
            parse_address(text)
    assert check_key("zen4") == "zen4"
    for key in ("", "two words", " padded"):
        with pytest.raises(UserError, match="a key is one word"):
            check_key(key)


def test_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert read_token(None) == ""
    monkeypatch.setenv(VARIABLE, "from outside\n")
    assert read_token(None) == "from outside"
    file = tmp_path / "token"
    file.write_text("of a file\n")
    assert read_token(file) == "of a file"
    file.write_text("\n")
    with pytest.raises(UserError, match="the file is empty"):
        read_token(file)
    with pytest.raises(UserError, match="can't be read"):
        read_token(tmp_path / "absent")


def test_a_line_of_the_log_is_one_line() -> None:
    assert log_line("first\nsecond").endswith("] first second")


def test_a_device_that_is_not_here_is_refused() -> None:
    with pytest.raises(UserError, match="a machine has one CPU target; write cpu"):
        api.serve_device("127.0.0.1:1", "key", target="cpu:3")


def test_the_command_hands_over_every_option(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr(api, "serve_device", lambda *names, **options: given.update(options, names=names))
    token = tmp_path / "token"
    line = f"--rpc h:1 --rpc-key k --host 0.0.0.0 --port 1..9 --target vulkan:1 --threads 3 --token-file {token}"
    with pytest.raises(SystemExit) as ended:
        main(["serve-device", *line.split()])
    assert ended.value.code == 0
    del given["log"]
    assert given == {
        "names": ("h:1", "k"),
        "host": "0.0.0.0",
        "port": "1..9",
        "target": "vulkan:1",
        "threads": 3,
        "token_file": token,
    }
