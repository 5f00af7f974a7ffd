# SPDX-License-Identifier: GPL-2.0-or-later
"""The exporter of a phone is killed before every step that changes something outside, or waits."""

import pytest

from tests.faults import steps
from tests.faults.conftest import Faults
from tests.lab.qubes import Qubes

from .conftest import Phone

CLAIM = "reenumeration.Port.claim ioctl"
"""What comes before is the same for each device."""

AWAY = "reenumeration.take poll (2)"
"""It has left the bus and has not come back."""


def test_steps_are_those_of_a_recording(qubes: Qubes, phone: Phone, faults: Faults) -> None:
    phone.attached()  # The drivers are loaded now.
    assert qubes.take_back(phone.bus_id).code == 0
    phone.forget()

    def there_and_back() -> None:
        phone.attached()
        assert qubes.take_back(phone.bus_id).code == 0

    seen = steps.changes(faults.record(there_and_back)["sys-usb", "usb-export"])
    steps.agree({"usb-export of a phone": seen[seen.index(CLAIM) :]})


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
    for step in steps.ALL["usb-export of a phone"]:
        print(step)
        kill(qubes, phone, faults, step)
    phone.attached()
    assert qubes.take_back(phone.bus_id).code == 0
