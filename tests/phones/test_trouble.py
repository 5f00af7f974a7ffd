# SPDX-License-Identifier: GPL-2.0-or-later
"""Everything that may happen while a phone is attached or given back."""

import time
from collections.abc import Iterator

import pytest

from tests.integration.test_exporter import usbguard
from tests.lab.guests import Guest
from tests.lab.qubes import Qubes

from .conftest import HERE, STEPS, UDC, Phone

__all__ = ["usbguard"]

TIMES = 50


@pytest.mark.parametrize("bounces", [1, 2])
@pytest.mark.parametrize("away", [0.2, 1.0])
@pytest.mark.parametrize("drop", [0.0, 0.005, 0.05, 0.2])
def test_delays(qubes: Qubes, phone: Phone, drop: float, away: float, bounces: int) -> None:
    phone.behave(drop=drop, away=away, bounces=bounces)
    phone.attached()
    assert qubes.take_back(phone.bus_id).code == 0
    assert phone.settled() == phone.bus_id


@pytest.mark.parametrize("when", STEPS)
def test_unplugged(qubes: Qubes, phone: Phone, when: str) -> None:
    stay_away = """printf '{"returns": "never"}' > /run/phone/settings"""
    done = phone.interrupted(when, f"{stay_away}; echo > {UDC}; true")
    if when not in ("attached", "given back"):
        assert done.code != 0 and done.stderr.count(b"\n") == 1, done
    assert qubes.await_clean(40) == []
    assert phone.plug() == phone.bus_id
    phone.attached()
    assert qubes.detach(phone.bus_id).code == 0


def test_it_does_not_come_back(qubes: Qubes, phone: Phone) -> None:
    phone.behave(returns="never")
    done = qubes.attach(phone.bus_id)
    assert done.code != 0
    assert b"has not come back (8 s); attach it when" in done.stderr
    assert qubes.await_clean() == []


@pytest.mark.parametrize("when", ["deconfigured", "away", "back"])
def test_the_frontend_is_killed(qubes: Qubes, phone: Phone, when: str) -> None:
    """The other qube dies: nothing stays claimed or exported."""
    request = f"sys-usb {phone.bus_id}\n".encode()
    with qubes.lab.allowed("qubes.USB", phone.bus_id, qubes.frontend, qubes.backend):
        watcher = phone.watch(when, "true")
        qubes.lab.start_call(qubes.frontend, "qubes.USBAttach", request)
        assert watcher.wait(60).code == 0
        qubes.frontend.restart()
    assert qubes.await_clean(40) == []
    qubes.frontend.push(HERE / "talk.py", "/run/talk.py")
    phone.behave()
    assert phone.settled() == phone.bus_id
    phone.attached()
    assert qubes.take_back(phone.bus_id).code == 0


def test_detached_while_it_is_away(qubes: Qubes, phone: Phone) -> None:
    phone.behave(away=3)
    with qubes.lab.allowed("qubes.USB", phone.bus_id, qubes.frontend, qubes.backend):
        call = qubes.lab.start_call(
            qubes.frontend, "qubes.USBAttach", f"sys-usb {phone.bus_id}\n".encode()
        )
        qubes.backend.wait_for(f"! test -e {phone.sysfs()}")
        done = qubes.take_back(phone.bus_id)
        assert (done.code, done.stderr) == (0, b"")
        assert b"stopped by a signal" in call.wait(60).stderr
    assert phone.settled() == phone.bus_id


@pytest.fixture
def other(qubes: Qubes) -> Iterator[Guest]:
    """One more qube."""
    guest = qubes.lab.start_frontend("other")
    guest.push(HERE / "talk.py", "/run/talk.py")
    yield guest
    guest.kill()


def test_from_qube_to_qube_many_times(qubes: Qubes, phone: Phone, other: Guest) -> None:
    request = f"sys-usb {phone.bus_id}\n".encode()
    for number in range(TIMES):
        guest = (qubes.frontend, other)[number % 2]
        with qubes.lab.allowed("qubes.USB", phone.bus_id, guest, qubes.backend):
            before = time.monotonic()
            done = qubes.lab.call(guest, "qubes.USBAttach", request, timeout=120)
            print(f"attached in {time.monotonic() - before:.1f} s")
        assert (done.code, done.stderr) == (0, b""), (number, phone.story())
        phone.talks(guest)
        if number % 3:
            assert qubes.take_back(phone.bus_id).code == 0
        else:
            assert qubes.lab.call(guest, "qubes.USBDetach", request).code == 0
    assert qubes.await_clean() == []
    assert phone.settled() == phone.bus_id


def test_a_second_call_while_it_is_away(qubes: Qubes, phone: Phone, other: Guest) -> None:
    """Another qube wants it, too, and waits until it is known who has it."""
    request = f"sys-usb {phone.bus_id}\n".encode()
    phone.behave(away=4)
    with (
        qubes.lab.allowed("qubes.USB", phone.bus_id, qubes.frontend, qubes.backend),
        qubes.lab.allowed("qubes.USB", phone.bus_id, other, qubes.backend),
    ):
        first = qubes.lab.start_call(qubes.frontend, "qubes.USBAttach", request)
        qubes.backend.wait_for(f"! test -e {phone.sysfs()}")
        second = qubes.lab.start_call(other, "qubes.USBAttach", request)
        done = first.wait(60)
        assert (done.code, done.stderr) == (0, b""), phone.story()
        phone.talks()
        refused = second.wait(60)
    assert refused.code == 6 and b"[UP-401]" in refused.stderr, refused
    assert qubes.take_back(phone.bus_id).code == 0


def test_companion(qubes: Qubes, phone: Phone) -> None:
    """It comes back at the other port of the same socket: another name, so it is refused."""
    phone.unplug()
    qubes.backend.run("rmmod dummy_hcd; modprobe dummy_hcd is_super_speed=1")
    try:
        fast = phone.plug()
        phone.bus_id = fast
        phone.attached()
        assert qubes.take_back(fast).code == 0
        assert phone.settled() == fast
        phone.behave(returns="high")
        done = qubes.attach(fast)
        slow = phone.settled()
        assert slow != fast and done.code != 0
        assert f"came back at another speed: attach {slow}" in done.stderr.decode()
        phone.bus_id = slow
        phone.behave()
        phone.attached()
        assert qubes.take_back(slow).code == 0
    finally:
        phone.unplug()
        qubes.backend.run("rmmod dummy_hcd; modprobe dummy_hcd")
        phone.bus_id = phone.plug()


RULE = "/run/udev/rules.d/99-test.rules"
SLOW_STICK = "".join(
    f'SUBSYSTEM=="usb", ATTR{{serial}}=="{serial}", ENV{{QUBES_USB_REENUMERATES}}="1"\n'
    for serial in ("slow", "deep")
)


@pytest.fixture
def marked(qubes: Qubes) -> Iterator[None]:
    """Two sticks are taken for devices that leave the bus."""
    qubes.backend.write(RULE, SLOW_STICK)
    qubes.backend.run("udevadm control --reload")
    yield
    qubes.backend.run(f"rm -f {RULE} /run/qubes-usb-proxy/left-*; udevadm control --reload")


@pytest.mark.usefixtures("marked")
def test_a_device_that_stays_is_not_waited_for_again(qubes: Qubes) -> None:
    stick = qubes.plug_storage("slow")
    assert qubes.attach(stick).code == 0
    qubes.frontend.wait_for("test -b /dev/sda")
    assert qubes.backend.run("cat /run/qubes-usb-proxy/left-*").text.startswith("0 46f4:0001 ")
    assert qubes.take_back(stick).code == 0
    assert qubes.driver(stick) == "usb"
    assert qubes.attach(stick).code == 0
    qubes.frontend.wait_for("test -b /dev/sda")
    assert qubes.take_back(stick).code == 0


@pytest.mark.short
@pytest.mark.usefixtures("marked")
def test_another_device_on_the_same_bus_meanwhile(qubes: Qubes) -> None:
    """It has its driver at once, and was authorized all the time, as the whole bus."""
    stick = qubes.plug_storage("slow")
    bus = f"/sys/bus/usb/devices/usb{stick.partition('-')[0]}/authorized_default"
    before = qubes.backend.read(bus)
    with qubes.lab.allowed("qubes.USB", stick, qubes.frontend, qubes.backend):
        call = qubes.lab.start_call(
            qubes.frontend, "qubes.USBAttach", f"sys-usb {stick}\n".encode()
        )
        unset = f"! grep -q . /sys/bus/usb/devices/{stick}/bConfigurationValue"
        qubes.backend.wait_for(unset)
        newcomer = qubes.plug_storage("newcomer")
        assert newcomer.partition("-")[0] == stick.partition("-")[0]
        assert call.wait(60).code == 0
    assert qubes.driver(newcomer) == "usb"
    assert qubes.backend.read(f"/sys/bus/usb/devices/{newcomer}/authorized") == b"1\n"
    assert qubes.backend.read(bus) == before
    assert qubes.take_back(stick).code == 0


@pytest.mark.usefixtures("marked")
def test_behind_a_hub(qubes: Qubes) -> None:
    qubes.backend.plug_hub("hub", port="3")
    stick = qubes.plug_storage("deep", port="3.2")
    with qubes.lab.allowed("qubes.USB", stick, qubes.frontend, qubes.backend):
        call = qubes.lab.start_call(
            qubes.frontend, "qubes.USBAttach", f"sys-usb {stick}\n".encode()
        )
        unset = f"! grep -q . /sys/bus/usb/devices/{stick}/bConfigurationValue"
        qubes.backend.wait_for(unset)
        qubes.backend.unplug("deep")
        qubes.backend.plug_storage("deep", 1 << 20, port="3.2")
        done = call.wait(60)
    assert (done.code, done.stderr) == (0, b"")
    qubes.frontend.wait_for("test -b /dev/sda")
    assert qubes.take_back(stick).code == 0


def test_usbguard_decides(qubes: Qubes, phone: Phone, usbguard: None) -> None:
    """A phone that it blocks stays blocked but for the time when it is attached."""
    authorized = f"{phone.sysfs()}/authorized"
    assert qubes.backend.read(authorized) == b"1\n"
    for _ in range(2):
        phone.attached()
        assert qubes.take_back(phone.bus_id).code == 0
        qubes.backend.wait_for(f"test -e {authorized}")
        qubes.backend.run("sleep 2")
        assert qubes.backend.read(authorized) == b"0\n"


def test_usbguard_blocks_what_comes_instead(qubes: Qubes, phone: Phone, usbguard: None) -> None:
    phone.behave(returns="other")
    done = qubes.attach(phone.bus_id)
    assert b"another one took its place" in done.stderr
    assert qubes.backend.read(f"{phone.sysfs()}/authorized") == b"0\n"


@pytest.fixture
def kept(qubes: Qubes) -> Iterator[None]:
    """What is given back is kept from drivers."""
    flag = "/run/qubes-service/usb-proxy-keep-unbound"
    qubes.backend.write(flag, "")
    yield
    qubes.backend.run(f"rm {flag}")


@pytest.mark.short
@pytest.mark.parametrize("returns", ["same", "other"])
@pytest.mark.parametrize("bounces", [1, 2])
def test_kept_from_drivers_whatever_it_comes_back_as(
    qubes: Qubes, phone: Phone, kept: None, returns: str, bounces: int
) -> None:
    """No driver has looked at it at any moment: a listener that ran from the start is witness."""
    phone.attached()
    phone.behave(returns=returns, bounces=bounces)
    watch = qubes.backend.start_command(
        "timeout -s INT 20 udevadm monitor --kernel --subsystem-match=usb/usb_interface; true"
    )
    assert qubes.take_back(phone.bus_id).code == 0
    assert phone.departures() >= 1, phone.story()
    assert qubes.driver(phone.bus_id) == ""
    assert qubes.backend.read(f"{phone.sysfs()}/authorized") == b"0\n"
    told = watch.wait(60).stdout.decode()
    assert "add " not in told, told
    if returns == "same":
        phone.attached()
        assert qubes.take_back(phone.bus_id).code == 0


@pytest.mark.short
def test_udev_that_waits_for_the_attach(qubes: Qubes, phone: Phone) -> None:
    """A program of a rule asks for it, and waits: udev handles nothing more of it meanwhile."""
    wait = "until test -e /run/go; do sleep 0.1; done"
    qubes.backend.write("/run/wait", f"#!/bin/sh\ntouch /run/waits\n{wait}\n", 0o755)
    qubes.backend.write(RULE, 'SUBSYSTEM=="usb", ENV{DEVTYPE}=="usb_device", RUN+="/run/wait"\n')
    qubes.backend.run(
        "rm -f /run/go /run/waits; udevadm control --reload;"
        f" udevadm trigger {phone.sysfs()}; until test -e /run/waits; do :; done"
    )
    try:
        phone.attached()
        assert phone.departures() >= 1
    finally:
        qubes.backend.run(f"rm {RULE}; udevadm control --reload; touch /run/go; udevadm settle")
    # udev has told dom0 of a new device only now: it is connected all the same.
    qubes.backend.wait_for("cat /run/lab-qubesdb/*connected-to | grep -q work")
    assert qubes.connected_to(phone.bus_id) == b"work"
    assert qubes.take_back(phone.bus_id).code == 0
    qubes.backend.run("rm -f /run/go /run/waits /run/wait")
