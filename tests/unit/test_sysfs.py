# SPDX-License-Identifier: GPL-2.0-or-later
"""USB devices as the kernel shows them."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest

from usb_proxy.backend import udev
from usb_proxy.backend.usbip_host import look_up, open_usable
from usb_proxy.errors import NoDeviceError, RequestError, SystemLackError, UsbProxyError
from usb_proxy.idents import BusId, parse_target
from usb_proxy.sysfs import UsbDevice

from .fake_kernel import node

if TYPE_CHECKING:
    from .fake_kernel import FakeKernel


@pytest.fixture
def stick(kernel: FakeKernel) -> str:
    """A USB stick among a bus' other inhabitants."""
    kernel.plug("2-1", idVendor="046d", idProduct="0abc", dev="189:129", devnum="5")
    kernel.plug("usb2", bDeviceClass="09", idVendor="046d", idProduct="0abc")
    kernel.plug("2-1:1.0", idVendor="046d", idProduct="0abc")
    return "2-1"


def find(kernel: FakeKernel, name: str) -> BusId:
    """The device that is opened for a name."""
    target = parse_target(name)
    with open_usable(kernel, look_up(kernel, target), target) as device:
        return device.bus_id


@pytest.mark.parametrize("target", ["2-1", "0x046d.0x0abc", "0x046D.0x0ABC"])
def test_a_device_is_found_by_either_name(kernel: FakeKernel, stick: str, target: str) -> None:
    assert find(kernel, target) == stick


@pytest.mark.parametrize("target", ["2-2", "2-1.1", "0x046d.0x0abd", "0x046e.0x0abc"])
def test_a_device_that_is_not_there_is_told_of(kernel: FakeKernel, stick: str, target: str) -> None:
    with pytest.raises(NoDeviceError, match=f"no USB device {target} is plugged in"):
        find(kernel, target)


def test_without_usb_there_is_no_device(kernel: FakeKernel) -> None:
    (kernel.usb / "devices").rmdir()
    for target in ("2-1", "0x046d.0x0abc"):
        with pytest.raises(NoDeviceError):
            find(kernel, target)


def test_several_of_a_kind_have_to_be_told_apart(kernel: FakeKernel, stick: str) -> None:
    kernel.plug("1-1.4", idVendor="046d", idProduct="0abc")
    with pytest.raises(RequestError, match=r"matches 1-1\.4 and 2-1; name one by its bus id"):
        find(kernel, "0x046d.0x0abc")
    kernel.unplug("2-1")
    assert find(kernel, "0x046d.0x0abc") == "1-1.4"


def test_hubs_and_devices_of_other_qubes_are_refused(kernel: FakeKernel) -> None:
    kernel.plug("2-2", bDeviceClass="09")
    kernel.plug("10-1", below="platform/vhci_hcd.0/usb10")
    for bus_id, said in (("2-2", "2-2 is a hub"), ("10-1", "attached here from another qube")):
        with pytest.raises(RequestError, match=said):
            find(kernel, bus_id)
    with pytest.raises(NoDeviceError):
        find(kernel, "0x12ab.0x00cd")


def test_a_devices_files(kernel: FakeKernel, stick: str) -> None:
    with UsbDevice(kernel, BusId("2-1")) as device:
        assert device.attribute("speed") == "480"
        assert device.devid() == 2 << 16 | 5
        assert (device.driver(), device.is_authorized()) == ("usb", True)
        device.write("authorized", "0", "block")
        assert not device.is_authorized()
        assert device.is_plugged()
        with pytest.raises(NoDeviceError, match="went away"):
            device.attribute("usbip_status")
        for text in ("", "-1", "x", "9" * 5000):
            (kernel.device(stick) / "devnum").write_text(f"{text}\n")
            with pytest.raises(NoDeviceError, match="its devnum is '"):
                device.devid()


def test_a_device_that_took_the_place_of_another_is_not_touched(
    kernel: FakeKernel, stick: str
) -> None:
    with UsbDevice(kernel, BusId("2-1")) as device:
        kernel.unplug("2-1")
        kernel.plug("2-1")
        assert not device.is_plugged()
        assert device.driver() is None
        with pytest.raises(NoDeviceError, match="USB device 2-1 went away"):
            device.attribute("speed")
        with pytest.raises(NoDeviceError, match="USB device 2-1 went away"):
            device.write("authorized", "0", "block")
    assert (kernel.device("2-1") / "authorized").read_text() == "1\n"


@pytest.mark.parametrize(
    "number", [errno.ENODEV, errno.ENOENT, errno.ENXIO, errno.EIO, errno.EMFILE]
)
def test_whatever_the_kernel_answers_is_a_sentence(
    kernel: FakeKernel, stick: str, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Of reading, writing and looking, with the device there or gone just then."""

    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    with UsbDevice(kernel, BusId("2-1")) as device:
        monkeypatch.setattr(kernel, "read", fail)
        monkeypatch.setattr(kernel, "write", fail)
        for do in (
            lambda: device.attribute("speed"),
            lambda: device.number("devnum"),
            device.identity,
            device.refusal,
            device.is_authorized,
            lambda: device.write("authorized", "1", "authorize"),
        ):
            with pytest.raises(UsbProxyError):
                do()
        kernel.unplug(stick)
        with pytest.raises(NoDeviceError):
            device.write("authorized", "1", "authorize")
    monkeypatch.setattr("usb_proxy.files.os.open", fail)
    with pytest.raises(UsbProxyError):
        UsbDevice(kernel, BusId("2-1"))


@pytest.mark.parametrize(
    ("database", "value"),
    [
        (None, None),
        ("", None),
        ("E:QUBES_USB_RESET=1\n", "1"),
        ("E:QUBES_USB_RESET=\n", ""),
        ("S:x\nE:A=b\nE:QUBES_USB_RESET=a=b\nE:Z=1", "a=b"),
        ("E:QUBES_USB_RESETS=1", None),
        ("I:QUBES_USB_RESET=1\nX:E:QUBES_USB_RESET=1\n", None),
        ("E:N=ü\nE:QUBES_USB_RESET=1", "1"),
    ],
)
def test_a_property_is_read_from_udevs_database(
    kernel: FakeKernel, stick: str, database: str | None, value: str | None
) -> None:
    if database is not None:
        (kernel.tree / "run/udev/data/c189:129").write_text(database)
    with UsbDevice(kernel, BusId("2-1")) as device:
        known = udev.properties(kernel, device)
        assert known is not None and known.get("QUBES_USB_RESET") == value


def test_a_reset_that_fails_is_told_of(kernel: FakeKernel, stick: str) -> None:
    """A node that is a plain file refuses the request; resetting is tested in the lab."""
    kernel.resets = None
    path = node(kernel.tree, kernel.device("2-1"))
    with UsbDevice(kernel, BusId("2-1")) as device:
        with pytest.raises(NoDeviceError, match="did not survive its reset: Inappropriate ioctl"):
            device.reset()
        if os.geteuid():
            path.chmod(0o444)
            with pytest.raises(SystemLackError, match="only root may reset USB device 2-1"):
                device.reset()
        path.rename(path.with_name("elsewhere"))
        with pytest.raises(NoDeviceError, match="did not survive its reset: No such file"):
            device.reset()
