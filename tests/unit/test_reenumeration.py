# SPDX-License-Identifier: GPL-2.0-or-later
"""Devices that leave the bus when they are deconfigured."""

from __future__ import annotations

import os
import socket
import threading
import time
from typing import TYPE_CHECKING

import pytest

from usb_proxy import sysfs
from usb_proxy.backend import exports, reenumeration, usbip_host
from usb_proxy.errors import ExitCode, InUseError, NoDeviceError
from usb_proxy.idents import BusId
from usb_proxy.sysfs import UsbDevice

from .processes import Running, leave, run, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .fake_kernel import FakeKernel

PHONE = BusId("1-1.4")
LEFT = "run/qubes-usb-proxy/left-1-1.4"
KNOWN = "12ab:00cd 0123"


@pytest.fixture
def device(kernel: FakeKernel) -> Iterator[UsbDevice]:
    """A phone, which leaves and comes back as it was."""
    kernel.plug(PHONE, serial="0123", devnum="5")
    kernel.returns[PHONE] = [{"serial": "0123", "devnum": "6"}]
    with UsbDevice(kernel, PHONE) as device:
        assert device.identity() == KNOWN
        yield device


def assert_configured(kernel: FakeKernel) -> None:
    """What is in the port is as if nothing had happened."""
    assert kernel.driver(PHONE) == "usb"
    assert (kernel.device(PHONE) / "bConfigurationValue").read_text() == "1\n"
    assert not kernel.is_claimed(PHONE)


@pytest.mark.parametrize("dying_seconds", [0.0, 0.2])
def test_it_is_taken_when_it_is_back(
    kernel: FakeKernel, device: UsbDevice, dying_seconds: float
) -> None:
    kernel.dying_seconds = dying_seconds
    assert reenumeration.take(kernel, device, 1) == 1
    assert usbip_host.is_held(device) and not device.is_configured()
    assert device.attribute("devnum") == "6"
    assert not kernel.is_claimed(PHONE)
    assert list(kernel.table()) == [PHONE]
    usbip_host.give_back(kernel, device, keep_unbound=False)
    assert_configured(kernel)
    assert kernel.table() == {}


def test_one_that_has_left_already_is_waited_for(kernel: FakeKernel, device: UsbDevice) -> None:
    """It left after it was taken, and comes back before its port is claimed: so it leaves again."""
    usbip_host.take(kernel, device)
    kernel.unplug(PHONE)
    assert reenumeration.leaves(kernel, device)
    kernel.plug(PHONE, serial="0123", devnum="7")
    assert reenumeration.take(kernel, device, 0) == 2
    assert device.attribute("devnum") == "6"
    assert usbip_host.is_held(device) and not device.is_configured()


def test_one_that_stays_is_taken_a_little_later(kernel: FakeKernel, device: UsbDevice) -> None:
    kernel.haste = 20
    del kernel.returns[PHONE]
    assert not reenumeration.leaves(kernel, device)
    assert reenumeration.take(kernel, device, 1) == 0
    assert device.attribute("devnum") == "5"
    assert usbip_host.is_held(device) and not device.is_configured()


def test_one_that_is_not_configured_has_no_reason_to_leave(
    kernel: FakeKernel, device: UsbDevice
) -> None:
    device.write("authorized", "0", "block")
    (kernel.device(PHONE) / "bConfigurationValue").write_text("\n")
    assert reenumeration.take(kernel, device, 1) == 1
    assert not device.is_authorized()


@pytest.mark.parametrize(
    ("comes", "said"),
    [
        ([{"idProduct": "4ee0"}], "another one took its place; "),
        ([{"serial": "9"}], "another one took its place; "),
        ([{"idVendor": "0bad", "authorized": "0"}], "took its place; "),
        ([], r"has not come back \(8 s\); attach it when"),
    ],
)
def test_nothing_else_is_taken(
    kernel: FakeKernel, device: UsbDevice, comes: list[dict[str, str]], said: str
) -> None:
    kernel.haste = 1 if comes else 3
    kernel.returns[PHONE] = comes
    with pytest.raises(NoDeviceError, match=said):
        reenumeration.take(kernel, device, 1)
    assert not kernel.is_claimed(PHONE)
    assert not [line for line in kernel.written if line.startswith(("match_busid", "authorized"))]
    if comes:
        is_blocked = comes[0].get("authorized") == "0"
        value = (kernel.device(PHONE) / "bConfigurationValue").read_text()
        assert value == ("\n" if is_blocked else "1\n")


def test_one_that_comes_back_at_another_speed(kernel: FakeKernel, device: UsbDevice) -> None:
    """Its bus id would be another, and dom0 allowed the first."""
    kernel.haste = 3
    kernel.returns[PHONE] = []
    hub = kernel.device(PHONE).parent
    port = hub / "2-0:1.0/usb2-port4"
    port.mkdir(parents=True)
    (port / "peer").symlink_to("../../../usb3/3-0:1.0/usb3-port4")
    kernel.plug("3-4", below="pci0000:00/usb3", serial="0123")
    with pytest.raises(NoDeviceError, match=r"at another speed: attach 3-4 \[UP-307\]"):
        reenumeration.take(kernel, device, 1)
    assert kernel.driver("3-4") == "usb"


@pytest.mark.parametrize(
    ("hub", "link", "peer"),
    [
        ("usb2", "2-0:1.0/usb2-port4/peer", "../usb3-port1"),
        ("1-2.3", "1-2.3:1.0/1-2.3-port4/peer", "../4-1.3-port4"),
        ("usb2", None, None),
    ],
)
def test_the_other_port_of_a_socket(
    kernel: FakeKernel, hub: str, link: str | None, peer: str | None
) -> None:
    home = kernel.plug(PHONE, below=f"pci0000:00/{hub}")
    if link and peer:
        (home.parent / link).parent.mkdir(parents=True)
        (home.parent / link).symlink_to(peer)
    expected = {"../usb3-port1": "3-1", "../4-1.3-port4": "4-1.3.4", None: None}
    with UsbDevice(kernel, PHONE) as device:
        assert device.peer() == expected[peer]


def test_one_that_never_stays(
    kernel: FakeKernel, device: UsbDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Something configures it each time before it is taken."""
    kernel.haste = 3
    kernel.returns[PHONE] = [{"serial": "0123", "bConfigurationValue": "1"}]
    monkeypatch.setattr(kernel, "is_claimed", lambda _: False)
    with pytest.raises(NoDeviceError, match="again and again"):
        reenumeration.take(kernel, device, 1)


def test_a_port_that_another_program_has_claimed(kernel: FakeKernel, device: UsbDevice) -> None:
    hub = kernel.open_node(sysfs.node(kernel, device.hub()), writes=True)
    kernel.control(hub, 0x80045518, (4).to_bytes(4, "little"))
    try:
        with pytest.raises(InUseError, match="has claimed the port"):
            reenumeration.take(kernel, device, 1)
    finally:
        os.close(hub)
    assert device.is_configured()


def test_a_device_that_goes_with_its_hub(kernel: FakeKernel, device: UsbDevice) -> None:
    kernel.haste = 20
    kernel.unplug(PHONE)
    (kernel.tree / "dev/bus/usb/002/001").unlink()
    with pytest.raises(NoDeviceError):
        reenumeration.take(kernel, device, 0)


def test_what_was_blocked_is_blocked_when_it_is_back(kernel: FakeKernel, device: UsbDevice) -> None:
    """Before anything else may happen to it."""
    reenumeration.take(kernel, device, 1, blocked=True)
    assert not device.is_authorized()
    order = [
        line.split()[0] for line in kernel.written if line.split()[0] in ("bind", "authorized")
    ]
    assert order == ["authorized", "bind"]


def test_the_kernel_configures_what_a_dead_exporter_left(kernel: FakeKernel) -> None:
    kernel.plug(PHONE, bConfigurationValue="")
    leave(kernel, f"export-{PHONE}", "1")
    assert run(kernel, "usb-repair") == ExitCode.OK
    assert_configured(kernel)


# A port that is kept shut.


def come_back(kernel: FakeKernel, comes: list[dict[str, str]]) -> threading.Thread:
    """The phone has left the bus, and comes back once and again."""
    kernel.unplug(PHONE)

    def bounce() -> None:
        for attributes in comes:
            time.sleep(0.1)
            if (kernel.usb / "devices" / PHONE).is_symlink():
                kernel.unplug(PHONE)
                time.sleep(0.1)
            kernel.plug(PHONE, below="pci0000:00/usb2", **attributes)

    thread = threading.Thread(target=bounce, daemon=True)
    thread.start()
    return thread


@pytest.mark.parametrize(
    "comes",
    [[{}], [{"idProduct": "4ee0"}], [{}, {"serial": "9"}, {}], [{"authorized": "0"}], []],
)
@pytest.mark.parametrize("keep_unbound", [True, False])
def test_whatever_comes_back_into_a_shut_port_is_blocked(
    kernel: FakeKernel, device: UsbDevice, comes: list[dict[str, str]], keep_unbound: bool
) -> None:
    device.hub()  # Of a device that has gone, too.
    kernel.haste = 1 if comes else 20
    thread = come_back(kernel, comes)
    reenumeration.shut(kernel, device, keep_unbound)
    thread.join()
    assert not kernel.is_claimed(PHONE)
    if comes:
        assert kernel.driver(PHONE) == (None if keep_unbound else "usb")
        assert (kernel.device(PHONE) / "authorized").read_text() == "0\n"
        assert (kernel.device(PHONE) / "bConfigurationValue").read_text() == "\n"


@pytest.mark.parametrize("keep_unbound", [True, False])
def test_one_that_is_back_without_a_driver_yet_is_blocked_when_it_has_one(
    kernel: FakeKernel, device: UsbDevice, keep_unbound: bool
) -> None:
    """It was there, and is there again: that is not the same as having stayed."""
    device.write("authorized", "0", "block")

    def bounce() -> None:
        time.sleep(0.2 * reenumeration.LEAVE_SECONDS / kernel.haste)
        kernel.unplug(PHONE)
        home = kernel.plug(PHONE, driver=None, below="pci0000:00/usb2")
        time.sleep(1.3 * reenumeration.LEAVE_SECONDS / kernel.haste)
        kernel.bind(home)

    kernel.haste = 2
    thread = threading.Thread(target=bounce, daemon=True)
    thread.start()
    reenumeration.shut(kernel, device, keep_unbound)
    thread.join()
    assert (kernel.device(PHONE) / "authorized").read_text() == "0\n"
    assert kernel.driver(PHONE) == (None if keep_unbound else "usb")


def test_a_shut_port_that_somebody_else_has_claimed(kernel: FakeKernel, device: UsbDevice) -> None:
    hub = kernel.open_node(sysfs.node(kernel, device.hub()), writes=True)
    kernel.control(hub, 0x80045518, (4).to_bytes(4, "little"))
    thread = come_back(kernel, [{}])
    reenumeration.shut(kernel, device, keep_unbound=True)
    thread.join()
    os.close(hub)
    assert (kernel.device(PHONE) / "authorized").read_text() == "0\n"


# What the exporter makes of it.


@pytest.mark.usefixtures("agent", "device")
@pytest.mark.parametrize("known", ["by udev", "by the last time", "not"])
def test_a_phone_is_exported(kernel: FakeKernel, peer: socket.socket, known: str) -> None:
    kernel.haste = 3
    database = kernel.tree / "run/udev/data/c189:2"
    if known == "by udev":
        database.write_text("E:QUBES_USB_REENUMERATES=1\n")
    elif known == "by the last time":
        (kernel.tree / LEFT).parent.mkdir(parents=True)
        (kernel.tree / LEFT).write_text(f"2 {KNOWN}\n")
    else:
        kernel.before["bind"] = lambda: kernel.replug(PHONE, serial="0123")
    exporter = Running(kernel, "usb-export", PHONE)
    assert peer.recv(100) == b"131078 480\n"
    wait_for(lambda: len(kernel.published("1-1_4")) == 3, "the publication")
    count = 2 if known == "not" else 1
    assert (kernel.tree / LEFT).read_text() == f"{count} {KNOWN}\n"
    peer.close()
    assert exporter.code() == ExitCode.OK
    assert_configured(kernel)
    assert (kernel.said(), kernel.locks(), kernel.table()) == ("", ["left-1-1.4"], {})


@pytest.mark.usefixtures("agent", "device")
def test_what_another_device_did_in_that_port_is_of_no_interest(
    kernel: FakeKernel, peer: socket.socket
) -> None:
    (kernel.tree / LEFT).parent.mkdir(parents=True)
    (kernel.tree / LEFT).write_text("2 12ab:00cd 9999\n")
    exporter = Running(kernel, "usb-export", PHONE)
    assert peer.recv(100) == b"131077 480\n"
    peer.close()
    assert exporter.code() == ExitCode.OK


@pytest.mark.usefixtures("agent", "device")
@pytest.mark.parametrize(("before", "after"), [(None, 1), (1, 2)])
def test_one_that_leaves_when_it_is_set_up_is_known_from_then_on(
    kernel: FakeKernel, peer: socket.socket, before: int | None, after: int
) -> None:
    kernel.haste = 3
    kernel.command("qubesdb-write")
    if before:
        (kernel.tree / LEFT).parent.mkdir(parents=True)
        (kernel.tree / LEFT).write_text(f"{before} {KNOWN}\n")
    kernel.before["usbip_sockfd"] = lambda: kernel.replug(PHONE, serial="0123")
    assert run(kernel, "usb-export", PHONE) == ExitCode.NO_DEVICE
    assert "1-1.4 left the bus when it was set up in the other qube" in kernel.said()
    assert (kernel.tree / LEFT).read_text() == f"{after} {KNOWN}\n"


def test_what_is_remembered(kernel: FakeKernel) -> None:
    (kernel.tree / LEFT).parent.mkdir(parents=True)
    assert exports.recall(kernel, PHONE, KNOWN) is None
    exports.remember(kernel, PHONE, KNOWN, 2)
    assert exports.recall(kernel, PHONE, KNOWN) == 2
    assert exports.recall(kernel, PHONE, "12ab:00cd 012") is None
    exports.remember(kernel, PHONE, "12ab:00cd ", 0)
    assert exports.recall(kernel, PHONE, "12ab:00cd ") == 0


@pytest.mark.parametrize("gives_drivers", [True, False])
def test_one_that_is_back_without_a_driver_is_settled_where_none_is_given(
    kernel: FakeKernel, device: UsbDevice, *, gives_drivers: bool
) -> None:
    kernel.replug(PHONE, serial="0123")
    kernel.write("/sys/bus/usb/drivers/usb/unbind", PHONE)
    (kernel.usb / "drivers_autoprobe").write_text(f"{gives_drivers:d}\n")
    kernel.haste = 10
    assert reenumeration.settle(kernel, device) is not gives_drivers


@pytest.mark.parametrize("keep_unbound", [True, False])
def test_one_without_a_driver_is_blocked_in_a_shut_port_where_none_is_given(
    kernel: FakeKernel, device: UsbDevice, *, keep_unbound: bool
) -> None:
    kernel.write("/sys/bus/usb/drivers/usb/unbind", PHONE)
    (kernel.usb / "drivers_autoprobe").write_text("0\n")
    reenumeration.shut(kernel, device, keep_unbound)
    assert (kernel.device(PHONE) / "authorized").read_text() == "0\n"
