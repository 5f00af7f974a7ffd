# SPDX-License-Identifier: GPL-2.0-or-later
"""The one table of cases: what is done, what the user must read, and what must hold afterwards.

Each `test_*.py` of this folder has its part of it in a list `CASES`. To print it all:
`python3 -m tests.faults.table`.
"""

import importlib
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

import pytest

FAMILIES = ("death", "cables", "peers", "races", "machine", "privilege")


class After(Enum):
    """When nothing may be left over. The next attach has to work in every case."""

    AT_ONCE = "clean by itself"
    NEXT_COMMAND = "clean after the next command for this device"
    EITHER = "clean by itself, or attached as if nothing had happened"


@dataclass(frozen=True)
class Case:
    """One row. Its promise is checked by `Faults.check`."""

    family: str
    """One of `FAMILIES`."""
    name: str
    """What is done, such as `SIGKILL to the exporter`."""
    point: str = ""
    """At which step, such as `usb-export: usbip_host.take write bind`; empty for none."""
    told: str = ""
    """A regular expression that the sentence has to match; empty for no failure that is told."""
    may_succeed: bool = False
    """The command that the fault befell may also end well: then it says nothing at all."""
    mute: bool = False
    """Who would have told was killed: the exit code has to say it, and dom0 tells the user."""
    after: After = After.AT_ONCE
    left_in: str = ""
    """With `After.NEXT_COMMAND`: the qube in which something may be left until then."""
    short: bool = False
    """Whether this is run by `make check`, too."""
    data: dict[str, str] = field(default_factory=dict, hash=False, compare=False)
    """What the test itself needs: anything."""

    def __post_init__(self) -> None:
        if self.family not in FAMILIES:
            raise ValueError(f"{self.family} is no family")

    def __str__(self) -> str:
        return f"{self.name}, {self.point}" if self.point else self.name

    @property
    def holds(self) -> str:
        """What has to be so in the end, in words."""
        return f"{self.after.value}; the next attach works"


def each(cases: Iterable[Case]) -> pytest.MarkDecorator:
    """The decorator of a test with a parameter `case`: one test for each of `cases`."""
    return pytest.mark.parametrize(
        "case",
        [pytest.param(c, id=str(c), marks=[pytest.mark.short] if c.short else []) for c in cases],
    )


def table() -> list[Case]:
    """All cases of all families."""
    found: list[Case] = []
    for path in sorted(Path(__file__).parent.glob("test_*.py")):
        found += getattr(importlib.import_module(f"tests.faults.{path.stem}"), "CASES", [])
    return sorted(found, key=lambda case: FAMILIES.index(case.family))


def main() -> int:
    """Print the table."""
    cases = table()
    for case in cases:
        told = case.told or ("(dom0 tells)" if case.mute else "nothing")
        print(f"{case.family:10}{'short' if case.short else '':7}{case}")
        print(f"{'':17}{told} | {case.holds}")
    print(f"{len(cases)} cases, of which {sum(case.short for case in cases)} are short")
    return 0


if __name__ == "__main__":
    sys.exit(main())
