"""A session as a page: what it brought, and how it came about."""

from __future__ import annotations

import html
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from greencc.files import written_whole
from greencc.render.session import duration, energy_text, micros

if TYPE_CHECKING:
    import plotly.graph_objects as go

Result = Mapping[str, Any]

_MOST_CURVES = 10
_INK, _GRID, _ACCENT = "#20302a", "#e3e8e5", "#1b7f5c"


def write_report(path: Path, result: Result) -> None:
    """Write the page of a result of `greencc.api.tune`, with its plots' library in it.

    Raises:
        UserError: it can't be written; what was there is left as it was.
    """
    model, kernels = _model_plot(result), _kernel_plot(result)
    page = _PAGE.format(
        title=html.escape(f"Tuning {Path(result['model']).name}"),
        facts="\n".join(f"<dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd>" for k, v in _facts(result)),
        model=model.to_html(full_html=False, include_plotlyjs=True),
        kernels=kernels.to_html(full_html=False, include_plotlyjs=False),
        rows="\n".join(map(_row, sorted(result["tasks"], key=_saved, reverse=True))),
    )
    with written_whole(path) as staged:
        staged.write_text(page, encoding="utf-8")


def _facts(result: Result) -> list[tuple[str, str]]:
    rows = [
        ("target", result["target_text"]),
        ("ended", f"{result['stopped']}, after {duration(result['seconds'])}"),
        ("trials", f"{result['new_trials']} new, {result['trials']} in all, {result['failures']} failed"),
    ]
    for check in result["check"]:
        at = "".join(f" {name}={size}" for name, size in check["sizes"].items())
        low, high = check["interval_95"]
        times = f"{check['default_ms']:.3f} → {check['tuned_ms']:.3f} ms"
        rows.append((f"model{at}", f"{times}: {check['ratio']:.3f} of the time (95%: {low:.3f} to {high:.3f})"))
    return [*rows, ("energy", energy_text(result["payback"]))]


def _model_plot(result: Result) -> go.Figure:
    """Milliseconds of a run by the kernels' times, over the session."""
    seconds = [point[0] for point in result["history"]]
    times = [point[1] * 1e3 for point in result["history"]]
    import plotly.graph_objects as go

    line = {"color": _ACCENT, "shape": "hv"}
    figure = go.Figure(go.Scatter(x=seconds, y=times, mode="lines", line=line, name="best so far"))
    if result["default_ms"]:
        figure.add_hline(result["default_ms"], line_dash="dot", annotation_text="default schedules")
    return _styled(figure, "A run of the model, by its kernels' best times so far", "seconds of tuning", "ms")


def _kernel_plot(result: Result) -> go.Figure:
    """Best over default, by trial, of the kernels that save most."""
    import plotly.graph_objects as go

    figure = go.Figure()
    for task in sorted(result["tasks"], key=_saved, reverse=True)[:_MOST_CURVES]:
        trials = list(range(len(task["curve"])))
        name = html.escape(task["text"])
        figure.add_trace(go.Scatter(x=trials, y=task["curve"], mode="lines", line={"shape": "hv"}, name=name))
    figure.update_layout(legend={"orientation": "h", "y": -0.2})
    return _styled(figure, "Kernels: best time so far over the default schedule's", "trials", "ratio")


def _styled(figure: go.Figure, title: str, across: str, up: str) -> go.Figure:
    figure.update_layout(
        title={"text": title, "font": {"size": 16}},
        template="plotly_white",
        font={"family": "system-ui, sans-serif", "color": _INK},
        margin={"l": 60, "r": 30, "t": 50, "b": 50},
        height=420,
    )
    figure.update_xaxes(title=across, gridcolor=_GRID)
    figure.update_yaxes(title=up, gridcolor=_GRID)
    return figure


def _saved(task: Result) -> float:
    """Microseconds that a run saves."""
    return float(task["launches"] * sum(task["default_us"] or [0.0]) * (1 - task["ratio"]))


def _row(task: Result) -> str:
    plan = ", ".join(f"{name} {value}" for name, value in sorted((task["plan"] or {}).items()))
    share = "" if task["share_of_limit"] is None else f"{task['share_of_limit']:.0%}"
    default = "" if task["default_us"] is None else micros(task["default_us"])
    cells = (
        task["text"], str(task["launches"]), default, f"{task['ratio']:.3f}", share, str(task["trials"]),
        f"{task['rule']}: {plan}" if task["plan"] else "the default", task["finished"] or "",
    )  # fmt: skip
    return "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>"


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font-family: system-ui, sans-serif; color: #20302a; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }}
h1 {{ font-size: 1.5rem; }}
dl {{ display: grid; grid-template-columns: max-content auto; gap: 0.3rem 1.2rem; }}
dt {{ font-weight: 600; }}
dd {{ margin: 0; }}
table {{ border-collapse: collapse; width: 100%; font-size: 0.85rem; }}
th, td {{ text-align: left; padding: 0.35rem 0.6rem; border-bottom: 1px solid #e3e8e5; vertical-align: top; }}
td:nth-child(n+2):nth-child(-n+6), th:nth-child(n+2):nth-child(-n+6) {{ text-align: right; white-space: nowrap; }}
.scroll {{ overflow-x: auto; }}
</style>
</head>
<body>
<h1>{title}</h1>
<dl>
{facts}
</dl>
{model}
{kernels}
<div class="scroll">
<table>
<thead><tr><th>kernel</th><th>launches</th><th>default</th><th>ratio</th><th>of limit</th><th>trials</th>
<th>best plan</th><th>state</th></tr></thead>
<tbody>
{rows}
</tbody>
</table>
</div>
</body>
</html>
"""
