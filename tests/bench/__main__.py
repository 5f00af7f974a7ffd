# SPDX-License-Identifier: GPL-2.0-or-later
"""`python3 -m tests.bench [--runs N] [--reference DIR] [CASE...]`: measure, and print the table."""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

from usb_proxy.dom0.usb_ids import USB_IDS

from . import dom0, machine, report, witness

CASES = (
    "attach",
    "high",
    "detach",
    "unplug",
    "start",
    "cost",
    "data",
    "stream",
    "first",
    "ten",
    "move",
)
BUSY = ("busy", "sound", "flooded")
"""Of use where real qrexec carries the data: with `PLATFORM`, and if they are named."""


def main() -> int:
    """Measure, and write dist/bench.json and, without a reference, docs/performance.*.

    What other cases gave before stays in the documentation.
    """
    parser = argparse.ArgumentParser(prog="tests.bench", description=__doc__)
    parser.add_argument("--runs", type=int, default=10, help="how often (default: 10)")
    parser.add_argument("--moves", type=int, default=100, help="moves of a device (default: 100)")
    parser.add_argument("--reference", type=Path, help="a tree of another implementation")
    parser.add_argument("--suite", default="bookworm", help="Debian release of the guest")
    parser.add_argument("cases", nargs="*", default=CASES, help=f"of {', '.join(CASES + BUSY)}")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        trees = {report.OURS: machine.install(Path(folder))}
        if options.reference:
            trees[report.REFERENCE] = options.reference
        found = machine.measure(
            trees,
            options.cases,
            runs=options.runs,
            count=options.moves,
            suite=options.suite,
            progress=lambda line: print(line, file=sys.stderr, flush=True),
        )
        for name, tree in trees.items():
            found[name].update(witness.instructions(tree))
    if USB_IDS.exists():
        found[report.OURS].update(dom0.measure(USB_IDS))
    print(report.text(found))
    dist = machine.TOP / "dist"
    dist.mkdir(exist_ok=True)
    (dist / "bench.json").write_text(json.dumps(found, indent=1) + "\n")
    if options.reference is None and machine.real_platform() is None:
        report.keep(found)
    if "SUDO_UID" in os.environ:
        for path in (dist / "bench.json", report.RESULTS, report.PAGE):
            os.chown(path, int(os.environ["SUDO_UID"]), int(os.environ["SUDO_GID"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
