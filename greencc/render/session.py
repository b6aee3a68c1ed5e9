"""A tuning session as people see it: while it runs, and when it is over."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.text import Text

from greencc.render.tables import facts, new_table

_REFRESH = 4
_LINE_SECONDS = 10.0
"""Between lines where there is no terminal."""
_BARS = " ▁▂▃▄▅▆▇█"
_CURVE_WIDTH = 8
_MOST_ROWS = 16
_BAR_WIDTH = 40


class SessionView:
    """Listens to the events of a session and shows them on stderr.

    On a terminal it is a table that changes in place; elsewhere a line of text now and then.

    Args:
        trials: how many are asked for; None for as many as it takes.
        seconds: how long it may take; None for as long as it takes.
        is_live: whether a table may change in place, which nothing else may print into.
    """

    def __init__(self, trials: int | None, seconds: float | None, is_live: bool = True) -> None:
        self._trials, self._seconds, self._is_live = trials, seconds, is_live
        self._tasks: dict[str, dict[str, Any]] = {}
        self._event: Mapping[str, Any] = {}
        self._console = Console(stderr=True, highlight=False, markup=False, emoji=False)
        self._live: Live | None = None
        self._last_line = 0.0
        self._share_before = 0.0

    def __enter__(self) -> SessionView:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def __call__(self, event: Mapping[str, Any]) -> None:
        """Take note of an event."""
        if event["event"] == "note":
            self._console.print(f"greencc: {event['message']}", soft_wrap=True)
            return
        self._event = {**self._event, **event}
        if event["event"] == "start":
            self._share_before, _ = self._share_done()
        for task in event.get("tasks", ()):
            self._tasks[_id(task)] = task
        if "task" in event:
            self._tasks[_id(event["task"])] = event["task"]
        if event["event"] == "end":
            self._stop()
        elif self._console.is_terminal and self._is_live:
            if self._live is None:
                self._live = Live(console=self._console, refresh_per_second=_REFRESH, transient=True)
                self._live.start()
            self._live.update(self._picture(event))
        elif event["event"] == "start" or time.monotonic() - self._last_line > _LINE_SECONDS:
            self._last_line = time.monotonic()
            print(f"[{self._event['seconds']:6.1f} s] {self._line(event)}", file=sys.stderr, flush=True)

    def _line(self, event: Mapping[str, Any]) -> str:
        what = f"; now {event['task']['text']}" if "task" in event else ""
        return f"{self._trials_text()}, {_change(self._event)}{what}"

    def _trials_text(self) -> str:
        done = self._event.get("trials", 0)
        return f"trial {done}" if self._trials is None else f"trial {done} of {self._trials}"

    def _picture(self, event: Mapping[str, Any]) -> RenderableType:
        now = _id(event["task"]) if "task" in event else None
        rows = sorted(self._tasks.values(), key=lambda task: -_time(task))
        shown = [task for task in rows[:_MOST_ROWS] if task]
        table = new_table("", "kernel", *_NUMBERS, "", numbers=_NUMBERS)
        for task in shown:
            table.add_row(">" if _id(task) == now else "", *_row(task))
        hidden = len(rows) - len(shown)
        spent, asked = self._share_done()
        parts: list[RenderableType] = [table]
        if hidden:
            parts.append(Text(f"and {hidden} more", "dim"))
        parts.append(Text(f"{self._trials_text()}, {self._clock()}"))
        if asked:
            parts.append(ProgressBar(total=1.0, completed=spent, width=_BAR_WIDTH))
            parts.append(Text())
        parts.append(Text(f"{_change(self._event)}; {energy_text(self._event.get('payback'))}"))
        parts.append(Text("Ctrl-C ends it; nothing measured is lost", "dim"))
        return Group(*parts)

    def _share_done(self) -> tuple[float, bool]:
        """How much of the budget is spent, and whether there is one."""
        shares = []
        if self._trials:
            shares.append(self._event.get("trials", 0) / self._trials)
        if self._seconds:
            shares.append(self._event["seconds"] / self._seconds)
        return min(1.0, max(shares, default=0.0)), bool(shares)

    def _clock(self) -> str:
        passed = self._event["seconds"]
        share, known = self._share_done()
        # What earlier sessions did took none of this one's time.
        done = share - self._share_before
        left = passed * (1 - share) / done if known and done > 0 else None
        return duration(passed) + ("" if left is None else f", about {duration(left)} to go")


_NUMBERS = ("runs", "µs", "best", "ratio", "limit", "tried", "failed")


def tuning_report(result: Mapping[str, Any]) -> RenderableType:
    """What a session found."""
    table = new_table("kernel", *_NUMBERS, "", "", numbers=_NUMBERS)
    for task in sorted(result["tasks"], key=lambda task: -_time(task)):
        *cells, state = _row(task)
        table.add_row(*cells, curve_text(task["curve"]), state)
    table.caption = (
        "runs: launches in a run of the model; µs, best: a launch by the default schedule and by the best plan; "
        "limit: the share of the machine's limit that the best reaches; the curve: best so far, by trials"
    )
    rows = [
        ("target", result["target_text"]),
        ("database", str(result["database"])),
        ("ended", f"{result['stopped']}, after {duration(result['seconds'])}"),
        ("trials", f"{result['new_trials']} new, {result['trials']} in all, {result['failures']} failed"),
        ("kernels", _change(result)),
        *_checks(result["check"]),
        ("energy", energy_text(result["payback"])),
        *((("not tuned", _untuned(result["untuned"])),) if result["untuned"] else ()),
        ("use it with", shlex.join(["greencc", "compile", result["model"], "--tune-db", result["database"], "..."])),
        *((("go on with", "the same command: what was measured is kept"),) if result["interrupted"] else ()),
    ]
    return Group(facts(rows), table)


def tuning_plan(result: Mapping[str, Any]) -> RenderableType:
    """What a session would do."""
    numbers = ("runs", "limit µs", "plans", "tried")
    table = new_table("kernel", *numbers, "rules", "", numbers=numbers)
    for task in result["tasks"]:
        limits = task["limit_us"]
        table.add_row(
            Text(task["text"]),
            str(task["launches"]),
            "" if limits is None else micros(limits),
            f"{task['plans']:,}",
            str(task["trials"]),
            ", ".join(task["rules"]),
            task["finished"] or "",
        )
    table.caption = (
        "runs: launches in a run of the model; limit: a launch takes so long at least; tried: what the database holds"
    )
    rows = [
        ("target", result["target_text"]),
        ("database", str(result["database"])),
        ("to do", result["estimate"]),
        *((("not tuned", _untuned(result["untuned"])),) if result["untuned"] else ()),
    ]
    return Group(facts(rows), table)


def _row(task: Mapping[str, Any]) -> list[RenderableType]:
    default = task["default_us"]
    best = None if default is None else [value * task["ratio"] for value in default]
    share = task["share_of_limit"]
    style = "green" if task["ratio"] < 0.995 else ""
    return [
        Text(task["text"], overflow="ellipsis", no_wrap=True),
        str(task["launches"]),
        "" if default is None else micros(default),
        "" if best is None else micros(best),
        Text("" if default is None else f"{task['ratio']:.2f}", style),
        "" if share is None else f"{share:.0%}",
        str(task["trials"]),
        str(task["failures"] or ""),
        Text(task["finished"] or "", "dim"),
    ]


def curve_text(curve: Sequence[float]) -> str:
    """A falling curve as a line of blocks: full is the default, empty the best that was found."""
    if not curve or min(curve) >= 1:
        return ""
    low = min(curve)
    picks = [curve[min(len(curve) - 1, i * len(curve) // _CURVE_WIDTH)] for i in range(_CURVE_WIDTH)]
    picks[-1] = curve[-1]
    levels = [round((value - low) / (1 - low) * (len(_BARS) - 2)) + 1 for value in picks]
    return "".join(_BARS[level] for level in levels)


def duration(seconds: float) -> str:
    """A time as people say it."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _id(task: Mapping[str, Any]) -> str:
    return f"{task['workload']} {task['sizes']}"


def _time(task: Mapping[str, Any]) -> float:
    """What sorts tasks: time of a run, or its limit before that is known."""
    times = task["default_us"] or task["limit_us"] or [0.0]
    return float(task["launches"] * sum(times))


def micros(values: Sequence[float]) -> str:
    """Microseconds, at each size."""
    return " ".join(f"{value:.1f}" if value < 100 else f"{value:.0f}" for value in values)


def _change(event: Mapping[str, Any]) -> str:
    default, best = event.get("default_ms") or 0.0, event.get("model_ms") or 0.0
    if not default:
        return "nothing measured yet"
    return f"{default:.3f} -> {best:.3f} ms a run ({best / default:.2f})"


def energy_text(payback: Mapping[str, Any] | None) -> str:
    """Energy spent and saved, in words."""
    if payback is None or payback["joules_spent"] is None:
        return "energy unknown"
    about = "~" if payback["method"] == "estimate" else ""
    spent = f"{about}{_joules(payback['joules_spent'])} spent"
    if not payback["break_even_runs"]:
        return f"{spent}, nothing saved yet"
    saved = payback["joules_saved_per_run"]
    return f"{spent}, {about}{_joules(saved)} saved a run: pays after {payback['break_even_runs']:,} runs"


def _joules(value: float) -> str:
    for unit, scale in (("kJ", 1e3), ("J", 1.0), ("mJ", 1e-3)):
        if value >= scale:
            return f"{value / scale:.3g} {unit}"
    return f"{value * 1e6:.3g} µJ"


def _checks(checks: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """The whole model, tuned and not, in words."""
    rows = []
    for check in checks:
        low, high = check["interval_95"]
        at = "".join(f" {name}={size}" for name, size in check["sizes"].items())
        times = f"{check['default_ms']:.3f} -> {check['tuned_ms']:.3f} ms"
        wrong = "" if check["agrees"] else f"; the outputs differ by {check['max_abs_difference']}: report this"
        rows.append((f"model{at}", f"{times} ({check['ratio']:.3f}, 95%: {low:.3f} to {high:.3f}){wrong}"))
    return rows


def _untuned(untuned: Sequence[Mapping[str, Any]]) -> str:
    reasons: dict[str, int] = {}
    for item in untuned:
        reasons[item["reason"]] = reasons.get(item["reason"], 0) + 1
    return "; ".join(f"{count} {'kernel' if count == 1 else 'kernels'}: {why}" for why, count in reasons.items())
