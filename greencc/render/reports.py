"""What commands did and found, as people read it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from greencc.peers import RUNTIMES
from greencc.render.tables import facts, new_table, size

Result = Mapping[str, Any]

_MOST_REASONS = 3
"""Reasons for refusals that a table shows per pass."""


def compile_report(report: Result) -> RenderableType:
    """What `greencc compile` did."""
    rows = [
        ("artifact", str(report["artifact"])),
        ("nodes", _change(report, "nodes_before", "nodes_after")),
        ("edges", _change(report, "edges_before", "edges_after")),
        ("kernels per run", str(report["kernels"])),
        ("size", _change(report, "bytes_before", "bytes_after", size)),
        ("memory", f"{size(report['arena_bytes'])} for intermediate tensors" if report["arena_bytes"] else "by run"),
        *_elision(report["elided_padding"]),
        *_zeros(report.get("passes") or ()),
        *_tuning(report["tuning"]),
        *_budget(report["compression"]),
        ("largest error", _error(report)),
        ("time", f"{report['seconds']:.1f} s"),
    ]
    return Group(facts(rows), *_passes_table(report.get("passes")), *_choices_table(report["compression"]))


def _tuning(tuning: Result | None) -> list[tuple[str, str]]:
    """How many kernels a tuning database answered, in words; nothing without one."""
    if tuning is None:
        return []
    return [("tuned", f"{len(tuning['answered'])} of {tuning['kernels']} kernels are scheduled as recorded")]


def _zeros(passes: Sequence[Result]) -> list[tuple[str, str]]:
    """What of weights has been set to zero, in words; nothing where none has."""
    shares = [made["share"] for item in passes for made in item.get("zeros", ())]
    return [("zeros", f"{min(shares):.1%} to {max(shares):.1%} of {len(shares)} weights")] if shares else []


def _budget(record: Result | None) -> list[tuple[str, str]]:
    """The accuracy budget and what became of it, in words; nothing without one."""
    if record is None:
        return []
    chosen = [item for item in record["operators"] if item["chosen"]]
    kinds = Counter(item["kind"] for item in chosen)
    counts = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    return [
        ("budget", f"{record['metric']} may lose {record['max_drop']:g}"),
        ("lost", f"{_drop(record['judged'])} held-out samples"),
        ("chosen", f"{len(chosen)} of {len(record['operators'])} candidates: {counts}"),
        ("of float32's", f"{record['time_ratio']:.2f} of the time, {record['bytes_ratio']:.2f} of the weights"),
        ("data", f"sha256 {record['data']['sha256'][:16]}"),
    ]


def _drop(drop: Result) -> str:
    low, high = drop["interval_95"]
    return f"{drop['value']:.4g} (95%: {low:.4g} to {high:.4g}) on {drop['samples']}"


def _choices_table(record: Result | None) -> list[RenderableType]:
    """Every candidate, by what it does to the outputs alone."""
    if record is None:
        return []
    refused = [step for step in record["steps"] if not step["accepted"]]
    reasons = {(made["node"], made["kind"]): step["reason"] for step in refused for made in step["choices"]}
    numbers = ("apart", "cost", "saved", "deviation")
    table = new_table("operator", "kind", *numbers, "chosen", numbers=numbers)
    for item in sorted(record["operators"], key=lambda item: -item["sensitivity"]):
        table.add_row(
            Text(item["node"], overflow="fold"),
            item["kind"],
            f"{item['sensitivity']:.4f}",
            f"{item['cost_ratio']:.2f}",
            size(item["bytes_saved"]),
            "" if item["largest_deviation"] is None else f"{item['largest_deviation']:.4f}",
            "yes" if item["chosen"] else f"no: {reasons.get((item['node'], item['kind']), 'beyond the budget')}",
            style="" if item["chosen"] else "dim",
        )
    table.caption = (
        "apart: relative L2 distance of the outputs that it causes alone; cost: of its stages, with it over without; "
        "saved: bytes of weights; deviation: the largest |stored - original| of its weight"
    )
    return [table]


def _elision(elided: Result | None) -> list[tuple[str, str]]:
    """What became of padding, in words; nothing where all of it is computed."""
    if elided is None:
        return []
    blank = ", ".join(elided["outputs"])
    return [("padding", f"elided where {elided['mask']} is 0" + (f"; {blank}: zeros there" if blank else ""))]


def bench_report(result: Result) -> RenderableType:
    """Latency and energy, ours and the peers'."""
    columns = ("", "median ms", "min ms", "mJ")
    table = new_table(*columns, *(("ratio", "95% interval", "outputs") if result["peers"] else ()))
    table.add_row(Text("greencc", "bold"), *_timing(result))
    differences = []
    for name, peer in result["peers"].items():
        low, high = result["ratio_interval_95"][name]
        style = "green" if high < 1 else "red" if low > 1 else "yellow"
        table.add_row(
            f"{name} {peer['version']}",
            *_timing(peer),
            Text(f"{result['ratio'][name]:.3f}", style),
            f"{low:.3f}-{high:.3f}",
            _outputs(peer, RUNTIMES[name].approximates or bool(result["approximated_by"])),
        )
        size = peer["max_abs_difference"]
        differences.append(f"{name} {'beyond comparison' if size is None else f'{size:.1e}'}")
    if result["peers"]:
        table.caption = "ratio: greencc's median time over the peer's"
        if any(not peer["agrees"] for peer in result["peers"].values()):
            table.caption += "; apart: relative L2 distance of the outputs"
    shapes = ", ".join(f"{name} {_shape(spec)}" for name, spec in result["inputs"].items())
    energy = result["energy"]
    parts: list[RenderableType] = [
        facts(
            [
                ("artifact", f"{result['artifact']} (from {result['source']})"),
                ("inputs", shapes),
                *_tokens(result),
                _place(result),
                ("runs", str(result["latency_ms"]["runs"])),
                ("energy", str(energy["note"])),
                *((("difference", f"at most {', '.join(differences)}"),) if differences else ()),
            ]
        ),
        table,
    ]
    if "profile" in result:
        parts.append(facts([*_limits(result), *_device_work(result["device_work"])]))
        parts.append(_profile_table(result["profile"]))
    return Group(*parts)


def _limits(result: Result) -> list[tuple[str, str]]:
    limits = result["limits"]
    if limits is None:
        return []
    return [
        (
            "limits",
            f"{limits['float32'] / 1e9:.0f} GFLOP/s float32, {limits['int8'] / 1e9:.0f} Gop/s int8, "
            f"{limits['bandwidth'] / 1e9:.1f} GB/s, measured",
        ),
        ("of the limit", f"{result['share_of_arithmetic']:.1%} of the median time is arithmetic at peak"),
    ]


def _device_work(work: Result | None) -> list[tuple[str, str]]:
    """What a run asks of a GPU, in words."""
    if work is None:
        return []
    moved = (
        f"{work['uploads']} to the device ({size(work['upload_bytes'])}), "
        f"{work['downloads']} back ({size(work['download_bytes'])}), {work['copies']} on it"
    )
    return [
        ("a run", f"{work['dispatches']} dispatches, {work['barriers']} barriers"),
        ("transfers", moved),
        ("host", f"{_count(work['submits'], 'submit')}, {_count(work['waits'], 'wait')}"),
    ]


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def _tokens(result: Result) -> list[tuple[str, str]]:
    elided = result["elided_padding"]
    if elided is None:
        return []
    rows, columns = result["inputs"][elided["mask"]]["shape"]
    return [("padding", f"elided: {elided['tokens']} of {rows * columns} tokens are real")]


def inspection(result: Result) -> RenderableType:
    """What is in a model or an artifact."""
    return {"artifact": _artifact, "onnx": _onnx, "huggingface": _huggingface}[result["kind"]](result)


def verification(result: Result) -> RenderableType:
    """What has been proven of an artifact."""
    members = result["members"]
    rows = [
        ("artifact", str(result["artifact"])),
        ("members", f"every byte of manifest.json, {', '.join(members)}"),
        ("golden pair", _compared(result["golden"], "not run: compiled for or on another kind of machine")),
    ]
    if result["data"] is not None:
        rows.append(("data", _compared(result["data"], "")))
    if result["drop"] is not None:
        drop = result["drop"]
        rows.append(("budget", f"{drop['metric']} may lose {drop['max_drop']:g}: lost {_drop(drop)} samples"))
    return facts(rows)


def pack_report(result: Result) -> RenderableType:
    """What packing saved."""
    table = new_table("member", "bytes", "packed", "share", numbers=("bytes", "packed", "share"))
    whole = {"all": {name: result[name] for name in ("bytes_before", "bytes_after")}}
    for name, member in {**result["members"], **whole}.items():
        before, after = member["bytes_before"], member["bytes_after"]
        table.add_row(name, size(before), size(after), f"{after / max(before, 1):.1%}")
    return Group(facts([("file", result["file"])]), table)


def _place(result: Result) -> tuple[str, str]:
    if result["device"] == "cpu":
        return "threads", f"{result['threads']} on {result['environment']['cpu']}"
    return "device", f"{result['device']}; peers: {result['threads']} threads on {result['environment']['cpu']}"


def _artifact(result: Result) -> RenderableType:
    target, versions, report = result["target"], result["versions"], result["report"]
    rows = [
        ("artifact", result["name"]),
        ("from", f"{result['source']['name']} (sha256 {result['source']['sha256'][:16]})"),
        ("target", ", ".join([str(target.get("kind")), *_target_fields(target)])),
        ("needs", _needs(target)),
        ("compiled by", ", ".join(f"{name} {version}" for name, version in versions.items())),
        *_signature(result),
        *((("symbols", _symbols(result["symbols"])),) if result["symbols"] else ()),
        ("weights", f"{result['weights']} tensors"),
        ("members", ", ".join(f"{name} {size(count)}" for name, count in result["members"].items())),
        ("nodes", _change(report, "nodes_before", "nodes_after")),
        ("edges", _change(report, "edges_before", "edges_after")),
        ("kernels per run", str(result["kernels"])),
        *_budget(report.get("compression")),
    ]
    choices = _choices_table(report.get("compression"))
    calls = new_table("launch", "kernel", "computes", numbers=("launch",))
    for index, call in enumerate(result["calls"]):
        calls.add_row(str(index), call["kernel"], Text(", ".join(call["nodes"]), overflow="fold"))
    return Group(facts(rows), *_passes_table(report.get("passes")), *choices, *((calls,) if result["calls"] else ()))


def _target_fields(target: Result) -> list[str]:
    return [f"{field} {target[field]}" for field in ("triple", "mcpu", "arch", "threads") if target.get(field)]


def _needs(target: Result) -> str:
    """What the machine must have that runs an artifact, in words."""
    if target.get("kind") == "cuda":
        return "an NVIDIA GPU of that architecture's major version, and its driver"
    if target.get("kind") == "vulkan":
        gpu = target.get("gpu") or {}
        offered = " ".join(name.removeprefix("has_") for name, value in gpu.items() if value is True)
        limits = f"up to {gpu.get('max_threads')} threads and {size(gpu.get('shared_bytes') or 0)} in a workgroup"
        return f"a Vulkan device like the one it was compiled for: {limits}; {offered}"
    return " ".join(map(str, target.get("features", ()))) or "nothing beyond the architecture"


def _onnx(result: Result) -> RenderableType:
    rows = [
        ("model", f"{result['name']} ({size(result['bytes'])})"),
        ("producer", result["producer"] or "unknown"),
        ("opsets", ", ".join(f"{domain} {version}" for domain, version in result["opsets"].items())),
        *_signature(result),
        ("nodes", f"{result['nodes']:,}"),
        ("edges", f"{result['edges']:,}"),
    ]
    table = new_table("operator", "nodes", numbers=("nodes",))
    for name, count in result["operators"].items():
        table.add_row(name, f"{count:,}")
    return Group(facts(rows), table)


def _huggingface(result: Result) -> RenderableType:
    return facts(
        [
            ("model", f"{result['name']} ({size(result['bytes'])})"),
            ("type", str(result["model_type"])),
            ("architectures", ", ".join(map(str, result["architectures"] or ())) or "unknown"),
            *(
                (key.replace("_", " "), f"{value:,}" if type(value) is int else str(value))
                for key, value in result["config"].items()
            ),
            ("parameters", f"{result['parameters']:,} in {result['tensors']} tensors"),
            (
                "element types",
                ", ".join(f"{name} ({count})" for name, count in result["dtypes"].items()) or "none",
            ),
        ]
    )


def _signature(result: Result) -> list[tuple[str, str]]:
    return [
        (label, "\n".join(f"{spec['name']}: {spec['dtype']} {_shape(spec)}" for spec in result[label]))
        for label in ("inputs", "outputs")
    ]


def _shape(spec: Result) -> str:
    shape = spec["shape"]
    return "of unknown rank" if shape is None else "[" + ", ".join(map(str, shape)) + "]"


def _symbols(symbols: Mapping[str, Sequence[int | None]]) -> str:
    return ", ".join(
        f"{name} from {low}" + (f" to {high}" if high is not None else " up") for name, (low, high) in symbols.items()
    )


def _passes_table(passes: Sequence[Result] | None) -> list[RenderableType]:
    if not passes:
        return []
    table = new_table("pass", "rewrites", "refused", "reasons", numbers=("rewrites", "refused"))
    for entry in passes:
        refused = entry.get("refused", 0)
        count = refused if isinstance(refused, int) else len(refused)
        reasons = sorted(entry.get("refused_by_reason", {}).items(), key=lambda item: -item[1])
        text = "; ".join(f"{reason} ({times})" for reason, times in reasons[:_MOST_REASONS])
        if len(reasons) > _MOST_REASONS:
            text += f"; {len(reasons) - _MOST_REASONS} more in --json"
        style = "" if entry["rewrites"] or count else "dim"
        table.add_row(str(entry["name"]), str(entry["rewrites"]), str(count), text, style=style)
    return [table]


def _profile_table(launches: Sequence[Result]) -> RenderableType:
    """Kernels by the time they take, launches of one kernel together."""
    total = sum(launch["milliseconds"] for launch in launches) or 1.0
    groups: dict[str, list[Result]] = {}
    for launch in launches:
        groups.setdefault(launch["kernel"], []).append(launch)
    has_limits = any(launch["share_of_arithmetic"] is not None for launch in launches)
    rates = ("Gop/s", "of peak", "GB/s", "of memory") if has_limits else ("Gop/s", "GB/s")
    columns = ("launches", "ms", "share", *rates)
    table = new_table("kernel", *columns, "computes", numbers=columns)
    for kernel, group in sorted(groups.items(), key=lambda item: -_sum(item[1], "milliseconds")):
        milliseconds = _sum(group, "milliseconds")
        names = [name for launch in group for name in launch["nodes"]]
        shown = (names[0] if names else "") + (f" and {len(names) - 1} more" if len(names) > 1 else "")
        table.add_row(
            kernel,
            str(len(group)),
            f"{milliseconds:.3f}",
            f"{milliseconds / total:.1%}",
            *_rates(group, "operations", has_limits),
            *_rates(group, "bytes", has_limits),
            Text(shown, overflow="ellipsis", no_wrap=True),
        )
    return table


def _rates(group: Sequence[Result], amount: str, has_limits: bool) -> tuple[str, ...]:
    """Rate of a kernel's launches together, in billions per second, and where limits are known its share of one."""
    first = group[0]
    if first[f"{amount}_per_second"] is None:
        return ("", "") if has_limits else ("",)
    rate = _sum(group, amount) / _sum(group, "milliseconds") / 1e6
    if not has_limits:
        return (f"{rate:.1f}",)
    share = {"operations": "share_of_arithmetic", "bytes": "share_of_bandwidth"}[amount]
    limit = first[f"{amount}_per_second"] / first[share]
    return f"{rate:.1f}", f"{rate * 1e9 / limit:.0%}"


def _sum(group: Sequence[Result], field: str) -> float:
    return sum(launch[field] or 0 for launch in group)


def _outputs(peer: Result, by_design: bool) -> Text:
    if peer["agrees"]:
        return Text("agree")
    distance = peer["relative_l2"]
    if by_design and distance is not None:
        return Text(f"{distance:.3f} apart", "yellow")
    return Text("DIFFER", "bold red")


def _timing(entry: Result) -> tuple[str, str, str]:
    latency, joules = entry["latency_ms"], entry["energy"]["joules"]
    energy = "unknown" if joules is None else f"{joules * 1e3:.3g}"
    if joules is not None and entry["energy"]["method"] == "estimate":
        energy = f"~{energy}"
    return f"{latency['median']:.3f}", f"{latency['min']:.3f}", energy


def _compared(entry: Result | None, otherwise: str) -> str:
    if entry is None:
        return otherwise
    return f"agrees: largest difference {entry['max_abs_difference']:.1e}, allowed {entry['tolerance']}"


def _error(report: Result) -> str:
    error = report.get("max_abs_error")
    return "not verified" if error is None else f"{error:.1e} absolute, against the reference"


def _change(report: Result, before: str, after: str, form: Any = "{:,}".format) -> str:
    first, last = report.get(before), report.get(after)
    if first is None or last is None:
        return "unknown" if last is None else str(form(last))
    return f"{form(first)} -> {form(last)}"
