# SPDX-License-Identifier: GPL-2.0-or-later
"""What arrives is what was chosen: no driver gets an interface that was not announced.

dom0 announces what it showed and judged. The kernel gives an interface a driver only when it is
authorized (Documentation/usb/authorization.rst, "Interface authorization"); on a bus whose
`interface_authorized_default` is 0 that is ours to say. That switch is one for the whole bus: so
what others plug in there is authorized by a udev rule, which leaves alone what is *claimed* here.
All is files in root's own folder, so that it is found again after a death:
`gate-usbBUS` while the switch is ours, `announced-BUSID` for each device that is judged.
"""

from __future__ import annotations

from usb_proxy import journal, locks
from usb_proxy.errors import (
    ExitCode,
    NoDeviceError,
    PeerError,
    SystemLackError,
    UsbProxyError,
    reason,
)
from usb_proxy.frontend import descriptors, vhci
from usb_proxy.idents import Attachment, BusId
from usb_proxy.kernel import USB_CLASS_HUB
from usb_proxy.sysfs import DEVICES, UsbDevice

TYPE_CHECKING = False
if TYPE_CHECKING:
    from usb_proxy.frontend.vhci import Port
    from usb_proxy.host import Host
    from usb_proxy.idents import Announcement

ANY_INTERFACE = "/run/qubes-service/usb-proxy-any-interface"
"""With this qube service nothing is judged."""

GATE = "gate-usb"
CLAIM = "announced-"
LOCK = "bus-usb"
PROBE = "/sys/bus/usb/drivers_probe"
LOCK_SECONDS = 10.0


class Judge:
    """Judges one device, wherever it is plugged in; without `announced` everything is right.

    `entry` is that of its attachment in the journal, which is warned of what was not announced.
    `is_needed` tells whether it judges.
    """

    def __init__(self, host: Host, announced: Announcement | None, entry: journal.Entry) -> None:
        self._host = host
        self._announced = announced
        self._entry = entry
        self._warning: PeerError | None = None
        self._path = ""
        self._told: set[str] = set()
        self.is_needed = announced is not None and not host.exists(ANY_INTERFACE)

    def expect(self, port: Port) -> None:
        """Keep drivers from what comes to this port of vhci-hcd, and from no other any more.

        Before the kernel is given the device.
        """
        if not self.is_needed:
            return
        self.forget()
        self._path = vhci.device_path(self._host, port)
        bus_id = self._bus_id()
        attachment = Attachment(f"{self._entry.peer}-{self._entry.device}")
        with _lock(self._host, _bus(bus_id)):
            _write(self._host, CLAIM + bus_id, attachment)
            _close(self._host, _bus(bus_id))

    def _bus_id(self) -> str:
        """That of the port that was chosen, in this qube."""
        return self._path.rpartition("/")[2]

    def forget(self) -> None:
        """The device has gone from its port: the bus is as it was before."""
        if self._path:
            withdraw(self._host, self._bus_id())
            self._path = ""

    def judge(self) -> None:
        """Give drivers to the interfaces that were announced, and warn of others, each once.

        PeerError if it is another device than was announced, or none of its interfaces was.
        """
        if not self.is_needed:
            return
        with self._open() as device:
            self._judge(device)

    def verdict(self) -> bytes:
        """What to report of a device that can be used: an exit code, and the warning behind it."""
        if self._warning is None:
            return bytes([ExitCode.OK])
        return bytes([ExitCode.WARNING]) + str(self._warning).encode("ascii", "replace")

    def judge_again(self) -> None:
        """The same, of what the device may have become; not while it is away or changing."""
        if not self.is_needed:
            return
        try:
            with self._open() as device:
                if device.is_configured():
                    self._judge(device)
        except NoDeviceError:
            pass  # What comes next is announced anew.

    def _open(self) -> UsbDevice:
        """The device, held: what is read and what is authorized belong to the same one."""
        return UsbDevice(self._host, BusId(self._bus_id()))

    def _judge(self, device: UsbDevice) -> None:
        announced = self._announced
        path = f"{DEVICES}/{device.bus_id}/descriptors"
        try:
            untrusted_descriptors = self._host.read_long(path, descriptors.LIMIT)
        except OSError as error:
            raise device.failure("look at", error) from error
        # They are its own: it is still there.
        came, configuration = device.product(), device.attribute("bConfigurationValue")
        try:
            interfaces = descriptors.interfaces(untrusted_descriptors, int(configuration or "0"))
        except ValueError:
            came += " with descriptors that make no sense"
            raise PeerError("UP-640", announced=announced, came=came) from None
        kinds = sorted(set().union(*interfaces.values()))
        classes = {untrusted_descriptors[4:5].hex(), *(kind[:2] for kind in kinds)}
        shown = " ".join([came, *kinds[:8]])
        if announced is None or came != announced.product or USB_CLASS_HUB in classes:
            raise PeerError("UP-640", announced=announced, came=shown)
        allowed = {number for number, each in interfaces.items() if announced.covers(each)}
        if not allowed:
            raise PeerError("UP-641", announced=announced, came=shown)
        names = [f"{device.bus_id}:{configuration}.{number}" for number in sorted(allowed)]
        _authorize(self._host, device, names)
        others = {
            f"{configuration}.{number} ({' '.join(sorted(interfaces[number]))})"
            for number in interfaces.keys() - allowed
        }
        fresh = sorted(others - self._told)
        self._told |= others
        if fresh:
            self._warning = PeerError("UP-642", interfaces=", ".join(fresh))
            self._entry.warned(self._warning)


def withdraw(host: Host, bus_id: str) -> None:
    """Remove the claim on a port of this qube, if any, and open its bus if it was the last.

    SystemLackError when the kernel's file cannot be written.
    """
    if not _is_claimed(host, bus_id):
        return
    with _lock(host, _bus(bus_id)):
        host.remove(f"{locks.LOCKS}/{CLAIM}{bus_id}")
        _open_if_free(host, _bus(bus_id))


def _is_claimed(host: Host, bus_id: str) -> bool:
    return host.exists(f"{locks.LOCKS}/{CLAIM}{bus_id}")


def withdraw_all(host: Host, attachment: Attachment) -> None:
    """Withdraw what a dead importer of this attachment has claimed; its lock must be held."""
    for bus_id, claimed_for in claims(host).items():
        if claimed_for == attachment:
            withdraw(host, bus_id)


def repair(host: Host) -> None:
    """Withdraw the claims of dead importers but for what is still there; open buses without any."""
    for bus_id, attachment in claims(host).items():
        lock = locks.Lock(host, locks.IMPORT + attachment)
        if not host.exists(f"{DEVICES}/{bus_id}") and lock.acquire(0):
            with lock:
                withdraw(host, bus_id)
    for name in host.listing(locks.LOCKS):
        bus = name.removeprefix(GATE).removeprefix(LOCK).removesuffix(".lock")
        if bus != name and bus.isdigit():
            with _lock(host, bus):
                _open_if_free(host, bus)


def claims(host: Host) -> dict[str, str]:
    """All claims: the bus id in this qube, and the attachment that it is for."""
    found = {}
    for name in host.listing(locks.LOCKS):
        try:
            if name.startswith(CLAIM):
                found[name.removeprefix(CLAIM)] = host.read(f"{locks.LOCKS}/{name}").strip()
        except FileNotFoundError:
            pass  # It has been withdrawn meanwhile.
    return found


def unannounced(host: Host, device: UsbDevice) -> list[str]:
    """The interfaces of a device that have no driver because they were not announced."""
    return unauthorized(host, device) if _is_claimed(host, device.bus_id) else []


def unauthorized(host: Host, device: UsbDevice) -> list[str]:
    """The interfaces of a device that no driver may have."""
    found = []
    for name in host.listing(f"{DEVICES}/{device.bus_id}"):
        try:
            if ":" in name and device.attribute(f"{name}/authorized") == "0":
                found.append(name)
        except UsbProxyError:
            pass  # It has gone, or the kernel has no such file.
    return found


def _authorize(host: Host, device: UsbDevice, interfaces: list[str]) -> None:
    """Let drivers have interfaces, and look for some; nothing for one that has just gone.

    All of them first: a driver may claim another interface beside that which it is offered, as
    network cards and modems have it (drivers/usb/core/driver.c, usb_driver_claim_interface).
    """
    fresh = [name for name in unauthorized(host, device) if name in interfaces]
    for name in fresh:
        try:
            device.write(f"{name}/authorized", "1", "authorize")
        except UsbProxyError:
            if name in unauthorized(host, device):
                raise
    for name in fresh:
        try:
            host.write(PROBE, name)
        except OSError:
            pass  # A driver failed, as the kernel's log tells, or it has gone.


def _lock(host: Host, bus: str) -> locks.Lock:
    """Whoever changes a bus has it alone."""
    lock = locks.Lock(host, LOCK + bus)
    if not lock.acquire(LOCK_SECONDS):
        raise SystemLackError("UP-755", bus=bus)
    return lock


def _bus(bus_id: str) -> str:
    return bus_id.partition("-")[0]


def _switch(bus: str) -> str:
    """The kernel's file that says whether interfaces of a bus are authorized by default."""
    return f"{DEVICES}/usb{bus}/interface_authorized_default"


def _close(host: Host, bus: str) -> None:
    """Authorize no interface of a bus by default, and note that if it is our doing."""
    switch = _switch(bus)
    try:
        if host.read(switch).strip() != "0":
            _write(host, GATE + bus, "")
            host.write(switch, "0")
    except OSError as error:
        raise SystemLackError("UP-756", path=switch, reason=reason(error)) from error


def _open_if_free(host: Host, bus: str) -> None:
    """Undo `_close` once nothing is claimed on the bus; all the same if vhci-hcd was unloaded.

    Authorizes what others plugged in meanwhile and udev has not seen yet.
    """
    gate = f"{locks.LOCKS}/{GATE}{bus}"
    names = host.listing(locks.LOCKS)
    if not host.exists(gate) or any(name.startswith(f"{CLAIM}{bus}-") for name in names):
        return
    switch = _switch(bus)
    try:
        if host.exists(switch):
            host.write(switch, "1")
        host.remove(gate)
        names = host.listing(DEVICES)
        for name in [name for name in names if name.startswith(f"{bus}-") and ":" not in name]:
            try:
                with UsbDevice(host, BusId(name)) as device:
                    _authorize(host, device, unauthorized(host, device))
            except NoDeviceError:
                pass  # It has just gone.
    except OSError as error:
        raise SystemLackError("UP-756", path=switch, reason=reason(error)) from error


def _write(host: Host, name: str, text: str) -> None:
    host.make_file(f"{locks.LOCKS}/{name}", text)
