# SPDX-License-Identifier: GPL-2.0-or-later
"""The lab for the tests, and what has to hold after each of them."""

import os
from collections.abc import Iterator

import pytest

from .errors import LabError
from .lab import Lab
from .qubes import PACKAGES, Qubes


@pytest.fixture(scope="session")
def running_lab() -> Iterator[Qubes]:
    """The lab with Debian 12, or the release that LAB_SUITE names."""
    with Lab(PACKAGES, os.environ.get("LAB_SUITE", "bookworm"), print) as lab:
        yield Qubes(lab)


@pytest.fixture
def qubes(running_lab: Qubes) -> Iterator[Qubes]:
    """Both guests with nothing attached and nothing plugged in, before and after."""
    yield running_lab
    problems = running_lab.await_clean()
    for guest in (running_lab.backend, running_lab.frontend):
        said = guest.run("dmesg --read-clear --level=emerg,alert,crit --notime").text
        problems += [f"{guest.name}: {line}" for line in said.splitlines()]
    running_lab.unplug_all()
    for guest in (running_lab.backend, running_lab.frontend):
        try:
            # The next stick would have another name, as long as one of its disks is in use.
            guest.wait_for("! ls -d /sys/block/sd*", 10)
        except LabError:
            problems.append(f"{guest.name}: a disk that has gone is in use")
    if problems:
        running_lab.backend.restart()
        running_lab.frontend.restart()
        pytest.fail("left over: " + "\n".join(problems))


@pytest.fixture
def stick(qubes: Qubes) -> str:
    """The bus id of a SuperSpeed stick of 1 MiB in sys-usb."""
    return qubes.plug_storage("stick")
