# SPDX-License-Identifier: GPL-2.0-or-later
"""The steps that the tracer finds in each program, in their order, as `make steps` records them.

What is recorded is part of every family that goes through the steps. `make check` compares it with
what the programs do.
"""

import json
import os
from pathlib import Path

FILE = Path(__file__).with_name("steps.json")
ALL: dict[str, tuple[str, ...]] = {
    name: tuple(found) for name, found in json.loads(FILE.read_text()).items()
}
"""What was recorded of whom; it is one recording up to where the program sleeps, as the device is
attached, and one from there on."""

SLEEPS = "qrexec.Link.await_end poll"

CHANGES = frozenset(
    (
        *("ftruncate", "ioctl", "kill", "killpg", "lockf", "pidfd_send_signal", "poll"),
        *("posix_spawn", "pwrite", "rename", "sendall", "shutdown", "symlink"),
        *("unlink", "write"),
    )
)
"""The calls that change something outside or wait; others only look, and matter to cables alone."""

OPTIONAL = frozenset(
    (
        *("vhci.attach poll", "vhci.await_removal lstat (2)", "vhci.await_removal poll"),
        "enumeration.Enumeration.await_usable poll (2)",
        "enumeration.Enumeration.await_usable open authorized (2)",
        "enumeration.Enumeration.await_usable open bConfigurationValue (2)",
        "enumeration.Enumeration.await_usable lstat control (2)",
        "enumeration.Enumeration.await_usable listdir (2)",
        "enumeration.Enumeration.await_usable lstat driver (2)",
        "usb_export.main lstat usb-proxy-keep-unbound",
        # What the kernel announced of a device before the importer listened to that alone.
        "sysfs.UsbDevice.__init__ open (3)",
        "arrival.Judge.judge open descriptors (2)",
        "arrival.Judge.judge_again open descriptors (2)",
        "sysfs.UsbDevice.attribute open idVendor (3)",
        "sysfs.UsbDevice.attribute open idProduct (3)",
        "sysfs.UsbDevice.attribute open bConfigurationValue (3)",
        "sysfs.UsbDevice.unauthorized listdir (3)",
        "sysfs.UsbDevice.attribute open authorized (3)",
    )
)
"""Whether these come depends on the order of the kernel's events, or on who ends the attachment."""


def changes(steps: tuple[str, ...]) -> tuple[str, ...]:
    """Those of the steps that change something outside or wait."""
    return tuple(step for step in steps if step.split()[1] in CHANGES)


def halves(name: str, seen: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """The two recordings of a program that sleeps in between."""
    awake = seen.index(SLEEPS) + 1
    return {name: seen[:awake], f"{name}, its end": seen[awake:]}


def agree(seen: dict[str, tuple[str, ...]]) -> None:
    """Fail unless this is what was recorded; with RECORD in the environment, record it instead."""
    if os.environ.get("RECORD"):
        ALL.update(seen)
        FILE.write_text(json.dumps(ALL, indent=1) + "\n")
    assert seen == {name: ALL.get(name) for name in seen}
