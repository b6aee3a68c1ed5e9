"""Meters: what they add up, what they refuse to guess, and that a missing figure is None."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from greencc.energy import meter as meter_module
from greencc.energy.estimate import DEFAULT_WATTS_PER_CORE, EstimateMeter
from greencc.energy.meter import MeterChoice, choose_meter
from greencc.energy.rapl import RaplMeter
from greencc.errors import UserError


def zone(root: Path, folder: str, name: str, microjoules: int, wrap: int = 262_143_328_850) -> Path:
    path = root / folder
    path.mkdir(parents=True)
    (path / "name").write_text(name + "\n")
    (path / "energy_uj").write_text(f"{microjoules}\n")
    (path / "max_energy_range_uj").write_text(f"{wrap}\n")
    return path / "energy_uj"


@pytest.fixture
def two_packages(tmp_path: Path) -> dict[str, Path]:
    return {
        "package-0": zone(tmp_path, "intel-rapl:0", "package-0", 1_000_000),
        "core": zone(tmp_path, "intel-rapl:0:0", "core", 500_000),
        "dram": zone(tmp_path, "intel-rapl:0:1", "dram", 2_000_000),
        "package-1": zone(tmp_path, "intel-rapl:1", "package-1", 7_000_000),
        "psys": zone(tmp_path, "intel-rapl:2", "psys", 9_000_000),
        "mmio": zone(tmp_path, "intel-rapl-mmio:0", "package-0", 1_000_000),
    }


def detect(root: Path) -> RaplMeter:
    found = RaplMeter.detect(root)
    assert isinstance(found, RaplMeter), found
    return found


def test_rapl_adds_packages_and_memory_once(tmp_path: Path, two_packages: dict[str, Path]) -> None:
    meter = detect(tmp_path)
    assert [part.name for part in meter.zones] == ["package-0", "dram", "package-1"]
    mark = meter.mark()
    for name, file in two_packages.items():
        file.write_text(str(int(file.read_text()) + {"package-0": 3_000_000, "dram": 250_000}.get(name, 0)))
    reading = meter.since(mark)
    assert reading.joules == pytest.approx(3.25)
    assert reading.seconds > 0
    assert meter.method == "rapl"
    assert "package-0, dram, package-1" in meter.note


def test_rapl_counters_wrap_around(tmp_path: Path) -> None:
    wrap = 65_532_610_987
    counter = zone(tmp_path, "intel-rapl:0", "package-0", wrap - 400_000, wrap)
    meter = detect(tmp_path)
    mark = meter.mark()
    counter.write_text("600000")
    assert meter.since(mark).joules == pytest.approx(1.0)


def test_rapl_does_not_guess_after_an_interval_that_may_hide_wraps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0", 5, 65_532_610_987)
    meter = detect(tmp_path)
    now = time.perf_counter()
    mark = meter.mark()
    monkeypatch.setattr(time, "perf_counter", lambda: now + 3600)
    reading = meter.since(mark)
    assert reading.joules is None
    assert reading.seconds == pytest.approx(3600, abs=5)


@pytest.mark.parametrize("damage", ["gone", "rubbish"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_counter_that_fails_gives_none_not_zero(tmp_path: Path, damage: str, when: str) -> None:
    counter = zone(tmp_path, "intel-rapl:0", "package-0", 5)
    meter = detect(tmp_path)
    mark = meter.mark()
    counter.unlink() if damage == "gone" else counter.write_text("n/a")
    if when == "before":
        mark = meter.mark()
        counter.write_text("10")
    assert meter.since(mark).joules is None


def test_unreadable_counters_are_told_apart_from_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert RaplMeter.detect(tmp_path) == f"no RAPL counters in {tmp_path}"
    counter = zone(tmp_path, "intel-rapl:0", "package-0", 5)
    original = Path.read_text

    def read_text(self: Path, *arguments: object) -> str:
        if self == counter:
            raise PermissionError(13, "Permission denied", str(self))
        return original(self)

    monkeypatch.setattr(Path, "read_text", read_text)
    reason = RaplMeter.detect(tmp_path)
    assert isinstance(reason, str)
    assert f"{counter} may not be read" in reason


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads everything")
def test_a_counter_without_read_permission(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0", 5).chmod(0)
    assert "may not be read" in str(RaplMeter.detect(tmp_path))


def test_rubbish_in_place_of_a_counter(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0", 5).write_text("many")
    assert "does not work" in str(RaplMeter.detect(tmp_path))


def test_the_estimate_is_cpu_time_times_watts(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 12.5])
    monkeypatch.setattr(time, "process_time", lambda: next(clock))
    meter = EstimateMeter(4.0)
    reading = meter.since(meter.mark())
    assert reading.joules == pytest.approx(10.0)
    assert meter.method == "estimate"
    assert "4 W" in meter.note
    assert "estimate" in meter.note


def test_work_costs_more_than_sleep() -> None:
    meter = EstimateMeter()
    mark = meter.mark()
    time.sleep(0.05)
    asleep = meter.since(mark)
    mark = meter.mark()
    until = time.process_time() + 0.05
    while time.process_time() < until:
        pass
    busy = meter.since(mark)
    assert asleep.joules is not None
    assert busy.joules is not None
    assert busy.joules >= 0.05 * DEFAULT_WATTS_PER_CORE > asleep.joules
    assert asleep.seconds >= 0.05


@pytest.mark.parametrize("watts", [0.0, -1.0, float("nan"), float("inf")])
def test_watts_that_mean_nothing_are_refused(watts: float) -> None:
    with pytest.raises(UserError, match="watts per core"):
        EstimateMeter(watts)
    with pytest.raises(UserError, match="watts per core"):
        choose_meter(watts)


def test_the_choice_says_why_it_is_only_an_estimate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0", 5)
    found = detect(tmp_path)
    monkeypatch.setattr(meter_module.RaplMeter, "detect", lambda: "no RAPL here")
    assert choose_meter(3.0) == MeterChoice(EstimateMeter(3.0), "no RAPL here")
    monkeypatch.setattr(meter_module.RaplMeter, "detect", lambda: found)
    assert choose_meter() == MeterChoice(found, None)


def test_meters_refuse_each_others_marks() -> None:
    with pytest.raises(TypeError, match="not a mark"):
        EstimateMeter().since(None)
