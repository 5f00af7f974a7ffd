# SPDX-License-Identifier: GPL-2.0-or-later
"""`python3 -m tests.bench.inside RUNS COUNT CASE... -- NAME=TREE...`: measure, and print JSON."""

import contextlib
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from . import busy, cases, cost, isochronous, machine, platform
from .cases import ANNOUNCEMENT, HIGH, STICKS, SUPER, VENDOR_PRODUCT
from .qubes import Qubes

FLOOR = "floor"
COSTLY_RUNS = 3
STREAM = 50
"""Completed requests for each run."""

Results = dict[str, dict[str, list[float]]]


def attaches(qubes: Qubes, runs: int) -> Iterator[cases.Row]:
    """Attaching a SuperSpeed device, and what of that is the stand-in for qrexec."""
    yield "an empty call through the stand-in for qrexec", cases.empty_calls(qubes, runs)
    yield "attach, SuperSpeed", cases.attaches(qubes, SUPER, SUPER, runs)
    name = "attach, SuperSpeed, by vendor and product"
    yield name, cases.attaches(qubes, SUPER, VENDOR_PRODUCT, runs)
    name = "attach, SuperSpeed, with dom0's announcement"
    yield name, cases.attaches(qubes, SUPER, f"{SUPER}\n{ANNOUNCEMENT}", runs)


def measure(qubes: Qubes, case: str, runs: int, count: int) -> Iterable[cases.Row]:
    """The rows of one case."""
    few = min(runs, COSTLY_RUNS)
    rows: dict[str, Callable[[], Iterable[cases.Row]]] = {
        "attach": lambda: attaches(qubes, runs),
        "first": lambda: [
            ("attach, SuperSpeed, first after boot", cases.first_attaches(qubes, runs))
        ],
        "high": lambda: [("attach, high speed", cases.attaches(qubes, HIGH, HIGH, runs))],
        "detach": lambda: cases.detaches(qubes, runs),
        "move": lambda: cases.moves(qubes, runs, count),
        "unplug": lambda: cases.unplugs(qubes, runs),
        "ten": lambda: cases.ten(qubes, runs, count),
        "cost": lambda: cost.attached(qubes, few, min(count, 64) * cost.MIB),
        "stream": lambda: isochronous.attached(qubes, STREAM * runs),
        "busy": lambda: busy.stick(qubes, few),
        "sound": lambda: busy.sound(qubes),
        "flooded": lambda: busy.flooded(qubes, few),
        "start": lambda: cost.starts(qubes, runs),
        "data": lambda: [],
    }
    return rows[case]()


def measure_floor(case: str, runs: int) -> Iterable[cases.Row]:
    """What the machine needs for it without any implementation."""
    few = min(runs, COSTLY_RUNS)
    rows: dict[str, Callable[[], Iterable[cases.Row]]] = {
        "attach": lambda: cases.floor(SUPER, runs),
        "high": lambda: cases.floor(HIGH, runs),
        "cost": lambda: cost.empty_interpreters(few),
        "data": lambda: cost.buffers(SUPER, few),
        "stream": lambda: isochronous.floor(STREAM * runs),
    }
    return rows.get(case, list)()


def qubes_of(tree: Path) -> Qubes:
    """Qubes with the files of a tree, on the real platform if that is there."""
    return platform.Platform(tree) if platform.TREE.exists() else Qubes(tree)


def main(arguments: list[str]) -> int:
    """Measure each case of each implementation, one after the other."""
    split = arguments.index("--")
    runs, count = map(int, arguments[1:3])
    machine.load_modules()
    trees = dict(each.split("=", 1) for each in arguments[split + 1 :])
    with contextlib.ExitStack() as end:
        implementations = {}
        for name, tree in trees.items():
            implementations[name] = qubes_of(Path(tree))
            end.callback(implementations[name].close)
        machine.plug(SUPER, STICKS[SUPER])
        for qubes in implementations.values():
            # All that is read is in memory from here on.
            cases.round_trip(qubes, SUPER, SUPER)
        found = run(implementations, arguments[3:split], runs, count)
        machine.unplug(SUPER, STICKS[SUPER])
    json.dump(found, sys.stdout)
    return 0


def run(implementations: dict[str, Qubes], wanted: list[str], runs: int, count: int) -> Results:
    """Measure each case of the floor and of each implementation."""
    found: Results = {FLOOR: {}}
    for case in wanted:
        if case == "high":
            machine.unplug(SUPER, STICKS[SUPER])
            machine.plug(HIGH, "high")
        if case in ("stream", "sound"):
            machine.plug(isochronous.CARD, "card")
        found[FLOOR].update(measure_floor(case, runs))
        for name, qubes in implementations.items():
            machine.ask(f"say {case} of {name}")
            found.setdefault(name, {}).update(measure(qubes, case, runs, count))
        if case in ("stream", "sound"):
            machine.unplug(isochronous.CARD, "card")
        if case == "high":
            machine.unplug(HIGH, "high")
            machine.plug(SUPER, STICKS[SUPER])
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv))
