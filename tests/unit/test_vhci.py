# SPDX-License-Identifier: GPL-2.0-or-later
"""The ports of the virtual controllers."""

from __future__ import annotations

import errno
import socket
import threading
from typing import TYPE_CHECKING

import pytest

from usb_proxy.errors import InUseError, PeerError, SystemLackError
from usb_proxy.frontend import vhci
from usb_proxy.handshake import Offer
from usb_proxy.kernel import PortState, UsbSpeed
from usb_proxy.uevents import Uevents

from .processes import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from .fake_kernel import FakeKernel

HIGH_SPEED = [0, 1, 2, 6, 7, 8]
SUPER_SPEED = [3, 4, 5, 9, 10, 11]
DEVID = 0x20005


@pytest.fixture(autouse=True)
def controllers(kernel: FakeKernel) -> None:
    kernel.add_vhci(controllers=2, half=3)


@pytest.fixture
def events() -> Iterator[Uevents]:
    with Uevents() as events:
        yield events


def plug(kernel: FakeKernel, events: Uevents, speed: int = UsbSpeed.HIGH) -> tuple[int, str]:
    """Attach a device: its port's number and its path."""
    port, path = vhci.attach(kernel, kernel.link, Offer(DEVID, speed), events, lambda _: None)
    return port.number, path


def test_all_ports_of_all_controllers_are_seen(kernel: FakeKernel) -> None:
    kernel.occupy(7, DEVID)
    kernel.occupy(10, 0, PortState.NOT_ASSIGNED)
    ports = list(vhci.ports(kernel))
    assert [port.number for port in ports] == list(range(12))
    assert [port.number for port in ports if port.half == "ss"] == SUPER_SPEED
    assert {p.number: p.state for p in ports if p.state != PortState.FREE} == {7: 6, 10: 5}
    assert ports[7].devid == DEVID
    assert [vhci.device_path(kernel, port) for port in (ports[0], ports[5], ports[7])] == [
        "/devices/platform/vhci_hcd.0/usb10/10-1",
        "/devices/platform/vhci_hcd.0/usb11/11-3",
        "/devices/platform/vhci_hcd.1/usb12/12-2",
    ]


def test_without_the_driver_or_its_hubs_a_sentence_is_said(kernel: FakeKernel) -> None:
    port = next(vhci.ports(kernel))
    port.controller = 5
    with pytest.raises(SystemLackError, match=r"vhci_hcd.5 has no root hub that works for hs"):
        vhci.device_path(kernel, port)
    kernel.unload("vhci-hcd")
    assert vhci.find(kernel, 0) is None
    with pytest.raises(SystemLackError, match="vhci-hcd is not loaded"):
        list(vhci.ports(kernel))


@pytest.mark.parametrize("line", ["", "hs 0001", "xs 1 4 0 0 0 0-0", "hs -1 4 0 0 0 0-0"])
def test_a_list_of_ports_that_is_not_known_is_told_of(kernel: FakeKernel, line: str) -> None:
    (kernel.tree / "sys/devices/platform/vhci_hcd.0/status").write_text(f"hub port\n{line}\n")
    with pytest.raises(SystemLackError, match=f"an unknown line '{line}'"):
        list(vhci.ports(kernel))


@pytest.mark.parametrize("speed", range(UsbSpeed.LOW, UsbSpeed.SUPER_PLUS + 1))
def test_the_half_follows_the_speed(
    kernel: FakeKernel, peer: socket.socket, events: Uevents, speed: int
) -> None:
    expected = SUPER_SPEED if speed >= UsbSpeed.SUPER else HIGH_SPEED
    # A hub of its own for each device, as long as there is one.
    order = [expected[index] for index in (0, 3, 1, 2, 4, 5)]
    assert [plug(kernel, events, speed)[0] for _ in order] == order
    half = "SuperSpeed" if speed >= UsbSpeed.SUPER else "high-speed"
    with pytest.raises(InUseError, match=f"all 6 {half} USB ports of this qube are in use; detach"):
        plug(kernel, events, speed)


def test_a_port_has_the_device_that_was_offered(
    kernel: FakeKernel, peer: socket.socket, events: Uevents
) -> None:
    number, path = plug(kernel, events)
    assert kernel.exists(f"/sys{path}")
    assert (kernel.slots[number].devid, kernel.slots[number].speed) == (DEVID, UsbSpeed.HIGH)
    peer.close()
    assert vhci.await_removal(kernel, path, kernel.now() + PATIENCE)
    assert kernel.used() == []


def test_a_port_whose_last_device_is_still_leaving_is_left_out(
    kernel: FakeKernel, peer: socket.socket, events: Uevents
) -> None:
    kernel.slots[0].folder.mkdir()
    assert plug(kernel, events)[0] == 6, "a hub where nothing is on its way out goes first"
    for number in (7, 8):
        kernel.occupy(number)
    assert plug(kernel, events)[0] == 1


def test_no_more_is_looked_at_than_one_controller(
    kernel: FakeKernel, peer: socket.socket, events: Uevents, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Debian's kernel has eight of them of thirty ports, and an attach waits for the look."""
    looks: list[str] = []
    read, listing = kernel.read, kernel.listing

    def look(path: str) -> str:
        looks.append(path)
        return path

    monkeypatch.setattr(kernel, "read", lambda path: read(look(path)))
    monkeypatch.setattr(kernel, "listing", lambda path: listing(look(path)))
    plug(kernel, events)
    folder = "/sys/devices/platform/vhci_hcd.0"
    assert looks == [
        f"{folder}/status",
        folder,
        f"{folder}/usb10/speed",
        f"{folder}/usb10/authorized",
        f"{folder}/usb10/power/runtime_status",
    ]


@pytest.fixture
def busy(kernel: FakeKernel) -> None:
    """The kernel is at work at all hubs, and nothing is to be seen of that."""
    for hub in (kernel.tree / "sys/devices/platform").glob("vhci_hcd.*/usb*"):
        (hub / "power/runtime_status").write_text("active\n")


def test_a_hub_that_sleeps_goes_first(
    kernel: FakeKernel, peer: socket.socket, events: Uevents, busy: None
) -> None:
    hub = kernel.tree / "sys/devices/platform/vhci_hcd.1/usb12"
    (hub / "power/runtime_status").write_text("suspended\n")
    assert plug(kernel, events)[0] == 6


@pytest.mark.parametrize("is_done", [True, False])
def test_a_hub_at_work_is_waited_for(
    kernel: FakeKernel, peer: socket.socket, events: Uevents, busy: None, is_done: bool
) -> None:
    """The one that is tried, and not for ever."""
    kernel.command("cat", "sleep 0.2" if is_done else "exec sleep 60")
    kernel.haste = 1 if is_done else 20
    start = kernel.now()
    assert plug(kernel, events)[0] == 0
    hub = "/sys/devices/platform/vhci_hcd.0/usb10"
    assert kernel.calls("cat") == [[f"{hub}/bConfigurationValue"]]
    took = kernel.now() - start
    assert 0.2 < took < vhci.HUB_SECONDS if is_done else took >= vhci.HUB_SECONDS


@pytest.mark.parametrize("is_refused", [False, True])
def test_hubs_of_a_kernel_that_does_not_tell(
    kernel: FakeKernel, peer: socket.socket, events: Uevents, is_refused: bool
) -> None:
    for status in (kernel.tree / "sys/devices/platform").glob("*/usb*/power/runtime_status"):
        status.unlink()
        if is_refused:
            status.symlink_to(status)
    kernel.command("cat")
    assert plug(kernel, events)[0] == 0
    assert len(kernel.calls("cat")) == 1


def test_a_port_that_becomes_ready_is_waited_for(
    kernel: FakeKernel, peer: socket.socket, events: Uevents
) -> None:
    slots = [kernel.slots[number] for number in HIGH_SPEED]
    for slot in slots:
        slot.folder.mkdir()

    def leave() -> None:
        slots[3].folder.rmdir()
        kernel.announce()

    leaving = threading.Timer(0.02, leave)
    leaving.start()
    assert plug(kernel, events)[0] == slots[3].number
    leaving.join()


def test_no_port_that_is_ready_is_no_port(
    kernel: FakeKernel, peer: socket.socket, events: Uevents
) -> None:
    kernel.haste = 50
    for number in HIGH_SPEED:
        kernel.slots[number].folder.mkdir()
    with pytest.raises(InUseError):
        plug(kernel, events)


def test_a_hub_that_is_not_authorized_is_not_used(
    kernel: FakeKernel, peer: socket.socket, events: Uevents
) -> None:
    """Nothing would arrive there."""
    for number in (10, 12):
        hub = kernel.tree / f"sys/devices/platform/vhci_hcd.{number // 2 - 5}/usb{number}"
        (hub / "authorized").write_text("0\n")
        if number == 10:
            assert plug(kernel, events)[0] == 6
    with pytest.raises(SystemLackError, match=r"virtual hub usb1[02], .*devices/usb1[02]/auth"):
        plug(kernel, events)
    assert plug(kernel, events, UsbSpeed.SUPER)[0] == 3


@pytest.fixture
def undriven(kernel: FakeKernel) -> Path:
    """Hubs of one half without a driver: where they are."""
    folder = kernel.tree / "sys/devices/platform"
    for driver in folder.glob("*/usb1[02]/1[02]-0:1.0/driver"):
        driver.rmdir()
    return folder


def test_a_hub_that_came_while_no_drivers_were_given(
    kernel: FakeKernel,
    peer: socket.socket,
    events: Uevents,
    undriven: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It gets its own, once they are given again."""
    probed: list[str] = []

    def give(_file: Path, name: str) -> None:
        probed.append(name)
        for hub in undriven.glob(f"*/usb*/{name}"):
            (hub / "driver").mkdir()

    monkeypatch.setattr(kernel, "_write_drivers_probe", give)
    switch = kernel.usb / "drivers_autoprobe"
    switch.write_text("0\n")
    with pytest.raises(SystemLackError, match=r"echo 1 .*/drivers_autoprobe \[UP-762\]"):
        plug(kernel, events)
    assert plug(kernel, events, UsbSpeed.SUPER)[0] == 3
    assert probed == []
    switch.write_text("1\n")
    assert plug(kernel, events)[0] == 0
    assert probed == ["usb10", "10-0:1.0"]


def test_a_hub_that_gets_no_driver_is_not_used(
    kernel: FakeKernel, peer: socket.socket, events: Uevents, undriven: Path
) -> None:
    kernel.refuse["drivers_probe"] = errno.ENODEV
    with pytest.raises(SystemLackError, match=r"vhci_hcd.1 has no root hub that works for hs"):
        plug(kernel, events)
    (undriven / "vhci_hcd.1/usb12/12-0:1.0/driver").mkdir()
    assert plug(kernel, events)[0] == 6


def test_a_kernel_that_takes_no_new_devices(
    kernel: FakeKernel, peer: socket.socket, events: Uevents
) -> None:
    switch = kernel.tree / "proc/sys/kernel/deny_new_usb"
    switch.parent.mkdir(parents=True)
    switch.write_text("1\n")
    with pytest.raises(SystemLackError, match=r"echo 0 .*/deny_new_usb \[UP-763\]"):
        plug(kernel, events)
    assert kernel.used() == []
    switch.write_text("0\n")
    assert plug(kernel, events)[0] == 0


def test_a_port_that_another_takes_first_is_passed_over(
    kernel: FakeKernel, peer: socket.socket, events: Uevents
) -> None:
    kernel.before["attach"] = lambda: kernel.occupy(0)
    number, path = plug(kernel, events)
    assert (number, path[-4:]) == (1, "10-2")
    assert kernel.used() == [0, 1]


def test_an_old_kernel_gets_the_speed_that_it_knows(
    kernel: FakeKernel, peer: socket.socket, events: Uevents
) -> None:
    kernel.fastest = UsbSpeed.SUPER
    number, _ = plug(kernel, events, UsbSpeed.SUPER_PLUS)
    assert kernel.slots[number].speed == UsbSpeed.SUPER
    assert len(kernel.written) == 2


@pytest.mark.parametrize(
    ("number", "kind", "said"),
    [
        (errno.EACCES, SystemLackError, "only root may attach"),
        (errno.EPERM, SystemLackError, "root"),
        (errno.EINVAL, PeerError, "refused the device 0x20005 at port 0: Invalid argument"),
    ],
)
def test_what_the_kernel_refuses_is_told_in_a_sentence(
    kernel: FakeKernel,
    peer: socket.socket,
    events: Uevents,
    *,
    number: int,
    kind: type[Exception],
    said: str,
) -> None:
    kernel.refuse["attach"] = number
    with pytest.raises(kind, match=said):
        plug(kernel, events)


@pytest.mark.parametrize(
    ("state", "shown", "devid", "is_found"),
    [
        (PortState.FREE, 0, None, False),
        (PortState.USED, DEVID, None, True),
        (PortState.USED, DEVID, DEVID, True),
        (PortState.USED, DEVID + 1, DEVID, False),
        (PortState.NOT_ASSIGNED, 0, DEVID, True),
        (PortState.ERROR, 0, DEVID, True),
    ],
)
def test_a_port_is_found_by_its_number_and_device(
    kernel: FakeKernel, state: int, shown: int, devid: int | None, is_found: bool
) -> None:
    kernel.occupy(4, shown, state)
    found = vhci.find(kernel, 4, devid)
    assert (found is not None and found.number == 4) == is_found
    assert vhci.find(kernel, 99, devid) is None


def test_a_device_is_detached_and_one_that_left_already_is_no_failure(kernel: FakeKernel) -> None:
    kernel.occupy(4, DEVID)
    port = vhci.find(kernel, 4)
    assert port is not None
    path = vhci.device_path(kernel, port)
    assert not vhci.await_removal(kernel, path, kernel.now() + 0.02)
    vhci.detach(kernel, port)
    assert not kernel.used()
    assert vhci.await_removal(kernel, path, kernel.now())
    vhci.detach(kernel, port)
    kernel.refuse["detach"] = errno.EACCES
    with pytest.raises(SystemLackError, match="did not detach port 4: Permission denied"):
        vhci.detach(kernel, port)
