# SPDX-License-Identifier: GPL-2.0-or-later
"""One attach under strace: `python3 -m tests.bench.inside.trace TREE`, see tests/bench/plot.py.

strace works with a seccomp filter, so that system calls which are not told of cost little more.
"""

import sys
import time
from pathlib import Path

from . import cases, machine
from .cases import STICKS, SUPER
from .qubes import BACKEND, FRONTEND, Qubes

TRACER = (
    "strace",
    "-f",
    "--seccomp-bpf",
    "-qq",
    "-ttt",
    "-T",
    "-y",
    "-s",
    "60",
    "-e",
    "trace=execve,exit_group,write,kill,poll,wait4,recvfrom,sendto",
    "-e",
    "signal=none",
    "-o",
    "/run/trace",
)


def main(arguments: list[str]) -> int:
    """Attach twice, and print what strace said of the second time, and when that was."""
    machine.load_modules()
    qubes = Qubes(Path(arguments[1]), TRACER)
    machine.plug(SUPER, STICKS[SUPER])
    cases.round_trip(qubes, SUPER, SUPER)
    start = time.time()
    qubes.attach(SUPER)
    end = time.time()
    machine.await_true(qubes.is_published)
    print(start, end)
    qubes.detach(SUPER)
    cases.rest(qubes, SUPER)
    machine.unplug(SUPER, STICKS[SUPER])
    for name in (BACKEND, FRONTEND):
        print((qubes.root(name) / "run/trace").read_text(), end="")
    qubes.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
