# SPDX-License-Identifier: GPL-2.0-or-later
"""`python3 -m tests.bench.plot`: one attach as a waterfall, in docs/attach.svg.

A row is a process, from its execve to its end. What is dark is not in one of the system calls
that were traced: it runs, or waits for its turn on the only processor.
"""

import re
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from tests.lab.errors import LabError

from . import machine, report

PLOT = report.DOCS / "attach.svg"
LINE = re.compile(r"(?P<pid>\d+) +(?P<time>\d+\.\d+) (?P<rest>.*)")
CALL = re.compile(r"(?:<\.\.\. )?(?P<name>\w+)(?P<arguments>.*?)(?:<(?P<taken>\d+\.\d+)>)?$")
LAUNCHED = re.compile(r'/launch", "([a-z-]+)"')
COMMAND = re.compile(r'execve\("[^"]*?([^/"]+)"')
SYSFS = re.compile(r"<(/sys/[^>]+)>")

WIDTH, LEFT, ROW, TOP = 1000, 170, 26, 40
COLOURS = {"run": "#34607f", "wait": "#d5dee5", "sysfs": "#d9792b"}
SHORTEST = 3.0
"""Milliseconds that a helper has to live to be given a row."""

LETTER = 7.0
"""Pixels of a wide letter: a label has to fit its box."""


@dataclass
class Process:
    """One process; times are milliseconds from the start of the attach."""

    name: str
    start: float
    end: float
    parts: list[tuple[float, float, str, str]] = field(default_factory=list)


def calls(trace: str) -> Iterator[tuple[int, float, float, str, str]]:
    """The finished system calls: process, start, seconds, name and arguments."""
    begun: dict[int, tuple[float, str]] = {}
    for line in trace.splitlines():
        match = LINE.match(line)
        if not match:
            continue
        pid, time, rest = int(match["pid"]), float(match["time"]), match["rest"]
        call = CALL.match(rest)
        if not call:
            continue
        if rest.endswith("<unfinished ...>"):
            begun[pid] = time, call["arguments"]
        elif rest.startswith("<..."):
            start, arguments = begun.pop(pid, (time, ""))
            yield pid, start, time - start, call["name"], arguments
        else:
            yield pid, time, float(call["taken"] or 0), call["name"], call["arguments"]


def processes(trace: str) -> list[Process]:
    """What ran between the two times in the first line of a trace."""
    head, _, lines = trace.partition("\n")
    first, last = map(float, head.split())
    whole = 1e3 * (last - first)
    found: dict[int, Process] = {}
    for pid, time, seconds, name, arguments in sorted(calls(lines), key=lambda call: call[1]):
        start, taken = 1e3 * (time - first), 1e3 * seconds
        if start > whole or (start < 0 and pid not in found):
            continue
        if name == "execve":
            launched = LAUNCHED.search(arguments)
            command = COMMAND.search(name + arguments)
            title = f"{launched[1]} (Python)" if launched else command[1] if command else "?"
            if launched and pid in found:
                title = launched[1] + " (Python)"
            found.setdefault(pid, Process(title, start, whole)).name = title
        elif pid in found:
            process = found[pid]
            path = SYSFS.search(arguments)
            if name == "exit_group":
                process.end = start
            elif name in ("poll", "wait4") or path:
                end = min(start + taken, whole)
                what = path[1] if path else name
                process.parts.append((start, end, "sysfs" if path else "wait", what))
    kept = [p for p in found.values() if "Python" in p.name or p.end - p.start > SHORTEST]
    return sorted(kept, key=lambda process: process.start)


def draw(trace: str) -> str:
    """The picture."""
    rows = processes(trace)
    first, last = map(float, trace.partition("\n")[0].split())
    whole = 1e3 * (last - first)
    scale = (WIDTH - LEFT - 10) / whole
    height = TOP + ROW * len(rows) + 30
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        'font-family="sans-serif" font-size="12">',
        "<!-- SPDX-License-Identifier: GPL-2.0-or-later -->",
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
        '<text x="10" y="18" font-weight="bold">One attach: '
        f"{whole:.0f} ms of virtual time, under strace</text>",
    ]

    def box(start: float, end: float, y: float, colour: str, title: str) -> None:
        lines.append(
            f'<rect x="{LEFT + start * scale:.1f}" y="{y}" fill="{colour}" height="{ROW - 8}" '
            f'width="{max((end - start) * scale, 0.8):.1f}"><title>{escape(title)} '
            f"{end - start:.1f} ms</title></rect>"
        )

    for mark in range(0, int(whole) + 1, 50):
        x = LEFT + mark * scale
        lines.append(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{TOP - 8}" y2="{height - 24}" stroke="#ccc"/>'
        )
        lines.append(f'<text x="{x:.1f}" y="{height - 8}" text-anchor="middle">{mark}</text>')
    for number, process in enumerate(rows):
        y = TOP + ROW * number
        lines.append(f'<text x="10" y="{y + 13}">{escape(process.name)}</text>')
        box(process.start, process.end, y, COLOURS["run"], process.name)
        for start, end, kind, what in process.parts:
            box(start, end, y, COLOURS[kind], what)
            label = f"{what} {end - start:.0f} ms"
            if (end - start) * scale > LETTER * len(label):
                x = LEFT + start * scale + 4
                lines.append(f'<text x="{x:.1f}" y="{y + 13}">{escape(label)}</text>')
    for number, (kind, text) in enumerate(
        (("run", "runs"), ("wait", "waits for others or the kernel"), ("sysfs", "in a kernel file"))
    ):
        x = 430 + 200 * number - 140 * (number == 1)
        lines.append(f'<rect x="{x}" y="8" width="12" height="12" fill="{COLOURS[kind]}"/>')
        lines.append(f'<text x="{x + 17}" y="18">{text}</text>')
    return "\n".join([*lines, "</svg>", ""])


def main() -> int:
    """Trace an attach, and draw it."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        tree = machine.install(Path(folder))
        with machine.running({report.OURS: tree}, "bookworm", print) as bench:
            trace = bench.trace(print)
    if not processes(trace):
        raise LabError("nothing was traced")
    PLOT.write_text(draw(trace))
    return 0


if __name__ == "__main__":
    sys.exit(main())
