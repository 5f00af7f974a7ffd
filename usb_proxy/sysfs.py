# SPDX-License-Identifier: GPL-2.0-or-later
"""USB devices as the kernel shows them."""

from __future__ import annotations

import fcntl
import posix as os

from usb_proxy.errors import NoDeviceError, RequestError, SystemLackError, printable, reason
from usb_proxy.idents import BusId, Target, VendorProduct
from usb_proxy.kernel import USB_CLASS_HUB, USBDEVFS_RESET

TYPE_CHECKING = False
if TYPE_CHECKING:
    from usb_proxy.host import Host

DEVICES = "/sys/bus/usb/devices"
VIRTUAL_CONTROLLER = "/vhci_hcd."


class UsbDevice:
    """One device, held by its open sysfs folder; a context manager.

    When the device goes everything here fails, and never reaches another one that took its port.
    """

    def __init__(self, host: Host, bus_id: BusId) -> None:
        self._host = host
        self.bus_id = bus_id
        self._pins: list[int] = []
        link = f"{host.root}{DEVICES}/{bus_id}"
        try:
            self._folder = os.open(link, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise NoDeviceError("UP-301", target=bus_id) from error

    def __enter__(self) -> UsbDevice:
        return self

    def __exit__(self, *_: object) -> None:
        for fd in (self._folder, *self._pins):
            os.close(fd)

    def attribute(self, name: str) -> str:
        """The text of one of its files, without the line's end; NoDeviceError when it has gone."""
        try:
            return self._host.read(name, self._folder).rstrip("\n")
        except OSError as error:
            raise NoDeviceError("UP-302", device=self.bus_id, reason=reason(error)) from error

    def number(self, name: str) -> int:
        """The decimal number in one of its files; NoDeviceError when there is none any more."""
        text = self.attribute(name)
        if not (text.isdigit() and len(text) < 10):
            shown = f"its {name} is '{printable(text.encode(), 40)}'"
            raise NoDeviceError("UP-302", device=self.bus_id, reason=shown)
        return int(text)

    def write(self, name: str, text: str) -> None:
        """Write one of its files; OSError as the kernel says."""
        self._host.write(name, text, self._folder)

    def is_plugged(self) -> bool:
        """Whether the device is still there."""
        try:
            os.stat("busnum", dir_fd=self._folder)
        except OSError:
            return False
        return True

    def driver(self) -> str | None:
        """The name of the driver that has the whole device, if any."""
        try:
            return os.readlink("driver", dir_fd=self._folder).rpartition("/")[2]
        except FileNotFoundError:
            return None

    def is_authorized(self) -> bool:
        """Whether the kernel may configure it (Documentation/usb/authorization.rst)."""
        return self.attribute("authorized") != "0"

    def devid(self) -> int:
        """`busnum << 16 | devnum`: what usbip-host expects in every request for it."""
        return self.number("busnum") << 16 | self.number("devnum")

    def product(self) -> str:
        """What it says it is: `VVVV:PPPP`."""
        return f"{self.attribute('idVendor')}:{self.attribute('idProduct')}"

    def matches(self, target: Target) -> bool:
        """Whether this is a device that `target` names."""
        if isinstance(target, VendorProduct):
            return self.product() == f"{target.vendor}:{target.product}"
        return self.bus_id == target

    def refusal(self) -> RequestError | None:
        """Why this device is left alone, or None."""
        if self.attribute("bDeviceClass") == USB_CLASS_HUB:
            return RequestError("UP-206", device=self.bus_id)
        try:
            path = os.readlink(f"/proc/self/fd/{self._folder}")
        except FileNotFoundError as error:
            raise SystemLackError("UP-709") from error
        if VIRTUAL_CONTROLLER in path:
            return RequestError("UP-207", device=self.bus_id)
        return None

    def pin(self) -> None:
        """Make the kernel keep its data of this device and of its hub, plugged in or not.

        It does so while their nodes are open (drivers/usb/core/devio.c, usbdev_open).
        NoDeviceError when the device has gone, OSError when it has no node.
        """
        if self._pins:
            return
        pins: list[int] = []
        try:
            for folder in ("", "../"):
                pins.append(os.open(self._node(folder), os.O_RDONLY | os.O_CLOEXEC))
            # As it is there still, the numbers were its own all the time.
            self.attribute("busnum")
        except BaseException:
            for fd in pins:
                os.close(fd)
            raise
        self._pins = pins

    def is_pinned(self) -> bool:
        """Whether `pin` has been done."""
        return bool(self._pins)

    def property(self, name: str) -> str | None:
        """A udev property of the device: its value, or None.

        From udev's database, as libudev reads it (systemd, src/libsystemd/sd-device).
        """
        try:
            database = self._host.read(f"/run/udev/data/c{self.attribute('dev')}")
        except OSError:
            return None
        prefix = f"E:{name}="
        for line in database.splitlines():
            if line.startswith(prefix):
                return line.removeprefix(prefix)
        return None

    def reset(self) -> None:
        """Reset its port (USBDEVFS_RESET); the device keeps its bus id.

        NoDeviceError when it does not come back as what it was, SystemLackError without root.
        """
        try:
            fd = os.open(self._node(), os.O_WRONLY | os.O_CLOEXEC)
            try:
                fcntl.ioctl(fd, USBDEVFS_RESET, 0)
            finally:
                os.close(fd)
        except PermissionError as error:
            raise SystemLackError("UP-708", tried="reset", device=self.bus_id) from error
        except OSError as error:
            raise NoDeviceError("UP-303", device=self.bus_id, reason=reason(error)) from error

    def _node(self, folder: str = "") -> str:
        """The file of usbfs for this device, or for its hub with `folder` `../`."""
        bus, device = (self.number(folder + name) for name in ("busnum", "devnum"))
        return f"{self._host.root}/dev/bus/usb/{bus:03d}/{device:03d}"


def find(host: Host, target: Target) -> BusId:
    """The bus id of the one device that `target` names and that may be exported or reset.

    RequestError for a hub, for a device that came from another qube, and when several match;
    NoDeviceError when none does.
    """
    if isinstance(target, BusId):
        with UsbDevice(host, target) as device:
            refusal = device.refusal()
        if refusal:
            raise refusal
        return target
    found = []
    for name in host.listing(DEVICES):
        if name.startswith("usb") or ":" in name:
            continue
        try:
            with UsbDevice(host, BusId(name)) as device:
                if device.matches(target) and not device.refusal():
                    found.append(device.bus_id)
        except NoDeviceError:
            continue
    if len(found) > 1:
        raise RequestError("UP-208", target=target, devices=" and ".join(found))
    if not found:
        raise NoDeviceError("UP-301", target=target)
    return found[0]
