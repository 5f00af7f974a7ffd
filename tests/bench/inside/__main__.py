# SPDX-License-Identifier: GPL-2.0-or-later
"""`python3 -m tests.bench.inside RUNS COUNT CASE... -- NAME=TREE...`: measure, and print JSON."""

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from . import cases, cost, machine
from .cases import HIGH, STICKS, SUPER, VENDOR_PRODUCT
from .qubes import Qubes

FLOOR = "floor"
COSTLY_RUNS = 3

Results = dict[str, dict[str, list[float]]]


def measure(qubes: Qubes, case: str, runs: int, count: int) -> Iterator[cases.Row]:
    """The rows of one case."""
    if case == "attach":
        yield "an empty call through the stand-in for qrexec", cases.empty_calls(qubes, runs)
        yield "attach, SuperSpeed", cases.attaches(qubes, SUPER, SUPER, runs)
        name = "attach, SuperSpeed, by vendor and product"
        yield name, cases.attaches(qubes, SUPER, VENDOR_PRODUCT, runs)
    elif case == "first":
        yield "attach, SuperSpeed, first after boot", cases.first_attaches(qubes, runs)
    elif case == "high":
        yield "attach, high speed", cases.attaches(qubes, HIGH, HIGH, runs)
    elif case == "detach":
        yield from cases.detaches(qubes, runs)
    elif case == "move":
        yield from cases.moves(qubes, runs, count)
    elif case == "unplug":
        yield from cases.unplugs(qubes, runs)
    elif case == "ten":
        yield from cases.ten(qubes, runs, count)
    elif case == "cost":
        yield from cost.attached(qubes, min(runs, COSTLY_RUNS), min(count, 64) * cost.MIB)
    elif case == "start":
        yield from cost.starts(qubes, runs)


def main(arguments: list[str]) -> int:
    """Measure each case of each implementation, one after the other."""
    split = arguments.index("--")
    runs, count = map(int, arguments[1:3])
    machine.load_modules()
    trees = dict(each.split("=", 1) for each in arguments[split + 1:])
    with contextlib.ExitStack() as end:
        implementations = {}
        for name, tree in trees.items():
            implementations[name] = Qubes(Path(tree))
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
        device = HIGH if case == "high" else SUPER
        if case == "high":
            machine.unplug(SUPER, STICKS[SUPER])
            machine.plug(HIGH, "high")
        if case in ("attach", "high"):
            found[FLOOR].update(cases.floor(device, runs))
        if case == "data":
            found[FLOOR].update(cost.buffers(SUPER, min(runs, COSTLY_RUNS)))
            continue
        for name, qubes in implementations.items():
            machine.ask(f"say {case} of {name}")
            found.setdefault(name, {}).update(measure(qubes, case, runs, count))
        if case == "high":
            machine.unplug(HIGH, "high")
            machine.plug(SUPER, STICKS[SUPER])
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv))
