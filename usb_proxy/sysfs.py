# SPDX-License-Identifier: GPL-2.0-or-later
"""USB devices as the kernel shows them."""

from __future__ import annotations

import posix as os

from usb_proxy.errors import NoDeviceError, RequestError, SystemLackError, printable, reason
from usb_proxy.idents import BusId, Target, VendorProduct
from usb_proxy.kernel import USB_CLASS_HUB, USBDEVFS_RESET

TYPE_CHECKING = False
if TYPE_CHECKING:
    from usb_proxy.host import Host

DEVICES = "/sys/bus/usb/devices"
SERIAL_LIMIT = 126
"""A string descriptor has at most 255 bytes, two for each character (USB 2.0, 9.6.7)."""

VIRTUAL_CONTROLLER = "/vhci_hcd."


class UsbDevice:
    """One device, held by its open sysfs folder; a context manager.

    When the device goes everything here fails, and never reaches another one that took its port.
    """

    def __init__(self, host: Host, bus_id: BusId) -> None:
        self._host = host
        self.bus_id = bus_id
        self._pins: list[int] = []
        self._database: str | None = None
        self._identity: str | None = None
        link = f"{host.root}{DEVICES}/{bus_id}"
        try:
            self._folder = os.open(link, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise NoDeviceError("UP-301", target=bus_id) from error

    def __enter__(self) -> UsbDevice:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let it go."""
        for fd in (self._folder, *self._pins):
            os.close(fd)

    def become(self, successor: UsbDevice) -> None:
        """Stand for another device from here on, whose own object is used no more."""
        self.close()
        self.__dict__.update(successor.__dict__)

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

    def peer(self) -> BusId | None:
        """Its bus id if it came back at the other of USB 2 and USB 3; it may have gone.

        Both halves of a controller or hub have a port for the one that is seen from outside
        (Documentation/ABI/testing/sysfs-bus-usb, `peer`).
        """
        hub, number = self._hub(), self.port_number()
        name = hub.rpartition("/")[2]
        interface = f"{name[3:]}-0" if name.startswith("usb") else name
        try:
            link = os.readlink(f"{hub}/{interface}:1.0/{name}-port{number}/peer")
        except OSError:
            return None
        other, _, port = link.rpartition("/")[2].rpartition("-port")
        return BusId(f"{other[3:]}-{port}" if other.startswith("usb") else f"{other}.{port}")

    def _hub(self) -> str:
        """The folder of its hub, wherever the device is."""
        return os.readlink(f"/proc/self/fd/{self._folder}").rpartition("/")[0]

    def port_number(self) -> int:
        """The number of its port at its hub."""
        return int(self.bus_id.replace("-", ".").rpartition(".")[2])

    def identity(self) -> str:
        """Vendor, product and serial number, by which a device is known that comes back.

        Read once: it is what the device was when this was asked first.
        """
        if self._identity is None:
            try:
                untrusted_serial = self._host.read("serial", self._folder)
            except OSError:
                untrusted_serial = ""
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

        From udev's database, as libudev reads it (systemd, src/libsystemd/sd-device), read once.
        """
        if self._database is None:
            try:
                self._database = self._host.read(self._database_path())
            except OSError:
                self._database = ""
        prefix = f"E:{name}="
        for line in self._database.splitlines():
            if line.startswith(prefix):
                return line.removeprefix(prefix)
        return None

    def is_known_to_udev(self) -> bool:
        """Whether udev has noticed it, and so that whatever was there before has gone."""
        return self._host.exists(self._database_path())

    def _database_path(self) -> str:
        return f"/run/udev/data/c{self.attribute('dev')}"

    def reset(self) -> None:
        """Reset its port (USBDEVFS_RESET); the device keeps its bus id.

        NoDeviceError when it does not come back as what it was, SystemLackError without root.
        """
        try:
            fd = os.open(self._node(), os.O_WRONLY | os.O_CLOEXEC)
            try:
                self._host.control(fd, USBDEVFS_RESET)
            finally:
                os.close(fd)
        except PermissionError as error:
            raise SystemLackError("UP-708", tried="reset", device=self.bus_id) from error
        except OSError as error:
            raise NoDeviceError("UP-303", device=self.bus_id, reason=reason(error)) from error

    def hub_node(self) -> str:
        """The file of usbfs for its hub, also when the device has gone; OSError without a hub."""
        hub = self._hub().removeprefix(self._host.root)
        bus, device = (int(self._host.read(f"{hub}/{name}")) for name in ("busnum", "devnum"))
        return f"{self._host.root}/dev/bus/usb/{bus:03d}/{device:03d}"

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
