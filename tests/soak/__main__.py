# SPDX-License-Identifier: GPL-2.0-or-later
"""`python -m tests.soak [--hours H] [--cycles N] [--seed S] [--first BATCH]`, as root."""

import argparse
import os
import random
import sys
from pathlib import Path

from tests.lab.lab import Lab
from tests.lab.qubes import Qubes

from .soak import Limits, Soak

PACKAGES = Path(__file__).parents[2] / "dist"


def say(line: str) -> None:
    """One line, at once, also into a file."""
    print(line, flush=True)


def main() -> int:
    """Exit code 1 if anything went wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak")
    parser.add_argument("--hours", type=float, default=1.0)
    parser.add_argument("--cycles", type=int, default=sys.maxsize)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 31))
    parser.add_argument("--first", type=int, default=0, help="the batch to begin with")
    given = parser.parse_args()
    say(f"seed {given.seed}")
    with Lab(PACKAGES, os.environ.get("LAB_SUITE", "bookworm"), say) as lab:
        soak = Soak(Qubes(lab), given.seed, say)
        try:
            failures = soak.run(Limits(given.cycles, given.hours * 3600, given.first))
        finally:
            say(soak.report())
    return 1 if failures else 0


sys.exit(main())
