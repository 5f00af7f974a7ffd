# SPDX-License-Identifier: GPL-2.0-or-later
"""The table of what was measured, as text and as docs/performance.md."""

import json
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

FLOOR, OURS, REFERENCE = "floor", "ours", "reference"
DOCS = Path(__file__).parents[2] / "docs"
RESULTS = DOCS / "performance.json"
PAGE = DOCS / "performance.md"
PLACE = "<!-- table -->\n"

Results = dict[str, dict[str, list[float]]]


@dataclass(frozen=True)
class Aim:
    """What the median should not exceed: `factor` times the kernel's floor, and `more`."""

    factor: float = 0
    more: float = 0

    def limit(self, floor: list[float] | None) -> float:
        """The figure itself; `floor` is what was measured."""
        return self.factor * (statistics.median(floor) if floor else 0) + self.more


AIMS = {
    "attach, SuperSpeed": Aim(1.5),
    "attach, high speed": Aim(1.4),
    "detach in the frontend, until it returns": Aim(more=120),
    "detach in the frontend, then until unpublished": Aim(more=120),
    "detach in the backend, until it returns": Aim(1, 100),
    "idle for 60 s, ms of processor time": Aim(),
    "idle for 60 s, wake-ups": Aim(),
    "idle for 60 s, forks": Aim(),
    "busy for 60 s, ms of processor time": Aim(),
    "busy for 60 s, wake-ups": Aim(),
    "busy for 60 s, forks": Aim(),
    "resident, both sides, MB": Aim(more=16),
}


def figure(value: float) -> str:
    """Three digits, or whole."""
    return f"{value:.0f}" if abs(value) >= 100 or value == round(value) else f"{value:.3g}"


def cell(values: list[float] | None) -> str:
    """Median and range."""
    if not values:
        return ""
    median, low, high = (figure(f(values)) for f in (statistics.median, min, max))
    return median if low == high else f"{median} ({low}-{high})"


def ratio(values: list[float] | None, base: list[float] | None) -> str:
    """How many times the other median this one is."""
    if not values or not base or not statistics.median(base):
        return ""
    return f"{statistics.median(values) / statistics.median(base):.2f}"


def rows(found: Results) -> list[list[str]]:
    """The table, with its head."""
    ours, floor, reference = (found.get(name, {}) for name in (OURS, FLOOR, REFERENCE))
    table = [["case", "this program", "kernel's floor", "ratio", "aim", "aim met", "runs"]]
    if reference:
        table[0] += ["reference", "ratio to it"]
    for name in dict.fromkeys([*ours, *reference, *floor]):
        mine, least = ours.get(name), floor.get(name)
        row = [
            name,
            cell(mine),
            cell(least),
            ratio(mine, least),
            "",
            "",
            str(len(mine or least or reference[name])),
        ]
        aim = AIMS.get(name)
        if aim and mine and (least or not aim.factor):
            limit = aim.limit(least)
            row[4:6] = [figure(limit), "yes" if statistics.median(mine) <= limit else "no"]
        if reference:
            row += [cell(reference.get(name)), ratio(mine, reference.get(name))]
        table.append(row)
    return table


def text(found: Results) -> str:
    """The table in columns."""
    table = rows(found)
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in table)
    return "\n".join(line.rstrip() for line in lines)


def page(found: Results, template: str) -> str:
    """The page of the documentation: its text with the table after `PLACE`."""
    head, *body = rows(found)
    lines = [head, ["---"] * len(head), *body]
    before, _, after = template.partition(PLACE)
    after = after[after.index("\n\n") :]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{before}{PLACE}{table}{after}"


def keep(found: Results) -> None:
    """Put new results into the documentation, in place of those of the same names."""
    kept: Results = json.loads(RESULTS.read_text())
    for name, measured in found.items():
        values = kept.setdefault(name, {})
        values.update({row: [float(f"{v:.6g}") for v in times] for row, times in measured.items()})
    # A line for each row of the table.
    RESULTS.write_text(json.dumps(kept).replace("], ", "],\n") + "\n")
    main()


def main() -> int:
    """Write the page again from the results that are kept beside it."""
    PAGE.write_text(page(json.loads(RESULTS.read_text()), PAGE.read_text()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
