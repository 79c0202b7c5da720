"""Turns the results of bench/run.py into latest.md and latest.png.

Ratios are to the best peer: the best of all libraries in that table other than becket, the floor
excepted, which is no library; and with TLS, to the floor too: bare epoll and OpenSSL. They are
computed alike for everyone, becket's losses included.
By hand: `python bench/report.py DIRECTORY` writes both again from the latest.json there.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import mail
from measure import UNDISTURBED
from peers import FLOORS, TLS_FLOOR
from serving import CELLS, Serving, Target

Entry = dict[str, Any]
Table = dict[str, Entry]

TITLES = {
    "protocol": "Protocol (data_received, write)",
    "buffered": "BufferedProtocol (get_buffer, buffer_updated, write)",
    "streams": "Streams: read, write, read again (coroutine, greenlet or thread)",
    "c": "C",
    "udp": "Datagrams of 64 bytes, with 64 peers (datagram_received, sendto)",
    "connect": "New connections (open, echo 64 bytes, close)",
    "idle": "Memory of an idle connection",
    "active": "One active connection among idle ones",
    "micro": "Inside the loop",
    "threads": "Blocking handlers, a thread for each connection",
    "forks": "Handlers that compute for a millisecond, on two cores",
    "blocking": "Blocking handlers under an event loop: 50 active connections among silent ones",
    "serve": "becket.serve() beside loop.create_server()",
    "smtp": "Mail: messages of 1 KiB, 50 sessions, dropped",
    "asyncore": "asyncore's dispatchers: one active among 2,000 idle ones",
    "web": "Web servers on asyncio's loops under wrk",
    "twisted": "Twisted's reactors: echo of a Protocol, twisted.web, and calls that are asked for",
}
HEADINGS = {"user_us": "user", "cpu_us": "CPU", "bytes": "bytes"}


def median(entry: Entry, metric: str) -> float:
    return float(entry["metrics"][metric]["median"])


def has(entry: Entry, metric: str) -> bool:
    return metric in entry["metrics"]


def measured(table: Table) -> Table:
    return {label: entry for label, entry in table.items() if "metrics" in entry}


def best_peer(table: Table, metric: str, greater: bool = False) -> float | None:
    values = [
        median(entry, metric)
        for label, entry in measured(table).items()
        if not label.startswith("becket") and label not in FLOORS and has(entry, metric)
    ]
    if not values:
        return None
    return max(values) if greater else min(values)


def floor_ratios(table: Table, *metrics: str) -> tuple[list[str], dict[str, list[str]]]:
    """More headings, and for each library more columns; none where there is no TLS."""
    floor = measured(table).get(TLS_FLOOR)
    if not floor:
        return [], {label: [] for label in table}
    return [f"{HEADINGS[metric]} ÷ floor" for metric in metrics], {
        label: [ratio(median(entry, metric), median(floor, metric)) for metric in metrics]
        for label, entry in measured(table).items()
    }


def ratio(value: float, best: float | None) -> str:
    return f"{value / best:.2f}" if best else "-"


def spread(entry: Entry, metric: str, form: str) -> str:
    value = entry["metrics"][metric]
    low, high = format(value["min"], form), format(value["max"], form)
    middle = format(value["median"], form)
    return middle if low == high else f"{middle} ({low}..{high})"


def name_of(label: str) -> str:
    if label.startswith("becket"):
        return f"**{label}**"
    return f"{label} (floor)" if label in FLOORS else label


def rows(header: list[str], body: list[list[str]]) -> list[str]:
    marks = ["---"] + ["---:"] * (len(header) - 1)
    return ["| " + " | ".join(row) + " |" for row in (header, marks, *body)] + [""]


def failed_rows(table: Table) -> list[str]:
    lines = [f"- {name_of(k)}: failed: {v['failed']}" for k, v in table.items() if "failed" in v]
    return [*lines, ""] if lines else []


def load_table(table: Table, unit: str) -> list[str]:
    """Rates, latencies and CPU: the echo and the connect cells."""
    user, rate = best_peer(table, "user_us"), best_peer(table, "rate", greater=True)
    cpu = best_peer(table, "cpu_us")
    header = ["library", f"{unit}/s", "p50 µs", "p99 µs", f"user µs/{unit}", f"system µs/{unit}"]
    header += [f"CPU µs/{unit}", "rate ÷ best peer", "user ÷ best peer", "CPU ÷ best peer"]
    more, floor = floor_ratios(table, "user_us", "cpu_us")
    ordered = sorted(measured(table).items(), key=lambda item: median(item[1], "cpu_us"))
    body = [
        [
            name_of(label) + (" †" if disturbed(entry) else ""),
            spread(entry, "rate", ",.0f"),
            format(median(entry, "p50_us"), ".0f"),
            format(median(entry, "p99_us"), ".0f"),
            spread(entry, "user_us", ".2f"),
            format(median(entry, "system_us"), ".2f"),
            spread(entry, "cpu_us", ".2f"),
            ratio(median(entry, "rate"), rate),
            ratio(median(entry, "user_us"), user),
            ratio(median(entry, "cpu_us"), cpu),
            *floor[label],
        ]
        for label, entry in ordered
    ]
    return rows([*header, *more], body)


# Of the serving cells, as far as they are measured: heading, metric, form, whether more is better.
SERVING_COLUMNS = (
    ("{}/s", "rate", ",.0f", True),
    ("p50 µs", "p50_us", ".0f", None),
    ("p99 µs", "p99_us", ".0f", None),
    ("user µs/{}", "user_us", ".2f", None),
    ("system µs/{}", "system_us", ".2f", None),
    ("CPU µs/{}", "cpu_us", ".2f", False),
    ("threads", "threads", ".0f", None),
)


def serving_table(table: Table, unit: str) -> list[str]:
    here = measured(table)
    if not here:
        return []
    columns = [c for c in SERVING_COLUMNS if all(c[1] in e["metrics"] for e in here.values())]
    best = {c[1]: best_peer(table, c[1], greater=c[3]) for c in columns if c[3] is not None}
    best = {metric: value for metric, value in best.items() if value}
    header = ["way", *(heading.format(unit) for heading, *_ in columns)]
    header += [f"{'CPU' if metric == 'cpu_us' else metric} ÷ best peer" for metric in best]
    body = [
        [
            name_of(label) + (" †" if disturbed(entry) else ""),
            *(
                spread(entry, metric, form)
                if greater is not None
                else format(median(entry, metric), form)
                for _, metric, form, greater in columns
            ),
            *(ratio(median(entry, metric), value) for metric, value in best.items()),
        ]
        for label, entry in sorted(here.items(), key=lambda item: -median(item[1], "rate"))
    ]
    return rows(header, body)


def disturbed(entry: Entry) -> bool:
    return "busy" in entry["metrics"] and median(entry, "busy") < UNDISTURBED


METRICS = {"rate": "rate", "cpu_us": "CPU", "threads": "threads"}


def target_line(target: Target, table: Table) -> str | None:
    """What was wanted, what came of it; None where one of both was not measured in all rounds."""
    here = {label: entry for label, entry in measured(table).items() if "failed" not in entry}
    if {target.label, target.ratio_to or target.label, target.less or target.label} - here.keys():
        return None
    entry = here[target.label]
    value, least, most, form = median(entry, target.metric), target.least, target.most, ".0f"
    what = METRICS[target.metric]
    if target.ratio_to:
        value /= median(here[target.ratio_to], target.metric)
        what, form = f"{what} ÷ that of {target.ratio_to}", ".2f"
    elif target.less:
        other = here[target.less]
        value -= median(other, target.metric)
        what, form = f"{what} less that of {target.less}, in µs", "+.2f"
        if most is None:
            most = max(width(entry, target.metric), width(other, target.metric))
            what += " (at most the rounds' spread)"
    met = (least is None or value >= least) and (most is None or value <= most)
    bound = f"at least {least:g}" if least is not None else f"at most {most:.3g}"
    verdict = "met" if met else "**missed**"
    return f"- Target: {name_of(target.label)}, {what}: {bound}; {value:{form}}: {verdict}"


def width(entry: Entry, metric: str) -> float:
    value = entry["metrics"][metric]
    return float(value["max"] - value["min"])


def serving_lines(cell: Serving, table: Table) -> list[str]:
    targets = [target_line(target, table) for target in cell.targets]
    lines = [line for line in targets if line]
    return [*serving_table(table, cell.unit), *lines, *([""] if lines else [])]


def mail_lines(name: str, table: Table) -> list[str]:
    lines = [line for target in mail.CELLS[name].targets if (line := target_line(target, table))]
    return [*serving_table(table, "message"), *lines, *([""] if lines else [])]


def idle_table(table: Table) -> list[str]:
    best = best_peer(table, "bytes")
    more, floor = floor_ratios(table, "bytes")
    ordered = sorted(measured(table).items(), key=lambda item: median(item[1], "bytes"))
    body = [
        [
            name_of(label),
            format(median(entry, "bytes"), ",.0f"),
            ratio(median(entry, "bytes"), best),
            *floor[label],
        ]
        for label, entry in ordered
    ]
    return rows(["library", "bytes/connection", "÷ best peer", *more], body)


def active_table(table: Table) -> list[str]:
    best = best_peer(table, "cpu_us")
    header = [
        "library",
        "idle",
        "CPU µs/message alone",
        "CPU µs/message among them",
        "among ÷ alone",
    ]
    header += ["user µs alone", "user µs among them", "p50 µs alone", "p50 µs among them"]
    header += ["CPU ÷ best peer"]
    ordered = sorted(measured(table).items(), key=lambda item: median(item[1], "cpu_us"))
    body = [
        [
            name_of(label),
            format(median(entry, "idle"), ",.0f"),
            spread(entry, "alone_cpu_us", ".2f"),
            spread(entry, "cpu_us", ".2f"),
            ratio(median(entry, "cpu_us"), median(entry, "alone_cpu_us")),
            format(median(entry, "alone_user_us"), ".2f"),
            format(median(entry, "user_us"), ".2f"),
            format(median(entry, "alone_p50_us"), ".0f"),
            format(median(entry, "p50_us"), ".0f"),
            ratio(median(entry, "cpu_us"), best),
        ]
        for label, entry in ordered
    ]
    return rows(header, body)


CLOCKS = ("cpu", "wall")


def micro_value(entry: Entry, operation: str) -> str:
    """CPU and wall time; "-": this loop cannot do it."""
    if not has(entry, f"{operation}: cpu_ns"):
        return "-"
    cpu, wall = (format(median(entry, f"{operation}: {clock}_ns"), ".0f") for clock in CLOCKS)
    return cpu if cpu == wall else f"{cpu} / {wall}"


def micro_table(table: Table) -> list[str]:
    here = measured(table)
    if not here:
        return []
    names = [key.removesuffix(": cpu_ns") for e in here.values() for key in e["metrics"]]
    operations = list(dict.fromkeys(name for name in names if ": " not in name))
    body = []
    for operation in operations:
        metric = f"{operation}: cpu_ns"
        cells = [micro_value(entry, operation) for entry in here.values()]
        best = best_peer(table, metric)
        own = ratio(median(here["becket"], metric), best) if "becket" in here else "-"
        body.append([operation, *cells, own])
    note = "CPU / wall nanoseconds for one operation; user CPU and the spread are in latest.json."
    return [note, "", *rows(["operation", *map(name_of, here), "becket ÷ best peer"], body)]


def cell_lines(name: str, table: Table) -> list[str]:
    group, _, rest = name.partition("/")
    lines = [f"### {rest.replace('/', ', ')}", ""] if rest else []
    if group == "idle":
        lines += idle_table(table)
    elif group == "active":
        lines += active_table(table)
    elif group == "micro":
        lines += micro_table(table)
    elif name in ("twisted/callLater", "twisted/callFromThread"):
        lines += serving_table(table, "call")
    elif group == "asyncore":
        lines += serving_table(table, "message")
    elif name in mail.CELLS:
        lines += mail_lines(name, table)
    elif name in CELLS:
        lines += serving_lines(CELLS[name], table)
    else:
        units = {"connect": "connection", "web": "request", "twisted/web": "request"}
        lines += load_table(table, units.get(group) or units.get(name, "message"))
    return lines + failed_rows(table)


def facts_lines(facts: dict[str, Any]) -> list[str]:
    lines = ["# Benchmark results", ""]
    if facts.get("interrupted"):
        lines += ["**Interrupted: not all cells are here.**", ""]
    if facts["quick"]:
        lines += ["**A quick run: it shows that the benchmark works; do not quote it.**", ""]
    if facts["same core"]:
        lines += ["**Server and load shared one core.**", ""]
    for name, value in facts.items():
        if name == "versions":
            lines.append("- versions: " + ", ".join(f"{k} {v}" for k, v in value.items()))
        elif name == "missing":
            lines += [f"- not installed, left out: {k} ({v})" for k, v in value.items()]
        elif not isinstance(value, bool):
            lines.append(f"- {name}: {value}")
    return [
        *lines,
        "",
        "Medians over the rounds (least..greatest). CPU is the server's. The total is precise; its",
        "division into user and system is sampled by the kernel's tick: see bench/README.md.",
        "Ratios are to the best library of that table other than becket: below 1.00 is less,",
        "which is better for CPU and memory, and worse for rates. The floor is bare epoll, and in",
        "TLS bare OpenSSL over it; it is not a peer. † marks a library whose core had other work",
        "meanwhile: measure it again.",
        "",
    ]


def markdown(facts: dict[str, Any], results: dict[str, Table]) -> str:
    lines = facts_lines(facts)
    group = ""
    for name, table in results.items():
        if name.partition("/")[0] != group:
            group = name.partition("/")[0]
            lines += [f"## {TITLES[group]}", ""]
        lines += cell_lines(name, table)
    return "\n".join(lines).rstrip() + "\n"


def panels(results: dict[str, Table]) -> dict[tuple[str, str], dict[str, Table]]:
    """(kind, transport) -> size -> table, of the echo cells that have anything to draw."""
    found: dict[tuple[str, str], dict[str, Table]] = {}
    for name, table in results.items():
        parts = name.split("/")
        if len(parts) == 3 and measured(table):
            found.setdefault((parts[0], parts[1]), {})[parts[2]] = measured(table)
    return found


def draw_panel(axes: Any, sizes: dict[str, Table], title: str) -> None:
    labels = list(dict.fromkeys(label for table in sizes.values() for label in table))
    first = next(iter(sizes.values()))
    labels.sort(key=lambda label: median(first[label], "user_us") if label in first else 0)
    height = 0.8 / len(sizes)
    colours = ("#1b6ca8", "#e08e2b", "#7a9e3b")
    for place, (size, table) in enumerate(sizes.items()):
        here = [(y, table[label]) for y, label in enumerate(labels) if label in table]
        offsets = [y + (place - (len(sizes) - 1) / 2) * height for y, _ in here]
        values = [median(entry, "user_us") for _, entry in here]
        bars = axes.barh(offsets, values, height * 0.9, label=size, color=colours[place % 3])
        axes.bar_label(bars, fmt=" %.2f", fontsize=7)
    axes.set_yticks(range(len(labels)), labels, fontsize=8)
    for tick in axes.get_yticklabels():
        tick.set_fontweight("bold" if tick.get_text() == "becket" else "normal")
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_title(title, fontsize=9, loc="left")
    axes.spines[["top", "right"]].set_visible(False)


def chart(path: Path, facts: dict[str, Any], results: dict[str, Table]) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    found = panels(results)
    if not found:
        return
    kinds = list(dict.fromkeys(kind for kind, _ in found))
    transports = list(dict.fromkeys(transport for _, transport in found))
    figure, grid = plt.subplots(
        len(kinds),
        len(transports),
        figsize=(6.5 * len(transports), 3.6 * len(kinds) + 0.6),
        squeeze=False,
        layout="constrained",
    )
    for row, kind in enumerate(kinds):
        for column, transport in enumerate(transports):
            axes = grid[row][column]
            if (kind, transport) in found:
                draw_panel(axes, found[kind, transport], f"{kind}, {transport.upper()}")
                axes.legend(fontsize=7, loc="upper right", frameon=False)
            else:
                axes.axis("off")
    for axes in grid[-1]:
        axes.set_xlabel("server's user CPU, µs per message (less is better)", fontsize=8)
    figure.suptitle(f"Echo: {facts['cpu']}, Python {facts['python']}, {facts['date']}", fontsize=10)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def write(directory: Path, facts: dict[str, Any], results: dict[str, Table]) -> None:
    (directory / "latest.md").write_text(markdown(facts, results))
    try:
        chart(directory / "latest.png", facts, results)
    except ImportError:
        print("matplotlib is not installed: no chart")
    print(f"Results: {directory / 'latest.md'}")


def main() -> int:
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        print(__doc__, file=sys.stderr)
        return 2
    directory = Path(sys.argv[1])
    data = json.loads((directory / "latest.json").read_text())
    write(directory, data["facts"], data["cells"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
