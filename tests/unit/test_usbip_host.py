# SPDX-License-Identifier: GPL-2.0-or-later
"""Taking a device, handing it over and giving it back."""

from __future__ import annotations

import errno
import os
import socket
from typing import TYPE_CHECKING

import pytest

from usb_proxy.backend import usbip_host
from usb_proxy.errors import InUseError, NoDeviceError, SystemLackError
from usb_proxy.idents import BusId
from usb_proxy.sysfs import UsbDevice

from .fake_kernel import MATCH_SLOTS
from .processes import wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .fake_kernel import FakeKernel

STEPS = ("match_busid", "unbind", "bind")


@pytest.fixture
def device(kernel: FakeKernel) -> Iterator[UsbDevice]:
    """A device that its usual driver has."""
    kernel.plug("2-1")
    with UsbDevice(kernel, BusId("2-1")) as device:
        yield device


def test_a_device_is_taken_and_given_back(kernel: FakeKernel, device: UsbDevice) -> None:
    usbip_host.take(kernel, device)
    assert kernel.written == ["match_busid add 2-1", "unbind 2-1", "bind 2-1"]
    assert usbip_host.is_held(device) and not usbip_host.is_in_use(device)
    usbip_host.give_back(kernel, device, keep_unbound=False)
    assert kernel.written[-1] == "rebind 2-1"
    assert kernel.driver("2-1") == "usb"
    assert kernel.table() == {}


@pytest.mark.parametrize("driver", [None, "usb", "other", "usbip-host"])
@pytest.mark.parametrize("status", [1, 2, 3])
def test_a_device_is_taken_from_whoever_has_it(
    kernel: FakeKernel, driver: str | None, status: int
) -> None:
    home = kernel.plug("2-1", driver)
    if driver == "usbip-host":
        (home / "usbip_status").write_text(f"{status}\n")
    with UsbDevice(kernel, BusId("2-1")) as device:
        assert usbip_host.is_in_use(device) == (driver == "usbip-host" and status != 1)
        usbip_host.take(kernel, device)
    assert (kernel.driver("2-1"), kernel.status("2-1")) == ("usbip-host", 1)


def test_a_session_starts_and_ends_with_its_connection(
    kernel: FakeKernel, device: UsbDevice, peer: socket.socket
) -> None:
    usbip_host.take(kernel, device)
    usbip_host.hand_over(device, kernel.link)
    assert usbip_host.is_in_use(device)
    peer.close()
    usbip_host.give_back(kernel, device, keep_unbound=False)
    assert kernel.driver("2-1") == "usb"


@pytest.mark.parametrize("ends", [False, True])
def test_a_device_is_given_back_in_the_middle_of_a_session(
    kernel: FakeKernel, device: UsbDevice, peer: socket.socket, ends: bool
) -> None:
    """The peer sees the end; a session whose reset failed (status 3) goes the same way."""
    usbip_host.take(kernel, device)
    usbip_host.hand_over(device, kernel.link)
    if ends:
        peer.close()
        wait_for(lambda: kernel.status("2-1") == 1, "the end of the session")
        (kernel.device("2-1") / "usbip_status").write_text("3\n")
    usbip_host.give_back(kernel, device, keep_unbound=False)
    assert kernel.driver("2-1") == "usb"
    assert ends or peer.recv(1) == b""


def test_a_device_is_kept_from_drivers_and_taken_again(
    kernel: FakeKernel, device: UsbDevice
) -> None:
    usbip_host.take(kernel, device)
    usbip_host.give_back(kernel, device, keep_unbound=True)
    assert kernel.driver("2-1") is None
    assert not device.is_authorized()
    usbip_host.take(kernel, device)
    assert kernel.driver("2-1") == "usbip-host"


@pytest.mark.parametrize("status", [1, 2, 3])
@pytest.mark.parametrize("keep_unbound", [False, True])
def test_a_session_that_is_cut_off_ends_with_a_reset(
    kernel: FakeKernel, device: UsbDevice, status: int, *, keep_unbound: bool
) -> None:
    """After the others the kernel has reset the device, or has failed to."""
    usbip_host.take(kernel, device)
    (kernel.device("2-1") / "usbip_status").write_text(f"{status}\n")
    assert usbip_host.give_back(kernel, device, keep_unbound)
    assert len(kernel.resets or ()) == (status == 2 and not keep_unbound)
    assert kernel.table() == {}


def test_a_device_that_was_not_authorized_before_stays_so(kernel: FakeKernel) -> None:
    kernel.plug("2-1", authorized="0")
    with UsbDevice(kernel, BusId("2-1")) as device:
        usbip_host.take(kernel, device)
        assert not device.is_authorized()


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("step", STEPS)
def test_a_device_that_goes_at_any_step_is_told_of(
    kernel: FakeKernel, device: UsbDevice, step: str, again: bool
) -> None:
    """Another one that is plugged into its place meanwhile is not mistaken for it."""

    def go() -> None:
        kernel.unplug("2-1")
        if again:
            kernel.plug("2-1")

    kernel.before[step] = go
    with pytest.raises(NoDeviceError, match="went away"):
        usbip_host.take(kernel, device)
    if again:
        assert kernel.driver("2-1") == "usb"


@pytest.mark.parametrize("step", ["usbip_sockfd", "unbind", "rebind"])
def test_a_device_that_goes_while_it_is_given_back_gives_its_slot_back(
    kernel: FakeKernel, device: UsbDevice, step: str
) -> None:
    usbip_host.take(kernel, device)
    kernel.before[step] = lambda: kernel.unplug("2-1")
    usbip_host.give_back(kernel, device, keep_unbound=False)
    assert kernel.table() == {}


@pytest.mark.parametrize("keep_unbound", [False, True])
def test_a_device_that_has_gone_gives_its_slot_back(
    kernel: FakeKernel, device: UsbDevice, keep_unbound: bool
) -> None:
    """Another one that was plugged in since keeps its driver."""
    usbip_host.take(kernel, device)
    kernel.unplug("2-1")
    kernel.plug("2-1", "other")
    usbip_host.give_back(kernel, device, keep_unbound)
    assert kernel.driver("2-1") == "other"
    assert kernel.table() == {}


@pytest.mark.parametrize("keep_unbound", [False, True])
def test_a_device_is_given_back_where_the_driver_was_unloaded(
    kernel: FakeKernel, device: UsbDevice, keep_unbound: bool
) -> None:
    usbip_host.take(kernel, device)
    kernel.release_device("2-1")
    kernel.unload("usbip-host")
    usbip_host.give_back(kernel, device, keep_unbound)
    assert kernel.driver("2-1") == (None if keep_unbound else "usb")


def test_a_device_that_somebody_else_has_released_stays_blocked(kernel: FakeKernel) -> None:
    home = kernel.plug("2-1", authorized="0")
    with UsbDevice(kernel, BusId("2-1")) as device:
        usbip_host.take(kernel, device)
        device.write("authorized", "1", "authorize")
        kernel.release_device("2-1")
        usbip_host.give_back(kernel, device, keep_unbound=False, blocked=True)
    assert (home / "authorized").read_text() == "0\n"
    assert kernel.driver("2-1") == "usb"


@pytest.mark.parametrize("is_plugged", [False, True])
def test_without_usbfs_a_device_is_given_back_but_for_its_slot(
    kernel: FakeKernel, device: UsbDevice, is_plugged: bool
) -> None:
    (kernel.tree / "dev").rename(kernel.tree / "nodes")
    usbip_host.take(kernel, device)
    (kernel.tree / "nodes").rename(kernel.tree / "dev")
    if not is_plugged:
        kernel.unplug("2-1")
    (kernel.tree / "dev").rename(kernel.tree / "nodes")
    usbip_host.give_back(kernel, device, keep_unbound=False)
    assert not is_plugged or kernel.driver("2-1") == "usb"


def test_a_device_is_given_back_where_no_more_files_can_be_opened(
    kernel: FakeKernel, device: UsbDevice
) -> None:
    """The socket that is offered before needs two; what ends the session, one."""
    usbip_host.take(kernel, device)
    before = len(os.listdir("/proc/self/fd"))

    def no_more() -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    opened: list[int] = []
    kernel.before["usbip_sockfd"] = no_more
    kernel.before["unbind"] = lambda: opened.append(len(os.listdir("/proc/self/fd")) - before)
    usbip_host.give_back(kernel, device, keep_unbound=False)
    assert (kernel.driver("2-1"), kernel.table(), opened) == ("usb", {}, [0])


def test_handing_over_fails_with_a_sentence(
    kernel: FakeKernel, device: UsbDevice, peer: socket.socket
) -> None:
    usbip_host.take(kernel, device)
    reader, writer = os.pipe()
    with pytest.raises(SystemLackError, match="did not hand over 2-1: Invalid argument"):
        usbip_host.hand_over(device, reader)
    os.close(reader)
    os.close(writer)
    kernel.unplug("2-1")
    with pytest.raises(NoDeviceError, match="went away"):
        usbip_host.hand_over(device, kernel.link)


def test_the_table_holds_so_many_and_no_more(kernel: FakeKernel, device: UsbDevice) -> None:
    for port in range(MATCH_SLOTS):
        kernel.write("/sys/bus/usb/drivers/usbip-host/match_busid", f"add 1-{port + 1}")
    with pytest.raises(SystemLackError, match=r"16 .*restart this qube"):
        usbip_host.take(kernel, device)
    assert kernel.driver("2-1") == "usb"


def test_slots_are_given_back(kernel: FakeKernel) -> None:
    for port in range(2 * MATCH_SLOTS):
        kernel.plug(f"1-{port + 1}")
        with UsbDevice(kernel, BusId(f"1-{port + 1}")) as device:
            usbip_host.take(kernel, device)
            usbip_host.give_back(kernel, device, keep_unbound=False)
    assert kernel.table() == {}


@pytest.mark.parametrize(
    ("step", "number", "kind", "said"),
    [
        ("match_busid", errno.EACCES, SystemLackError, "only root may register"),
        ("unbind", errno.EPERM, SystemLackError, "only root may take"),
        ("bind", errno.EBUSY, InUseError, "another driver of this qube holds USB device 2-1"),
        ("bind", errno.EIO, SystemLackError, "did not take 2-1: Input/output error; unplug"),
        ("bind", errno.ENODEV, SystemLackError, "did not take 2-1: No such device; unplug"),
    ],
)
def test_what_the_kernel_refuses_is_told_in_a_sentence(
    kernel: FakeKernel,
    device: UsbDevice,
    *,
    step: str,
    number: int,
    kind: type[Exception],
    said: str,
) -> None:
    kernel.refuse[step] = number
    with pytest.raises(kind, match=said):
        usbip_host.take(kernel, device)


def test_the_module_is_loaded_when_it_is_missing(kernel: FakeKernel) -> None:
    kernel.load_module(usbip_host.NAME, usbip_host.DRIVER)
    kernel.unload("usbip-host")
    kernel.load_module(usbip_host.NAME, usbip_host.DRIVER)
    assert kernel.calls("modprobe") == [["usbip-host"]]
    assert kernel.exists(usbip_host.DRIVER)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("echo FATAL: not found >&2; exit 1", "FATAL: not found"),
        ("exit 1", "exit code 1"),
        ("exit 0", "exit code 0"),
    ],
)
def test_a_missing_module_is_told_of(kernel: FakeKernel, body: str, said: str) -> None:
    kernel.unload("usbip-host")
    kernel.command("modprobe", body)
    with pytest.raises(SystemLackError, match=rf"usbip-host cannot be loaded \({said}\); use"):
        kernel.load_module(usbip_host.NAME, usbip_host.DRIVER)
