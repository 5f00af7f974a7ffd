# SPDX-License-Identifier: GPL-2.0-or-later
"""The whole machine: suspended, frozen, or of two kernels."""

import os
import time
from pathlib import Path

from tests.lab.guests import BACKEND, FRONTEND, Guest
from tests.lab.lab import Lab
from tests.lab.qubes import PACKAGES

from .conftest import IMAGE_SIZE, Faults
from .table import After, Case, each

SUSPEND = [
    Case(
        "machine",
        f"suspend and resume, {order[0]} first",
        data={"order": " ".join(order)},
    )
    for order in ((FRONTEND, BACKEND), (BACKEND, FRONTEND))
]
UNPREPARED = Case("machine", "sys-usb is suspended and resumed without detaching first")
FROZEN = [
    Case(
        "machine",
        f"{guest} is frozen for {seconds} s while attached",
        after=After.EITHER,
        data={"guest": guest, "seconds": str(seconds)},
    )
    for guest in (BACKEND, FRONTEND)
    for seconds in (5, 60)
]
FROZEN_ATTACHING = [
    Case(
        "machine",
        f"{guest} is frozen for 60 s while attaching",
        f"{program}: {step}",
        told="controllers sent no answer in time|the device does not answer|the call of .* failed",
        may_succeed=True,
        after=After.EITHER,
        data={"guest": guest, "program": program, "journey": "attach", "step": step},
    )
    for guest, program, step in (
        (BACKEND, "usb-export", "locks.Lock.acquire lockf"),
        (BACKEND, "usb-export", "usbip_host.take write bind"),
        (BACKEND, "usb-export", "sysfs.UsbDevice.write write usbip_sockfd"),
        (FRONTEND, "usb-import", "qrexec.Link.read_line recv"),
        (FRONTEND, "usb-import", "vhci.attach write attach"),
    )
]
KERNELS = [
    Case(
        "machine",
        f"sys-usb has the kernel of {ours}, work that of {theirs}",
        data={
            "backend": ours,
            "frontend": theirs,
        },
    )
    for ours, theirs in (("bookworm", "trixie"), ("trixie", "bookworm"))
]
CASES = [*SUSPEND, UNPREPARED, *FROZEN, *FROZEN_ATTACHING, *KERNELS]


def suspend(guest: Guest) -> None:
    """Suspend a guest to idle, and wake it again after 5 s (the kernel's power/pm_test)."""
    guest.run(
        "echo devices > /sys/power/pm_test && echo freeze > /sys/power/state;"
        " code=$?; echo none > /sys/power/pm_test; exit $code",
        timeout=120,
    )


@each(SUSPEND)
def test_suspend(faults: Faults, case: Case) -> None:
    """As qubes.SuspendPreAll does it: every qube detaches, then every qube is suspended."""
    stick = faults.stick()
    assert faults.attach(stick).code == 0
    faults.check_attached(stick)
    guests = [faults.guest(name) for name in case.data["order"].split()]
    for guest in guests:
        done = guest.run("/etc/qubes/suspend-pre.d/usb-detach-all.sh")
        assert (done.code, done.stdout, done.stderr) == (0, b"", b"")
    assert faults.await_clean() == []
    for guest in guests:
        suspend(guest)
    faults.check(case, None)


@each([UNPREPARED])
def test_suspend_without_detaching(faults: Faults, case: Case) -> None:
    assert faults.attach(faults.stick()).code == 0
    suspend(faults.backend)
    faults.check(case, None)


@each(FROZEN)
def test_frozen_while_attached(faults: Faults, case: Case) -> None:
    stick = faults.stick()
    assert faults.attach(stick).code == 0
    freeze(faults.guest(case.data["guest"]), float(case.data["seconds"]))
    faults.check_attached(stick)
    faults.check(case, None)


def freeze(guest: Guest, seconds: float) -> None:
    """Stop a guest's processor for a while."""
    guest.freeze()
    try:
        time.sleep(seconds)
    finally:
        guest.thaw()


@each(FROZEN_ATTACHING)
def test_frozen_while_attaching(faults: Faults, case: Case) -> None:
    with faults.standing(case, faults.stick()) as (call, resume):
        freeze(faults.guest(case.data["guest"]), 60)
        resume()
        done = call.wait(120)
    faults.check(case, done)


@each(KERNELS)
def test_two_kernels(case: Case, tmp_path: Path) -> None:
    """All that the others ask after each case, and both speeds, with a machine of its own."""
    suite = case.data["frontend"]
    image = tmp_path / "stick.img"
    image.write_bytes(os.urandom(IMAGE_SIZE))
    with Lab(PACKAGES, case.data["backend"], print, frontend_suite=suite) as lab:
        faults = Faults(lab, image)
        versions = [done.text for done in faults.run_both("uname -r")]
        assert [version.split(".")[:2] for version in versions] in (
            [["6", "1"], ["6", "12"]],
            [["6", "12"], ["6", "1"]],
        )
        slow = faults.plug_storage("slow", bus="ehci.0")
        assert faults.attach(slow).code == 0
        assert faults.take_back(slow).code == 0
        for _ in range(2):
            faults.check(case, None)
