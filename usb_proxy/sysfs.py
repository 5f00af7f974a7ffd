# SPDX-License-Identifier: GPL-2.0-or-later
"""USB devices as the kernel shows them."""

from __future__ import annotations

import errno

from usb_proxy.errors import (
    InUseError,
    NoDeviceError,
    RequestError,
    SystemLackError,
    UsbProxyError,
    printable,
    reason,
)
from usb_proxy.idents import BusId, Target, VendorProduct
from usb_proxy.kernel import AUTOPROBE, USB_CLASS_HUB, USBDEVFS_RESET

TYPE_CHECKING = False
if TYPE_CHECKING:
    from usb_proxy.host import Host

DEVICES = "/sys/bus/usb/devices"
SERIAL_LIMIT = 126
"""A string descriptor has at most 255 bytes, two for each character (USB 2.0, 9.6.7)."""

VIRTUAL_CONTROLLER = "/vhci_hcd."

GONE = (errno.ENOENT, errno.ENODEV, errno.ENXIO, errno.ENOTDIR)
"""What the kernel answers of a device that has gone, or of a file that went with its driver."""


class UsbDevice:
    """One device, held by its open sysfs folder; a context manager.

    When the device goes everything here fails, and never reaches another one that took its port.
    What the kernel answers is raised as a sentence, see `failure`; but by `pin`.
    """

    def __init__(self, host: Host, bus_id: BusId) -> None:
        self._host = host
        self.bus_id = bus_id
        self._pins: list[int] = []
        self._identity: str | None = None
        try:
            self._folder = host.open_folder(f"{DEVICES}/{bus_id}")
        except OSError as error:
            if error.errno in GONE:
                raise NoDeviceError("UP-301", target=bus_id) from error
            why = reason(error)
            raise SystemLackError("UP-712", tried="open", device=bus_id, reason=why) from error

    def __enter__(self) -> UsbDevice:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let it go."""
        self._host.close_all(self._folder, *self._pins)

    def become(self, successor: UsbDevice) -> None:
        """Stand for what came back under this bus id; its own object is used no more."""
        self.close()
        self._folder, self._pins = successor._folder, successor._pins
        self._identity = successor._identity

    def attribute(self, name: str) -> str:
        """The text of one of its files, without the line's end; NoDeviceError when it has gone."""
        try:
            return self._host.read(name, self._folder).rstrip("\n")
        except OSError as error:
            if error.errno in GONE:
                raise self._departure(error) from error
            raise self.failure("look at", error) from error

    def number(self, name: str) -> int:
        """The decimal number in one of its files; NoDeviceError when there is none any more."""
        text = self.attribute(name)
        if not (text.isdigit() and len(text) < 10):
            shown = f"its {name} is '{printable(text.encode(), 40)}'"
            raise NoDeviceError("UP-302", device=self.bus_id, reason=shown)
        return int(text)

    def write(self, name: str, text: str, tried: str) -> None:
        """Write one of its files; `failure` of what was `tried` as the kernel says."""
        try:
            self._host.write(name, text, self._folder)
        except OSError as error:
            raise self.failure(tried, error) from error

    def _departure(self, error: OSError) -> NoDeviceError:
        return NoDeviceError("UP-302", device=self.bus_id, reason=reason(error))

    def failure(self, tried: str, error: OSError) -> UsbProxyError:
        """What to raise when the kernel refused to do what was `tried` with it."""
        if not self.is_plugged():
            return self._departure(error)
        if error.errno == errno.EBUSY:
            return InUseError("UP-404", device=self.bus_id)
        if error.errno in (errno.EACCES, errno.EPERM):
            return SystemLackError("UP-708", tried=tried, device=self.bus_id)
        # It is there, but not what this program needs beside it: a driver's file, or a node.
        if error.errno == errno.ENOENT and str(error.filename).startswith("/"):
            return SystemLackError("UP-760", path=error.filename, reason=reason(error))
        return SystemLackError("UP-712", tried=tried, device=self.bus_id, reason=reason(error))

    def is_plugged(self) -> bool:
        """Whether the device is still there."""
        return self._host.exists("busnum", self._folder)

    def driver(self) -> str | None:
        """The name of the driver that has the whole device, if any."""
        try:
            return self._host.read_link("driver", self._folder).rpartition("/")[2]
        except OSError as error:
            if error.errno in GONE:
                return None
            raise self.failure("look at", error) from error

    def is_probed(self) -> bool:
        """Whether the kernel has given it a driver, or gives none by itself."""
        return self.driver() is not None or self._host.read(AUTOPROBE).strip() == "0"

    def is_authorized(self) -> bool:
        """Whether the kernel may configure it (Documentation/usb/authorization.rst)."""
        return self.attribute("authorized") != "0"

    def unauthorized(self) -> list[str]:
        """Its interfaces that no driver may have; those of what has gone are left out.

        Documentation/usb/authorization.rst, "Interface authorization".
        """
        found = []
        for name in self._host.listing(f"{DEVICES}/{self.bus_id}"):
            try:
                if ":" in name and self.attribute(f"{name}/authorized") == "0":
                    found.append(name)
            except UsbProxyError:
                pass  # It has gone, or the kernel has no such file.
        return found

    def is_settled(self) -> bool:
        """Whether the kernel is done with it: it is blocked, configured, or gets no driver."""
        if not self.is_authorized():
            return True
        return self.is_probed() if self.driver() is None else self.is_configured()

    def devid(self) -> int:
        """`busnum << 16 | devnum`: what usbip-host expects in every request for it."""
        return self.number("busnum") << 16 | self.number("devnum")

    def product(self) -> str:
        """What it says it is: `VVVV:PPPP`."""
        return f"{self.attribute('idVendor')}:{self.attribute('idProduct')}"

    def path(self) -> str:
        """Its folder without links, below the root of the machine; SystemLackError without /proc.

        With ` (deleted)` at its end when it has gone.
        """
        try:
            return self._host.place(self._folder)
        except FileNotFoundError as error:
            raise SystemLackError("UP-709") from error

    def hub(self) -> str:
        """The folder of its hub, wherever the device is."""
        return self.path().rpartition("/")[0]

    def port(self) -> str:
        """The folder of its port; `peer` there leads to the other one of the same socket."""
        hub = self.hub()
        name = hub.rpartition("/")[2]
        interface = f"{name[3:]}-0" if name.startswith("usb") else name
        return f"{hub}/{interface}:1.0/{name}-port{port_number(self.bus_id)}"

    def peer(self) -> BusId | None:
        """Its bus id if it came back at the other of USB 2 and USB 3; it may have gone.

        Both halves of a controller or hub have a port for the one that is seen from outside
        (Documentation/ABI/testing/sysfs-bus-usb, `peer`).
        """
        try:
            link = self._host.read_link(f"{self.port()}/peer")
        except OSError:
            return None
        other, _, port = link.rpartition("/")[2].rpartition("-port")
        return BusId(f"{other[3:]}-{port}" if other.startswith("usb") else f"{other}.{port}")

    def identity(self) -> str:
        """Vendor, product and serial number, by which a device is known that comes back.

        Read once: it is what the device was when this was asked first.
        """
        if self._identity is None:
            try:
                untrusted_serial = self.attribute("serial")
            except NoDeviceError:
                untrusted_serial = ""  # Many have none; what has gone has no product, either.
            serial = printable(untrusted_serial.encode(errors="replace"), SERIAL_LIMIT)
            self._identity = f"{self.product()} {serial}"
        return self._identity

    def is_configured(self) -> bool:
        """Whether a configuration was chosen for it, by the kernel or by a frontend."""
        return bool(self.attribute("bConfigurationValue"))

    def matches(self, target: Target) -> bool:
        """Whether this is a device that `target` names."""
        if isinstance(target, VendorProduct):
            return self.product() == f"{target.vendor}:{target.product}"
        return self.bus_id == target

    def refusal(self) -> RequestError | None:
        """Why this device is left alone, or None."""
        if self.attribute("bDeviceClass") == USB_CLASS_HUB:
            return RequestError("UP-206", device=self.bus_id)
        if VIRTUAL_CONTROLLER in self.path():
            return RequestError("UP-207", device=self.bus_id)
        return None

    @property
    def is_pinned(self) -> bool:
        """Whether `pin` has been done."""
        return bool(self._pins)

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
                pins.append(self._host.open_node(self._node(folder)))
            # As it is there still, the numbers were its own all the time.
            self.attribute("busnum")
        except BaseException:
            self._host.close_all(*pins)
            raise
        self._pins = pins

    def reset(self) -> None:
        """Reset its port (USBDEVFS_RESET); the device keeps its bus id.

        NoDeviceError when it does not come back as what it was, SystemLackError without root.
        """
        try:
            fd = self._host.open_node(self._node(), writes=True)
            try:
                self._host.control(fd, USBDEVFS_RESET)
            finally:
                self._host.close_all(fd)
        except PermissionError as error:
            raise SystemLackError("UP-708", tried="reset", device=self.bus_id) from error
        except OSError as error:
            raise NoDeviceError("UP-303", device=self.bus_id, reason=reason(error)) from error

    def _node(self, folder: str = "") -> str:
        """The file of usbfs for this device, or for its hub with `folder` `../`."""
        bus, device = (self.number(folder + name) for name in ("busnum", "devnum"))
        return f"/dev/bus/usb/{bus:03d}/{device:03d}"


def port_number(bus_id: BusId) -> int:
    """The number of a device's port at its hub."""
    return int(bus_id.replace("-", ".").rpartition(".")[2])


def node(host: Host, folder: str) -> str:
    """The file of usbfs for the device or hub in a folder; OSError when it has gone."""
    bus, device = (int(host.read(f"{folder}/{name}")) for name in ("busnum", "devnum"))
    return f"/dev/bus/usb/{bus:03d}/{device:03d}"
