# SPDX-License-Identifier: GPL-2.0-or-later
"""The exporter of a phone is killed before every step that changes something outside, or waits."""

import pytest

from tests.faults import steps
from tests.faults.conftest import Faults
from tests.lab.qubes import Qubes

from .conftest import Phone

CLAIM = "reenumeration.Port.claim ioctl"
"""What comes before is the same for each device."""

STEPS = (
    CLAIM,
    "sysfs.UsbDevice.write write bConfigurationValue",
    "reenumeration._Watch._wait poll",
    "reenumeration._Watch._wait poll (2)",
    "usbip_host._take write match_busid",
    "sysfs.UsbDevice.write write unbind",
    "usbip_host._take write bind",
    "exports.remember write",
    "qrexec.Link.send sendall",
    "sysfs.UsbDevice.write write usbip_sockfd",
    "qubesdb._write posix_spawn qubesdb-write",
    "qubesdb._write poll qubesdb-write",
    "locks.Lock.note pwrite (2)",
    "qrexec.Link.await_end poll",
    "locks.Lock.note pwrite (3)",
    "qubesdb.unpublish posix_spawn qubesdb-rm",
    "qubesdb.unpublish poll qubesdb-rm",
    "qubesdb._write posix_spawn qubesdb-write (2)",
    "qubesdb._write poll qubesdb-write (2)",
    "qrexec.Link.end shutdown",
    "qrexec.Link.end poll",
    "sysfs.UsbDevice.write write usbip_sockfd (2)",
    "sysfs.UsbDevice.write write unbind (2)",
    "usbip_host._free_name write rebind",
    "reenumeration._Watch._wait poll (3)",
    "reenumeration._Watch._wait poll (4)",
    "locks.Lock.note ftruncate",
    "locks.Lock.__exit__ unlink",
    "locks.Lock.__exit__ unlink (2)",
)
AWAY = "reenumeration._Watch._wait poll (2)"
"""It has left the bus and has not come back."""


def test_steps_are_those_of_a_recording(qubes: Qubes, phone: Phone, faults: Faults) -> None:
    """A new step of the product has to be added above, and is part of the test below by that."""
    phone.attached()  # The drivers are loaded now.
    assert qubes.take_back(phone.bus_id).code == 0
    phone.forget()

    def there_and_back() -> None:
        phone.attached()
        assert qubes.take_back(phone.bus_id).code == 0

    seen = steps.changes(faults.record(there_and_back)["sys-usb", "usb-export"])
    assert seen[seen.index(CLAIM) :] == STEPS


def kill(qubes: Qubes, phone: Phone, faults: Faults, step: str) -> None:
    """Kill the exporter there: the phone is with its driver after that, and nothing is left."""
    faults.arm(qubes.backend, "usb-export", step, "KILL")
    qubes.attach(phone.bus_id)
    qubes.detach(phone.bus_id)
    assert faults.await_fired(qubes.backend)[1] == f"usb-export: {step}"
    assert qubes.await_clean(40) == []
    assert phone.settled() == phone.bus_id
    bus = f"/sys/bus/usb/devices/usb{phone.bus_id.partition('-')[0]}"
    for file in (f"{phone.sysfs()}/authorized", f"{bus}/authorized_default"):
        assert qubes.backend.read(file) == b"1\n"


@pytest.mark.short
def test_the_exporter_is_killed(qubes: Qubes, phone: Phone, faults: Faults) -> None:
    kill(qubes, phone, faults, AWAY)
    phone.attached()
    assert qubes.take_back(phone.bus_id).code == 0


def test_the_exporter_is_killed_at_every_step(qubes: Qubes, phone: Phone, faults: Faults) -> None:
    """The next attach works, at least until its exporter is killed one step later."""
    for step in STEPS:
        print(step)
        kill(qubes, phone, faults, step)
    phone.attached()
    assert qubes.take_back(phone.bus_id).code == 0
