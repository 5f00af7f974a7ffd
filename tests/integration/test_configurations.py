# SPDX-License-Identifier: GPL-2.0-or-later
"""A device with two configurations, and a program of work that chooses one and takes it at once.

As usbmuxd does with an iPhone: nobody has time to authorize what comes in between.
"""

from collections.abc import Iterator

import pytest

from tests.lab.qubes import RESET, Qubes

from .test_arrival import nothing_is_left
from .test_attach import disk
from .test_liars import (
    BULK,
    BUS_ID,
    HONEST,
    KEYBOARD,
    REST,
    STICK,
    Liar,
    configuration,
    device,
    endpoint,
    interface,
    liar,
    reading,
    unannounced,
)

__all__ = ["liar", "nothing_is_left"]

MULTIPLEXER = "fffe02"
ANNOUNCED = f"46f4:0001 {STICK} {MULTIPLEXER}"
REST[MULTIPLEXER] = endpoint(0x81, BULK, 512) + endpoint(0x02, BULK, 512)
PHONE = (device(count=2), HONEST, configuration(interface(0, MULTIPLEXER), value=2))
DEFAULTS = "/sys/devices/platform/vhci_hcd.*/usb*/authorized_default"
RULE = "/run/udev/rules.d/99-test.rules"

TAKE = """
import fcntl, glob, os, sys, time
wanted, deadline = sys.argv[1], time.monotonic() + 60
def read(name):
    return open(f"{place}/{name}").read().strip()
while time.monotonic() < deadline:
    try:
        found = glob.glob("/sys/devices/platform/vhci_hcd.*/usb*/*-*[0-9]")
        place = "".join(each for each in found if ":" not in each)
        if place and read("bConfigurationValue") == wanted:
            break
    except OSError:
        pass
node = os.open(f"/dev/bus/usb/{int(read('busnum')):03}/{int(read('devnum')):03}", os.O_RDWR)
choice = os.open(f"{place}/bConfigurationValue", os.O_WRONLY)
CLAIM = 0x8004550F
for _ in range(int(sys.argv[2])):
    os.pwrite(choice, b"2", 0)
    fcntl.ioctl(node, CLAIM, bytes(4))
    os.pwrite(choice, b"1", 0)
os.pwrite(choice, b"2", 0)
fcntl.ioctl(node, CLAIM, bytes(4))
print("taken")
"""
"""Waits for a configuration; USBDEVFS_CLAIMINTERFACE, of one that is not authorized, is ENODEV."""


@pytest.fixture(autouse=True)
def phone(qubes: Qubes, liar: Liar) -> Iterator[None]:
    """Both of its configurations are announced."""
    liar.says(reading(*PHONE))
    qubes.frontend.write("/run/take.py", TAKE)
    yield
    qubes.frontend.run(f"rm -f {RULE} /run/take.py; udevadm control --reload")


def defaults(qubes: Qubes) -> list[str]:
    """Whether each bus configures what is new."""
    return qubes.frontend.run(f"cat {DEFAULTS}").text.split()


def test_chosen_and_taken_again_and_again(qubes: Qubes) -> None:
    done = qubes.attach(BUS_ID, ANNOUNCED)
    assert (done.code, done.stderr) == (0, b"")
    assert qubes.frontend.run("python3 /run/take.py 1 20").text == "taken"
    assert qubes.detach(BUS_ID).code == 0


def test_chosen_before_anybody_had_told_success(qubes: Qubes) -> None:
    """usbmuxd's rule of udev takes the first configuration away."""
    gone = 'ATTR{idVendor}=="46f4", ATTR{bConfigurationValue}="0"'
    qubes.frontend.write(RULE, f'ACTION=="add", ENV{{DEVTYPE}}=="usb_device", {gone}\n')
    qubes.frontend.run("udevadm control --reload")
    program = qubes.frontend.start_command("python3 /run/take.py '' 0")
    done = qubes.attach(BUS_ID, ANNOUNCED)
    assert program.wait(60).text == "taken", program
    assert (done.code, done.stderr) == (0, b"")
    assert qubes.detach(BUS_ID).code == 0


def test_what_else_is_attached(qubes: Qubes) -> None:
    """Ours, and that of others, who announce nothing; nobody takes the bus for broken."""
    stick, second = (qubes.plug_storage(name, bus="ehci.0") for name in ("stick", "second"))
    with qubes.one_hub():
        for order in ((BUS_ID, stick), (stick, BUS_ID)):
            for each in order:
                assert qubes.attach(each, ANNOUNCED if each == BUS_ID else None).code == 0
            assert qubes.attach(second, "").code == 0
            assert "0" in defaults(qubes)
            doctor = qubes.frontend.run("qubes-usb-proxy doctor", check=False).text
            assert "blocks new devices" not in doctor
            disk(qubes, "stick")
            disk(qubes, "second")
            for each in (*order, second):
                assert qubes.detach(each).code == 0
            assert "0" not in defaults(qubes)


@pytest.mark.parametrize("joins", [False, True])
def test_a_keyboard_after_its_reset(qubes: Qubes, liar: Liar, joins: bool) -> None:
    """That is a new device, which nobody has judged: it gets no driver, and the stick works on."""
    stick = [interface(0, STICK)] * joins
    keyboard = configuration(*stick, interface(len(stick), KEYBOARD))
    liar.says(reading(*PHONE), reading(device(count=2), keyboard, PHONE[2]))
    with qubes.witness() as seen:
        assert qubes.attach(BUS_ID, ANNOUNCED).code == 0
        assert "0" in defaults(qubes)
        place = qubes.place()
        qubes.frontend.run(f'python3 -c "{RESET.format(place)}"', check=False)
        if joins:
            qubes.frontend.wait_for(f"test -e {place}/*:1.1 && test -e {place}/*:1.0/driver")
            assert qubes.frontend.run(f"cat {place}/*:1.1/authorized").text == "0"
            assert "0" not in defaults(qubes)
            assert qubes.detach(BUS_ID).code == 0
        else:
            qubes.frontend.wait_for("! pgrep -f '[l]aunch usb-import'")
        assert qubes.await_clean() == []
    assert unannounced(seen) == []


def test_a_killed_importer_leaves_the_bus_as_it_was(qubes: Qubes) -> None:
    assert qubes.attach(BUS_ID, ANNOUNCED).code == 0
    assert "0" in defaults(qubes)
    qubes.frontend.run("pkill -9 -f '^/usr/bin/python3 -IS .*usb-import'; true")
    assert qubes.await_clean() == []
    assert "0" not in defaults(qubes)
