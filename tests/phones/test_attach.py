# SPDX-License-Identifier: GPL-2.0-or-later
"""A phone with USB debugging is attached at the first try, and settles when it is detached."""

import pytest

from tests.lab.qubes import Qubes

from .conftest import LEFT, Phone


@pytest.mark.short
def test_attached_detached_and_attached_again_at_once(qubes: Qubes, phone: Phone) -> None:
    for detach in (qubes.detach, qubes.take_back):
        phone.attached()  # The second time it is on its way back.
        done = detach(phone.bus_id)
        assert (done.code, done.stderr) == (0, b"")
    assert phone.is_settled()
    # Nothing is left to come.
    qubes.backend.run(": > /run/phone/log; sleep 2")
    assert phone.departures() == 0
    assert phone.is_settled()
    slots = "cat /sys/bus/usb/drivers/usbip-host/match_busid"
    assert phone.bus_id not in qubes.backend.run(slots).text.split()


def test_one_that_nobody_knows_of(qubes: Qubes, phone: Phone) -> None:
    """It leaves unexpectedly: it is waited for all the same, and the next time it is expected."""
    rule = 'SUBSYSTEM=="usb", ENV{QUBES_USB_REENUMERATES}="0"\n'
    with qubes.udev_rule(rule, phone.bus_id, "QUBES_USB_REENUMERATES=0"):
        for drop in (0.0, 0.2):
            phone.forget()
            phone.behave(drop=drop)
            phone.attached()
            assert qubes.backend.run(f"cat {LEFT}").text[1:].startswith(" 18d1:4ee7 ")
            assert qubes.take_back(phone.bus_id).code == 0


@pytest.mark.short
def test_a_backend_that_gives_no_drivers(qubes: Qubes, phone: Phone) -> None:
    """It comes back, and nothing else ever happens to it."""
    switch = "/sys/bus/usb/drivers_autoprobe"
    qubes.backend.run(f"echo 0 > {switch}")
    try:
        for _ in range(2):
            phone.attached()
            done = qubes.detach(phone.bus_id)
            assert (done.code, done.stderr) == (0, b"")
            qubes.backend.wait_for(f"cd {phone.sysfs()} && ! test -e driver")
    finally:
        qubes.backend.run(f"echo 1 > {switch}; echo {phone.bus_id} > /sys/bus/usb/drivers_probe")


@pytest.mark.short
def test_another_one_comes_back(qubes: Qubes, phone: Phone) -> None:
    """Its bootloader is not attached, and left to itself."""
    phone.behave(returns="other")
    done = qubes.attach(phone.bus_id)
    assert done.code != 0
    assert b"another one took its place; " in done.stderr
    assert qubes.connected_to(phone.bus_id) is None
    assert phone.settled() == phone.bus_id
    assert "usbip-host" not in qubes.backend.run("dmesg").text


@pytest.mark.short
def test_a_keyboard_comes_back(qubes: Qubes, phone: Phone) -> None:
    """By the names of the phone: sys-usb takes it for that, and work sees that it is none."""
    phone.behave(returns="keyboard")
    with qubes.witness() as seen:
        done = qubes.attach(phone.bus_id)
        assert done.code == 6
        assert b"dom0 announced 18d1:4ee7 ff4201, but none of these" in done.stderr
        assert b" 18d1:4ee7 030101, so " in done.stderr
        assert qubes.await_clean() == []
    assert [line for line in seen if line.startswith("bind") and "/vhci_hcd." in line]
    assert not [line for line in seen if "(input)" in line or "(hid)" in line]
    assert phone.settled() == phone.bus_id
